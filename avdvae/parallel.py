"""Work on many items in several processes, with a progress bar and a clean stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from avdvae.errors import UserError
from avdvae.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # decoders and landmarkers use threads, which do not survive a fork
_AHEAD = 4  # items submitted per worker: enough to keep it busy, few to repeat if one is killed
_HOPELESS = 3  # killed workers without a finished item: the cause is not the items


def one_thread(device: str) -> None:
    """Of torch on a CPU, unless OMP_NUM_THREADS is set. In an EM, a second thread gains 15 %, and where cores are busy
    both wait for each other, 20 times as long."""
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


_work: Callable[[Any], Any]  # of a worker: sent once to each, because it may contain a model


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    torch.set_flush_denormal(True)  # as errors.prepare_process in the parent process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def _do(item: Any) -> Any:
    return _work(item)


def in_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    label: str,
    killed: Callable[[Item], Result] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item)) as they finish, in any order. The first exception of a worker stops all. A single worker
    is this process.

    If a worker is killed, for example for lack of memory, the items under way are repeated one at a time. For an item
    whose worker is killed again, `killed(item)` is yielded; without `killed`, all stops.
    """
    if not items:
        return
    workers = min(workers, len(items))
    if workers == 1:
        with progress_bar() as progress:
            yield from ((item, work(item)) for item in progress.track(items, description=label))
        return
    waiting, suspects = deque(items), deque[Item]()
    finished = lost = 0
    with progress_bar() as progress:
        task = progress.add_task(label, total=len(items))
        while waiting or suspects:
            alone = bool(suspects)
            queue, processes = (suspects, 1) if alone else (waiting, workers)
            under_way: dict[Future[Result], Item] = {}
            pool = ProcessPoolExecutor(processes, _CONTEXT, initializer=_start_worker, initargs=(work,))
            try:
                while queue or under_way:
                    while queue and len(under_way) < (1 if alone else _AHEAD * workers):
                        under_way[pool.submit(_do, queue[0])] = queue[0]
                        queue.popleft()
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield under_way[future], future.result()
                        del under_way[future]
                        finished += 1
                        progress.advance(task)
            except BrokenProcessPool:
                if not alone:
                    suspects.extend(under_way.values())
                for item in under_way.values() if alone else ():
                    lost += 1
                    if killed is None or (lost == _HOPELESS and not finished):
                        raise UserError(
                            f"{label}: a worker process was killed, perhaps for lack of memory: run again with fewer "
                            "workers="
                        ) from None
                    yield item, killed(item)
                    progress.advance(task)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes spawned within use one thread each: the variable is set before they load a linear algebra library."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
