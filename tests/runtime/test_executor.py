"""Flower's real SuperExec, really killed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from client.settings import SiteSettings
from runtime.executor import SuperExec, flower_home
from tests.support.programs import PROGRAMS, free_port, start, wait_until


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A ``site.yaml`` whose SuperNode is not there: the SuperExec keeps asking for it."""
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "site.yaml"
    supernode = {"port": free_port(), "executor": "elsewhere"}
    path.write_text(yaml.safe_dump({"name": "oslo", "cohort": "cohort", "state": ".", "supernode": supernode}))
    return path


def superexecs(parent: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):  # ended meanwhile, or has ended and was not waited for
            found += [child] if "prefork.py" in " ".join(child.cmdline()) else []
    return found


@pytest.fixture
def kept(site) -> Iterator[SuperExec]:
    executor = SuperExec(SiteSettings(**yaml.safe_load(site.read_text())), site.parent)
    thread = threading.Thread(target=executor.keep)
    thread.start()
    yield executor
    executor.end()
    thread.join(30)
    assert not thread.is_alive()
    assert superexecs(os.getpid()) == []


def test_a_superexec_that_was_killed_is_started_again(kept, capsys):
    assert wait_until(lambda: superexecs(os.getpid()), 10)
    (first,) = superexecs(os.getpid())

    first.kill()

    assert wait_until(lambda: superexecs(os.getpid()) not in ([], [first]), 30)
    assert "the SuperExec ended with code -9; again in 1 s" in capsys.readouterr().out


def test_apps_that_lie_there_from_before_are_not_taken_for_approved_ones(site):
    left = flower_home(site.parent) / "apps" / "fedbrainlm.app" / "client" / "app.py"
    left.parent.mkdir(parents=True)
    left.touch()
    executor = SuperExec(SiteSettings(**yaml.safe_load(site.read_text())), site.parent)
    executor.command = ["sh", "-c", f"test -e {left} || touch {site.parent / 'started'}; exec sleep 60"]
    thread = threading.Thread(target=executor.keep)
    thread.start()

    assert wait_until((site.parent / "started").is_file, 10)
    executor.end()
    thread.join(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_program_that_keeps_it(site, number):
    log = site.parent / "executor.log"
    program = start("python", "-m", "runtime.executor", site, folder=Path.cwd(), log=log)
    # Its own watch over its parent begins before it asks.
    assert wait_until(lambda: "retrying" in log.read_text(), 60)
    (executor,) = superexecs(program.pid)

    program.send_signal(number)

    assert program.wait(30) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert psutil.wait_procs([executor], timeout=30)[1] == []


def test_apps_find_room_for_their_sockets_where_temporary_files_lie_deep(site, monkeypatch):
    deep = site.parent / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    executor = SuperExec(SiteSettings(**yaml.safe_load(site.read_text())), site.parent)
    bind = "import os, socket; socket.socket(socket.AF_UNIX).bind(os.environ['TMPDIR'] + '/pymp-aaaaaaaa/' + 'l' * 17)"
    said = site.parent / "said"
    executor.command = [
        "sh",
        "-c",
        f'mkdir $TMPDIR/pymp-aaaaaaaa; {PROGRAMS}/python -c "{bind}"; echo $? > {said}; exec sleep 60',
    ]
    thread = threading.Thread(target=executor.keep)
    thread.start()

    assert wait_until(lambda: said.is_file() and said.read_text(), 30)
    executor.end()
    thread.join(10)

    assert said.read_text() == "0\n"
    assert list(deep.iterdir()) == []
