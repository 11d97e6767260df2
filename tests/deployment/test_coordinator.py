import shutil
import subprocess
from dataclasses import replace

import pytest

from base.errors import InputError
from cli.main import run_command
from deployment.coordinator import Federation, FederationSettings, registered_names
from runtime.flower import flower_home


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a federation in a folder below a temporary one."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return lambda name="north", **settings: Federation.make(
        tmp_path / name, FederationSettings(name=name, host="localhost", port=18443, **settings)
    )


def test_clients_show_certificates_where_an_authority_of_theirs_is_named(make):
    text = make().nginx_configuration()

    assert "{{" not in text
    assert "listen 18443 ssl;" in text
    assert " 429" not in text  # a SuperNode would end
    assert "ssl_verify_client on;" not in text
    text = make("guarded", client_authority="/etc/clients.crt").nginx_configuration()
    assert "ssl_client_certificate /etc/clients.crt;" in text
    assert "ssl_verify_client on;" in text


@pytest.mark.parametrize("name", ["a b", "a;", "a{", "a\n", 'a"', "$a"])
def test_a_path_cannot_bring_settings_of_its_own(make, name):
    with pytest.raises(InputError, match="Choose another folder"):
        make(client_authority=name)


def test_nginx_accepts_it(make):
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    for name, client_authority in (("open", None), ("guarded", "keys/ca.crt")):
        folder = make(name, client_authority=client_authority).folder
        command = [nginx, "-t", "-p", folder, "-e", folder / "logs" / "e.log", "-c", folder / "nginx.conf"]
        assert "test is successful" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_registered_sites_are_known_by_the_numbers_of_their_nodes(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["federation", "init", "north", "--name", "nordic", "--host", "localhost"]) == 0
    federation = Federation(tmp_path / "north")
    for node, name in enumerate(("aalborg", "bergen", "coimbra", "oslo"), start=7):
        assert run_command(["site", "init", name, "--name", name, "--cohort", "cohort"]) == 0
        assert run_command(["federation", "add-site", "north", f"{name}/{name}.bundle.json"]) == 0
        if name != "oslo":  # waits for the start
            federation.keep(replace(federation.member(name), node=str(node)))
    federation.revoke("bergen")

    assert registered_names("nordic") == {"7": "aalborg", "9": "coimbra"}

    with (flower_home() / "config.toml").open("a") as file:
        file.write('\n[superlink.other]\naddress = "a:1"\nroot-certificates = "/elsewhere/ca.crt"\n')
    assert registered_names("other") == registered_names("unknown") == {}
