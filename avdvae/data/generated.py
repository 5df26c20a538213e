"""What all generated corpora share: the name of their folder, and the sentence where it cannot be written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdvae.errors import UserError


def key_of(name: str, version: int, parameters: Mapping[str, Any]) -> str:
    """The same for the same parameters, wherever `root` is. `version` goes up when they give other bytes."""
    described = json.dumps({**parameters, "root": None, "version": version}, sort_keys=True)
    return f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


@contextmanager
def generating(name: str, root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {name} to data.root={root} ({error.strerror}): free space there, or name another"
        ) from error
