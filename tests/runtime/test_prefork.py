"""Apps as forks; what they run is put in the place of Flower's own program."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import pytest

from runtime import prefork
from tests.support.programs import free_port, wait_until
from tests.test_layering import MAY_IMPORT

OURS = set(MAY_IMPORT)
FORKS = """
import importlib, importlib.util, json, os, signal, socket, sys
specification = importlib.util.spec_from_file_location("prefork", sys.argv[1])
prefork = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prefork)
importlib.import_module("flwr.supernode.cli.flwr_clientapp")
def compute():
    # What has threads of its own, in this process and in the one that it was forked from.
    import io, numpy, pandas, scipy.linalg, torch
    matrix = numpy.eye(400)
    scipy.linalg.cho_factor(matrix @ matrix)
    frame = io.BytesIO()
    pandas.DataFrame(matrix).rename(columns=str).to_parquet(frame)
    weights = torch.eye(400, requires_grad=True)
    torch.optim.AdamW([weights])
    (weights @ weights).sum().backward()
def app():
    compute()
    what, path = sys.argv[1:]
    name = open("/proc/self/comm").read().strip()
    with open(path, "w") as file:
        json.dump({"name": name, "pid": os.getpid(), "modules": sorted(sys.modules)}, file)
    if what == "allocates":
        import torch
        for allocate in (lambda: bytearray(3 * 10**9), lambda: torch.ones(3 * 10**9, dtype=torch.uint8)):
            try:
                allocate()
                os._exit(5)
            except (MemoryError, RuntimeError):
                pass
        with open(path, "w") as file:
            json.dump({"refused": 2}, file)
    if what == "exits":
        sys.exit(3)
    if what == "raises":
        raise KeyError("sub-01")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
sys.modules["flwr.supernode.cli.flwr_clientapp"].flwr_clientapp = app
prefork.serve(socket.socket(fileno=int(sys.argv[2])))
"""


@contextmanager
def forks(**environment: str) -> Iterator[tuple[socket.socket, psutil.Process]]:
    """The process that apps are forks of, without a SuperExec; they write down what they are."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-c", FORKS, prefork.__file__, str(there.fileno())]
    process = subprocess.Popen(command, pass_fds=[there.fileno()], env={**os.environ, **environment})
    there.close()
    try:
        yield here, psutil.Process(process.pid)
        here.close()
        assert process.wait(60) == 0  # with whoever asks it
    finally:
        process.kill()
        process.wait()


def ask(asked: socket.socket, what: str, path: Path) -> dict[str, object]:
    asked.send(json.dumps(["flwr-clientapp", what, str(path)]).encode())
    assert wait_until(lambda: path.is_file() and path.read_text().endswith("}"), 120)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[socket.socket, psutil.Process]]:
    """One such process for tests that leave it as it was."""
    with forks() as made:
        yield made


def test_each_message_is_a_fork_with_torch_in_memory_and_nothing_of_ours(tmp_path, shared):
    asked, process = shared

    first, second = (ask(asked, "ends", tmp_path / name) for name in "ab")

    assert len({first["pid"], second["pid"], process.pid, os.getpid()}) == 4
    assert first["name"] == "flwr-clientapp"
    assert set(prefork.NEEDED) <= set(first["modules"])
    assert {name.partition(".")[0] for name in first["modules"]} & OURS == set()  # the approved app brings its own


def test_an_app_that_fails_ends_alone_and_is_not_left_behind(tmp_path, shared):
    asked, process = shared
    failed = [ask(asked, what, tmp_path / what)["pid"] for what in ("raises", "exits")]
    after = (tmp_path / f"after-{number}" for number in count())

    def are_gone() -> bool:
        """Each app that is asked for lets those that have ended go."""
        ask(asked, "ends", next(after))
        return not any(map(psutil.pid_exists, failed))

    assert wait_until(are_gone, 60)
    assert process.is_running()


def test_an_app_that_the_system_kills_is_said(tmp_path, capfd):
    """The coordinator learns no more than that it ended."""
    with forks() as (asked, _process):
        ask(asked, "killed", tmp_path / "killed")
        after = (tmp_path / f"after-{number}" for number in count())
        said = [""]

        def is_said() -> bool:
            ask(asked, "ends", next(after))
            said.append(said.pop() + capfd.readouterr().out)
            return "an app was killed while it answered a message, perhaps by the system, for lack of memory" in said[0]

        assert wait_until(is_said, 60)


def test_an_app_has_the_memory_that_its_policy_gives_and_no_more(tmp_path):
    with forks(**{prefork.MEMORY_GB: "2.5"}) as (asked, _process):
        asked.send(json.dumps(["flwr-clientapp", "allocates", str(tmp_path / "a")]).encode())
        assert wait_until(lambda: (tmp_path / "a").is_file() and "refused" in (tmp_path / "a").read_text(), 120)


def test_an_app_that_hangs_does_not_outlive_who_asks_for_apps(tmp_path):
    with forks() as (asked, _process):
        hangs = psutil.Process(ask(asked, "hangs", tmp_path / "hangs")["pid"])

    assert psutil.wait_procs([hangs], timeout=10)[1] == []


def test_a_superexec_ends_with_the_process_that_its_apps_are_forks_of(tmp_path):
    (tmp_path / "secret").write_text("0" * 64)
    where = ["--runtime-api-address", f"127.0.0.1:{free_port()}", "--insecure"]
    command = [sys.executable, "-P", prefork.__file__, *where, "--superexec-auth-secret-file", str(tmp_path / "secret")]
    superexec = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: psutil.Process(superexec.pid).children(), 30)
        (forks,) = psutil.Process(superexec.pid).children()
        forks.kill()
        assert superexec.wait(30) == 1
    finally:
        superexec.kill()
        superexec.wait()
