"""The Dockerfile and the compose files, as the tools that read them see them. Starts no container."""

import subprocess

import pytest

from tests.support.containers import DOCKER, compose
from tests.support.programs import PROGRAMS

FILES = ("coordinator", "hospital", "demo")


SERVICES = [(file, name) for file in FILES for name in compose(file)]


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([PROGRAMS / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_every_service_is_hardened(file, name):
    service = compose(file)[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["mem_limit"]) > 0
    assert 0 < service["pids_limit"] <= 1024
    assert service["init"] is True
    assert "privileged" not in service
    assert service.get("network_mode") != "host"
    if (file, name) == ("demo", "owner"):  # gives new volumes to the others' user, and can do nothing else
        assert (service["user"], service["cap_add"], service["network_mode"]) == ("0:0", ["CHOWN"], "none")
    else:
        assert service["user"] == "10001:10001"
        assert "cap_add" not in service


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_whatever_sees_recordings_has_no_network_and_cannot_change_them(file, name):
    service = compose(file)[name]
    recordings = [mount for mount in service["volumes"] if "cohort" in mount["source"]]
    if not recordings:
        return
    assert service["network_mode"] == "none"
    if (file, name) not in {("demo", "owner"), ("demo", "provision")}:  # which make the simulated ones
        assert all(mount["read_only"] for mount in recordings)


def test_a_hospital_shows_its_recordings_to_the_apps_alone_and_opens_no_port():
    hospital = compose("hospital")
    assert hospital["admin"]["profiles"] == ["admin"]  # runs by hand alone
    targets = {
        name: {mount["target"]: mount.get("read_only", False) for mount in service["volumes"]}
        for name, service in hospital.items()
    }
    assert targets["supernode"] == {"/site": True, "/site/state": False}  # its policy is not its own to change
    assert targets["app"] == {"/site": True, "/site/state": False, "/cohort": True}
    assert hospital["app"]["network_mode"] == "none"
    assert not any("ports" in service for service in hospital.values())


def test_the_edge_s_port_is_the_only_one_that_is_published():
    (port,) = compose("coordinator")["coordinator"]["ports"]
    assert (port["target"], port["published"]) == (443, "443")
    assert not any("ports" in service for service in compose("demo").values())


def test_nothing_but_what_the_dockerfile_copies_gets_into_the_build():
    lines = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert allowed == copied


def test_a_networks_proxy_is_named_to_the_supernode_alone():
    def environments(**variables: str) -> dict[str, dict[str, str]]:
        services = compose("hospital", **variables)
        return {
            name: {key: value for key, value in (service.get("environment") or {}).items() if value is not None}
            for name, service in services.items()
        }

    named = {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "a.example"}
    assert environments(**named) == {"supernode": named, "app": {}, "admin": {}}
    assert environments()["supernode"] == {}
