"""What a question may cost a site: whoever may ask anything may otherwise ask for hours and all memory.

What can be told from the question is refused before anything is made: steps, weights, levels, jobs, components. Time is
limited while it is answered, whatever the question, and so is memory (`runtime.prefork`). A `Refusal` names the limit.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from brainlm.architectures import AnyConfig, count_weights
from client.door.policy import Policy
from exchange.messages import Job, TableSpec
from exchange.refusals import Refusal, RefusalCode
from harmonization import Analysis

_NOT_SIZES = ("seed", "sizes", "message_floats")
"""Numbers of an analysis that count nothing that is computed: what random draws begin with, how many people sites
have, and how much of an answer travels at a time."""
_BYTES_A_WEIGHT = 16
"""Of a weight that is trained, in float32: itself, its gradient, and two moments."""
_GB = 10**9


def permit_model(policy: Policy, config: AnyConfig, n_parcels: int, batch_size: int = 1) -> None:
    """Refuse a model that is too large to be made, or whose windows are too large to be looked at.

    Parameters
    ----------
    config : ModelConfig or a released model's
        As a request brings it: nothing is taken for granted of its numbers.
    batch_size : int
        Windows at a time.
    """
    n_weights = count_weights(config)
    policy.permit_size("parameters", n_weights, "weights of the model")
    # At the least: the signal itself, and one vector a token.
    window = 4 * n_parcels * config.window.n_frames
    bytes_needed = n_weights * _BYTES_A_WEIGHT + batch_size * window
    policy.permit_size("memory_gb", bytes_needed / _GB, "GB for the model and its windows")


def permit_job(policy: Policy, job: Job, analysis: Analysis) -> None:
    """Refuse an analysis of too many levels, components, folds, draws or anything else that is counted."""
    for name, number in _numbers(analysis.parameters()):
        policy.permit_size("components", number, f"as {name} of '{analysis.name}'")
    if isinstance(job.table, TableSpec):
        permit_design(policy, [*job.table.covariates, *job.table.complete, {"levels": job.table.levels}])
        policy.permit_size("components", job.table.n_loadings or 0, "components")


def permit_design(policy: Policy, covariates: list[dict[str, Any]]) -> None:
    """Refuse covariates with too many levels, or too many covariates."""
    policy.permit_size("levels", len(covariates), "covariates")
    for covariate in covariates:
        levels = covariate.get("levels") if isinstance(covariate, dict) else None
        if isinstance(levels, list | tuple):
            policy.permit_size("levels", len(levels), "levels of a category")


def _numbers(parameters: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number, and the length of every list, in what an analysis is asked with."""
    if isinstance(parameters, dict):
        for key, value in parameters.items():
            if key not in _NOT_SIZES:
                yield from _numbers(value, str(key))
    elif isinstance(parameters, list | tuple):
        yield name, len(parameters)
        for value in parameters:
            yield from _numbers(value, name)
    elif isinstance(parameters, int) and not isinstance(parameters, bool):
        yield name, parameters


class _OutOfTimeError(BaseException):
    """Raised by the clock; no handler of errors on the way is to take it for one of its own."""


@contextmanager
def time_limit(policy: Policy) -> Iterator[None]:
    """Refuse what takes longer than a policy allows.

    The clock is the process's alarm, which exists once and in the main thread: where an app runs in another, as it may
    in a simulation, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, policy.max_seconds)
    try:
        yield
    except _OutOfTimeError:
        raise Refusal(
            RefusalCode.LIMIT,
            f"the answer was not there after {policy.max_seconds} s; policy.max_seconds is as much. Raise it if the "
            "question is right, or ask for less.",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
