"""From noisy sound to speech: the EM stage between an STFT and its inverse.

A mixture is scaled before anything looks at it, and back afterwards, so that its speech, as far as spectral subtraction
finds it, peaks at 1 as it did for training: the level of a recording does not matter, and that of the noise little.
(With Vem.paper the mixture itself peaks at 1.) A long recording goes through in windows that fade into each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avdvae.enhancement.vem import Vem, enhance, subtraction
from avdvae.errors import UserError
from avdvae.protocols import Batch, SpeechPrior
from avdvae.signals.audio import SILENCE, Stft
from avdvae.signals.clock import RATE, nearest_frames


@dataclass(frozen=True)
class Separated:
    """speech  B N  at the level of the mixture, zero where it pads
    cost    I B    of the EM, in each iteration
    switch  B T M  of mixtures: how probably each component made the frame"""

    speech: Float[Tensor, "B N"]
    cost: Float[Tensor, "I B"]
    switch: Float[Tensor, "B T M"] | None = None


def separate(
    model: SpeechPrior,
    batch: Batch,
    stft: Stft,
    settings: Vem,
    progress: Callable[[float], None] = lambda share: None,
) -> Separated:
    """The speech in `batch.mixture`, of whose spectrum `batch.noisy` is the power."""
    mixture_BN, noisy_BTF = batch.need("mixture", model), batch.need("noisy", model)
    peak_B = mixture_BN.abs().amax(1).clamp_min(SILENCE)
    if not settings.paper:
        _, filter_BTF = subtraction(noisy_BTF / peak_B[:, None, None].square(), batch.mask)
        peak_B = _filtered(batch, stft, filter_BTF).abs().amax(1).clamp_min(SILENCE)
    scaled = replace(batch, noisy=noisy_BTF / peak_B[:, None, None].square())
    enhanced = enhance(model, scaled, settings, progress)
    return Separated(_filtered(batch, stft, enhanced.filter), enhanced.cost, enhanced.switch)


def _filtered(batch: Batch, stft: Stft, filter_BTF: Tensor) -> Float[Tensor, "B N"]:
    """The mixtures after a filter, one by one, for each is mirrored at its own end."""
    assert batch.mixture is not None and batch.lengths is not None
    filtered_BN = torch.zeros_like(batch.mixture)
    for b, length in enumerate(batch.lengths.tolist()):
        spectrum_1TF = stft.analyse(batch.mixture[b : b + 1, :length])
        filter_1TF = filter_BTF[b : b + 1, : spectrum_1TF.shape[1]]
        filtered_BN[b, :length] = stft.synthesise(filter_1TF * spectrum_1TF, length)[0]
    return filtered_BN


@dataclass(frozen=True)
class Pictures:
    """The mouth beside a recording. Before its first picture and after its last, the mouth is taken to hold still.

    sound_starts   when the first sample is heard, in seconds after the first picture is shown
    faces          for models that look at more than the mouth
    """

    crops: UInt8[np.ndarray, "M H W"]
    confidence: UInt8[np.ndarray, " M"]
    fps: float
    sound_starts: float = 0.0
    faces: UInt8[np.ndarray, "M R C 3"] | None = None

    def at(self, seconds: np.ndarray) -> dict[str, Tensor]:
        """What is nearest to each time of the sound, by the modality of a Batch."""
        nearest = nearest_frames(self.sound_starts + seconds, self.fps, len(self.crops))
        seen = {"lips": self.crops[nearest], "sure": self.confidence[nearest] / np.float32(255)}
        seen |= {} if self.faces is None else {"face": self.faces[nearest]}
        return {name: torch.from_numpy(values) for name, values in seen.items()}


def separate_long(
    model: SpeechPrior,
    waveform_N: Float[Tensor, " N"],
    stft: Stft,
    settings: Vem,
    pictures: Pictures | None = None,
    window: int = 20 * RATE,
    overlap: int = 2 * RATE,
    batch_size: int = 4,
    progress: Callable[[float], None] = lambda share: None,
) -> Float[Tensor, " N"]:
    """The speech in a recording of any length, at RATE; the waveform lies where the model does.

    Windows of at most `window` samples, all of one length, go through `separate` in batches, the i-th under the name
    of i; what fits into one goes through whole. Neighbours share `overlap` samples, in which one fades into the other.
    `progress` hears of every share of the work when it is done; they add up to 1.
    """
    if not 0 <= 2 * overlap < window or batch_size < 1:
        raise UserError(
            f"overlap={overlap}, window={window}, batch_size={batch_size}: the overlap must be less than half of the "
            "window, and a batch must hold 1 window or more"
        )
    count = max(1, -(-(len(waveform_N) - overlap) // (window - overlap)))
    length = -(-(len(waveform_N) + (count - 1) * overlap) // count)
    starts = [number * (length - overlap) for number in range(count)]
    rise = torch.arange(1, overlap + 1, device=waveform_N.device) / (overlap + 1)
    speech_N = torch.zeros_like(waveform_N)
    for first in range(0, count, batch_size):
        chosen = starts[first : first + batch_size]
        ids = [str(first + b) for b in range(len(chosen))]
        batch = _windows(waveform_N, ids, chosen, length, stft, pictures)
        share = len(chosen) / count
        separated = separate(model, batch, stft, settings, lambda part, share=share: progress(part * share))
        for start, padded in zip(chosen, separated.speech, strict=True):
            window_N = padded[: len(waveform_N) - start]
            if start:
                window_N[:overlap] = torch.lerp(speech_N[start : start + overlap], window_N[:overlap], rise)
            speech_N[start : start + length] = window_N
    return speech_N


def _windows(
    waveform_N: Tensor, ids: Sequence[str], starts: Sequence[int], length: int, stft: Stft, pictures: Pictures | None
) -> Batch:
    """Pieces of a recording as utterances; the last piece may be a little shorter than the others."""
    pieces = [waveform_N[start : start + length] for start in starts]
    spectra = [stft.power(piece[None])[0] for piece in pieces]
    frames = torch.tensor([len(power_TF) for power_TF in spectra])
    seen: dict[str, Tensor] = {}
    if pictures:
        looks = [
            pictures.at((start + stft.hop * np.arange(count)) / RATE)
            for start, count in zip(starts, frames.tolist(), strict=True)
        ]
        seen = {name: pad_sequence([look[name] for look in looks], batch_first=True) for name in looks[0]}
    return Batch(
        ids=tuple(ids),
        mask=torch.arange(int(frames.max())) < frames[:, None],
        mixture=pad_sequence(pieces, batch_first=True),
        noisy=pad_sequence(spectra, batch_first=True),
        lengths=torch.tensor([len(piece) for piece in pieces]),
        lips=seen.get("lips"),
        sure=seen.get("sure"),
        face=seen.get("face"),
    ).to(waveform_N.device)
