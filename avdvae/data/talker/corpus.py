"""The embedded corpus: generated once, cached by its parameters, then read from the disk as any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from avdvae.data.clips import Clip, Unreadable, split_of
from avdvae.data.generated import generating, key_of
from avdvae.data.talker.articulation import CONTROL_RATE, Performance, perform
from avdvae.data.talker.people import EMOTIONS, speaker
from avdvae.data.talker.phones import sentence
from avdvae.data.talker.voice import speak
from avdvae.errors import UserError
from avdvae.parallel import in_parallel
from avdvae.signals.clock import RATE

FPS = Fraction(30000, 1001)
_VERSION = 2  # goes up when the same parameters give other bytes
_STEP = 10  # milliseconds between the values of the ground truth


@dataclass(frozen=True)
class Talker:
    """`utterances` of about `seconds` by each of `speakers`, who take the `emotions` in turn; without `films`, sound
    alone, in a fraction of the time."""

    root: Path
    speakers: int = 96
    utterances: int = 3
    seconds: float = 4.0
    seed: int = 0
    emotions: Sequence[str] = tuple(EMOTIONS)
    films: bool = True

    def __post_init__(self) -> None:
        if self.speakers < 3:
            raise UserError(f"data.speakers={self.speakers}: at least 3 are needed, to train, validate and test")
        if self.utterances < 1:
            raise UserError(f"data.utterances={self.utterances}: give 1 or more for each speaker")
        if not 1 <= self.seconds <= 60:
            raise UserError(f"data.seconds={self.seconds}: an utterance lasts from 1 to 60 seconds")
        if not self.emotions or (unknown := set(self.emotions) - set(EMOTIONS)):
            given = ", ".join(sorted(unknown)) if self.emotions else "none"
            raise UserError(f"data.emotions names {given}: choose from {', '.join(EMOTIONS)}")

    @property
    def key(self) -> str:
        parameters = asdict(self) | {"emotions": list(self.emotions)}
        if self.films:
            del parameters["films"]  # keeps the keys of versions without this choice
        return key_of("talker", _VERSION, parameters)

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        folder = self.root / self.key
        wanted = [(n, u) for n in range(1, self.speakers + 1) for u in range(self.utterances)]
        missing = [(n, u) for n, u in wanted if not self._path(n, u).with_suffix(".json").exists()]
        with generating("Talker", self.root):
            for _ in in_parallel(partial(record, self), missing, workers, "generating Talker"):
                pass
        clips = []
        for truth in sorted(folder.glob("volunteers/*/Clips/straightcam/*.json")):
            known = json.loads(truth.read_text())
            labels = {name: known[name] for name in ("sex", "emotion", "level", "text", "phones")}
            labels["tract"] = round(speaker(self.seed, int(known["speaker"][:-1])).voice.tract, 4)
            clips.append(
                Clip(
                    known["id"],
                    "talker",
                    known["split"],
                    known["speaker"],
                    truth.with_suffix(".mp4") if self.films else None,
                    truth.with_suffix(".wav"),
                    labels=labels,
                )
            )
        return clips, []

    def _path(self, number: int, utterance: int) -> Path:
        name = speaker(self.seed, number).name
        return self.root / self.key / "volunteers" / name / "Clips" / "straightcam" / f"tk{utterance + 1:03d}"


def record(corpus: Talker, which: tuple[int, int]) -> None:
    """Synthesise and write one utterance: wav, mp4 and, last, its ground truth as JSON, which marks it complete."""
    number, utterance = which
    person = speaker(corpus.seed, number)
    rng = np.random.default_rng([corpus.seed, number, 2 + utterance])
    emotion = corpus.emotions[(number + utterance) % len(corpus.emotions)]
    level = 1 if emotion == "neutral" else int(rng.integers(1, 4))
    voice, expression = EMOTIONS[emotion].colour(person.voice, level)
    length = corpus.seconds * rng.uniform(0.85, 1.15)
    act = perform(sentence(rng, length * voice.rate), voice, expression.effort, rng)
    sound = speak(act, voice, rng)

    path = corpus._path(number, utterance)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path.with_suffix(".wav"), sound, RATE, subtype="PCM_16")
    truth: dict[str, Any] = {
        "id": f"{person.name}/{path.name}",
        "split": split_of(number, corpus.speakers),
        "speaker": person.name,
        "sex": person.sex,
        "emotion": emotion,
        "level": level,
        "text": _text(act),
        "phones": [[round(start, 4), round(stop, 4), s.phone.name] for start, stop, s in act.segments],
        "step": _STEP / 1000,
        "f0": np.where(act.voiced, act.f0, 0)[:: CONTROL_RATE * _STEP // 1000].round(2).tolist(),
        "formants": act.formants[:: CONTROL_RATE * _STEP // 1000].round(1).tolist(),
    }
    if corpus.films:
        import cv2

        from avdvae.data.talker.face import film
        from avdvae.signals.video import write_mp4

        cv2.setNumThreads(1)
        lips, pictures = film(act, person.looks, expression, float(FPS), rng)
        write_mp4(path.with_suffix(".mp4"), pictures, FPS, sound, RATE)
        truth |= {
            "fps": float(FPS),
            "lip_aperture": lips.aperture.round(5).tolist(),
            "lip_width": lips.width.round(5).tolist(),
        }
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(truth))
    part.replace(path.with_suffix(".json"))


def _text(act: Performance) -> str:
    """The words as strings of phonemes, a comma at each pause."""
    words = groupby((spoken for _, _, spoken in act.segments), key=lambda spoken: spoken.word)
    return " ".join("," if word < 0 else "-".join(s.phone.name for s in group) for word, group in words).strip(", ")
