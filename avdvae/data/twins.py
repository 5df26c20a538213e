"""A corpus's own recordings in noise, beside its clean ones."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16

from avdvae.data.shard_files import Utterance
from avdvae.errors import UserError


class NoisyTwins:
    """<folder>/<level>/.../<speaker>/.../<name>.wav, as in NTCD-TIMIT; without <level> where there is but one.

    A level has the corpus's own name: its SNR is to be measured (NTCD-TIMIT's 5 is about -3 dB over the whole signal).
    Lower ones are made by scaling the noise of the lowest, the noisy sound less the clean, as in the literature.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.levels = {float(path.name): path for path in folder.iterdir() if path.is_dir() and _is_number(path.name)}

    @classmethod
    def of(cls, folder: Path, utterance: Utterance) -> NoisyTwins | None:
        """The twins in a folder; None where it contains noise alone."""
        twins = cls(folder) if folder.is_dir() else None
        return twins if twins and twins._find(utterance) else None

    def noise(
        self, utterance: Utterance, clean: Int16[np.ndarray, " N"], level: float | None
    ) -> Float[np.ndarray, " N"]:
        """In the units of `clean`, which is the whole utterance."""
        from avdvae.signals.video import read_mono

        given, gain = self._source(level)
        path = self._find(utterance, given)
        if path is None:
            raise UserError(
                f"{self.folder} has no noisy {utterance.id} at {level}: complete it, or choose other levels"
            )
        noisy, _ = read_mono(path)
        if abs(len(noisy) - len(clean)) > 0.1 * len(clean):
            raise UserError(f"{path} has {len(noisy)} samples and its clean twin {len(clean)}: they are no twins")
        both = min(len(noisy), len(clean))
        noise = np.zeros(len(clean), np.float32)
        noise[:both] = gain * (noisy[:both].astype(np.float32) - clean[:both])
        return noise

    def _source(self, level: float | None) -> tuple[float | None, float]:
        """The level of the recording, and the gain of its noise."""
        if not self.levels:
            return None, 1.0
        lowest = min(self.levels)
        if level is None or (level not in self.levels and level > lowest):
            known = ", ".join(f"{known:g}" for known in sorted(self.levels))
            raise UserError(f"{self.folder} has the levels {known}: choose evaluate.snrs from them, or lower ones")
        return (level, 1.0) if level in self.levels else (lowest, 10 ** ((lowest - level) / 20))

    def _find(self, utterance: Utterance, level: float | None = None) -> Path | None:
        level = min(self.levels) if self.levels and level is None else level
        name = utterance.id.rsplit("/", 1)[-1]
        return self._index.get((level, utterance.speaker, name)) or self._index.get((level, "", name))

    @cached_property
    def _index(self) -> dict[tuple[float | None, str, str], Path]:
        """By level, any folder on the way, and name."""
        index = {}
        for level, folder in (self.levels or {None: self.folder}).items():
            for path in folder.rglob("*.wav"):
                above = path.relative_to(folder).parts[:-1]
                index |= {(level, part, path.stem): path for part in above or ("",)}
        return index


def _is_number(text: str) -> bool:
    return text.lstrip("+-").isdigit()
