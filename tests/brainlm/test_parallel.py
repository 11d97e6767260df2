import pytest
import torch
import torch.distributed as dist

from brainlm.errors import BrainLMError
from brainlm.parallel import Worker, count_devices, run_together
from cohorts import CohortError, RecordingError

CPU = torch.device("cpu")


def rank_and_sum(worker: Worker, number: int) -> tuple[int, int, float]:
    return worker.rank, dist.get_world_size(), float(worker.add(torch.tensor(float(number + worker.rank))))


def fail(worker: Worker) -> None:
    if worker.rank == 1:
        raise RecordingError("damaged", "sub-1: cannot be read.")
    worker.add(torch.zeros(1))  # waits for the other, in vain


def test_shares_cover_everything_once():
    for n in (1, 2, 3):
        for length in (n, 7, 64):
            things = list(range(length))
            assert [x for rank in range(n) for x in things[Worker(rank, n, CPU).share(length)]] == things


def test_a_cpu_has_one_process_unless_told_otherwise():
    assert count_devices(CPU, "auto") == 1
    assert count_devices(CPU, 3) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_an_error():
    with pytest.raises(BrainLMError, match="devices is 2, but 0 GPUs are visible"):
        count_devices(torch.device("cuda"), 2)


@pytest.mark.slow
def test_the_first_process_answers():
    assert run_together(rank_and_sum, 2, CPU, 5) == (0, 2, 11.0)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_arrives():
    with pytest.raises(CohortError, match=r"^sub-1: cannot be read\.$"):
        run_together(fail, 2, CPU)
