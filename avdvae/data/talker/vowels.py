"""Clean vowels whose pitch and formants are known exactly: harmonics under the envelope of glottis and tract.

    x(n) = sum_k a_k cos(2 pi k f0 n / rate + phi_k),    k f0 < rate / 2
    a_k = |G(k f0)| |V(k f0)|,    phi_k = arg V(k f0)

G falls by 6 dB an octave, glottis and radiation together; V is a cascade of resonators with two poles each. There is no
aliasing and no jitter. One factor at a time moves along its grid in GRIDS, with the others at one of several settings:
those of SETTINGS, in one voice, or drawn by `draw_settings`, each in a voice of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Complex, Float

from avdvae.signals.clock import RATE

FACTORS = ("f0", "f1", "f2", "f3")
GRIDS = {  # in Hz
    "f0": np.arange(100.0, 301, 1),
    "f1": np.arange(200.0, 1001, 2),
    "f2": np.arange(1000.0, 2801, 10),
    "f3": np.arange(2000.0, 3201, 5),
}
_UPPER = np.array([3500.0, 4500, 5500, 6500])  # F4 to F7 are constant
_WIDTHS = np.array([70.0, 90, 140, 175, 250, 400, 600])  # of F1 to F7, Hz
_TILT_FROM = 100.0  # Hz, where the source begins to fall
_VOICE_TILT_FROM = 300.0  # Hz, where the sources of voices begin to differ
_DRAWN_FROM = {"f0": (100.0, 300.0), "f1": (250.0, 850.0), "f2": (1100.0, 2400.0), "f3": (2000.0, 3400.0)}  # Hz
_APART = 150.0  # Hz at least between two formants of a drawn setting, at both ends of the grid


@dataclass(frozen=True)
class Vowel:
    f0: float
    f1: float
    f2: float
    f3: float
    tilt: float = 0.0  # exponent of the frequency, by which a voice differs
    width: float = 1.0  # of its formants, relative to _WIDTHS
    upper: float = 1.0  # its F4 to F7, relative to _UPPER


# The other factors while one moves: vowels and voices over which its subspace is to be the same.
SETTINGS: dict[str, Sequence[Vowel]] = {
    "f0": (Vowel(0, 400, 2000, 2700), Vowel(0, 600, 1500, 2500), Vowel(0, 300, 1100, 2300), Vowel(0, 700, 1200, 2600)),
    "f1": (Vowel(120, 0, 1600, 2600), Vowel(160, 0, 1300, 2400), Vowel(210, 0, 1900, 2700), Vowel(260, 0, 1600, 2600)),
    "f2": (Vowel(120, 500, 0, 3000), Vowel(160, 350, 0, 3100), Vowel(210, 650, 0, 3100), Vowel(260, 800, 0, 3000)),
    "f3": (Vowel(120, 500, 1500, 0), Vowel(160, 350, 1700, 0), Vowel(210, 650, 1200, 0), Vowel(260, 450, 1600, 0)),
}


def trajectory(factor: str, setting: Vowel) -> list[Vowel]:
    """The vowels along a factor's grid."""
    return [replace(setting, **{factor: value}) for value in GRIDS[factor].tolist()]


def draw_settings(factor: str, count: int, rng: np.random.Generator) -> list[Vowel]:
    """Other factors and voices while `factor` moves."""
    found: list[Vowel] = []
    while len(found) < count:
        vowel = Vowel(
            **{name: rng.uniform(*ends) for name, ends in _DRAWN_FROM.items()},
            tilt=rng.uniform(-0.5, 0.5),
            width=2 ** rng.uniform(-0.25, 0.5),
            upper=rng.uniform(0.925, 1.075),
        )
        ends = [replace(vowel, **{factor: end}) for end in (GRIDS[factor][0], GRIDS[factor][-1])]
        if all(min(end.f2 - end.f1, end.f3 - end.f2) >= _APART for end in ends):
            found.append(vowel)
    return found


def envelope(vowel: Vowel, hertz: Float[np.ndarray, " K"]) -> Complex[np.ndarray, " K"]:
    """Source and tract at these frequencies."""
    centres = np.array([vowel.f1, vowel.f2, vowel.f3, *_UPPER * vowel.upper])
    keep = np.exp(-np.pi * _WIDTHS * vowel.width / RATE)
    turn = 2 * keep * np.cos(2 * np.pi * centres / RATE)
    delay_K1 = np.exp(-2j * np.pi * hertz[:, None] / RATE)
    tract = (1 - turn + keep**2) / (1 - turn * delay_K1 + keep**2 * delay_K1**2)
    voice = (np.maximum(hertz, _VOICE_TILT_FROM) / 1000) ** vowel.tilt
    return tract.prod(1) * voice / np.hypot(1, hertz / _TILT_FROM)


def sound(vowel: Vowel, samples: int) -> Float[np.ndarray, " N"]:
    """At 16 kHz, with a root mean square of 1."""
    harmonics = np.arange(1, np.ceil(RATE / 2 / vowel.f0))
    amplitude = envelope(vowel, harmonics * vowel.f0)
    cycles = vowel.f0 / RATE * np.arange(samples) % 1
    angle_KN = np.float32(2 * np.pi) * np.outer(harmonics, cycles).astype(np.float32)
    angle_KN += np.angle(amplitude)[:, None].astype(np.float32)
    wave = np.abs(amplitude).astype(np.float32) @ np.cos(angle_KN)
    return wave / np.float32(np.sqrt(np.square(np.abs(amplitude)).sum() / 2))


def whispered(vowel: Vowel, samples: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """The same tract on noise."""
    spectrum = np.fft.rfft(rng.normal(size=samples)) * np.abs(envelope(vowel, np.fft.rfftfreq(samples, 1 / RATE)))
    wave = np.fft.irfft(spectrum, samples)
    return (wave / np.sqrt(np.square(wave).mean())).astype(np.float32)
