"""Flutes, generated: melodies of sampled instruments where a soundfont is installed, else by additive synthesis.

Sampled: programs 72 to 79 of General MIDI, by the package tinysoundfont, from the file `soundfont` or that of Debian's
package fluid-soundfont-gm. Additive: six harmonics and a band of breath, in numpy. Either way a melody is a first-order
Markov chain over a pentatonic scale, with glides between notes and a vibrato of 4 to 6 Hz. What is held out for testing
is players and, if sampled, the shakuhachi.

Letters: N samples, T steps of the contour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.signal import resample_poly

from avdvae.data.clips import Clip, Unreadable, split_of
from avdvae.data.generated import generating, key_of
from avdvae.errors import UserError
from avdvae.files import replacing
from avdvae.parallel import in_parallel
from avdvae.signals.audio import in_16_bits
from avdvae.signals.clock import RATE

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
PROGRAMS = {  # of General MIDI, and the lowest note of their melodies
    "piccolo": (72, 74),
    "flute": (73, 62),
    "recorder": (74, 67),
    "pan flute": (75, 60),
    "bottle": (76, 60),
    "whistle": (78, 72),
    "ocarina": (79, 67),
}
HELD_OUT = {"shakuhachi": (77, 57)}
PENTATONIC = np.array([0, 2, 4, 7, 9])
STEPS, CHANCES = (-2, -1, 0, 1, 2), (0.15, 0.3, 0.1, 0.3, 0.15)  # of the chain, in degrees of the scale
DEGREES = 8
INSTALL = "pip install --no-deps tinysoundfont"  # it needs PyAudio to play, and not to write
CONTOUR = 100  # values of pitch and loudness a second
BEND = 12  # semitones of the largest pitch bend
_VERSION = 1  # goes up when the same parameters give other bytes


class Note(NamedTuple):
    """pitch: as MIDI counts; from `start` to `stop`, in steps of the contour"""

    pitch: int
    start: int
    stop: int


class Player(NamedTuple):
    name: str
    instrument: str
    program: int
    lowest: int
    vibrato: float  # semitones
    rate: float  # of it, Hz
    harmonics: Float[np.ndarray, " 6"]
    breath: float


@dataclass(frozen=True)
class Flute:
    """`melodies` of about `seconds` by each of `players`. soundfont: a file; None: Debian's if it is installed, and
    otherwise additive synthesis"""

    root: Path
    players: int = 24
    melodies: int = 10
    seconds: float = 4.0
    seed: int = 0
    soundfont: str | None = None

    def __post_init__(self) -> None:
        if self.players < 3:
            raise UserError(f"data.players={self.players}: at least 3 are needed, to train, validate and test")
        if self.melodies < 1:
            raise UserError(f"data.melodies={self.melodies}: give 1 or more for each player")
        if not 1 <= self.seconds <= 60:
            raise UserError(f"data.seconds={self.seconds}: a melody lasts from 1 to 60 seconds")
        if self.soundfont is not None:
            if not Path(self.soundfont).is_file():
                raise UserError(f"data.soundfont={self.soundfont} is no file: give one that ends in .sf2, or null")
            if not find_spec("tinysoundfont"):
                raise UserError("data.soundfont= needs the package tinysoundfont: install it by " + INSTALL)

    @cached_property
    def sampled(self) -> Path | None:
        """The soundfont that is used."""
        if self.soundfont is not None:
            return Path(self.soundfont)
        return SOUNDFONT if SOUNDFONT.is_file() and find_spec("tinysoundfont") else None

    @property
    def key(self) -> str:
        by = [self.sampled.name, self.sampled.stat().st_size] if self.sampled else "additive"
        return key_of("flute", _VERSION, asdict(self) | {"soundfont": by})

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        every = [(n, m) for n in range(1, self.players + 1) for m in range(self.melodies)]
        clips = [self._clip(n, m) for n, m in every]
        missing = [which for which, clip in zip(every, clips, strict=True) if not clip.source.exists()]
        with generating("flutes", self.root):
            for _ in in_parallel(partial(record, self), missing, workers, "generating flutes"):
                pass
        return sorted(clips, key=lambda clip: clip.id), []

    def player(self, number: int) -> Player:
        """Counted from 1."""
        rng = np.random.default_rng([self.seed, number])
        held_out = self.sampled and split_of(number, self.players) == "test"
        known = HELD_OUT if held_out else PROGRAMS
        instrument = list(known)[number % len(known)]
        program, lowest = known[instrument]
        harmonics = rng.uniform(0.3, 1, 6) / np.arange(1, 7) ** rng.uniform(1.2, 2.2)
        vibrato, rate, breath = rng.uniform(0.1, 0.4), rng.uniform(4, 6), rng.uniform(0.02, 0.08)
        lowest += int(rng.integers(-2, 3))
        return Player(f"P{number:03d}", instrument, program, lowest, vibrato, rate, harmonics, breath)

    def _clip(self, number: int, melody: int) -> Clip:
        player = self.player(number)
        name = f"{player.name}/{melody + 1:03d}"
        split, path = split_of(number, self.players), self.root / self.key / f"{name}.wav"
        labels = {"instrument": player.instrument}
        return Clip(name, "flute", split, player.name, None, path, labels=labels)


def record(corpus: Flute, which: tuple[int, int]) -> None:
    """Play and write a melody."""
    from scipy.io import wavfile

    number, melody = which
    rng, player = np.random.default_rng([corpus.seed, number, 1 + melody]), corpus.player(number)
    notes = melody_of(player, corpus.seconds * rng.uniform(0.85, 1.15), rng)
    sound_N = sampled(corpus.sampled, player, notes, rng) if corpus.sampled else additive(player, notes, rng)
    path = corpus._clip(number, melody).source
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        wavfile.write(new, RATE, in_16_bits(0.9 * sound_N / np.abs(sound_N).max()))


def melody_of(player: Player, seconds: float, rng: np.random.Generator) -> list[Note]:
    """Notes of 0.1 to 1.2 s; every eighth is followed by a short rest."""
    notes, at, degree, end = [], 0, int(rng.integers(DEGREES)), round(seconds * CONTOUR)
    while at < end:
        lasts = round(CONTOUR * float(np.exp(rng.uniform(np.log(0.1), np.log(1.2)))))
        octave, tone = divmod(degree, len(PENTATONIC))
        notes.append(Note(player.lowest + 12 * octave + int(PENTATONIC[tone]), at, min(at + lasts, end)))
        at += lasts + (int(rng.integers(5, 20)) if rng.random() < 1 / 8 else 0)
        degree = int(np.clip(degree + rng.choice(STEPS, p=CHANCES), 0, DEGREES - 1))
    return notes


def pitches(player: Player, notes: Sequence[Note], rng: np.random.Generator) -> Float[np.ndarray, " T"]:
    """In semitones: a glide of 40 ms into each note, and vibrato that rises within its first 200 ms."""
    pitch_T = np.full(notes[-1].stop, float(notes[0].pitch))
    for before, note in zip([notes[0], *notes], notes, strict=False):
        since = np.arange(len(pitch_T) - note.start) / CONTOUR
        glide = (before.pitch - note.pitch) * np.exp(-since / 0.013) if before.stop == note.start else 0.0
        swing = (
            player.vibrato
            * np.clip(since / 0.2, 0, 1)
            * np.sin(2 * np.pi * player.rate * since + rng.uniform(0, 2 * np.pi))
        )
        pitch_T[note.start :] = note.pitch + glide + swing
    return pitch_T


def additive(player: Player, notes: Sequence[Note], rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    pitch_T = pitches(player, notes, rng)
    loudness_T = np.zeros(len(pitch_T))
    for note in notes:
        seconds = np.arange(note.stop - note.start) / CONTOUR
        attack = 1 - np.exp(-(seconds + 0.01) / rng.uniform(0.02, 0.05))
        release = 1 - np.exp(-(seconds[::-1] + 0.01) / 0.03)
        loudness_T[note.start : note.stop] = rng.uniform(0.6, 1) * attack * release
    times_N = np.arange(len(pitch_T) * RATE // CONTOUR) * CONTOUR / RATE
    hertz_N = 440 * 2 ** ((np.interp(times_N, np.arange(len(pitch_T)), pitch_T) - 69) / 12)
    loudness_N = np.interp(times_N, np.arange(len(loudness_T)), loudness_T)
    phase_N = 2 * np.pi * np.cumsum(hertz_N) / RATE
    tone_N = np.zeros(len(phase_N))
    for number, strength in enumerate(player.harmonics, 1):
        below = number * hertz_N < RATE / 2
        tone_N += below * strength * loudness_N**number * np.sin(number * phase_N + rng.uniform(0, 2 * np.pi))
    spectrum = np.fft.rfft(rng.standard_normal(len(phase_N)))
    hertz = np.fft.rfftfreq(len(phase_N), 1 / RATE)
    band = 1 / (1 + (np.log2(np.maximum(hertz, 1) / 2500) / 1.2) ** 4)
    breath_N = np.fft.irfft(spectrum * band, len(phase_N))
    return tone_N + player.breath * loudness_N * breath_N


def sampled(
    soundfont: Path, player: Player, notes: Sequence[Note], rng: np.random.Generator
) -> Float[np.ndarray, " N"]:
    """By tinysoundfont at three times the rate, which is then reduced: its interpolation does not filter."""
    synth = import_module("tinysoundfont").Synth(samplerate=3 * RATE)
    synth.program_select(0, synth.sfload(str(soundfont)), 0, player.program)
    synth.pitchbend_range(0, BEND)
    pitch_T, pieces = pitches(player, notes, rng), []
    starts, stops = {note.start: note for note in notes}, {note.stop: note for note in notes}
    sounding: Note | None = None
    for t, pitch in enumerate(pitch_T):
        if note := stops.get(t):
            synth.noteoff(0, note.pitch)
        if note := starts.get(t):
            sounding = note
            synth.noteon(0, note.pitch, int(rng.integers(70, 120)))
        if sounding:
            bend = np.clip((pitch - sounding.pitch) / BEND, -1, 1)
            synth.pitchbend(0, round(8192 + 8191 * float(bend)))
        stereo = np.frombuffer(bytes(synth.generate(3 * RATE // CONTOUR)), np.float32)
        pieces.append(stereo.reshape(-1, 2).mean(1))
    return resample_poly(np.concatenate(pieces), 1, 3).astype(np.float64)
