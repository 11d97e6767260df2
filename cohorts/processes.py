"""Work in processes of their own, so that one that dies takes nothing with it but its own piece."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait as wait_for_end
from typing import Any, TypeVar

from cohorts.errors import CohortError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Any, Piece], Result],
    common: Any,
    pieces: Iterable[Piece],
    *,
    workers: int,
    died: Callable[[Piece], Result],
) -> Iterator[Result]:
    """Yield ``work(common, piece)`` of every piece, as they come to an end; a CohortError if no process starts.

    Parameters
    ----------
    work : callable
        A function of a module. What it raises is raised here, and ends everything.
    common : object
        Sent to each process once.
    workers : int
        Processes at a time; 0 to work in this one. No more than two pieces a process are on their way.
    died : callable
        The result of a piece whose process died, out of memory or killed. It was tried alone then.
    """
    if workers == 0:
        for piece in pieces:
            yield work(common, piece)
        return
    waiting = deque(pieces)
    while waiting:
        suspects: list[Piece] = []
        with _pool(work, common, workers) as pool:
            running: dict[Future[Result], Piece] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        with _deaf_to_interrupts():
                            running[pool.submit(_work, waiting[0])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del running[future]
            except BrokenProcessPool:
                suspects = list(running.values())
            finally:
                pool.shutdown(cancel_futures=True)
        for piece in suspects:  # one of them brought its process down; the others were only beside it
            yield _alone(work, common, piece, died)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start in the block never hear Ctrl-C, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _alone(work: Callable[[Any, Piece], Result], common: Any, piece: Piece, died: Callable[[Piece], Result]) -> Result:
    with _pool(work, common, 1) as pool:
        try:
            with _deaf_to_interrupts():
                future = pool.submit(_work, piece)
            return future.result()
        except BrokenProcessPool:
            return died(piece)


def _pool(work: Callable[..., Any], common: Any, workers: int) -> ProcessPoolExecutor:
    # Forked processes would inherit threads of numerical libraries in any state.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(work, common))
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise CohortError(
            "The processes that were to read recordings ended at their start. In a script of your own, begin below "
            "'if __name__ == \"__main__\":', or choose 0 workers."
        ) from None
    return pool


_task: Callable[[Any], Any]


def _begin(work: Callable[..., Any], common: Any) -> None:
    """Set a process up: what it works on, and that it does not outlive its parent."""
    global _task
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _task = partial(work, common)


def _work(piece: Any) -> Any:
    return _task(piece)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)
