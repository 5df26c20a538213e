"""The conditions of a test: noise, SNR, and corruption of the lips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from avdvae.data.mixing import NoiseFolder, corrupt_lips, make_noise, mix
from avdvae.data.shard_files import Utterance
from avdvae.data.shards import PreparedCorpus
from avdvae.data.twins import NoisyTwins
from avdvae.errors import UserError
from avdvae.randomness import stream

_TALKERS = 12  # the most voices that any noise is made of


@dataclass(frozen=True)
class Condition:
    """What a `Loader` does to whole utterances: a function of (utterance, seed), so that all runs get the same mixture.

    noise   one of mixing.NOISES, made of the corpus's other speakers where it is made of speech, a folder of noises, or
            the corpus's own noisy recordings, of which `snr_db` then names the level
    lips    one of mixing.CORRUPTIONS, or None to leave them as they are, the only choice where there are none

    At every SNR an utterance gets the same noise at another level.
    """

    corpus: PreparedCorpus
    noise: str | NoiseFolder | NoisyTwins
    snr_db: float | None  # None: of noisy recordings that have but one level
    lips: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lips is not None and not self.corpus.has_lips:
            raise UserError(f"lips={self.lips!r} needs lips and {self.corpus.root} has only sound: give lips=None")

    def __call__(
        self,
        utterance: Utterance,
        start: int,
        waveform: Float[np.ndarray, " N"],
        lips: UInt8[np.ndarray, "M H W"] | None,
    ) -> tuple[Float[np.ndarray, " N"], UInt8[np.ndarray, "M H W"] | None]:
        if self.lips is not None:
            assert lips is not None
            lips, _ = corrupt_lips(lips, stream(utterance.id, self.seed, "lips"), self.lips)
        if isinstance(self.noise, NoisyTwins):
            clean = self.corpus.audio(utterance)
            here = slice(start, start + len(waveform))
            noise = self.noise.noise(utterance, clean, self.snr_db)[here]
            scale = np.abs(waveform).max() / max(np.abs(clean[here].astype(np.float32)).max(), 1)
            return waveform + scale * noise, lips
        assert self.snr_db is not None
        rng = stream(utterance.id, self.seed, "noise")
        if isinstance(self.noise, NoiseFolder):
            noise = self.noise(len(waveform), rng)
        else:
            noise = make_noise(self.noise, len(waveform), rng, self._talkers(utterance))
        return mix(waveform, noise, self.snr_db).mixture, lips

    def _talkers(self, utterance: Utterance) -> list[Float[np.ndarray, " _"]]:
        """Utterances of other speakers, drawn for this one."""
        others = [u for u in self.corpus.utterances if u.speaker != utterance.speaker]
        drawn = stream(utterance.id, self.seed, "talkers").permutation(len(others))[:_TALKERS]
        return [self.corpus.audio(others[i]) / np.float32(32768) for i in drawn]
