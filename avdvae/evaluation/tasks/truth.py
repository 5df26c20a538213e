"""Pitch and formants of Talker's voices as synthesised, stored beside its clips."""

from __future__ import annotations

import csv
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from avdvae.data.shard_files import PREPARE
from avdvae.errors import UserError, reading
from avdvae.evaluation.tasks.task import Subject


def find_truth(subject: Subject, item: str) -> Path | None:
    """The file with the truth of an utterance; None where there is none."""
    if subject.corpus.utterances[0].corpus != "talker":
        return None
    path = Path(_sources(subject.corpus.root).get(item, item)).with_suffix(".json")
    return path if path.is_file() else None


def truth_of(subject: Subject, item: str) -> dict[str, Any]:
    """f0, 0 where unvoiced, F1 to F4, and their step in seconds."""
    path = find_truth(subject, item)
    if path is None:
        raise UserError(f"task f0 needs the true f0 of {item}, which is missing: give data=talker")
    with reading(path, "truth of a clip of Talker", "delete its folder, and prepare the corpus again"):
        return json.loads(path.read_text())


@lru_cache(maxsize=2)
def _sources(prepared: Path) -> dict[str, str]:
    """The file of each utterance."""
    path = prepared / "quality.csv"
    with reading(path, "table of clips", f"delete it and run `{PREPARE}` again"), path.open(encoding="utf-8") as file:
        return {row["id"]: row["source"] for row in csv.DictReader(file)}
