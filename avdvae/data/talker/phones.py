"""The phonemes of Talker, and the grammar of its sentences.

A phoneme is a set of articulatory targets. Where a target is None the articulator already moves to that of the next
phoneme that has one (the lips of /k/ are those of the following vowel).

Formants in Hz are those of an average adult male vocal tract. Phonemes of one viseme share their lip targets, so that
lips do not distinguish /p/, /b/ and /m/, nor /t/ and /s/, nor /iy/ and /ih/, as in real speech.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Formants = tuple[float | None, float | None, float | None, float | None]
FREE: Formants = (None, None, None, None)


@dataclass(frozen=True)
class Viseme:
    """Targets of the lips: aperture 0 shut .. 1 wide open, width -1 rounded .. 1 spread, visible tongue tip 0 .. 1."""

    aperture: float | None
    width: float | None
    tongue: float = 0.0


VISEMES = {
    "rest": Viseme(0.04, 0.0),
    "bilabial": Viseme(-0.12, 0.0),  # below 0: the lips press together
    "labiodental": Viseme(0.07, 0.15),
    "alveolar": Viseme(0.22, 0.25, 0.5),
    "postalveolar": Viseme(0.25, -0.6),
    "velar": Viseme(None, None),
    "spread": Viseme(0.32, 0.8),
    "front": Viseme(0.65, 0.45),
    "open": Viseme(0.95, 0.1),
    "half_round": Viseme(0.55, -0.55),
    "round": Viseme(0.18, -1.0),
}


@dataclass(frozen=True)
class Gesture:
    """A stretch of speech with one set of targets.

    share      of the phoneme's duration
    formants   F1..F4 in Hz
    voice      amplitude of the glottal source, 0..1
    breath     amplitude of the noise made at the glottis, which the whole tract shapes
    friction   amplitude of the noise made at a constriction, whose spectrum `noise` names
    nasal      opening of the velum, 0..1
    """

    share: float
    formants: Formants
    voice: float = 1.0
    breath: float = 0.0
    friction: float = 0.0
    nasal: float = 0.0


@dataclass(frozen=True)
class Phone:
    name: str
    viseme: str
    seconds: float
    gestures: tuple[Gesture, ...]
    noise: str | None = None  # a key of voice.NOISE_BANDS
    vowel: bool = False


def _vowel(name: str, viseme: str, seconds: float, *formants: Formants) -> Phone:
    """One target makes a vowel, two a diphthong."""
    shares = (1.0,) if len(formants) == 1 else (0.5, 0.5)
    return Phone(name, viseme, seconds, tuple(Gesture(s, f) for s, f in zip(shares, formants, strict=True)), vowel=True)


def _plosive(name: str, viseme: str, formants: Formants, burst: str) -> Phone:
    """A closure, with weak voicing if voiced; a burst; and, if voiceless, breath before the next voicing."""
    if name == burst:
        closure, release = Gesture(0.55, formants, voice=0), Gesture(0.3, formants, voice=0, breath=0.7)
        return Phone(name, viseme, 0.11, (closure, Gesture(0.15, formants, voice=0, friction=1), release), noise=burst)
    closure, release = Gesture(0.55, formants, voice=0.12), Gesture(0.3, formants, voice=0.7)
    return Phone(name, viseme, 0.075, (closure, Gesture(0.15, formants, voice=0.3, friction=0.6), release), noise=burst)


_IY, _IH, _EH, _AE = (270, 2290, 3010, 3500), (390, 1990, 2550, 3500), (530, 1840, 2480, 3500), (660, 1720, 2410, 3500)
_AA, _AO, _UH, _UW = (730, 1090, 2440, 3400), (570, 840, 2410, 3300), (440, 1020, 2240, 3300), (300, 870, 2240, 3300)
_AH, _ER = (640, 1190, 2390, 3400), (490, 1350, 1690, 3300)
_TIP, _BACK, _HUSH = (320, 1750, 2650, 3500), (320, None, 2200, 3400), (330, 1800, 2400, 3300)

PHONES = {
    phone.name: phone
    for phone in (
        _vowel("iy", "spread", 0.12, _IY),
        _vowel("ih", "spread", 0.095, _IH),
        _vowel("eh", "front", 0.11, _EH),
        _vowel("ae", "front", 0.14, _AE),
        _vowel("aa", "open", 0.14, _AA),
        _vowel("ah", "open", 0.105, _AH),
        _vowel("ao", "half_round", 0.135, _AO),
        _vowel("er", "half_round", 0.12, _ER),
        _vowel("uh", "round", 0.1, _UH),
        _vowel("uw", "round", 0.125, _UW),
        _vowel("ey", "front", 0.16, _EH, _IH),
        _vowel("ay", "open", 0.18, _AA, _IH),
        _vowel("ow", "half_round", 0.16, _AO, _UW),
        _vowel("aw", "open", 0.18, _AA, _UH),
        Phone("m", "bilabial", 0.075, (Gesture(1, (280, None, None, None), voice=0.55, nasal=1),)),
        Phone("n", "alveolar", 0.07, (Gesture(1, (290, 1600, 2600, 3500), voice=0.55, nasal=1),)),
        Phone("ng", "velar", 0.075, (Gesture(1, _BACK, voice=0.5, nasal=1),)),
        Phone("l", "alveolar", 0.07, (Gesture(1, (350, 1100, 2700, 3500), voice=0.65),)),
        Phone("r", "postalveolar", 0.07, (Gesture(1, (340, 1150, 1600, 3300), voice=0.7),)),
        Phone("w", "round", 0.07, (Gesture(1, (300, 680, 2200, 3300), voice=0.65),)),
        Phone("y", "spread", 0.065, (Gesture(1, (280, 2200, 3000, 3500), voice=0.65),)),
        _plosive("p", "bilabial", FREE, burst="p"),
        _plosive("b", "bilabial", FREE, burst="p"),
        _plosive("t", "alveolar", _TIP, burst="t"),
        _plosive("d", "alveolar", _TIP, burst="t"),
        _plosive("k", "velar", _BACK, burst="k"),
        _plosive("g", "velar", _BACK, burst="k"),
        Phone("f", "labiodental", 0.1, (Gesture(1, FREE, voice=0, friction=0.5),), noise="f"),
        Phone("v", "labiodental", 0.07, (Gesture(1, FREE, voice=0.4, friction=0.25),), noise="f"),
        Phone("s", "alveolar", 0.11, (Gesture(1, _TIP, voice=0, friction=1),), noise="s"),
        Phone("z", "alveolar", 0.08, (Gesture(1, _TIP, voice=0.35, friction=0.5),), noise="s"),
        Phone("sh", "postalveolar", 0.115, (Gesture(1, _HUSH, voice=0, friction=0.9),), noise="sh"),
        Phone("hh", "velar", 0.06, (Gesture(1, FREE, voice=0, breath=0.8),)),
        Phone("sil", "rest", 0.25, (Gesture(1, FREE, voice=0),)),
    )
}

VOWELS = tuple(name for name, phone in PHONES.items() if phone.vowel)
_ONSETS = tuple(["p", "b", "t", "d", "k", "g", "f", "v", "s", "z", "sh", "hh", "m", "n", "l", "r", "w", "y"])
_CLUSTERS = tuple(
    [
        "p-l",
        "p-r",
        "b-l",
        "b-r",
        "t-r",
        "d-r",
        "k-l",
        "k-r",
        "g-l",
        "g-r",
        "f-l",
        "f-r",
        "s-p",
        "s-t",
        "s-k",
        "s-l",
        "s-m",
        "s-n",
        "s-w",
    ]
)
_CODAS = tuple(["m", "n", "ng", "l", "s", "z", "t", "d", "k", "p", "f", "v"])


@dataclass(frozen=True)
class Spoken:
    """A phoneme in a sentence."""

    phone: Phone
    stressed: bool
    word: int  # -1 in a pause


def _syllable(rng: np.random.Generator) -> list[str]:
    kind = rng.random()
    onset = [] if kind < 0.12 else rng.choice(_CLUSTERS).split("-") if kind < 0.27 else [rng.choice(_ONSETS)]
    coda = [rng.choice(_CODAS)] if rng.random() < 0.45 else []
    return [*onset, rng.choice(VOWELS), *coda]


def sentence(rng: np.random.Generator, seconds: float) -> list[Spoken]:
    """Words of one to three syllables, one of them stressed, in phrases of two to four words, for about `seconds`."""
    spoken = [Spoken(PHONES["sil"], False, -1)]
    length, word, until_pause = 0.5, 0, int(rng.integers(2, 5))
    while 1.1 * length + 0.2 < seconds or word < 2:  # stress and phrase ends lengthen phonemes
        if until_pause == 0:
            spoken.append(Spoken(PHONES["sil"], False, -1))
            length, until_pause = length + PHONES["sil"].seconds, int(rng.integers(2, 5))
        syllables = int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15]))
        stress = int(rng.integers(syllables))
        for index in range(syllables):
            for name in _syllable(rng):
                spoken.append(Spoken(PHONES[name], index == stress, word))
                length += PHONES[name].seconds
        word, until_pause = word + 1, until_pause - 1
    return [*spoken, Spoken(PHONES["sil"], False, -1)]
