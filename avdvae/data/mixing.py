"""Noise on the audio and on the lips: the conditions under which a model is tested.

A condition is a function of its key, such as (utterance id, seed), and of nothing else, so that every run on every
machine gets the same mixture. `stream` makes a random generator of a key; all that is random below draws from one.

The six noises have the names of those in NTCD-TIMIT, which may not be redistributed; these are generated. White, Car
and LR (living room) are stationary; Babble, Cafe and Street are not. Recorded noise comes from a `NoiseFolder`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator

from avdvae.errors import UserError
from avdvae.signals.clock import RATE

# ---------------------------------------------------------------------------------------------------------------------
# Mixing


class Mixed(NamedTuple):
    mixture: Float[np.ndarray, " N"]
    noise: Float[np.ndarray, " N"]  # scaled as in the mixture


def mix(speech: Float[np.ndarray, " N"], noise: Float[np.ndarray, " M"], snr_db: float) -> Mixed:
    """Speech plus noise scaled to a broadband SNR, both energies taken over the whole signal, pauses included.

    The speech keeps its level and nothing is clipped, so the mixture may leave [-1, 1]: its clean part is exactly the
    reference of the metrics. Scale before writing 16-bit files.
    """
    if len(speech) != len(noise):
        raise UserError(
            f"speech has {len(speech)} samples and noise {len(noise)}: make the noise as long as the speech"
        )
    energies = {name: np.square(x, dtype=np.float64).sum() for name, x in (("speech", speech), ("noise", noise))}
    for name, energy in energies.items():
        if energy == 0:
            raise UserError(f"the {name} is silent, so no level of noise gives {snr_db} dB: leave this signal out")
    gain = float(np.sqrt(energies["speech"] / energies["noise"]) * 10 ** (-snr_db / 20))
    scaled = gain * noise
    return Mixed(speech + scaled, scaled)


# ---------------------------------------------------------------------------------------------------------------------
# Generated noises


def make_noise(
    name: str, length: int, rng: Generator, talkers: Sequence[Float[np.ndarray, " _"]] = ()
) -> Float[np.ndarray, " N"]:
    """`length` samples of one of NOISES, in float32 and with unit RMS.

    Babble and Cafe are made of `talkers`: waveforms of speakers other than the one in the mixture, in a fixed order,
    since they are part of the condition.
    """
    if name not in NOISES:
        raise UserError(
            f"no noise is called {name!r}: choose from {', '.join(NOISES)}, or give a folder of noise files"
        )
    at_least_a_second = max(length, RATE)  # a shorter piece would have no low frequencies and no events
    return _unit_rms(NOISES[name](at_least_a_second, rng, talkers)[:length], name).astype(np.float32)


def white(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    return rng.standard_normal(length)


def car(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    """Inside a car on a fast road: tyres, wind, and, below 100 Hz, where microphones cut, the rest of body and engine.

    Above 200 Hz a third of an octave falls by 2 to 4 dB an octave up to 1 kHz, and faster beyond, as in measured cars.
    """
    road = _coloured(length, rng, lambda f: f / (f**2 + 120**2) / (1 + (f / 3000) ** 2))
    rumble = _coloured(length, rng, lambda f: (f / (f**2 + 45**2)) ** 2)
    # A four-stroke engine of four cylinders fires twice a turn and sounds at every multiple of half a turn.
    turns_per_second = rng.uniform(25, 45) * (1 + 0.01 * _wander(length, rng, hertz=0.4))
    phase = np.pi * np.cumsum(turns_per_second) / RATE
    engine = np.zeros(length)
    for order in range(2, 17):
        strength = (1 if order % 4 == 0 else 0.3) / order
        engine += strength * np.sin(order * phase + rng.uniform(0, 2 * np.pi))
    return road + 0.5 * rumble + 0.4 * _unit_rms(engine)


def living_room(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    """A quiet room: air flow, the mains' harmonics, and the whine of an appliance."""
    air = _coloured(length, rng, lambda f: np.sqrt(f / (f**2 + 60**2)))
    seconds = np.arange(length) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * seconds + rng.uniform(0, 2 * np.pi)) / k for k in (1, 2, 3, 4, 6, 8))
    whine = np.sin(2 * np.pi * rng.uniform(900, 2400) * seconds)
    return air + 0.45 * hum + 0.1 * whine


def street(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    """A kerb: far traffic, vehicles that pass, now and then a distant horn."""
    seconds = np.arange(length) / RATE
    signal = _coloured(length, rng, lambda f: np.sqrt(f / (f**2 + 80**2)) / (1 + f / 2000))
    for _ in range(1 + rng.poisson(seconds[-1] / 4)):
        moment, slowness = rng.uniform(0, seconds[-1]), rng.uniform(0.3, 1)
        nearness = 1 / np.sqrt(1 + ((seconds - moment) / slowness) ** 2)  # amplitude is inverse to distance
        engine, tyres = rng.uniform(80, 200), rng.uniform(700, 1500)
        dull = _coloured(length, rng, lambda f, peak=engine: f / (f**2 + peak**2))
        bright = _coloured(length, rng, lambda f, peak=tyres: (f / (f**2 + peak**2)) ** 2)
        # Air absorbs high frequencies: the nearer, the brighter.
        signal += rng.uniform(2, 4) * (nearness**1.5 * dull + nearness**3 * bright)
    for _ in range(rng.poisson(seconds[-1] / 12)):
        start, duration = rng.uniform(0, seconds[-1]), rng.uniform(0.3, 1)
        pitch = rng.uniform(330, 440)
        tones = sum(np.sin(2 * np.pi * k * p * seconds) / k for p in (pitch, 1.26 * pitch) for k in range(1, 7))
        blown = np.clip(np.minimum(seconds - start, start + duration - seconds) / 0.03, 0, 1)
        signal += 0.6 * _in_a_room(blown * tones, rng, decay=0.5)
    return signal


def babble(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    """Six voices at one level."""
    return _voices(6, length, rng, talkers).sum(0)


def cafe(length: int, rng: Generator, talkers: Sequence = ()) -> np.ndarray:
    """Voices at many distances in a reverberant room, the dishes of the next table, and a fan."""
    distances = rng.uniform(1, 4, size=(12, 1))
    chatter = (_voices(12, length, rng, talkers) / distances).sum(0)
    far_away = 1 / (1 + (np.fft.rfftfreq(length, 1 / RATE) / 2500) ** 2)
    chatter = _in_a_room(np.fft.irfft(np.fft.rfft(chatter) * far_away, length), rng, decay=0.6)
    fan = _coloured(length, rng, lambda f: f / (f**2 + 100**2))
    return _unit_rms(chatter) + 0.4 * _dishes(length, rng) + 0.2 * fan


NOISES: dict[str, Callable[[int, Generator, Sequence], np.ndarray]] = {
    "Babble": babble,
    "Cafe": cafe,
    "Car": car,
    "LR": living_room,
    "Street": street,
    "White": white,
}


def _unit_rms(signal: np.ndarray, name: str = "a noise") -> np.ndarray:
    rms = np.sqrt(np.square(signal, dtype=np.float64).mean()) if signal.size else 0
    if rms == 0:
        raise UserError(f"{name} is silent and has no level to set: leave it out")
    return signal / rms


def _coloured(length: int, rng: Generator, amplitude: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Stationary Gaussian noise of unit RMS; `amplitude` is its spectrum over Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(length)) * amplitude(np.fft.rfftfreq(length, 1 / RATE))
    return _unit_rms(np.fft.irfft(spectrum, length))


def _wander(length: int, rng: Generator, hertz: float) -> np.ndarray:
    """A slow random curve around 0: a new Gaussian value `hertz` times a second, with straight lines between."""
    position = np.arange(length) * hertz / RATE
    values = rng.standard_normal(int(position[-1]) + 2)
    return np.interp(position, np.arange(len(values)), values)


def _in_a_room(signal: np.ndarray, rng: Generator, decay: float) -> np.ndarray:
    """Reverberation that falls by 60 dB in `decay` seconds. It is circular: that of the end falls on the beginning."""
    seconds = np.arange(int(decay * RATE)) / RATE
    tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / decay)
    tail /= np.linalg.norm(tail)
    return np.fft.irfft(np.fft.rfft(signal) * np.fft.rfft(tail, len(signal)), len(signal))


def _voices(count: int, length: int, rng: Generator, talkers: Sequence) -> np.ndarray:
    """`count` voices at one level, each from a random start. All differ while there are talkers enough."""
    if len(talkers) == 0:
        raise UserError(
            "Babble and Cafe are made of voices and none were given: "
            "pass `talkers`, utterances by speakers other than the one in the mixture"
        )
    chosen = np.resize(rng.permutation(len(talkers)), count).tolist()
    return np.stack([_excerpt(_unit_rms(talkers[i], f"talker {i}"), length, rng) for i in chosen])


def _excerpt(signal: np.ndarray, length: int, rng: Generator) -> np.ndarray:
    """`length` samples from a random start; a short signal is looped."""
    if len(signal) >= length:
        start = rng.integers(len(signal) - length + 1)
        return signal[start : start + length]
    return np.resize(np.roll(signal, rng.integers(len(signal))), length)


def _dishes(length: int, rng: Generator) -> np.ndarray:
    """Cups and plates: a few inharmonic partials each, which decay within a tenth of a second or so."""
    seconds = np.arange(RATE // 2) / RATE
    signal = np.zeros(length + len(seconds))
    for _ in range(2 + rng.poisson(1.5 * length / RATE)):
        start = rng.integers(length)
        for _ in range(5):
            partial = np.sin(2 * np.pi * rng.uniform(1800, 7000) * seconds) * np.exp(-seconds / rng.uniform(0.01, 0.06))
            signal[start : start + len(seconds)] += rng.exponential() * partial
    return signal[:length]


# ---------------------------------------------------------------------------------------------------------------------
# Recorded noise


class NoiseFolder:
    """The wav and flac files under a folder as one noise: each call cuts a random piece of a random file.

    A piece is mono, at 16 kHz, in float32 and with unit RMS. It is called as a generated noise is, without talkers.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_dir():
            raise UserError(f"there is no folder {path}: give the one that holds your noise files (wav or flac)")
        self.files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in (".wav", ".flac"))
        if not self.files:
            raise UserError(
                f"no wav or flac file is in {path} or below it: put noise files there or name another folder"
            )

    def __call__(self, length: int, rng: Generator, talkers: Sequence = ()) -> Float[np.ndarray, " N"]:
        import soundfile
        import torch
        from torchaudio.functional import resample

        path = self.files[rng.integers(len(self.files))]
        with soundfile.SoundFile(path) as file:
            wanted = math.ceil(length * file.samplerate / RATE)
            file.seek(rng.integers(max(file.frames - wanted, 0) + 1))
            piece = file.read(wanted, dtype="float32", always_2d=True).mean(1)
        piece = _unit_rms(piece, f"{path} or the piece just drawn from it")
        piece = resample(torch.from_numpy(piece), file.samplerate, RATE).numpy()
        return _unit_rms(_excerpt(piece, length, rng), str(path)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Corrupted lips


def corrupt_lips(
    lips: UInt8[np.ndarray, "T H W"], rng: Generator, kind: str
) -> tuple[UInt8[np.ndarray, "T H W"], Bool[np.ndarray, " T"]]:
    """A copy in which a third of the frames, in separate blocks of about 20, are corrupted, and which frames those are.

    With `none` all frames are black.
    """
    if kind not in (*CORRUPTIONS, "none"):
        raise UserError(f"lips cannot be {kind!r}: choose from {', '.join(CORRUPTIONS)}, none")
    if kind == "none":
        return np.zeros_like(lips), np.ones(len(lips), dtype=bool)
    changed, corrupted = lips.copy(), np.zeros(len(lips), dtype=bool)
    total = round(len(lips) / 3)
    count = max(1, round(total / 20))
    edges = np.linspace(0, total, count + 1).round().astype(int)
    # Each block follows another number of intact frames, so at least one lies between two blocks.
    intact_before = np.sort(rng.choice(len(lips) - total + 1, count, replace=False))
    for start, stop in zip(intact_before + edges[:-1], intact_before + edges[1:], strict=True):
        changed[start:stop] = CORRUPTIONS[kind](lips[start:stop], rng)
        corrupted[start:stop] = True
    return changed, corrupted


def occluded(block: UInt8[np.ndarray, "T H W"], rng: Generator) -> UInt8[np.ndarray, "T H W"]:
    """A hand, four fingers and the palm, that drifts slowly in front of the mouth."""
    frames, height, width = block.shape
    size = min(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    centre = rng.normal(0, 0.05, 2) + np.linspace(-0.5, 0.5, frames)[:, None] * rng.uniform(-0.2, 0.2, 2)
    pixels = np.moveaxis(np.mgrid[:height, :width], 0, -1) - np.array([height - 1, width - 1]) / 2
    offsets_THW2 = pixels / size - centre[:, None, None]
    u, v = offsets_THW2 @ along, offsets_THW2 @ across

    # Limbs are thick line segments along `u`: (from, to, side, thickness) in units of the picture.
    limbs = [(-0.3, -0.2, 0, 0.27)] + [
        (-0.2, rng.uniform(0.25, 0.45), side, 0.08) for side in (-0.21, -0.07, 0.07, 0.21)
    ]
    depth = np.max([r - np.hypot(u - np.clip(u, a, b), v - side) for a, b, side, r in limbs], axis=0)
    opacity = np.clip(0.5 + depth * size / 2, 0, 1)  # the edge is two pixels wide
    skin = rng.uniform(90, 200) * (0.75 + 0.25 * np.clip(depth / 0.08, 0, 1))  # darker between the fingers
    return (opacity * skin + (1 - opacity) * block).round().astype(np.uint8)


def noised(block: UInt8[np.ndarray, "T H W"], rng: Generator) -> UInt8[np.ndarray, "T H W"]:
    """Rectangles of Gaussian noise, new in each frame; their places are those of the block."""
    frames, height, width = block.shape
    block = block.copy()
    for _ in range(rng.integers(2, 5)):
        h, w = (max(1, round(side * rng.uniform(0.3, 0.6))) for side in (height, width))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        block[:, top : top + h, left : left + w] = rng.normal(128, 64, (frames, h, w)).clip(0, 255)
    return block


def missing(block: UInt8[np.ndarray, "T H W"], rng: Generator) -> UInt8[np.ndarray, "T H W"]:
    return np.zeros_like(block)


CORRUPTIONS: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {
    "occluded": occluded,
    "noised": noised,
    "missing": missing,
}
