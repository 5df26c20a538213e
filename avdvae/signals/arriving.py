"""What arrives in pieces: sound, its resampling, STFT and inverse, and pictures. Nothing depends on where they are cut.

Each object holds what it needs of the past, and no more, in attributes that `state` reads and writes.

    T   frames that are complete            spectrum_TF
    S   samples of the synthesis window     at the end of each frame; fewer than WINDOW: less latency
    M   pictures
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import firwin
from torch import Tensor

from avdvae.errors import UserError
from avdvae.signals.audio import MARGIN, WINDOW, Stft, reflected, sine_window
from avdvae.signals.clock import nearest_frames

TAPS = 10  # zero crossings of the filter on either side, as scipy.signal.resample_poly has them


class Arriving:
    """Attributes named in `held` change as sound arrives."""

    held: tuple[str, ...] = ()

    @property
    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.held}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        for name in self.held:
            setattr(self, name, state[name])


class Resampler(Arriving):
    """From one rate to another with the filter of scipy.signal.resample_poly, whose output this is, piece by piece.

    y_m = sum_k h[m down - k up] x_k
    """

    held = ("samples", "first", "made", "given")

    def __init__(self, before: int, after: int):
        common = math.gcd(before, after)
        self.up, self.down = after // common, before // common
        most = max(self.up, self.down)
        self.half = TAPS * most if most > 1 else 0
        taps = 2 * (self.half // self.up) + 2  # of a phase of the filter, a zero or two among them
        filter = self.up * firwin(2 * self.half + 1, 1 / most, window=("kaiser", 5.0)) if self.half else np.ones(1)  # type: ignore[arg-type]
        phase_P1, tap_K = np.arange(self.up)[:, None], np.arange(taps)[::-1]
        index_PK = phase_P1 + self.up * tap_K
        inside_PK = index_PK < len(filter)
        self.filter_PK = np.where(inside_PK, filter[index_PK * inside_PK], 0).astype(np.float32)
        # The past of the first sample is silence. `first` is the index of samples[0].
        self.samples = torch.zeros(taps, dtype=torch.float32)
        self.first, self.made, self.given = -taps, 0, 0

    @property
    def delay(self) -> float:
        """In samples of the input."""
        return self.half / self.up

    def push(self, samples_N: Float[Tensor, " N"]) -> Float[Tensor, " M"]:
        """The output that no later sample changes."""
        if not self.half:
            return samples_N
        self.given += len(samples_N)
        self.samples = torch.cat([self.samples, samples_N])
        return self._until((self.up * self.given - 1 - self.half) // self.down + 1)

    def finish(self) -> Float[Tensor, " M"]:
        """The rest: after the last sample, there is silence."""
        if not self.half:
            return torch.zeros(0)
        self.samples = torch.cat([self.samples, torch.zeros(self.filter_PK.shape[1])])
        return self._until(-(-self.given * self.up // self.down))

    def _until(self, end: int) -> Tensor:
        """The outputs from the first that is not made yet to `end`."""
        if end <= self.made:
            return torch.zeros(0)
        taps = self.filter_PK.shape[1]
        place_M = np.arange(self.made, end) * self.down + self.half
        last_M = place_M // self.up - self.first  # of the samples that each output takes
        pieces_MK = sliding_window_view(self.samples.numpy(), taps)[last_M - taps + 1]
        made_M = (pieces_MK * self.filter_PK[place_M % self.up]).sum(-1)
        self.made = end
        spent = max(0, (end * self.down + self.half) // self.up - taps + 1 - self.first)
        self.samples, self.first = self.samples[spent:].clone(), self.first + spent
        return torch.from_numpy(made_M)


class Frames(Arriving):
    """The spectra of the frames that are complete. The beginning and the end are mirrored, as in `Stft.analyse`."""

    held = ("samples", "tail", "given", "taken")

    def __init__(self, stft: Stft):
        self.stft = stft
        self.samples, self.tail, self.given, self.taken = torch.zeros(0), torch.zeros(0), 0, 0

    def push(self, samples_N: Float[Tensor, " N"]) -> None:
        started = self.given > MARGIN
        self.given += len(samples_N)
        self.samples = torch.cat([self.samples, samples_N])
        self.tail = torch.cat([self.tail, samples_N])[-MARGIN - 1 :].clone()
        if not started and self.given > MARGIN:
            self.samples = torch.cat([self.samples[1 : MARGIN + 1].flip(0), self.samples])

    @property
    def ready(self) -> int:
        return 0 if self.given <= MARGIN else max(0, 1 + (len(self.samples) - WINDOW) // self.stft.hop)

    def take(self, count: int) -> Complex[Tensor, "T F"]:
        hop = self.stft.hop
        spectrum_TF = self.stft.analyse(self.samples[None, : (count - 1) * hop + WINDOW], centred=False)[0]
        self.samples, self.taken = self.samples[count * hop :].clone(), self.taken + count
        return spectrum_TF

    def end(self) -> None:
        """No sample follows: the frames up to that are `ready`."""
        count = self.stft.frames(self.given) - self.taken
        if not self.given or count <= 0:
            return
        if self.given <= MARGIN:
            around = torch.arange(-MARGIN, self.given + MARGIN)
            self.samples, self.given = self.samples[reflected(around, self.given)], self.given + MARGIN + 1
        else:
            missing = (count - 1) * self.stft.hop + WINDOW - len(self.samples)
            self.samples = torch.cat([self.samples, self.tail.flip(0)[1 : max(0, missing) + 1]])


class Lips(Arriving):
    """Crops of the mouth from a camera on a constant clock: picture k is shown k / fps seconds after the first sample.

    A time has the nearest picture, as in a film; at the end, the last is repeated. Where there is none, it is black.
    """

    held = ("crops_MHW", "confidence_M", "first", "ended")

    def __init__(self, fps: float, size: int = 67):
        self.fps, self.size = fps, size
        self.crops_MHW, self.confidence_M = torch.zeros(0, size, size, dtype=torch.uint8), torch.zeros(0)
        self.first, self.ended = 0, False  # number of the first crop that is kept

    def push(self, crops_MHW: UInt8[np.ndarray, "M H W"], confidence_M: Float[np.ndarray, " M"]) -> None:
        """The next pictures, in order. One that is missing is given as black, with a confidence of 0."""
        size, count = self.size, len(confidence_M)
        if crops_MHW.shape != (count, size, size) or crops_MHW.dtype != np.uint8:
            raise UserError(
                f"lips of shape {crops_MHW.shape} and type {crops_MHW.dtype}, with {count} of confidence: give "
                f"({count}, {size}, {size}) of uint8"
            )
        self.crops_MHW = torch.cat([self.crops_MHW, torch.from_numpy(crops_MHW)])
        self.confidence_M = torch.cat([self.confidence_M, torch.from_numpy(np.asarray(confidence_M, np.float32))])

    @property
    def given(self) -> int:
        return self.first + len(self.crops_MHW)

    def has(self, seconds: float) -> bool:
        """Whether the picture nearest to this time has arrived."""
        return self.ended or bool(np.rint(seconds * self.fps) < self.given)

    def forget(self, seconds: float) -> None:
        """The pictures before the one nearest to this time."""
        spent = min(int(np.rint(seconds * self.fps)), self.given - 1) - self.first
        if spent > 0:
            self.crops_MHW, self.confidence_M = self.crops_MHW[spent:].clone(), self.confidence_M[spent:].clone()
            self.first += spent

    def end(self) -> None:
        """No picture follows."""
        self.ended = True
        if not self.given:
            self.push(np.zeros((1, self.size, self.size), np.uint8), np.zeros(1))

    def at(self, seconds: np.ndarray) -> dict[str, Tensor]:
        """The pictures nearest to each time, as of `separation.Pictures`."""
        nearest_T = torch.from_numpy(nearest_frames(seconds, self.fps, self.given) - self.first)
        return {"lips": self.crops_MHW[nearest_T], "confidence": self.confidence_M[nearest_T]}


class OverlapAdd(Arriving):
    """From spectra to samples, which come out when no later frame adds to them.

    A frame is weighted by a Hann window over its last S samples, times the inverse of the analysis window; with S =
    WINDOW, that is the sine window, as in `Stft.synthesise`. The first frame is taken as a whole, for no other covers
    the beginning.
    """

    held = ("sum_W", "weight_W", "frame", "emitted", "length")

    def __init__(self, stft: Stft, synthesis: int):
        self.stft, self.synthesis = stft, synthesis
        self.window_W = sine_window(torch.device("cpu"))
        phase = math.pi * (torch.arange(synthesis, dtype=torch.float64) + 0.5) / synthesis
        hann_W = torch.cat([torch.zeros(WINDOW - synthesis), torch.sin(phase).square().float()])
        self.synthesis_W = hann_W / self.window_W
        self.sum_W, self.weight_W = torch.zeros(2, WINDOW)
        self.frame, self.emitted = 0, 0  # that comes next
        self.length = sys.maxsize  # of the sound, once it is known

    def add(self, spectrum_TF: Complex[Tensor, "T F"]) -> Float[Tensor, " N"]:
        return torch.cat([self._add(frame_W) for frame_W in torch.fft.irfft(spectrum_TF, WINDOW)] or [torch.zeros(0)])

    def _add(self, frame_W: Float[Tensor, " 1024"]) -> Tensor:
        hop = self.stft.hop
        synthesis_W = self.synthesis_W if self.frame else self.window_W
        if self.frame:
            for name in ("sum_W", "weight_W"):
                kept = getattr(self, name)[hop:]
                setattr(self, name, torch.cat([kept, torch.zeros(WINDOW - len(kept))]))
        self.sum_W += frame_W * synthesis_W
        self.weight_W += self.window_W * synthesis_W
        self.frame += 1
        return self._until(self.frame * hop + MARGIN - self.synthesis)

    def finish(self) -> Float[Tensor, " N"]:
        """The rest of the samples, whose number is `length`."""
        return self._until(self.length)

    def _until(self, end: int) -> Tensor:
        end = min(end, self.length)
        start = (self.frame - 1) * self.stft.hop - MARGIN  # of the last frame
        if end <= self.emitted:
            return torch.zeros(0)
        chosen = slice(self.emitted - start, end - start)
        made = self.sum_W[chosen] / self.weight_W[chosen].clip(1e-3)
        made = torch.cat([made, torch.zeros(end - self.emitted - len(made))])  # where a long hop leaves a gap
        self.emitted = end
        return made
