"""A deployed federation: a real SuperLink and a real SuperNode for each hospital, on this machine."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from runtime.flower import QUIET
from server.journal import Journal
from tests.support.federation import STUDY, write_sites
from tests.support.programs import PROGRAMS, free_port, processes_of, start, start_run, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def running(home: Path, program: str, *arguments: object) -> Iterator[None]:
    """Run a program for the length of a block, with the FLWR_HOME `home` and its log beside that."""
    command = ("-m", "runtime.guardian", home, PROGRAMS / program, "--insecure", "--host", "127.0.0.1", *arguments)
    guardian = start("python", *command, folder=home.parent, log=Path(f"{home}.log"), **QUIET)
    try:
        yield
    finally:
        guardian.communicate(timeout=60)  # closes its standard input


@contextmanager
def federation(folder: Path, sites: list[Path]) -> Iterator[Path]:
    """A SuperLink and a SuperNode a site; yields the FLWR_HOME of a user who knows it as ``consortium``."""
    home, port = folder / "flwr", free_port()
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.consortium]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    with ExitStack() as programs:
        programs.enter_context(running(folder / "link", "flower-superlink", "--port", port))
        for site in sites:
            node = ("--superlink", f"127.0.0.1:{port}", "--node-config", f'site-config="{site}"')
            programs.enter_context(running(site.parent / "flwr", "flower-supernode", "--port", free_port(), *node))
        yield home
    assert processes_of(folder) == []


@pytest.fixture
def sites(tmp_path, small_cohorts) -> list[Path]:
    return write_sites(tmp_path / "sites", small_cohorts)


def test_a_deployed_federation_equals_the_same_study_in_one_process(tmp_path, sites, finished_run):
    with federation(tmp_path, sites) as home:
        process = start_run(STUDY, tmp_path, "--federation", "consortium", FLWR_HOME=home)
        out, err = process.communicate(timeout=400)

    assert process.returncode == 0, err
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert Journal(folder).checkpoint(2).read_bytes() == finished_run.journal.checkpoint(2).read_bytes()
    assert "Report:" in out
    assert (folder / "report.html").is_file()
    assert not (folder / "sites").exists()  # what a site keeps is at the site


def test_stopping_the_command_stops_the_run_on_the_federation(tmp_path, sites):
    averaging = {**STUDY["averaging"], "rounds": 500}
    with federation(tmp_path, sites) as home:
        process = start_run({**STUDY, "averaging": averaging}, tmp_path, "--federation", "consortium", FLWR_HOME=home)
        assert wait_until(lambda: list(tmp_path.glob("runs/small/*/checkpoints/round-0001*")), 180)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        listed = start("flwr", "list", "consortium", "--format", "json", folder=tmp_path, FLWR_HOME=home, **QUIET)
        (run,) = json.loads(listed.communicate(timeout=60)[0])["runs"]

    assert process.returncode == 130
    assert run["status"] == "finished:stopped"
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert Journal(folder).progress().status == "stopped"
