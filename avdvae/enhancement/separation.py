"""From noisy sound to speech: the EM stage between an STFT and its inverse. Of several sources alike, by `Sources`.

A mixture is scaled so that its speech, as estimated by spectral subtraction, peaks at 1 as in training: the result does
not depend on the level of the recording, and little on that of the noise. (As published, by Vem.paper or Assignment,
the mixture itself peaks at 1.) A long recording is enhanced in windows with cross-fades.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avdvae.enhancement.noise import StationaryNoise
from avdvae.enhancement.sources import Assignment, Sources, assign
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.protocols import Batch, Prior
from avdvae.signals.audio import BINS, SILENCE, Stft
from avdvae.signals.clock import RATE, nearest_frames


@dataclass(frozen=True)
class Separated:
    """sources  J B N  at the level of the mixture, zero where it pads
    cost     I B    of the EM, in each iteration
    switch   B T C  of mixtures of models: posterior probability of each component"""

    sources: Float[Tensor, "J B N"]
    cost: Float[Tensor, "I B"]
    switch: Float[Tensor, "B T C"] | None = None

    @property
    def speech(self) -> Float[Tensor, "B N"]:
        """The first source, in enhancement the only one."""
        return self.sources[0]


def separate(
    model: Prior,
    batch: Batch,
    stft: Stft,
    settings: Vem | Assignment,
    progress: Callable[[float], None] = lambda share: None,
) -> Separated:
    """The speech in `batch.mixture`, or each of its sources."""
    mixture_BN, spectra = batch.need("mixture", model), spectra_of(batch, stft)
    spectrum_BTF = mixture_BN.new_zeros(*batch.mask.shape, BINS, dtype=torch.complex64)
    for b, spectrum_TF in enumerate(spectra):
        spectrum_BTF[b, : len(spectrum_TF)] = spectrum_TF
    noisy_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
    stationary, peak_B = None, mixture_BN.abs().amax(1).clamp_min(SILENCE)
    if isinstance(settings, Vem) and not settings.paper:
        stationary = StationaryNoise.of(noisy_BTF / peak_B[:, None, None].square(), batch.mask)
        speech_BN = filtered(spectra, stationary.filter_BTF, batch, stft)
        mixture_peak_B, peak_B = peak_B, speech_BN.abs().amax(1).clamp_min(SILENCE)
        stationary = stationary.scaled((mixture_peak_B / peak_B).square())
    level_B11 = peak_B[:, None, None]
    scaled = replace(batch, noisy=noisy_BTF / level_B11.square(), spectrum=spectrum_BTF / level_B11)
    if isinstance(settings, Assignment):
        assert isinstance(model, Sources)
        found = assign(model, scaled, settings, progress)
    else:
        found = enhance(model, scaled, settings, progress, stationary)
    sources_JBN = torch.stack([filtered(spectra, filter_BTF, batch, stft) for filter_BTF in found.filters])
    return Separated(sources_JBN, found.cost, found.switch)


def spectra_of(batch: Batch, stft: Stft) -> list[Complex[Tensor, "_ F"]]:
    """Of the mixtures one by one, because each is mirrored at its own end."""
    assert batch.mixture is not None and batch.lengths is not None
    return [stft.analyse(batch.mixture[b : b + 1, :length])[0] for b, length in enumerate(batch.lengths.tolist())]


def filtered(
    spectra: Sequence[Complex[Tensor, "_ F"]], filter_BTF: Float[Tensor, "B T F"], batch: Batch, stft: Stft
) -> Float[Tensor, "B N"]:
    assert batch.mixture is not None and batch.lengths is not None
    speech_BN = torch.zeros_like(batch.mixture)
    for b, (spectrum_TF, length) in enumerate(zip(spectra, batch.lengths.tolist(), strict=True)):
        clean_TF = filter_BTF[b, : len(spectrum_TF)] * spectrum_TF
        speech_BN[b, :length] = stft.synthesise(clean_TF[None], length)[0]
    return speech_BN


@dataclass(frozen=True)
class Pictures:
    """The crops that belong to a recording. Before the first and after the last, those are repeated.

    sound_starts   time of the first sample after the first picture, in seconds
    faces          for models that observe the whole face
    """

    crops: UInt8[np.ndarray, "M H W"]
    confidence: UInt8[np.ndarray, " M"]
    fps: float
    sound_starts: float = 0.0
    faces: UInt8[np.ndarray, "M R C 3"] | None = None

    def at(self, seconds: np.ndarray) -> dict[str, Tensor]:
        """The pictures nearest to each time of the sound, by modality of a Batch."""
        nearest = nearest_frames(self.sound_starts + seconds, self.fps, len(self.crops))
        seen = {"lips": self.crops[nearest], "confidence": self.confidence[nearest] / np.float32(255)}
        seen |= {} if self.faces is None else {"face": self.faces[nearest]}
        return {name: torch.from_numpy(values) for name, values in seen.items()}


@dataclass(frozen=True)
class PicturesOfSources:
    """Those of each source of a mixture, and None of one whose prior takes none."""

    each: Sequence[Pictures | None]

    def at(self, seconds: np.ndarray) -> dict[str, Tensor]:
        """As `Pictures.at`, with the sources after the frames; black where there are none."""
        found = [pictures.at(seconds) if pictures else {} for pictures in self.each]
        like = {name: values for one in found for name, values in one.items()}
        return {
            name: torch.stack([one.get(name, torch.zeros_like(values)) for one in found], 1)
            for name, values in like.items()
        }


def separate_long(
    model: Prior,
    waveform_N: Float[Tensor, " N"],
    stft: Stft,
    settings: Vem | Assignment,
    pictures: Pictures | PicturesOfSources | None = None,
    window: int = 20 * RATE,
    overlap: int = 2 * RATE,
    batch_size: int = 4,
    progress: Callable[[float], None] = lambda share: None,
) -> Float[Tensor, "J N"]:
    """The sources of a recording of any length, at RATE; the waveform lies where the model does.

    Windows of at most `window` samples, all of one length, go through `separate` in batches, the i-th under the name
    of i; a recording that fits into one is not cut. Neighbours share `overlap` samples, in which they are cross-faded.
    `progress` is called with each share of the work that is done; they add up to 1.
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
    sources_JN = waveform_N.new_zeros(0, len(waveform_N))
    for first in range(0, count, batch_size):
        chosen = starts[first : first + batch_size]
        ids = [str(first + b) for b in range(len(chosen))]
        batch = _windows(waveform_N, ids, chosen, length, stft, pictures)
        share = len(chosen) / count
        separated = separate(model, batch, stft, settings, lambda part, share=share: progress(part * share))
        if not first:
            sources_JN = waveform_N.new_zeros(len(separated.sources), len(waveform_N))
        for start, padded_JN in zip(chosen, separated.sources.unbind(1), strict=True):
            window_JN = padded_JN[:, : len(waveform_N) - start]
            if start:
                before_JN = sources_JN[:, start : start + overlap]
                window_JN[:, :overlap] = torch.lerp(before_JN, window_JN[:, :overlap], rise)
            sources_JN[:, start : start + length] = window_JN
    return sources_JN


def _windows(
    waveform_N: Tensor,
    ids: Sequence[str],
    starts: Sequence[int],
    length: int,
    stft: Stft,
    pictures: Pictures | PicturesOfSources | None,
) -> Batch:
    """Pieces of a recording as utterances; the last piece may be a little shorter than the others."""
    pieces = [waveform_N[start : start + length] for start in starts]
    frames = torch.tensor([stft.frames(len(piece)) for piece in pieces])
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
        lengths=torch.tensor([len(piece) for piece in pieces]),
        lips=seen.get("lips"),
        confidence=seen.get("confidence"),
        face=seen.get("face"),
    ).to(waveform_N.device)
