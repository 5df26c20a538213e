"""From phonemes to movement: one set of trajectories, which both the voice and the face follow.

Each articulator is a critically damped second-order system driven by the targets of the phonemes in turn. It starts
before each phoneme by its own delay, and does not reach the targets of short ones: that is coarticulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import lfilter

from avdvae.data.talker.people import Voice
from avdvae.data.talker.phones import VISEMES, Spoken

CONTROL_RATE = 1000  # control values a second

# Time constants in seconds: those of tongue and lips are longer than those of glottis and constriction.
_TAU = {"formants": 0.012, "aperture": 0.015, "width": 0.022, "tongue": 0.02, "nasal": 0.015, "source": 0.0035}
# A closing mouth lowers the formants: the aperture at which that begins, and the factors of F1..F4 when shut.
_CLOSING, _SHUT = 0.2, np.array([0.55, 0.8, 0.9, 0.95])


@dataclass(frozen=True)
class Performance:
    """One sentence as movement, N control values long. Formants are those of the speaker's tract, in Hz.

    voiced is where the voice has an f0; aperture and width are those of the visemes (0 shut .. 1 open, -1 .. 1).
    """

    segments: tuple[tuple[float, float, Spoken], ...]
    f0: Float[np.ndarray, " N"]
    voiced: Bool[np.ndarray, " N"]
    formants: Float[np.ndarray, "N 4"]
    voice: Float[np.ndarray, " N"]
    breath: Float[np.ndarray, " N"]
    friction: Float[np.ndarray, " N"]
    nasal: Float[np.ndarray, " N"]
    aperture: Float[np.ndarray, " N"]
    width: Float[np.ndarray, " N"]
    tongue: Float[np.ndarray, " N"]

    @property
    def seconds(self) -> float:
        return len(self.f0) / CONTROL_RATE


def _approach(targets: np.ndarray, tau: float) -> np.ndarray:
    """Critically damped second-order response (two equal poles), begun early by its own mean delay."""
    pole = np.exp(-1 / (tau * CONTROL_RATE))
    lead = round(2 * tau * CONTROL_RATE)
    early = np.concatenate([targets[lead:], np.repeat(targets[-1:], lead, axis=0)])
    for _ in range(2):
        early, _ = lfilter([1 - pole], [1, -pole], early, axis=0, zi=pole * early[:1])
    return early


def _settle(targets: np.ndarray) -> np.ndarray:
    """A missing target (NaN) is that of the next phoneme that has one, at the end that of the last one."""
    for column in targets.reshape(len(targets), -1).T:
        given = np.flatnonzero(~np.isnan(column))
        column[:] = column[given[np.minimum(np.searchsorted(given, np.arange(len(column))), len(given) - 1)]]
    return targets


def _durations(sentence: list[Spoken], rate: float, rng: np.random.Generator) -> np.ndarray:
    seconds = np.array([s.phone.seconds for s in sentence]) / rate
    seconds *= [1.2 if s.stressed and s.phone.vowel else 1.0 for s in sentence]
    pauses = np.array([s.word < 0 for s in sentence])
    last_words = {sentence[i - 1].word for i in np.flatnonzero(pauses) if i}
    seconds *= [1.3 if s.phone.vowel and s.word in last_words else 1.0 for s in sentence]
    return seconds * np.exp(rng.normal(0, 0.08, len(sentence)))


def _melody(segments, count: int, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """f0: each phrase declines, stressed vowels rise above it, the end falls or, in a question, rises."""
    time = np.arange(count) / CONTROL_RATE
    semitones = np.zeros(count)
    edges = [0.0, *(stop for _, stop, s in segments if s.word < 0)]
    for start, stop in pairwise(edges):
        inside = (time >= start) & (time < stop)
        semitones[inside] = voice.f0_range * np.linspace(0.5, -0.5, inside.sum())
    for start, stop, spoken in segments:
        if spoken.stressed and spoken.phone.vowel:
            height = voice.f0_range * rng.uniform(0.6, 1.3)
            semitones += height * np.exp(-0.5 * ((time - (start + stop) / 2) / 0.09) ** 2)
    ending = np.clip((time - (time[-1] - 0.6)) / 0.35, 0, 1)
    semitones += ending * voice.f0_range * (0.9 if rng.random() < 0.2 else -0.9)
    knots = np.arange(0, time[-1] + 0.25, 0.25)
    wander = np.interp(time, knots, rng.normal(0, 0.25, len(knots)))
    return np.clip(voice.f0 * 2 ** (_approach(semitones + wander, 0.03) / 12), 55, 500)


def perform(sentence: list[Spoken], voice: Voice, effort: float, rng: np.random.Generator) -> Performance:
    """The trajectories of a sentence by this voice; `effort` scales how far the mouth opens."""
    stops = np.cumsum(_durations(sentence, voice.rate, rng))
    starts = np.concatenate([[0.0], stops[:-1]])
    count = int(np.ceil(stops[-1] * CONTROL_RATE))
    rows = {name: np.zeros(count) for name in ("voice", "breath", "friction", "nasal", "aperture", "width", "tongue")}
    formants = np.full((count, 4), np.nan)
    for start, stop, spoken in zip(starts, stops, sentence, strict=True):
        whole = slice(round(start * CONTROL_RATE), round(stop * CONTROL_RATE))
        viseme = VISEMES[spoken.phone.viseme]
        rows["aperture"][whole] = np.nan if viseme.aperture is None else viseme.aperture
        rows["width"][whole] = np.nan if viseme.width is None else viseme.width
        rows["tongue"][whole] = viseme.tongue
        edge = start
        loud = 10 ** ((1.5 if spoken.stressed else 0.0) / 20)
        for gesture in spoken.phone.gestures:
            begin, edge = edge, edge + gesture.share * (stop - start)
            part = slice(round(begin * CONTROL_RATE), round(edge * CONTROL_RATE))
            formants[part] = [np.nan if f is None else f for f in gesture.formants]
            rows["voice"][part], rows["breath"][part] = loud * gesture.voice, loud * gesture.breath
            rows["friction"][part], rows["nasal"][part] = loud * gesture.friction, gesture.nasal

    tau = {name: _TAU.get(name, _TAU["source"]) for name in rows}
    moved = {name: _approach(_settle(target), tau[name]) for name, target in rows.items()}
    moved["aperture"] = np.where(moved["aperture"] > 0, moved["aperture"] * effort, moved["aperture"])
    tract = _approach(_settle(np.log(formants)), _TAU["formants"])

    shut = np.clip(1 - moved["aperture"] / _CLOSING, 0, 1)[:, None]
    hertz = np.exp(tract) * voice.tract * (1 - shut * (1 - _SHUT))
    mouth = (0.45 + 0.55 * np.clip(moved["aperture"], 0, 1.2)) * np.clip((moved["aperture"] + 0.05) / 0.1, 0.15, 1)
    moved["voice"] *= moved["nasal"] + (1 - moved["nasal"]) * mouth  # sound leaves by the mouth or by the nose

    segments = tuple(zip(starts.tolist(), stops.tolist(), sentence, strict=True))
    f0 = _melody(segments, count, voice, rng)
    return Performance(segments, f0, moved["voice"] > 0.08, hertz, **moved)
