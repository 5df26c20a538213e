"""Work on many items in many processes, with a progress bar, that stops cleanly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from avdvae.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


_work: Callable[[Any], Any]  # of a worker: sent once to each, for it may hold a model


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def _do(item: Any) -> Any:
    return _work(item)


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, label: str
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item)) as they come, in any order. The first exception of a worker ends it all. A single worker
    is this process."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not items:
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    workers = min(workers, len(items))
    if workers == 1:
        with Progress(*columns) as progress:
            yield from ((item, work(item)) for item in progress.track(items, description=label))
        return
    context = multiprocessing.get_context("spawn")  # decoders and landmarkers run threads, which a fork would break
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work,))
    with Progress(*columns) as progress:
        task = progress.add_task(label, total=len(items))
        try:
            futures = {pool.submit(_do, item): item for item in items}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
                progress.advance(task)
        except BrokenProcessPool:
            raise UserError(
                f"{label}: a worker process was killed, perhaps for lack of memory: run again with fewer workers="
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes spawned meanwhile find it in their environment before they load a library of linear algebra."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
