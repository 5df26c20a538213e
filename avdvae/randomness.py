"""Random generators that depend on names and seeds alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import Generator


def stream(*key: str | int) -> Generator:
    """The random generator of `key`, the same in every process and on every machine."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return Generator(np.random.PCG64(int.from_bytes(digest, "big")))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from `seed` inside; outside, their state is unchanged."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
