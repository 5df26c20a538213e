"""The numbers of a run: one value a row in results.csv, means with intervals in summary.json.

An interval is the middle 95 % of the means of 2000 bootstrap samples. Items (utterances) are drawn, each with all that
was measured on it: the same utterance in six noises is one draw, not six.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from avdvae.data.shards import replacing
from avdvae.errors import UserError
from avdvae.metrics import INPUT, LOW_IS_GOOD, OF_EACH_SAMPLE

ALL_NOISES = "all"
NOISE_GROUPS = {"stationary": ("White", "Car", "LR")}
_DRAWS = 2000


@dataclass(frozen=True)
class Result:
    """A value and what it was measured on. What does not apply is "", or None for the SNR."""

    run: str
    model: str
    task: str
    corpus: str
    split: str
    item: str  # an utterance
    noise: str
    snr: float | None  # dB
    lips: str
    metric: str
    value: float


_COLUMNS = [field.name for field in fields(Result)]
_PARSERS: dict[str, Callable[[str], Any]] = {"snr": lambda text: float(text) if text else None, "value": float}


def write_results(path: Path, rows: Iterable[Result]) -> None:
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def read_results(path: Path) -> list[Result]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if table.fieldnames != _COLUMNS:
            raise UserError(
                f"{path} has the columns {', '.join(table.fieldnames or ['none'])} instead of {', '.join(_COLUMNS)}: "
                f"evaluate the run again"
            )
        return [Result(**{name: _PARSERS.get(name, str)(text) for name, text in row.items()}) for row in table]


def summarise(rows: Sequence[Result], seed: int = 0) -> list[dict[str, Any]]:
    """Means over items, for each noise and over all of them, with intervals; n is the number of items that counted.

    Values that are not finite are left out. From a single item follows no interval: it is nan.
    A metric of each sample is the mean over all samples, so that items count by their length.
    """
    samples = _samples(rows)
    measured = [
        ((row.model, row.task, row.lips, row.metric), row.noise, row.snr, row.item, row.value, _weight(row, samples))
        for row in rows
    ]
    return [
        {"model": model, "task": task, "noise": noise, "snr": snr, "lips": lips, "metric": metric, **mean}
        for (model, task, lips, metric), noise, snr, mean in _means(measured, {}, seed)
    ]


def compare(
    rows: Sequence[Result],
    other_rows: Sequence[Result],
    groups: Mapping[str, Sequence[str]] = NOISE_GROUPS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Means of this run minus the other in the same task, item, noise and SNR; also over all noises and each group.

    A lips condition that the other run lacks is held against its rows without one, those of an audio-only model; and
    an audio-only model against clean lips. Left out are metrics of the input, which both runs heard alike, and
    improvements on it, which differ as the outputs do.
    """
    theirs = {(row.task, row.item, row.noise, row.snr, row.metric, row.lips): row.value for row in other_rows}
    their_lips = {row.lips for row in other_rows}
    differences, samples = [], _samples(rows)
    for row in rows:
        lips = row.lips if row.lips in their_lips else ("" if row.lips else "clean")
        other = theirs.get((row.task, row.item, row.noise, row.snr, row.metric, lips))
        if other is not None and not row.metric.startswith(INPUT) and not row.metric.endswith("_improvement"):
            key = row.model, row.task, row.lips, row.metric
            differences.append((key, row.noise, row.snr, row.item, row.value - other, _weight(row, samples)))
    if not differences:
        mine, other = (sides[0].run if sides else "an empty run" for sides in (rows, other_rows))
        raise UserError(f"{mine} and {other} have no task, item, noise, SNR and metric in common: evaluate both alike")
    return [
        {"model": model, "task": task, "noise": noise, "snr": snr, "lips": lips, "metric": metric, **mean}
        | {"compared_with": other_rows[0].run}
        for (model, task, lips, metric), noise, snr, mean in _means(differences, groups, seed)
    ]


def ranking(summary: Sequence[Mapping[str, Any]], task: str) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """The models of a task without noise, each with its means by metric, the best in the first metric first."""
    models: dict[str, dict[str, Mapping[str, Any]]] = {}
    for item in summary:
        if item["task"] == task and "compared_with" not in item:
            models.setdefault(item["model"], {})[item["metric"]] = item
    first = next(iter(next(iter(models.values()))))
    return sorted(models.items(), key=lambda model: model[1][first]["mean"], reverse=first not in LOW_IS_GOOD)


def write_summary(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """JSON, an item a line; what is no number becomes null."""
    lines = [
        json.dumps({key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in item.items()})
        for item in items
    ]
    with replacing(path) as new:
        new.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _samples(rows: Iterable[Result]) -> dict[tuple, float]:
    """How many samples an item has, where that was noted."""
    return {(row.model, row.task, row.item): row.value for row in rows if row.metric == "samples"}


def _weight(row: Result, samples: Mapping[tuple, float]) -> float:
    return samples[row.model, row.task, row.item] if row.metric in OF_EACH_SAMPLE else 1.0


_Measured = tuple[tuple, str, float | None, str, float, float]  # key, noise, SNR, item, value, weight
_Mean = tuple[tuple, str, float | None, dict[str, Any]]  # key, noise, SNR, the mean with its interval


def _means(measured: Iterable[_Measured], groups: Mapping[str, Sequence[str]], seed: int) -> Iterator[_Mean]:
    """For each key and SNR: each noise, then all noises and each group of noises of which there are several."""
    values: dict[tuple, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for key, noise, snr, item, value, weight in measured:
        values.setdefault((key, snr), {}).setdefault(noise, {}).setdefault(item, []).append((value, weight))
    for (key, snr), noises in values.items():
        for noise, items in noises.items():
            yield key, noise, snr, _mean(items, seed)
        for group, members in {ALL_NOISES: list(noises), **groups}.items():
            present = [noises[noise] for noise in members if noise in noises]
            if len(present) > 1:
                names = set[str]().union(*present)
                pooled = {name: [value for items in present for value in items.get(name, [])] for name in names}
                yield key, group, snr, _mean(pooled, seed)


def _mean(items: Mapping[str, Sequence[tuple[float, float]]], seed: int) -> dict[str, Any]:
    finite = [[(v * weight, weight) for v, weight in values if math.isfinite(v)] for _, values in sorted(items.items())]
    totals = np.array([np.sum(values, axis=0) for values in finite if values]).reshape(-1, 2)
    n = len(totals)
    mean, low, high = float("nan"), float("nan"), float("nan")
    if n:
        mean = float(totals[:, 0].sum() / totals[:, 1].sum())
    if n > 1:
        drawn = _draws(n, seed) @ totals
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5]).tolist()
    return {"mean": mean, "ci_low": low, "ci_high": high, "n": n}


@lru_cache(maxsize=4)
def _draws(n: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """How often each of n items falls into each bootstrap sample."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=_DRAWS).astype(np.float64)
