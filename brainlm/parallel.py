"""Several processes of one machine that train one model together, on torch's own launcher.

docs/decisions/0006 says why no further library does this.
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from base.errors import FedBrainLMError
from base.files import naming
from brainlm.errors import BrainLMError
from cohorts import CohortError


@dataclass(frozen=True)
class Worker:
    """One of the processes."""

    rank: int
    n: int
    """Which one it is, from 0, and how many there are."""
    device: torch.device
    """What it computes on."""

    def share(self, length: int) -> slice:
        """Which of `length` things this process does."""
        return slice(self.rank * length // self.n, (self.rank + 1) * length // self.n)

    def add(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes."""
        if self.n > 1:
            dist.all_reduce(values)
        return values


def count_devices(device: torch.device, wanted: int | str) -> int:
    """Number of processes for `wanted`: itself, unless there are fewer GPUs; for ``auto`` one a GPU, one on a CPU."""
    if device.type != "cuda":
        return 1 if wanted == "auto" else int(wanted)
    there = torch.cuda.device_count()
    if wanted == "auto":
        return 1 if device.index is not None else max(1, there)
    if int(wanted) > there:
        raise BrainLMError(f"devices is {wanted}, but {there} GPUs are visible. Lower it, or set CUDA_VISIBLE_DEVICES.")
    return int(wanted)


def run_together(function: Callable[..., Any], n: int, device: torch.device, *arguments: Any) -> Any:
    """Call ``function(worker, *arguments)`` in `n` new processes and return what the first one returned.

    Parameters
    ----------
    function : callable
        Of a module's top level. It and the arguments are pickled.
    device : torch.device
        ``cuda``: each process has a GPU of its own and NCCL between them; else gloo.

    Raises
    ------
    BrainLMError, CohortError
        As `function` raised it in one of the processes; the others are then ended.
    """
    # Files, since a container's shared memory is small, and a rendezvous in a file opens no port.
    with tempfile.TemporaryDirectory(prefix="fedbrainlm-") as name:
        folder = Path(name)
        with naming(folder), (folder / "call").open("wb") as file:
            pickle.dump((function, device, torch.get_num_threads(), arguments), file)
        try:
            torch.multiprocessing.spawn(_work, args=(n, folder), nprocs=n)
        except ProcessRaisedException:
            for failure in sorted(folder.glob("failure-*")):
                kind, message = pickle.loads(failure.read_bytes())
                raise kind(message) from None
            raise
        return pickle.loads((folder / "result").read_bytes())


def _work(rank: int, n: int, folder: Path) -> None:
    """Be one of the processes."""
    with (folder / "call").open("rb") as file:
        function, device, threads, arguments = pickle.load(file)
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # the processes are of one machine: nothing of theirs goes over its network
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=n)
    try:
        result = function(Worker(rank, n, device), *arguments)
    except FedBrainLMError as error:
        kind = type(error) if isinstance(error, BrainLMError) else CohortError
        (folder / f"failure-{rank}").write_bytes(pickle.dumps((kind, str(error))))
        raise
    if rank == 0:
        (folder / "result").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
