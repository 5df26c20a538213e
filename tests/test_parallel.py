"""Work in many processes, of which some are killed."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from avdvae.errors import UserError, prepare_process
from avdvae.parallel import in_parallel


def die() -> None:
    """As where the system has no memory left; never the process of the tests."""
    assert multiprocessing.parent_process() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def doubled(folder: Path, deadly: set[int], unlucky: int, item: int) -> int:
    time.sleep(0.05)
    if item in deadly:
        die()
    if item == unlucky and not (folder / "died").exists():
        (folder / "died").touch()
        die()
    return 2 * item


def test_what_kills_its_process_is_named_and_the_rest_is_done(tmp_path: Path) -> None:
    work = partial(doubled, tmp_path, {3, 11}, 0)
    found = dict(in_parallel(work, range(14), 2, "doubling", killed=lambda item: -item))
    assert found == {item: -item if item in (3, 11) else 2 * item for item in range(14)}
    assert (tmp_path / "died").exists(), "0 was killed once, and then done"


def tiny(_: int) -> float:
    return (torch.full((64,), 1e-30) * 1e-10).sum().item()


def test_numbers_next_to_0_are_0_in_programs_and_their_workers() -> None:
    try:
        prepare_process()
        assert tiny(0) == 0
        assert dict(in_parallel(tiny, range(2), 2, "multiplying")) == {0: 0, 1: 0}
    finally:
        torch.set_flush_denormal(False)
    assert tiny(0) > 0


def test_where_nobody_says_what_then_or_no_process_lives_all_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doubling: a worker process was killed, perhaps for lack of memory"):
        list(in_parallel(partial(doubled, tmp_path, {1}, -1), range(4), 2, "doubling"))
    tried = []
    with pytest.raises(UserError, match="a worker process was killed"):
        everything = partial(doubled, tmp_path, set(range(20)), -1)
        tried += list(in_parallel(everything, range(20), 2, "doubling", killed=lambda item: -item))
    assert len(tried) < 3
