"""The standings of models on the same mixtures: means, and paired differences to a baseline, task by task.

Differences are means over the same items, noises and SNRs, of the model minus the baseline. A model of the sound alone
is compared with the baseline's clean lips, and the reverse, as in `results.compare`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from avdvae.errors import UserError
from avdvae.evaluation.results import (
    Result,
    compare,
    mixture_in_words,
    ranking,
    read_results,
    summarise,
    without_baselines,
)
from avdvae.evaluation.tables import outputs
from avdvae.signals.metrics import ALL_NOISES, INPUT, LOW_IS_GOOD, Look

INPUT_ROW = "unprocessed input"
_NOT_RANKED = ("samples", "windows", "rtf")  # shown where metrics= names them


@dataclass(frozen=True)
class Entry:
    """A model in an evaluation; `rows` have its name as their model."""

    name: str
    path: Path
    rows: list[Result]


@dataclass(frozen=True)
class Line:
    """A row of leaderboard.csv. `noise` is "all", and `snr` None, of the mean over all noises and SNRs; the difference
    is that to the baseline, None of the baseline itself and where there is none."""

    model: str
    task: str
    noise: str
    snr: float | None
    lips: str
    metric: str
    mean: float
    ci_low: float
    ci_high: float
    n: int
    speakers: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def label(self) -> str:
        return f"{self.model}, lips {self.lips}" if self.lips else self.model


class Board(NamedTuple):
    """The leaderboard of a task: its metrics, and models with the states of their lips, best first."""

    task: str
    metrics: list[str]
    ranked: list[tuple[str, str]]
    lines: list[Line]
    missing: list[str]  # models that have not been measured in this task

    @property
    def overall(self) -> list[Line]:
        return [line for line in self.lines if line.snr is None and line.noise in ("", ALL_NOISES)]

    @property
    def by_snr(self) -> list[Line]:
        """Over all noises, at each SNR."""
        measured = [line for line in self.lines if line.snr is not None]
        return [line for line in measured if line.noise == ALL_NOISES] or measured


def entries_of(runs: Sequence[Path]) -> list[Entry]:
    """The models in the results of runs; folders are added to the names of models of one name."""
    found: list[tuple[str, Path, list[Result]]] = []
    for path in runs:
        if not (path / "results.csv").is_file():
            raise UserError(f"{path} has no results.csv: give the folder of a run that has been evaluated")
        rows = read_results(path / "results.csv")
        if not rows:
            raise UserError(f"{path / 'results.csv'} is empty: evaluate the run again")
        for model in dict.fromkeys(row.model for row in rows):
            own = [row for row in rows if row.model == model]
            if without_baselines(own) or model not in [name for name, *_ in found]:
                found.append((model, path, own))
    entries = []
    for model, path, rows in found:
        others = [other.resolve().parts for name, other, _ in found if name == model and other != path]
        parts, size = path.resolve().parts, 1
        while any(other[-size:] == parts[-size:] for other in others):
            size += 1
        name = f"{model} ({'/'.join(parts[-size:])})" if others else model
        entries.append(Entry(name, path, [replace(row, model=name) for row in rows]))
    return entries


def boards_of(entries: Sequence[Entry], base: Entry, metrics: Sequence[str]) -> list[Board]:
    tasks = dict.fromkeys(row.task for row in base.rows)
    for entry in entries:
        if entry is not base:
            if not tasks.keys() & {row.task for row in entry.rows}:
                raise UserError(f"{entry.name} and {base.name} have no task in common: evaluate both alike")
            _check_same(entry, base)
    measured = {task: [e for e in entries if any(row.task == task for row in e.rows)] for task in tasks}
    measured = {task: those for task, those in measured.items() if len(those) > 1}
    chosen = {task: names for task, those in measured.items() if (names := _metrics(task, those, metrics))}
    if not chosen:
        known = {metric for task, those in measured.items() for metric in _metrics(task, those, ())}
        asked = f"metrics={','.join(metrics)}: no task has them of all runs" if metrics else "no metric is in all runs"
        raise UserError(f"{asked}: choose from {', '.join(outputs(known))}")
    lines = [line for entry in entries for line in _lines(entry, base)]
    boards = []
    for task, names in chosen.items():
        own = [line for line in lines if line.task == task and line.metric in names]
        missing = [entry.name for entry in entries if entry not in measured[task]]
        board = Board(task, names, [], own, missing)
        models = {line.label: (line.model, line.lips) for line in board.overall if line.model != INPUT_ROW}
        first = [vars(line) | {"model": line.label} for line in board.overall if line.metric == names[0]]
        ranked = ranking([item for item in first if item["model"] in models], task)
        boards.append(board._replace(ranked=[models[label] for label, _ in ranked]))
    return boards


def _metrics(task: str, entries: Sequence[Entry], asked: Sequence[str]) -> list[str]:
    """The metrics of a task that all of these models have."""
    common = set.intersection(*({row.metric for row in entry.rows if row.task == task} for entry in entries))
    if asked:
        return [metric for metric in asked if metric in common]
    return [m for m in outputs(common) if m not in _NOT_RANKED and not m.endswith("_improvement")]


def _check_same(entry: Entry, base: Entry) -> None:
    """Refuse a model that was measured on other items, noises or SNRs of a task than the baseline."""
    mine, theirs = (
        {(row.task, row.corpus, row.split, row.item, row.noise, row.snr) for row in e.rows} for e in (entry, base)
    )
    shared = {key[0] for key in mine} & {key[0] for key in theirs}
    for only, name in ((theirs - mine, base.name), (mine - theirs, entry.name)):
        if differing := sorted((key for key in only if key[0] in shared), key=str):
            task, corpus, split, item, noise, snr = differing[0]
            raise UserError(
                f"{entry.name} and {base.name} differ in what they were measured on: only {name} has {corpus} {split} "
                f"{mixture_in_words(task, item, noise, snr)}: evaluate both with the same corpus and evaluate settings"
            )


def _lines(entry: Entry, base: Entry) -> list[Line]:
    """All means of a model with its differences to the baseline; of the baseline, those of the unprocessed input."""
    noisy = {row.task for row in entry.rows if row.noise}
    keys = ("model", "task", "noise", "snr", "lips", "metric")

    def named(item: Mapping[str, Any]) -> dict[str, Any]:
        over_all = item["task"] in noisy and not item["noise"]
        return {key: item[key] for key in keys} | ({"noise": ALL_NOISES} if over_all else {})

    means = [*summarise(entry.rows, overall=True), *summarise(entry.rows)]
    differences: list[dict[str, Any]] = []
    if entry is not base:
        differences = [i for over in (True, False) for i in compare(entry.rows, base.rows, {}, overall=over)]
    paired = {
        tuple(named(item).values()): {
            "difference": item["mean"],
            "difference_low": item["ci_low"],
            "difference_high": item["ci_high"],
        }
        for item in differences
    }
    lines: dict[tuple, Line] = {}
    for item in means:
        name = named(item)
        mean = {key: item[key] for key in ("mean", "ci_low", "ci_high", "n", "speakers")}
        if item["metric"].startswith(INPUT):
            if entry is not base:
                continue
            name |= {"model": INPUT_ROW, "lips": "", "metric": item["metric"].removeprefix(INPUT)}
            lines.setdefault(tuple(name.values()), Line(**name, **mean))
        else:
            lines.setdefault(tuple(name.values()), Line(**name, **mean, **paired.get(tuple(name.values()), {})))
    return list(lines.values())


def best_of(lines: Sequence[Line]) -> list[Line]:
    """Those with the best mean of a metric, as it is shown."""
    models = [line for line in lines if line.model != INPUT_ROW and math.isfinite(line.mean)]
    if not models:
        return []
    means = [round(line.mean, Look.of(line.metric).digits) for line in models]
    best = min(means) if models[0].metric in LOW_IS_GOOD else max(means)
    return [line for line, mean in zip(models, means, strict=True) if mean == best]
