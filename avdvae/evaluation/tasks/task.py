"""The contract of evaluation tasks. A task is measured in parts, in any order and by any process.

A part is measured and written as a whole: some utterances in one noise at one SNR, or all of a task. A new task is a
class with the methods of `Task`, entered in evaluation/tasks/__init__.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from avdvae.data.conditions import Condition
from avdvae.data.loader import Loader, seen_by
from avdvae.data.mixing import CORRUPTIONS, NOISES
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.sources import MIXING
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError, known_settings
from avdvae.evaluation.results import Result
from avdvae.pictures.stills import triptych
from avdvae.signals.audio import Stft, write_wav
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import METRICS, check_names
from avdvae.tracking.mixture import Tracker


@dataclass(frozen=True)
class Evaluation:
    """The settings of all tasks; see configs/config.yaml."""

    tasks: Sequence[str] = ("enhancement",)
    split: str = "test"
    noises: Sequence[str] = ("White", "Car", "LR", "Babble")
    snrs: Sequence[float] = (-10, -5, 0, 5, 10, 15)
    lips: Sequence[str] = ("clean", "occluded")  # for models that are conditioned on them
    speakers: Sequence[str] | None = None  # None: all of the split
    per_speaker: int | None = 1
    min_seconds: float = 1.0
    trim_db: float | None = 30.0
    seed: int = 0
    metrics: Sequence[str] = METRICS
    examples: int = 3  # of each state of the lips
    workers: int | None = None  # None: one per core
    importance: int | None = None  # draws of the importance-weighted bound
    pieces: int | None = None  # samples of each, for the bits of pieces
    neighbours: Sequence[int] = (1, 5, 10, 20)  # of the probes
    talkers: int | None = None  # of mixtures in the task separation; None: 2
    beside: str | None = None  # a run of another corpus, whose sounds are the other sources
    mixing: Sequence[str] | None = None  # None: sum and assignment
    background: Sequence[str] | None = None  # noises that are added to the mixtures, too
    observe: float = 0.5  # seconds of a motion before its prediction
    predict: float = 2.0  # seconds
    futures: int = 50  # drawn of each window
    tracking: Mapping = field(default_factory=lambda: asdict(Tracker()))  # settings of the tracker

    def __post_init__(self) -> None:
        for name, value, low in (
            ("per_speaker", self.per_speaker, 1),
            ("min_seconds", self.min_seconds, 0),
            ("seed", self.seed, 0),
            ("examples", self.examples, 0),
            ("workers", self.workers, 1),
            ("importance", self.importance, 1),
            ("pieces", self.pieces, 1),
            ("observe", self.observe, 0),
            ("predict", self.predict, 0),
            ("futures", self.futures, 1),
        ):
            if value is not None and value < low:
                raise UserError(f"evaluate.{name}={value}: give {low} or more")
        if self.trim_db is not None and not self.trim_db > 0:
            raise UserError(f"evaluate.trim_db={self.trim_db}: give a number above 0, or null")
        if self.talkers is not None and not 1 <= self.talkers <= 3:
            raise UserError(f"evaluate.talkers={self.talkers}: give 1, 2 or 3")
        if self.talkers == 3 and self.beside is not None:
            raise UserError(
                f"evaluate.talkers=3 and evaluate.beside={self.beside}: give 1 or 2 talkers, for with a run beside "
                "there are two sources"
            )
        if self.talkers == 1 and not self.background:
            raise UserError("evaluate.talkers=1 needs a noise: give evaluate.background=[Babble]")
        if unknown := set(self.mixing or ()) - {*MIXING}:
            raise UserError(f"evaluate.mixing: {', '.join(sorted(unknown))}: choose from {', '.join(MIXING)}")
        if unknown := set(self.background or ()) - set(NOISES):
            raise UserError(
                f"evaluate.background: no noise is called {', '.join(sorted(unknown))}: choose from {', '.join(NOISES)}"
            )
        if min(self.neighbours, default=0) < 1:
            raise UserError(f"evaluate.neighbours={self.neighbours}: give numbers of 1 or more")
        if unknown := set(self.lips) - {"clean", "none", *CORRUPTIONS}:
            allowed = ", ".join(("clean", *CORRUPTIONS, "none"))
            raise UserError(f"evaluate.lips: lips cannot be {', '.join(sorted(unknown))}: choose from {allowed}")
        if unknown := [noise for noise in self.noises if noise not in NOISES and not Path(noise).is_dir()]:
            raise UserError(
                f"evaluate.noises: {', '.join(unknown)} is no folder of recordings: give one, or choose from "
                f"{', '.join(NOISES)}"
            )
        check_names(self.metrics)
        _ = self.tracker  # raises where its settings are wrong

    @cached_property
    def tracker(self) -> Tracker:
        return known_settings(Tracker, "evaluate.tracking", **self.tracking)


class Part(NamedTuple):
    """`first`: index of the first utterance; `size`: how many, None for `Subject.part_size`. The defaults stand where a
    field does not apply."""

    task: str
    noise: str = ""
    snr: float | None = None
    first: int = 0
    size: int | None = None


@dataclass
class Measured:
    """examples   dicts with title, key, audio, figure, video, scores, cost, for the report"""

    rows: list[Result] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured, and how. A process has one, for all parts that it measures.

    corpus      the split of the corpus
    chosen      its utterances that are measured
    vem         None where the estimates are there already
    out         folder of audio/, figures/ and videos/
    name        of the model in results.csv
    part_size   utterances of a part
    """

    model: Any
    corpus: PreparedCorpus
    stft: Stft
    vem: Vem | None
    settings: Evaluation
    out: Path
    name: str
    batch_size: int = 1
    device: str = "cpu"
    part_size: int = 16

    @cached_property
    def chosen(self) -> PreparedCorpus:
        return self.corpus.choose(self.settings.per_speaker, self.settings.min_seconds, self.settings.speakers)

    @property
    def fps(self) -> float:
        """Pictures or poses a second."""
        return self.corpus.utterances[0].fps

    @property
    def states(self) -> Sequence[str]:
        """States of the lips; "" alone for models without lips."""
        return self.settings.lips if "lips" in self.model.sees else ("",)

    def parts(self, task: str, noise: str = "", snr: float | None = None) -> list[Part]:
        return [Part(task, noise, snr, first) for first in range(0, len(self.chosen.utterances), self.part_size)]

    def items(self, part: Part) -> PreparedCorpus:
        """The utterances of a part."""
        return self.corpus.only(self.chosen.utterances[part.first : part.first + (part.size or self.part_size)])

    @property
    def shown(self) -> list[str]:
        """Utterances shown as examples."""
        return [utterance.id for utterance in self.chosen.utterances[: self.settings.examples]]

    def loader(self, items: PreparedCorpus, condition: Condition | None = None) -> Loader:
        return Loader(
            items,
            self.stft,
            frames=None,
            batch_size=self.batch_size,
            seed=self.settings.seed,
            shuffle=False,
            trim_db=self.settings.trim_db,
            device=self.device,
            condition=condition,
            **{**seen_by(self.model), "lips": True},  # shown in the examples of all models
        )

    @cached_property
    def _speakers(self) -> dict[str, str]:
        return {utterance.id: utterance.speaker for utterance in self.corpus.utterances}

    def rows(self, part: Part, item: str, lips: str, scores: Mapping[str, float]) -> list[Result]:
        where = (str(self.out), self.name, part.task, self.corpus.utterances[0].corpus, self.settings.split)
        condition = (item, self._speakers[item], part.noise, part.snr, lips)
        return [Result(*where, *condition, metric, value) for metric, value in scores.items()]

    def example(
        self,
        part: Part,
        item: str,
        lips: str,
        signals: Mapping[str, np.ndarray],
        scores: Mapping[str, float],
        panels: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the sounds, at one level, and their picture; `panels`: further arguments of `triptych`."""
        key = file_name(item, part.noise or part.task, "" if part.snr is None else f"{part.snr:g}dB", lips)
        loudest = max(np.abs(signal).max() for signal in signals.values())
        audio = {name: f"audio/{key}.{name}.wav" for name in signals}
        for name, path in audio.items():
            write_wav(self.out / path, torch.from_numpy(signals[name] * (0.9 / loudest)), RATE)
        figure = f"figures/{key}.png"
        triptych(signals, RATE, self.stft.hop, **(panels or {})).savefig(self.out / figure, dpi=150)
        level = "" if part.snr is None else f" at {part.snr:g} dB"
        title = f"{item}, {part.noise or part.task.replace('_', ' ')}{level}" + (f", {lips} lips" if lips else "")
        finite = {metric: value for metric, value in scores.items() if np.isfinite(value)}
        return {"key": key, "title": title, "audio": audio, "figure": figure, "scores": finite}


@runtime_checkable
class Task(Protocol):
    @property
    def takes(self) -> Literal["sound", "poses", "boxes"]: ...

    def check(self, subject: Subject) -> None:
        """Raise a UserError if the model or the settings do not suit the task."""
        ...

    def parts(self, subject: Subject) -> Sequence[Part]: ...

    def measure(self, subject: Subject, part: Part) -> Measured: ...


def file_name(*parts: str) -> str:
    return "_".join(filter(None, (part.replace("/", "_").replace(" ", "_") for part in parts)))
