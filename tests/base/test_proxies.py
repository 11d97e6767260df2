import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from base.errors import InputError, SettingsError
from base.proxies import DIRECT, Proxy, impose, only, proxy_to, sparing_this_machine, through
from base.settings import check_settings
from client.settings import SiteSettings

EDGE = "coordinator.example.org:443"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def environment(monkeypatch):
    """Set what the environment says of proxies, and nothing else of them."""

    def set_to(**said: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in said.items():
            monkeypatch.setenv(name, value)

    set_to()
    return set_to


@pytest.mark.parametrize(
    ("said", "setting", "found"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://p:1"}, None, None),  # for pages without TLS
        ({"HTTPS_PROXY": "http://p:3128"}, None, ("http://p:3128", "HTTPS_PROXY")),
        ({"https_proxy": "http://l:1", "HTTPS_PROXY": "http://u:1"}, None, ("http://l:1", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "proxy.hospital.example:3128"}, None, ("http://proxy.hospital.example:3128", "HTTPS_PROXY")),
        ({"ALL_PROXY": "https://p"}, None, ("https://p:443", "ALL_PROXY")),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "localhost, .example.org"}, None, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com"}, None, ("http://p:1", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://s:2", ("http://s:2", "supernode.proxy")),
        ({"HTTPS_PROXY": "http://p:1"}, DIRECT, None),
        ({}, "http://anna:b%40rg@[::1]:3128", ("http://[::1]:3128", "supernode.proxy")),
    ],
)
def test_the_setting_goes_before_the_environment(environment, said, setting, found):
    environment(**said)
    proxy = proxy_to(EDGE, setting)
    assert (proxy and (str(proxy), proxy.named_by)) == found


@pytest.mark.parametrize("own", ["127.0.0.1:443", "localhost:443"])
def test_no_proxy_is_asked_for_this_machine(environment, own):
    environment(HTTPS_PROXY="http://p:1", ALL_PROXY="http://p:1")
    assert proxy_to(own, None) is proxy_to(own, "http://p:1") is None


@pytest.mark.parametrize(
    "wrong", ["socks5://p:1080", "http://", "http://p:x", "http://anna:s@cr#t@p:3128", "ftp://p:1"]
)
def test_what_is_no_proxy_is_said_without_the_password(environment, wrong):
    environment(HTTPS_PROXY=wrong)
    with pytest.raises(InputError, match=r"HTTPS_PROXY: expected http://HOST:PORT.*supernode\.proxy") as refused:
        proxy_to(EDGE, None)
    settings = {"name": "a", "cohort": "c", "state": "s", "supernode": {"proxy": wrong}}
    with pytest.raises(SettingsError, match=r"'supernode\.proxy': expected http://HOST:PORT.*or direct") as of_settings:
        check_settings(settings, SiteSettings, "site.yaml")
    assert "cr#t" not in f"{refused.value} {of_settings.value}"
    proxy = Proxy.read("http://anna:secret@p:1", "x")
    assert "secret" not in f"{proxy!r} {proxy}"


def test_a_proxy_alone_stands_in_an_environment(environment):
    given = {"PATH": "/bin", "http_proxy": "http://x:1", "ALL_PROXY": "socks5://y:1", "No_Proxy": "z"}
    own = "localhost,127.0.0.1,::1"

    assert only(None, given) == {"PATH": "/bin", "no_proxy": own, "NO_PROXY": own}
    url = "http://anna:secret@p:1"
    there = {"no_proxy": own, "NO_PROXY": own, "https_proxy": url, "HTTPS_PROXY": url}
    assert only(Proxy.read(url, "x"), given) == {"PATH": "/bin", **there}

    environment(HTTPS_PROXY="http://before:1", no_proxy="kept")
    with through(Proxy.read(url, "x")):
        assert {name: value for name, value in os.environ.items() if name.lower() in NAMES} == there
    assert {name: value for name, value in os.environ.items() if name.lower() in NAMES} == {
        "HTTPS_PROXY": "http://before:1",
        "no_proxy": "kept",
    }
    impose(None)
    assert "HTTPS_PROXY" not in os.environ


def test_what_the_user_has_stays_and_this_machine_is_spared():
    said = sparing_this_machine(
        {"HTTP_PROXY": "http://p:1", "NO_PROXY": "example.com, 127.0.0.1", "all_proxy": "socks5://s:1"}
    )

    assert said["HTTP_PROXY"] == "http://p:1"
    assert said["no_proxy"] == said["NO_PROXY"] == "example.com,127.0.0.1,localhost,::1"
    assert "all_proxy" not in said  # Flower's clients do not even begin where they find it
    assert sparing_this_machine({"no_proxy": "", "NO_PROXY": "x"})["NO_PROXY"] == "localhost,127.0.0.1,::1"


@pytest.mark.parametrize("name", [*NAMES[:3], *(name.upper() for name in NAMES[:3])])
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_flowers_kind_of_client_reaches_this_machine_whatever_proxies_are_named(monkeypatch, environment, name, url):
    class Here(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    environment(**{name: url})
    with HTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for spared in (sparing_this_machine(os.environ), only(None, os.environ)):
            environment(**{key: value for key, value in spared.items() if key.lower() in NAMES})
            assert httpx.get(f"http://127.0.0.1:{server.server_port}/").is_success
        server.shutdown()
