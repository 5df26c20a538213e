"""Sound: the short-time Fourier transform, reading and writing files, and where speech begins and ends.

Shapes: B signals, N samples, T STFT frames, F = 513 frequencies. Frame t is centred on sample t * hop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float, Int16
from torch import Tensor
from torch.nn.functional import pad

from avdvae.errors import UserError, one_line
from avdvae.signals.clock import FASTEST_SOUND, RATE, SLOWEST_SOUND

WINDOW = 1024
BINS = WINDOW // 2 + 1  # frequencies
MARGIN = WINDOW // 2  # samples of a frame on either side of its centre
SILENCE = 1e-8  # a peak below this is not scaled
LONGEST_HOP = 533  # as in the AVSE-VAE line: 30.02 frames a second at 16 kHz


@cache
def sine_window(device: torch.device) -> Float[Tensor, " 1024"]:
    with torch.inference_mode(False):  # made under inference mode, the cached window could not serve training later
        phase = math.pi * (torch.arange(WINDOW, dtype=torch.float64) + 0.5) / WINDOW
        return torch.sin(phase).to(device, torch.float32)


def reflected(index, length):
    """`index` folded back into 0..length-1 as if the signal were mirrored at its ends; for arrays and tensors alike.

    A signal shorter than half a window is mirrored twice at most and then holds its first sample.
    """
    last = length - 1
    return (last - abs(last - abs(index))).clip(0)


@dataclass(frozen=True)
class Stft:
    """Sine window of 1024 samples, centred frames, signals mirrored at their ends."""

    hop: int

    def __post_init__(self) -> None:
        if type(self.hop) is not int or not 1 <= self.hop <= LONGEST_HOP:
            raise UserError(
                f"the hop is {self.hop} samples: choose 1 to {LONGEST_HOP}; published models use 256 or 533"
            )

    def frames(self, samples: int) -> int:
        return 1 + samples // self.hop

    def analyse(self, waveform_BN: Float[Tensor, "B N"], centred: bool = True) -> Complex[Tensor, "B T F"]:
        """The spectrum. Not centred, the signal already begins half a window before the centre of its first frame and
        ends half a window after the last: so a piece of a signal has exactly the frames of the whole."""
        samples = waveform_BN.shape[1]
        if samples < (1 if centred else WINDOW):
            raise UserError(f"a signal of {samples} samples has no spectrum: leave empty recordings out")
        if centred:
            around = torch.arange(-MARGIN, samples + MARGIN, device=waveform_BN.device)
            waveform_BN = waveform_BN[:, reflected(around, samples)]
        return torch.fft.rfft(waveform_BN.unfold(-1, WINDOW, self.hop) * sine_window(waveform_BN.device))

    def power(self, waveform_BN: Float[Tensor, "B N"], centred: bool = True) -> Float[Tensor, "B T F"]:
        spec_BTF = self.analyse(waveform_BN, centred)
        return spec_BTF.real.square() + spec_BTF.imag.square()

    def synthesise(self, spec_BTF: Complex[Tensor, "B T F"], length: int) -> Float[Tensor, "B N"]:
        """The signals of `length` samples whose spectrum is nearest to this one, which inverts `analyse`.

        At hops above 512 up to 21 samples at the end are in no window. They, and the few before them whose weight is
        small, fade to silence: dividing by so small a weight would turn any error there into a click.
        """
        if spec_BTF.shape[1] != self.frames(length):
            raise UserError(
                f"{length} samples have {self.frames(length)} frames at hop {self.hop} and the spectrum has "
                f"{spec_BTF.shape[1]}: cut a padded utterance to its own frames first"
            )
        window = sine_window(spec_BTF.device)
        frames_BTW = torch.fft.irfft(spec_BTF, WINDOW) * window
        weights_BTW = window.square().expand(1, frames_BTW.shape[1], -1)
        overlapped_BN, weight_1N = (
            overlap_added(pieces_BTW, self.hop)[:, MARGIN : MARGIN + length] for pieces_BTW in (frames_BTW, weights_BTW)
        )
        return overlapped_BN / weight_1N.clip(1e-3)

    def with_phase(
        self, power_BTF: Float[Tensor, "B T F"], phase_BTF: Float[Tensor, "B T F"], length: int
    ) -> Float[Tensor, "B N"]:
        """Signals of this power and the phase of others, in radians."""
        return self.synthesise(torch.polar(power_BTF.sqrt(), phase_BTF), length)

    def griffin_lim(
        self, power_BTF: Float[Tensor, "B T F"], length: int, iterations: int = 200, momentum: float = 0.99
    ) -> Float[Tensor, "B N"]:
        """Signals with nearly this spectrum of power; the same power gives the same signal.

        The phase is found by projecting in turn onto the spectra of signals and onto those of this magnitude, with
        momentum: N. Perraudin, P. Balazs, P. Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
        """
        magnitude_BTF = power_BTF.float().sqrt()
        noise = torch.randn(length, generator=torch.Generator().manual_seed(0)).to(power_BTF.device)
        phase_BTF = torch.sgn(self.analyse(noise[None]))
        before_BTF = torch.zeros_like(phase_BTF)
        for _ in range(iterations):
            now_BTF = self.analyse(self.synthesise(magnitude_BTF * phase_BTF, length))
            phase_BTF = torch.sgn(now_BTF + momentum * (now_BTF - before_BTF))
            before_BTF = now_BTF
        return self.synthesise(magnitude_BTF * phase_BTF, length)


def overlap_added(frames_BTW: Float[Tensor, "B T W"], hop: int) -> Float[Tensor, "B N"]:
    """The sum of frames, each `hop` samples after the one before; zeros may follow. Much faster than `fold`."""
    count = -(-frames_BTW.shape[2] // hop)
    pieces_BTPH = pad(frames_BTW, (0, count * hop - frames_BTW.shape[2])).unflatten(2, (count, hop))
    blocks_BSH = frames_BTW.new_zeros(len(frames_BTW), frames_BTW.shape[1] + count - 1, hop)
    for first, piece_BTH in enumerate(pieces_BTPH.unbind(2)):
        blocks_BSH[:, first : first + frames_BTW.shape[1]] += piece_BTH
    return blocks_BSH.flatten(1)


def read_wav(path: str | Path, rate: int = 16_000) -> Float[Tensor, " N"]:
    """A sound file, mixed down to one channel and resampled to `rate`."""
    import soundfile
    from torchaudio.functional import resample

    try:
        samples_NC, found = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # soundfile raises errors of any kind on damaged files
        raise UserError(
            f"{path} cannot be read as sound ({one_line(error)}): give a wav, flac, ogg or mp3 file"
        ) from error
    if not len(samples_NC):
        raise UserError(f"{path} contains no sound: leave it out")
    for hertz in (found, rate):
        _check_rate(hertz, path)
    if not np.isfinite(samples_NC).all():
        raise UserError(f"{path} has samples that are not finite numbers: look for the step that made them")
    return resample(torch.from_numpy(samples_NC.mean(1)), found, rate)


def read_16_bits(path: Path) -> Int16[np.ndarray, " N"] | None:
    """A sound file mixed down to one channel at RATE; None: soundfile does not read it."""
    import soundfile
    from scipy.signal import resample_poly

    try:
        samples_NC, found = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    if not len(samples_NC):
        raise UserError("its sound is empty: not one sample can be read")
    if not SLOWEST_SOUND <= found <= FASTEST_SOUND:
        raise UserError(f"its sound has a sample rate of {found} Hz: give {SLOWEST_SOUND} to {FASTEST_SOUND} Hz")
    return in_16_bits(resample_poly(samples_NC.mean(1), RATE, found))


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    """Samples of -1 to 1 as int16."""
    scaled = samples * np.float32(2**15)
    np.rint(scaled, out=scaled)
    return scaled.clip(-(2**15), 2**15 - 1, out=scaled).astype(np.int16)


def write_wav(path: str | Path, waveform: Float[Tensor, " N"], rate: int) -> None:
    """A wav of 16 bits; samples beyond [-1, 1] are clipped, so scale loud mixtures first."""
    import soundfile

    _check_rate(rate, path)
    if not waveform.isfinite().all():
        raise UserError(f"the sound for {path} has values that are not finite: look for the step that made them")
    soundfile.write(path, waveform.detach().cpu().numpy(), rate, subtype="PCM_16", format="WAV")


def _check_rate(rate: int, path: str | Path) -> None:
    if not 8_000 <= rate <= 192_000:
        raise UserError(f"a sample rate of {rate} Hz for {path} does not suit speech: use 8000 to 192000 Hz")


def trim_silence(waveform: np.ndarray, top_db: float = 30) -> tuple[int, int]:
    """The samples (start, stop) from the first to the last frame that is at most `top_db` below the loudest.

    Loudness is the RMS of 1024 samples every 256. At least the loudest frame remains.
    """
    if not len(waveform):
        raise UserError("silence cannot be trimmed from an empty recording: leave it out")
    energy = np.concatenate([[0], np.cumsum(np.square(waveform, dtype=np.float64))])
    centres = np.arange(0, len(waveform) + 1, 256)
    loudness = energy[(centres + MARGIN).clip(max=len(waveform))] - energy[(centres - MARGIN).clip(0)]
    loud = centres[loudness >= loudness.max() * 10 ** (-top_db / 10)]
    return int(loud[0]), int(min(loud[-1] + 256, len(waveform)))
