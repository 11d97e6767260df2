"""Why a simulation ended: the words are those that Ray 2 and Flower 1.41 were seen to log."""

from pathlib import Path

import pytest

from runtime.postmortem import Postmortem, oom_kills

OF_RAY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 8d85) was "
    "6.52GB / 6.86GB (0.950000), which exceeds the memory usage threshold of 0.950000; Object store memory usage: []\n"
)
ACTOR = "ERROR :     The actor died unexpectedly before finishing this task.\n"
RAYLET = "(raylet) Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL by the user\n"
SUPERLINK = "│ Connection to the SuperLink is unavailable. Please check your network │\n"
RAISED = "ERROR :     An exception occured!! validate_socket_filename failed: AF_UNIX path length cannot exceed 107\n"
ALLOCATOR = (
    "RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried\n"
)


@pytest.mark.parametrize(
    ("logged", "killed", "said"),
    [
        (
            OF_RAY + ACTOR,
            0,
            "the machine ran out of memory, of which 6.52 of 6.86 GB were taken. Close other programs.",
        ),
        (ACTOR, 2, "the machine ran out of memory, and its kernel ended processes for it. Close other programs."),
        (SUPERLINK, 1, "the machine ran out of memory, and its kernel ended processes for it. Close other programs."),
        (ALLOCATOR, 0, "the machine has not enough memory for what a site computes. Close other programs."),
        (ACTOR, 0, "a process of the simulation died, or was killed by somebody."),
        (RAYLET, 0, "a process of the simulation died, or was killed by somebody."),
        (
            "OSError: [Errno 28] No space left on device: '/x'\n",
            0,
            "a disk is full: that of the run's folder, or of temp",
        ),
        (
            RAISED,
            0,
            "the simulation ended with: validate_socket_filename failed: AF_UNIX path length cannot exceed 107",
        ),
        ("a site refused\n", 3, ""),  # whom the kernel ended is another program's
    ],
)
def test_what_was_logged_and_the_kernel_say_why(tmp_path, monkeypatch, logged, killed, said):
    flower, site = tmp_path / "flower.log", tmp_path / "site.log"
    flower.write_text(OF_RAY)  # of the run that this one goes on with
    monkeypatch.setattr("runtime.postmortem.oom_kills", lambda: 7)
    postmortem = Postmortem(flower, site)

    (site if logged == ALLOCATOR else flower).open("a").write(logged)
    monkeypatch.setattr("runtime.postmortem.oom_kills", lambda: 7 + killed)

    found = postmortem.cause("Close other programs.")
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_kernel_is_asked():
    if not Path("/proc/vmstat").is_file():
        pytest.skip("not Linux")
    assert f"\noom_kill {oom_kills()}\n" in Path("/proc/vmstat").read_text()
