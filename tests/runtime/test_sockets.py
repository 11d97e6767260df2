import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtime.sockets import LONGEST_PATH, reachable, temporary_folder, temporary_paths_are_short
from tests.support.programs import wait_until

RAYS = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"


@pytest.fixture
def long(tmp_path) -> Path:
    """A folder whose path has more bytes than a socket may."""
    folder = tmp_path / ("ä" * 60)
    folder.mkdir()
    return folder


@pytest.fixture
def temporary(monkeypatch):
    """Set the folder for temporary files."""

    def set_to(folder: Path) -> None:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)

    yield set_to
    tempfile.tempdir = None


def listen(path: Path | str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_socket_of_any_path_is_bound_and_reached(long, tmp_path):
    for path in (long / "s", tmp_path / "s"):
        with reachable(path) as bind_to, listen(bind_to), socket.socket(socket.AF_UNIX) as asking:
            assert len(os.fsencode(bind_to)) <= LONGEST_PATH
            with reachable(path) as reached_by:
                asking.connect(reached_by)
        assert path.is_socket()
    with pytest.raises(FileNotFoundError), reachable(long / "none" / "s"):
        pass


def test_temporary_files_lie_where_tmpdir_says_and_sockets_find_room(long, tmp_path, temporary):
    temporary(long)
    assert not temporary_paths_are_short()
    with temporary_folder() as folder:
        (folder / RAYS).parent.mkdir(parents=True)
        with listen(folder / RAYS):
            assert folder.resolve().parent == long
    assert (list(long.iterdir()), folder.parent.exists()) == ([], False)

    temporary(Path("/tmp"))
    assert temporary_paths_are_short()
    with temporary_folder() as folder:
        assert (folder.parent, folder.is_symlink()) == (Path("/tmp"), False)
    assert not folder.exists()


def test_what_no_short_folder_is_found_for_is_said(long, temporary, monkeypatch):
    temporary(long)
    monkeypatch.setattr("runtime.sockets._SHORT", ("/nowhere",))
    with pytest.raises(OSError, match="too long for the paths of sockets"), temporary_folder():
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_temporary_is_left_of_a_simulation_whose_command_was_killed(long, tmp_path, number):
    """Its guardian deletes it: here of a program that only says where its temporary files would lie."""
    script = "import os, time; open('said', 'w').write(os.environ['TMPDIR']); time.sleep(60)"
    guardian = [sys.executable, "-m", "runtime.guardian", str(tmp_path / "home"), sys.executable, "-c", script]
    command = f"import subprocess, sys, time; subprocess.Popen({guardian!r}, stdin=subprocess.PIPE); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path, env=environment)
    said = tmp_path / "said"
    assert wait_until(lambda: said.is_file() and said.read_text(), 30)
    folder = Path(said.read_text())
    assert folder.is_dir()

    killed.send_signal(number)
    killed.wait(30)

    assert wait_until(lambda: not folder.is_symlink() and list(long.iterdir()) == [], 30)
