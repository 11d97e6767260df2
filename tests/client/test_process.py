import os
import signal
import stat
import subprocess
import sys

import pytest

from client.process import OTHERS, make_private, private_files

DIES = """
import os, resource, signal, sys
from client.process import keep_private
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[1] == "private":
    keep_private()
open("written", "w").close()
os.mkdir("made")
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize("how", ["private", "usual"])
def test_a_process_that_dies_leaves_nothing_for_others(tmp_path, how):
    if how == "usual" and os.getuid():
        pytest.skip("only root may raise the limit that others' systems set")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{DIES}", how]
    process = subprocess.Popen(command, cwd=tmp_path, umask=0o022)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)

    assert process.returncode == -signal.SIGSEGV
    others = [(tmp_path / name).stat().st_mode & OTHERS for name in ("written", "made")]
    if how == "private":
        assert not os.WCOREDUMP(status)
        assert others == [0, 0]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "written"]
    else:  # so that the test would see it
        assert others == [0o044, 0o055]


def test_files_are_private_in_a_block_and_as_before_after_it(tmp_path):
    before = os.umask(0o022)
    try:
        with private_files():
            (tmp_path / "a").touch()
        (tmp_path / "b").touch()
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o644


def test_a_folder_is_made_private_with_all_in_it_and_nothing_outside(tmp_path):
    outside, state = tmp_path / "outside", tmp_path / "state"
    outside.write_text("x")
    (state / "deep").mkdir(parents=True)
    (state / "deep" / "file").write_text("x")
    (state / "run").write_text("x")
    (state / "link").symlink_to(outside)
    for path, mode in ((outside, 0o644), (state, 0o755), (state / "deep", 0o777), (state / "run", 0o755)):
        path.chmod(mode)

    make_private(state)

    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    assert [stat.S_IMODE((state / name).stat().st_mode) for name in ("", "deep", "run")] == [0o700, 0o700, 0o700]
    assert stat.S_IMODE((state / "deep" / "file").stat().st_mode) == 0o600
