"""TIMIT: ten sentences by each of 630 speakers of American English, with the times of their phones.

J. Garofolo et al., "TIMIT acoustic-phonetic continuous speech corpus", LDC93S1, 1993.

    {TRAIN,TEST}/<dialect>/<speaker>/<sentence>.{WAV,PHN,TXT}    WAV: NIST sphere, or RIFF where it was converted
    DOC/SPKRINFO.TXT    sex, birth date, height ...

Of the train part one clip in twenty, drawn by its name, validates: 231 of 4620, as in the literature, which draws
others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from avdvae.data.clips import Clip, Extent, Unreadable
from avdvae.data.readers.tree import Tree
from avdvae.errors import one_line
from avdvae.signals.clock import RATE


@dataclass(frozen=True)
class Timit(Tree):
    NAME = "timit"
    PLACE = "{TRAIN,TEST}/<dialect>/<speaker>/<sentence>.WAV"
    CLIP = re.compile(r"(?:\w+/)?(?P<part>TRAIN|TEST)/(?P<dialect>DR\d)/(?P<speaker>\w+)/(?P<name>\w+)\.WAV", re.I)
    EXTENT = Extent(speakers=630, clips=6300, hours=5.4)

    @cached_property
    def people(self) -> dict[str, dict[str, Any]]:
        """The labels of SPKRINFO.TXT by the name of the speaker without the letter of the sex."""
        people = {}
        for path in sorted(self.root.rglob("*")):
            if path.name.upper() == "SPKRINFO.TXT":
                for line in path.read_text(encoding="latin-1").splitlines():
                    if not line.startswith(";") and len(words := line.split()) >= 8:
                        people[words[0].upper()] = {"birth": words[5], "height_cm": _centimetres(words[6])}
        return people

    def clip(self, path: Path, match: re.Match[str]) -> Clip | Unreadable:
        speaker, name = match["speaker"].upper(), match["name"].upper()
        labels = {"sex": speaker[0], "dialect": match["dialect"].upper(), "sentence": name}
        labels |= self.people.get(speaker[1:], {})
        times = next((p for p in (path.with_suffix(s) for s in (".PHN", ".phn")) if p.exists()), None)
        if times is None:
            return Unreadable(path.with_suffix(".PHN"), "is missing")
        try:
            labels["phones"] = read_phones(times)
        except ValueError as error:
            return Unreadable(times, f"cannot be read as phones ({one_line(error)})")
        first = int(sha256(f"{speaker}/{name}".encode()).hexdigest(), 16) % 20 == 0
        split = "test" if match["part"].upper() == "TEST" else "valid" if first else "train"
        return Clip(f"{speaker}/{name}", self.NAME, split, speaker, None, path, labels=labels)


def read_phones(path: Path) -> list[tuple[float, float, str]]:
    """Start and end in seconds, and the phone."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return [(int(start) / RATE, int(end) / RATE, phone) for start, end, phone in rows]


def _centimetres(height: str) -> float | None:
    """Of 5'11\"."""
    match = re.match(r"(\d+)'(\d+)", height)
    return round(2.54 * (12 * int(match[1]) + int(match[2])), 1) if match else None
