"""Random generators that depend on names and seeds alone."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.random import Generator


def stream(*key: str | int) -> Generator:
    """The random generator of `key`, the same in every process and on every machine."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return Generator(np.random.PCG64(int.from_bytes(digest, "big")))
