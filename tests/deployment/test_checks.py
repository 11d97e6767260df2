"""Preflight: each fault has its line and its remedy, and none makes it hang."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest
import typer
import yaml

from base.errors import InputError
from cli.main import run_command
from client.keys.joining import authority_path, join
from client.site import load_site
from deployment import probes
from deployment.authority import Authority
from deployment.checks import Check, attempt, expiry, report
from deployment.coordinator import Federation
from deployment.federation_checks import checks as federation_checks
from deployment.site_checks import checks
from exchange.bundle import JoinPackage
from tests.support.apps import Signer
from tests.support.federation import STUDY
from tests.support.programs import free_port
from tests.support.proxies import proxy
from tests.support.servers import serve


class Edge(BaseHTTPRequestHandler):
    """An edge that answers 403 to all."""

    date = ""

    def do_GET(self) -> None:
        self.send_response_only(403)
        self.send_header("Date", self.date or self.date_time_string())
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 (names of the standard library)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path) -> Authority:
    made = Authority(tmp_path / "keys")
    made.make("north", "localhost")
    return made


@pytest.fixture
def site(tmp_path, small_cohorts, monkeypatch):
    """A site that is ready but for the federation."""
    monkeypatch.chdir(tmp_path)
    assert run_command(["site", "init", "aalborg", "--name", "aalborg", "--cohort", str(small_cohorts[0])]) == 0
    change(tmp_path / "aalborg" / "site.yaml", policy={"studies": ["small"]})
    return tmp_path / "aalborg" / "site.yaml"


def change(path, **parts: object) -> None:
    settings = yaml.safe_load(path.read_text())
    for name, value in parts.items():
        settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture
def edge(authority) -> Iterator[int]:
    with serve(authority, Edge) as port:
        yield port


def joined(site, authority: Authority, address: str) -> None:
    at = load_site(site)
    pem = authority.ca_certificate.read_text()
    join(at.state, at.audit, JoinPackage(federation="north", address=address, ca_certificate=pem), "Anna")


def found(site, study=None) -> dict[str, str]:
    return {check.what: f"{check.verdict} {check.said}" for check in checks(site, study)}


def test_a_site_that_is_ready_passes_up_to_the_key_that_this_edge_does_not_know(site, authority, edge, tmp_path):
    joined(site, authority, f"localhost:{edge}")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))

    said = found(site, tmp_path / "study.yaml")

    at_home = ["settings", "versions", "cohort", "policy", "keys", "disk", "device", "study"]
    expected = [*at_home, "federation", "DNS", "TCP", "TLS", "clock"]
    assert [name for name in expected if not said[name].startswith("pass")] == []
    assert said["roster"].startswith("warn none is approved")
    assert said["approved apps"].startswith("warn none")
    assert said["authentication"].startswith("fail the coordinator's edge refuses the request")
    assert list(said)[-1] == "authentication"


def test_faults_at_home_are_said_with_their_remedy(site, tmp_path):
    assert "has joined no federation" in found(site)["federation"]

    change(site, policy={"min_participants": 100, "studies": [], "secure_sum_required": False})
    (tmp_path / "aalborg" / "state" / "supernode.key").chmod(0o644)
    (tmp_path / "aalborg" / "state" / "audit.jsonl").write_text("none\n")
    said = found(site)
    assert said["cohort"].startswith("fail 21 participants")
    assert said["policy"].startswith("warn policy.studies is empty")
    assert "chmod 600" in said["keys"]
    assert said["audit log"].startswith("fail broken")

    change(site, device="cuda", cohort="nowhere", policy={"studies": ["*"]})
    said = found(site)
    assert said["device"].startswith("fail")
    assert said["cohort"].startswith("fail")
    assert "NOT required" in said["policy"]
    site.write_text("nme: x")
    assert list(found(site)) == ["settings"]
    assert run_command(["site", "check", str(site)]) == 1


def test_an_app_is_ready_once_as_many_as_the_policy_asks_for_approved_it(site, tmp_path):
    study, app = tmp_path / "study.yaml", tmp_path / "small.fab"
    study.write_text(yaml.safe_dump(STUDY))
    assert run_command(["study", "build", str(study), "--out", str(app)]) == 0
    people = {name: Signer(tmp_path, name) for name in ("anna", "bo")}
    change(site, policy={"approvers": [one.line for one in people.values()], "min_approvers": 2})
    approvals = load_site(site).approvals

    approvals.approve(app.read_bytes(), "Anna", "small", people["anna"].sign(app.read_bytes()))
    said = found(site, study)
    assert said["approved apps"].startswith("warn none")
    assert "1 more must approve it" in said["its app"]

    approvals.approve(app.read_bytes(), "Bo", "small", people["bo"].sign(app.read_bytes()))
    said = found(site, study)
    assert said["approved apps"].startswith("pass small ")
    assert said["its app"].startswith("pass")


def test_of_two_containers_each_looks_at_what_it_has(site, authority, edge, tmp_path):
    joined(site, authority, f"localhost:{edge}")
    change(site, supernode={"executor": "elsewhere"})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    said = found(site, tmp_path / "study.yaml")
    assert said["cohort"].startswith("pass")
    assert said["study"].startswith("pass")
    assert said["federation"].startswith("skip no network")
    assert "DNS" not in said

    change(site, cohort="nowhere")
    said = found(site, tmp_path / "study.yaml")
    assert said["cohort"].startswith("skip not here")
    assert "study" not in said
    assert said["TLS"].startswith("pass")


def test_a_study_that_the_policy_or_the_cohort_does_not_fit_is_said(site, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "study": "other"}))
    assert "study 'other' is not in policy.studies" in found(site, tmp_path / "study.yaml")["study"]

    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "cohort": {"atlases": ["aal116"]}}))
    assert "has atlas schaefer100; the study allows aal116" in found(site, tmp_path / "study.yaml")["study"]


def test_the_way_to_the_coordinator_ends_at_the_first_fault(site, authority, edge, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "WAIT_S", 0.5)
    joined(site, authority, "no-such-host.invalid:443")
    assert last(site) == ("DNS", "fail")
    joined(site, authority, f"127.0.0.1:{free_port()}")
    assert last(site) == ("TCP", "fail")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        joined(site, authority, f"127.0.0.1:{silent.getsockname()[1]}")
        assert last(site) == ("TLS", "fail")

    other = Authority(tmp_path / "other")
    other.make("north", "localhost")
    joined(site, authority, f"localhost:{edge}")
    authority_path(load_site(site).state).write_text(other.ca_certificate.read_text())
    assert last(site) == ("TLS", "fail")


@pytest.mark.parametrize(
    ("life", "expected"),
    [(timedelta(seconds=-1), "fail the coordinator's"), (timedelta(days=5), "warn expires in 4 days")],
)
def test_a_certificate_that_ends_is_said(site, authority, life, expected):
    authority.renew("localhost", life)
    with serve(authority, Edge) as port:
        joined(site, authority, f"localhost:{port}")
        assert found(site)["TLS"].startswith(expected)


def test_a_clock_that_is_wrong_is_said(site, authority):
    class Later(Edge):
        date = "Fri, 01 Jan 2100 00:00:00 GMT"

    with serve(authority, Later) as port:
        joined(site, authority, f"localhost:{port}")
        assert "Switch time synchronisation on" in found(site)["clock"]


def last(site) -> tuple[str, str]:
    *_, check = checks(site, None)
    return check.what, check.verdict


def test_a_federation_at_rest_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["federation", "init", "north", "--name", "north", "--host", "localhost"]) == 0
    federation = Federation(tmp_path / "north")
    federation.authority.ca_key.chmod(0o644)
    federation.authority.renew("localhost", timedelta(seconds=-1))

    said = {check.what: f"{check.verdict} {check.said}" for check in federation_checks(federation)}

    assert "chmod 600" in said["keys"]
    assert said["certificate"].startswith("fail expired")
    assert "federation renew" in said["certificate"]
    assert said["sites"].startswith("warn 0; secure sums need 3")
    assert said["SuperLink"].startswith("fail does not answer")
    assert run_command(["federation", "check", "north"]) == 1


def made(*verdicts: str) -> list[Check]:
    return [Check(f"thing {number}", verdict, "said") for number, verdict in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("verdicts", "said", "code", "strict_code"),
    [
        (["pass"] * 3, "All 3 checks passed.", 0, 0),
        (["pass", "warn", "pass", "warn"], "2 passed, 2 need you.", 0, 1),
        (["pass", "warn"], "1 passed, 1 needs you.", 0, 1),
        (["pass", "skip"], "1 passed, 1 not looked at here.", 0, 0),
        (["warn", "fail", "pass"], "1 passed, 1 failed, 1 needs you.", 1, 1),
        (["fail"], "1 failed.", 1, 1),
    ],
)
def test_the_last_line_and_the_exit_code_say_what_is_left_to_do(capsys, verdicts, said, code, strict_code):
    for strict, expected in ((False, code), (True, strict_code)):
        ended = 0
        try:
            report(made(*verdicts), strict=strict)
        except typer.Exit as end:
            ended = end.exit_code
        assert ended == expected
        assert capsys.readouterr().out.splitlines()[-1] == said


def test_an_expected_error_is_a_failure_and_another_one_is_not_hidden():
    def wrong() -> None:
        raise InputError("no. Do this.")

    assert attempt("x", wrong).said == "no. Do this."
    with pytest.raises(ZeroDivisionError):
        attempt("x", lambda: 1 / 0)


def test_certificates_warn_a_month_before_they_end():
    assert [expiry(days, "Renew.")[0] for days in (-1, 0, 29, 30)] == ["fail", "warn", "warn", "pass"]


COORDINATOR = "coordinator.invalid"


@pytest.fixture
def behind(site, authority, monkeypatch):
    """Have the site's network lead to the coordinator through a proxy alone: nobody else knows its name."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    authority.renew(COORDINATOR)
    with serve(authority, Edge) as port:
        joined(site, authority, f"{COORDINATOR}:{port}")
        yield lambda **kind: proxy(**{"names": {COORDINATOR: "127.0.0.1"}, **kind})


def test_the_way_through_a_proxy_is_looked_at_where_the_network_has_one(site, behind, monkeypatch):
    assert last(site) == ("DNS", "fail")  # there is no other way
    with behind() as through:
        monkeypatch.setenv("HTTPS_PROXY", through.url)
        said = found(site)
        assert said["proxy"] == f"pass {through.url}, as HTTPS_PROXY says"
        assert said["DNS"] == f"pass 127.0.0.1 is 127.0.0.1; {COORDINATOR} is the proxy's to find"
        assert said["TCP"] == f"pass port {through.port} of the proxy is open"
        assert said["CONNECT"].startswith(f"pass the proxy leads on to {COORDINATOR}:")
        assert [said[step][:4] for step in ("TLS", "clock")] == ["pass", "pass"]
        assert said["authentication"].startswith("fail the coordinator's edge refuses the request")  # Flower's client

        change(site, supernode={"proxy": "direct"})
        assert last(site) == ("DNS", "fail")
        monkeypatch.delenv("HTTPS_PROXY")
        change(site, supernode={"proxy": through.url})
        assert found(site)["proxy"] == f"pass {through.url}, as supernode.proxy says"
        assert last(site)[0] == "authentication"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"answer": (403, "Forbidden")}, "does not lead on to coordinator.invalid"),
        ({"answer": (502, "Bad Gateway")}, "does not reach coordinator.invalid"),
        ({"answer": (504, "Gateway Timeout")}, "does not reach coordinator.invalid"),
        ({"names": {}}, "does not reach coordinator.invalid"),
        ({"sign_in": "anna:p@ss"}, "wants a user and a password (407 Proxy Authentication Required)"),
    ],
)
def test_what_a_proxy_refuses_is_said(site, behind, kind, said):
    with behind(**kind) as through:
        change(site, supernode={"proxy": through.url})
        assert last(site) == ("CONNECT", "fail")
        assert said in found(site)["CONNECT"]


def test_a_proxy_that_wants_a_password_gets_it_from_settings_that_nobody_else_reads(site, behind):
    with behind(sign_in="anna:p@ss") as through:
        named = through.url.replace("//", "//anna:{}@")
        change(site, supernode={"proxy": named.format("wrong")})
        site.chmod(0o644)
        assert "others may read the proxy's password. Run 'chmod 600" in found(site)["proxy"]
        site.chmod(0o600)
        assert "does not take the user and password of supernode.proxy" in found(site)["CONNECT"]
        change(site, supernode={"proxy": named.format("p%40ss")})
        assert last(site)[0] == "authentication"
        assert "p%40ss" not in str(found(site))


def test_a_proxy_that_opens_tls_is_known_by_who_signed(site, behind, tmp_path):
    own = Authority(tmp_path / "proxys")
    own.make("Hospital Security", COORDINATOR)
    with behind(opens_tls=own) as through:
        change(site, supernode={"proxy": through.url})
        said = found(site)["TLS"]
    assert said.startswith("fail the coordinator's certificate is refused")
    assert "It is signed by CN=Hospital Security" in said
    assert f"Let its administrator except {COORDINATOR}." in said


def test_the_way_to_the_proxy_may_be_encrypted_too(site, behind, tmp_path, monkeypatch):
    own = Authority(tmp_path / "proxys")
    own.make("Hospital", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(own.ca_certificate))  # as if the system trusted it
    with behind(certificate=own) as through:
        change(site, supernode={"proxy": f"https://localhost:{through.port}"})
        assert last(site)[0] == "authentication"
        monkeypatch.delenv("SSL_CERT_FILE")
        assert last(site) == ("CONNECT", "fail")


def test_what_is_no_proxy_is_told_from_one(site, behind, authority, monkeypatch):
    monkeypatch.setattr(probes, "WAIT_S", 0.5)
    change(site, supernode={"proxy": f"http://127.0.0.1:{free_port()}"})
    assert last(site) == ("TCP", "fail")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        change(site, supernode={"proxy": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        assert "answers as no proxy does" in found(site)["CONNECT"]
    change(site, supernode={"proxy": None})
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    assert found(site)["proxy"].startswith("fail HTTPS_PROXY: expected http://HOST:PORT")
    assert run_command(["site", "start", str(site)]) == 2
