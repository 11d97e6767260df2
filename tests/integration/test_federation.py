"""A federation as docs/coordinator.md and docs/site.md set it up: every step is a command that they give."""

import json
import shutil
import signal
import sqlite3
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from deployment.supervisor import running
from runtime.fab import build_fab
from runtime.flower import QUIET
from server.journal import Journal
from study.settings import load_study
from tests.support.deployment import SMALL, Deployment, needs_nginx
from tests.support.programs import start, wait_until

pytestmark = [pytest.mark.slow, needs_nginx]
SITES = ("aalborg", "bergen", "coimbra")
REFUSED = "site.code-not-approved"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, small_cohorts) -> Iterator[Deployment]:
    """Three hospitals that are online."""
    with Deployment(tmp_path_factory.mktemp("federation")).running(small_cohorts) as made:
        yield made


def test_a_study_with_secure_sums_equals_the_same_study_in_one_process(deployment, finished_run):
    study = deployment.study("small")
    code_hash = deployment.approve(study)
    for name in SITES:
        said = deployment.command("site", "check", f"{name}/site.yaml", "--study", study)
        assert "checks passed" in said
        assert f"small {code_hash[:12]}" in said
    assert "online all 3 sites" in deployment.command("federation", "check", "nordic")

    assert f"App: {code_hash}" in deployment.command("run", study, "--federation", "nordic", "--runs", "runs")

    (folder,) = (deployment.folder / "runs" / "small").iterdir()
    assert Journal(folder).checkpoint(2).read_bytes() == finished_run.journal.checkpoint(2).read_bytes()
    assert (folder / "report.html").is_file()
    assert not (folder / "sites").exists()  # what a site keeps is at the site
    listed = deployment.start("flwr", "list", "nordic", "--format", "json")
    assert code_hash[:8] in listed.communicate(timeout=60)[0]
    for name in SITES:
        audit = (deployment.folder / name / "state" / "audit.jsonl").read_text()
        assert '"masked": true' in audit
        assert '"event": "refusal"' not in audit


def test_an_app_that_no_site_approved_is_refused_by_all(deployment):
    said = deployment.command(
        "run", deployment.study("other", seed=6), "--federation", "nordic", "--runs", "unapproved", code=1
    )

    assert said.count(REFUSED) == 3
    for name in SITES:
        assert "is not approved. Look at it" in (deployment.folder / name / "state" / "site.log").read_text()


def test_an_app_that_was_changed_on_the_coordinator_is_refused_by_all(deployment):
    """The SuperLink's database holds other bytes under the hash that the sites approved."""
    study = deployment.study("tampered", seed=7)
    code_hash = deployment.approve(study)
    changed = build_fab(load_study(study)) + b"\0"
    with sqlite3.connect(deployment.folder / "nordic" / "superlink.sqlite") as database:
        database.execute("CREATE TABLE forged (hash TEXT, content BLOB)")
        database.execute("INSERT INTO forged VALUES (?, ?)", (code_hash, changed))
        # The SuperLink writes the right bytes when the run is submitted, and the ServerApp runs them; they are changed
        # in the moment in which it asks the sites.
        database.execute(
            "CREATE TRIGGER forge AFTER INSERT ON message_ins BEGIN UPDATE fab "
            "SET content = (SELECT content FROM forged WHERE hash = fab_hash) "
            "WHERE fab_hash IN (SELECT hash FROM forged); END"
        )

    said = deployment.command("run", study, "--federation", "nordic", "--runs", "tampered", code=1)

    assert said.count(REFUSED) == 3


def test_stopping_the_command_stops_the_run_on_the_federation(deployment):
    study = deployment.study("small", averaging={**SMALL["averaging"], "rounds": 500})
    deployment.approve(study)
    run = deployment.start("fedbrainlm", "run", study, "--federation", "nordic", "--runs", "stopped")
    assert wait_until(lambda: list(deployment.folder.glob("stopped/small/*/checkpoints/round-0001*")), 180)

    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)

    assert run.returncode == 130
    listed = deployment.start("flwr", "list", "nordic", "--format", "json").communicate(timeout=60)[0]
    assert [one["status"] for one in json.loads(listed)["runs"]].count("finished:stopped") == 1
    (folder,) = deployment.folder.glob("stopped/small/*")
    assert Journal(folder).progress().status == "stopped"


def test_nobody_starts_a_run_or_registers_from_outside(deployment):
    home, app = deployment.folder / "outside", deployment.folder / "outside-app"
    home.mkdir()
    authority = deployment.federation.authority.ca_certificate
    (home / "config.toml").write_text(
        f'[superlink.edge]\naddress = "{deployment.edge}"\nroot-certificates = "{authority}"\n'
    )
    with (deployment.folder / "outside.fab").open("wb") as file:
        file.write(build_fab(load_study(deployment.study("outside"))))
    shutil.unpack_archive(deployment.folder / "outside.fab", app, "zip")

    run = start("flwr", "run", app, "edge", folder=deployment.folder, **{**QUIET, "FLWR_HOME": home})

    assert "403 Forbidden" in "".join(run.communicate(timeout=60))
    for path in ("control/list-nodes", "runtime/acquire-task", "fleet/register-node", "fleet/unregister-node"):
        assert post(f"https://{deployment.edge}/v1/{path}", authority) == 403


def test_a_program_without_the_secret_is_given_no_task(deployment):
    """Neither by the SuperLink nor by a SuperNode."""
    authority = deployment.federation.authority.ca_certificate
    assert post(f"https://{deployment.federation.superlink}/v1/runtime/acquire-task", authority) == 401
    settings = yaml.safe_load((deployment.folder / "aalborg" / "site.yaml").read_text())
    assert post(f"http://127.0.0.1:{settings['supernode']['port']}/v1/runtime/acquire-task", None) == 401

    where = ("--runtime-api-address", deployment.federation.superlink, "--root-certificates", authority)
    rogue = start("flower-superexec", *where, folder=deployment.folder, **{**QUIET, "FLWR_HOME": "rogue"})
    log = deployment.folder / "nordic" / "logs" / "superlink.log"
    before = log.read_text().count('acquire-task HTTP/1.1" 401')
    try:
        assert wait_until(lambda: log.read_text().count('acquire-task HTTP/1.1" 401') > before, 60)
    finally:
        rogue.terminate()
        rogue.communicate(timeout=30)


def test_a_site_with_another_key_or_authority_is_kept_out(deployment, small_cohorts):
    path = deployment.set_up_site("oslo", small_cohorts[0])
    deployment.command("site", "join", path, strip_roster(deployment), "--by", "Anna Berg", "--yes")

    said = deployment.command("site", "check", path, code=1)
    assert "fail authentication the coordinator does not know this site's SuperNode key" in said
    deployment.start_node("oslo")
    deployment.nodes["oslo"].wait(timeout=60)
    assert "2004" in (deployment.folder / "oslo.log").read_text()

    other = Deployment(deployment.folder / "other")
    other.folder.mkdir()
    other.command("federation", "init", "nordic", "--name", "nordic", "--host", "localhost")
    (path.parent / "state" / "ca.crt").write_text(other.federation.authority.ca_certificate.read_text())
    said = deployment.command("site", "check", path, code=1)
    assert "fail TLS the coordinator's certificate is refused" in said


def test_a_revoked_site_is_put_out_for_good(deployment, small_cohorts):
    path = deployment.set_up_site("turku", small_cohorts[0])
    bundle = f"turku/{path.parent.name}.bundle.json"
    assert "Registered." in deployment.command("federation", "add-site", "nordic", bundle)
    deployment.command("site", "join", path, strip_roster(deployment), "--by", "Anna Berg", "--yes")
    deployment.start_node("turku")
    assert wait_until(lambda: deployment.status("turku") == "online", 60)

    deployment.command("federation", "revoke-site", "nordic", "turku")

    deployment.nodes["turku"].wait(timeout=120)  # by itself: its heartbeats are refused
    assert "revoked it" in deployment.command("site", "check", path, code=1)
    assert deployment.status("turku").startswith("revoked")
    assert "its SuperNode key was revoked" in deployment.command("federation", "add-site", "nordic", bundle, code=2)


def test_an_expired_certificate_is_refused_and_renewed(deployment):
    """Last: the federation is restarted, and its sites come back; a SuperNode that met the certificate has ended."""
    federation = deployment.federation
    federation.authority.renew("localhost", timedelta(seconds=-1))
    running(federation, "edge").send_signal(signal.SIGHUP)  # nginx reads its certificate anew
    assert wait_until(lambda: "certificate has expired" in deployment.check("aalborg"), 30)
    assert "fail certificate expired" in deployment.command("federation", "check", "nordic", code=1)
    deployment.command("federation", "stop", "nordic")
    assert "has expired. Use" in deployment.command("federation", "start", "nordic", code=2)

    deployment.command("federation", "renew", "nordic")
    coordinator = deployment.start("fedbrainlm", "federation", "start", "nordic", "--foreground")

    try:
        assert wait_until(lambda: deployment.start_ended_nodes() or deployment.all_online(), 300)
    finally:
        coordinator.terminate()
    assert "Stopped." in coordinator.communicate(timeout=60)[0]
    assert coordinator.returncode == 0
    assert "superlink: not running" in deployment.command("federation", "status", "nordic")


def strip_roster(deployment: Deployment) -> Path:
    """The coordinator's package as it was before there was a roster."""
    package = json.loads((deployment.folder / "nordic.join.json").read_text())
    path = deployment.folder / "early.join.json"
    path.write_text(json.dumps({**package, "roster": None}))
    return path


def post(url: str, authority: Path | None) -> int:
    headers = {"content-type": "application/protobuf"}
    verify = ssl.create_default_context(cafile=authority) if authority else True
    return httpx.post(url, content=b"", headers=headers, verify=verify, timeout=30).status_code
