from dataclasses import replace

from cli.main import run_command
from deployment.coordinator import Federation
from deployment.names import registered_names
from runtime.flower import flower_home


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
