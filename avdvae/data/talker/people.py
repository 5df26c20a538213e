"""Speakers and emotions: the parameters in which talkers differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Voice:
    f0: float  # Hz, the middle of the range
    f0_range: float  # semitones that an accent rises
    tract: float  # formants relative to an average male
    tilt: float  # dB by which the source is lower at 3 kHz
    open_quotient: float
    breath: float
    jitter: float
    shimmer: float
    rate: float  # speed of speaking, 1 = normal
    level: float  # dB of full scale, root mean square of the whole utterance


@dataclass(frozen=True)
class Looks:
    """Lengths are in units of half the head's width."""

    skin: Colour
    lips: Colour
    hair: Colour
    iris: Colour
    background: Colour
    shirt: Colour
    jaw: float  # length of the lower face
    eye_spacing: float
    eye_size: float
    nose: float
    mouth_width: float
    mouth_height: float  # of the mouth below the eyes
    lip_thickness: float
    opening: float  # inner height of a wide open mouth
    brow: float  # thickness
    size: float  # half the head's width in pixels


@dataclass(frozen=True)
class Expression:
    brow_raise: float = 0.0
    brow_slant: float = 0.0  # inner ends down: positive
    smile: float = 0.0
    eyes: float = 0.0  # wider than normal
    effort: float = 1.0  # how far the mouth opens


@dataclass(frozen=True)
class Speaker:
    name: str  # as TCD-TIMIT has them: 01M, 02F, ...
    sex: str  # "M" or "F"
    voice: Voice
    looks: Looks


@dataclass(frozen=True)
class Emotion:
    """The changes by an emotion at its full level: factors for f0, its range and the rate; dB for tilt and level."""

    f0: float = 1.0
    f0_range: float = 1.0
    rate: float = 1.0
    tilt: float = 0.0
    level: float = 0.0
    breath: float = 0.0
    expression: Expression = Expression()

    def colour(self, voice: Voice, level: int) -> tuple[Voice, Expression]:
        """The voice and the face of a speaker in this emotion, at level 1, 2 or 3."""
        share = level / 3
        felt = replace(
            voice,
            f0=voice.f0 * self.f0**share,
            f0_range=voice.f0_range * self.f0_range**share,
            rate=voice.rate * self.rate**share,
            tilt=max(voice.tilt + self.tilt * share, 0.0),
            level=voice.level + self.level * share,
            breath=voice.breath + self.breath * share,
        )
        face = self.expression
        return felt, Expression(
            face.brow_raise * share, face.brow_slant * share, face.smile * share, face.eyes * share, face.effort**share
        )


EMOTIONS = {
    "angry": Emotion(1.2, 1.6, 1.12, -4, 5, 0.0, Expression(-0.3, 1.0, -0.3, 0.2, 1.2)),
    "contempt": Emotion(0.95, 0.7, 0.94, 1, -1, 0.0, Expression(0.2, 0.3, 0.25, -0.25, 0.9)),
    "disgusted": Emotion(0.92, 0.85, 0.86, 2, 0, 0.03, Expression(-0.35, 0.6, -0.5, -0.35, 0.95)),
    "fear": Emotion(1.4, 0.8, 1.18, 3, -1, 0.08, Expression(0.7, -0.7, -0.2, 0.5, 0.95)),
    "happy": Emotion(1.25, 1.7, 1.06, -2, 2, 0.0, Expression(0.3, -0.1, 1.0, -0.1, 1.1)),
    "neutral": Emotion(),
    "sad": Emotion(0.88, 0.5, 0.82, 5, -5, 0.06, Expression(0.2, -1.0, -0.7, -0.3, 0.85)),
    "surprised": Emotion(1.35, 2.0, 1.0, -1, 2, 0.03, Expression(1.0, -0.2, 0.1, 0.7, 1.15)),
}

_SKIN = ((236, 200, 176), (224, 182, 152), (205, 160, 128), (178, 130, 98), (146, 102, 76), (120, 84, 62))
_HAIR = ((40, 30, 26), (74, 50, 36), (120, 84, 50), (172, 140, 92), (96, 92, 92), (120, 54, 34))
_IRIS = ((84, 58, 38), (70, 100, 120), (84, 110, 78), (56, 40, 32))


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def speaker(seed: int, number: int) -> Speaker:
    """Speaker `number` (from 1) of the corpus with this seed; odd ones are male."""
    rng = np.random.default_rng([seed, number, 1])
    male = number % 2 == 1
    skin = np.array(_SKIN[rng.integers(len(_SKIN))]) + rng.integers(-8, 9, 3)
    lips = skin * (0.80, 0.55, 0.56) + (24, 0, 4) if male else skin * (0.80, 0.42, 0.46) + (30, 0, 8)
    return Speaker(
        name=f"{number:02d}{'M' if male else 'F'}",
        sex="M" if male else "F",
        voice=Voice(
            f0=float(rng.uniform(88, 150) if male else rng.uniform(170, 240)),
            f0_range=float(rng.uniform(2.0, 3.5)),
            tract=float(rng.uniform(0.94, 1.06) * (1.0 if male else 1.16)),
            tilt=float(rng.uniform(0, 6) if male else rng.uniform(4, 10)),
            open_quotient=float(rng.uniform(0.5, 0.62) if male else rng.uniform(0.58, 0.7)),
            breath=float(rng.uniform(0.02, 0.06) if male else rng.uniform(0.03, 0.08)),
            jitter=float(rng.uniform(0.006, 0.016)),
            shimmer=float(rng.uniform(0.02, 0.06)),
            rate=float(rng.uniform(0.88, 1.12)),
            level=float(rng.uniform(-27, -22)),
        ),
        looks=Looks(
            skin=_colour(skin),
            lips=_colour(lips),
            hair=_HAIR[rng.integers(len(_HAIR))],
            iris=_IRIS[rng.integers(len(_IRIS))],
            background=_colour(rng.integers(70, 190) + rng.integers(-28, 29, 3)),
            shirt=_colour(rng.integers(40, 170) + rng.integers(-35, 36, 3)),
            jaw=float(rng.uniform(1.22, 1.36)),
            eye_spacing=float(rng.uniform(0.41, 0.47)),
            eye_size=float(rng.uniform(0.17, 0.21)),
            nose=float(rng.uniform(0.15, 0.21)),
            mouth_width=float(rng.uniform(0.33, 0.42)),
            mouth_height=float(rng.uniform(0.82, 0.92)),
            lip_thickness=float(rng.uniform(0.075, 0.105) * (1.0 if male else 1.2)),
            opening=float(rng.uniform(0.28, 0.38)),
            brow=float(rng.uniform(0.05, 0.08) * (1.0 if male else 0.7)),
            size=float(rng.uniform(62, 74)),
        ),
    )
