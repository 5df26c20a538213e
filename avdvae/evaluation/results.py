"""The numbers of a run: one value a row in results.csv, means with intervals in summary.json.

Utterances of one speaker, and one utterance in six noises, are not independent, so the sampling units are
speakers. An interval is Student's, of a mean whose variance is taken between speakers (for a single speaker, between
utterances):

    mean = sum_g T_g / sum_g W_g        T_g, W_g   sums of the weighted values of speaker g and of their weights
    u_g  = T_g - mean W_g               se^2 = G / (G - 1) sum_g u_g^2 / (sum_g W_g)^2
    95 % interval: mean -+ t_{G-1} se, the 97.5 % quantile of Student's t with G - 1 degrees of freedom
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdvae.data.shard_files import read_table
from avdvae.errors import UserError, reading
from avdvae.files import replacing
from avdvae.signals.metrics import ALL_NOISES, INPUT, LOW_IS_GOOD, WEIGHTS

NOISE_GROUPS = {"stationary": ("White", "Car", "LR")}
BASELINES = {  # by task: in place of a model, in rows that any evaluation of the task has
    "prediction": ("last pose", "constant velocity", "true generator"),
    "separation": ("mixture", "NMF", "binary mask", "ratio mask"),
    "tracking": ("Kalman", "nearest"),
    "f0": ("Praat", "WORLD"),
    "control_f0": ("WORLD", "TD-PSOLA"),
}
SAME_INPUT = 1e-3  # by how much metrics of one and the same input may differ between two machines


@dataclass(frozen=True)
class Result:
    """A value and what it was measured on. Fields that do not apply are "", and None for the SNR."""

    run: str
    model: str
    task: str
    corpus: str
    split: str
    item: str  # an utterance
    speaker: str
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
    return read_table(path, Result, _PARSERS, "table of results", "delete it and evaluate the run again")


def summarise(rows: Sequence[Result], overall: bool = False) -> list[dict[str, Any]]:
    """Means over items, for each noise and over all noises, with intervals; `n` counts the items, `speakers` their
    speakers. `overall`: one mean over all noises and SNRs in place of these, without a noise or an SNR.

    Values that are not finite come from unusable references and are left out. A single item has no interval: it is nan.
    Metrics per sample, or window, are means over all of them: items are weighted by how many they have.
    """
    counts = _counts(rows)
    measured = [
        _Measured((row.model, row.task, row.lips, row.metric), row, row.value, _weight(row, counts)) for row in rows
    ]
    return [
        {"model": model, "task": task, "noise": noise, "snr": snr, "lips": lips, "metric": metric, **mean}
        for (model, task, lips, metric), noise, snr, mean in _means(measured, {}, overall)
    ]


def compare(
    rows: Sequence[Result],
    other_rows: Sequence[Result],
    groups: Mapping[str, Sequence[str]] = NOISE_GROUPS,
    overall: bool = False,
) -> list[dict[str, Any]]:
    """Mean differences, this run minus the other, in the same task, item, noise and SNR; also over all noises and each
    group. `overall`: as in `summarise`.

    A lips condition that the other run lacks is compared with its rows without one, those of an audio-only model; an
    audio-only model is compared with clean lips. Another method with the model, such as "vae assignment", is compared
    with the same method with the other model. `input_*` metrics must agree, otherwise the mixtures differ; they are
    left out, and so are `*_improvement` metrics, which differ exactly as the outputs do.
    """
    methods, their_methods = _methods(rows), _methods(other_rows)
    theirs = {
        (their_methods[row.model], row.task, row.item, row.noise, row.snr, row.metric, row.lips): row.value
        for row in other_rows
    }
    their_lips = {row.lips for row in other_rows}
    mine, other_run = (sides[0].run if sides else "an empty run" for sides in (rows, other_rows))
    differences, counts, unchecked = [], _counts(rows), dict[tuple, bool]()
    for row in rows:
        lips = row.lips if row.lips in their_lips else ("" if row.lips else "clean")
        other = theirs.get((methods[row.model], row.task, row.item, row.noise, row.snr, row.metric, lips))
        if other is None:
            continue
        mixture = row.task, row.item, row.noise, row.snr
        if row.metric.startswith(INPUT):
            unchecked[mixture] = False
            if abs(row.value - other) > SAME_INPUT:
                raise UserError(
                    f"{mine} and {other_run} differ in the mixture {mixture_in_words(*mixture)}: its {row.metric} is "
                    f"{row.value:.6g} and {other:.6g}: evaluate both on the same corpus with the same settings of "
                    "evaluate"
                )
        elif not row.metric.endswith("_improvement"):
            if row.noise:
                unchecked.setdefault(mixture, True)
            key = row.model, row.task, row.lips, row.metric
            differences.append(_Measured(key, row, row.value - other, _weight(row, counts)))
    if not differences:
        raise UserError(
            f"{mine} and {other_run} have no task, item, noise, SNR and metric in common: evaluate both alike"
        )
    if loose := [mixture for mixture, is_unchecked in unchecked.items() if is_unchecked]:
        raise UserError(
            f"{mine} and {other_run} have no {INPUT} metric in common for {mixture_in_words(*loose[0])}, so it cannot "
            "be checked that their mixtures are the same: evaluate both with the same evaluate.metrics"
        )
    return [
        {"model": model, "task": task, "noise": noise, "snr": snr, "lips": lips, "metric": metric, **mean}
        | {"compared_with": other_rows[0].run}
        for (model, task, lips, metric), noise, snr, mean in _means(differences, groups, overall)
    ]


def _methods(rows: Sequence[Result]) -> dict[str, str]:
    """What follows the name of the run's model in the names of its rows: nothing for the model itself."""
    own = min(sorted({row.model for row in without_baselines(rows) or rows}), key=len, default="")
    return {row.model: "" if row.model == own else row.model.removeprefix(f"{own} ") for row in rows}


def without_baselines(rows: Sequence[Result]) -> list[Result]:
    return [row for row in rows if row.model not in BASELINES.get(row.task, ())]


def ranking(summary: Sequence[Mapping[str, Any]], task: str) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """The models of a task without noise, each with its means by metric, sorted by the first metric, best first."""
    models: dict[str, dict[str, Mapping[str, Any]]] = {}
    for item in summary:
        if item["task"] == task and "compared_with" not in item:
            models.setdefault(item["model"], {})[item["metric"]] = item
    first = next(iter(next(iter(models.values()))))
    return sorted(models.items(), key=lambda model: model[1][first]["mean"], reverse=first not in LOW_IS_GOOD)


def over_seeds(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means of models whose names end in " seed=N", by name without it: over the seeds, the lowest and the highest."""
    means: dict[tuple[Any, ...], list[float]] = {}
    for item in summary:
        if "compared_with" not in item:
            where = [item[name] for name in ("task", "noise", "snr", "lips", "metric")]
            means.setdefault((item["model"].rpartition(" seed=")[0], *where), []).append(item["mean"])
    names = "model", "task", "noise", "snr", "lips", "metric"
    return [
        dict(zip(names, key, strict=True))
        | {"seeds": len(of), "mean": float(np.mean(of)), "lowest": min(of), "highest": max(of)}
        for key, of in means.items()
    ]


def write_over_seeds(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*items[0]], lineterminator="\n")
        table.writeheader()
        table.writerows(items)


def write_summary(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """JSON, one item per line; values that are not finite become null."""
    lines = [
        json.dumps({key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in item.items()})
        for item in items
    ]
    with replacing(path) as new:
        new.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def read_summary(path: Path) -> list[dict[str, Any]]:
    with reading(path, "summary of results", "delete it and evaluate the run again"):
        items = json.loads(path.read_text(encoding="utf-8"))
        needed = {"model", "task", "noise", "snr", "lips", "metric", "mean", "ci_low", "ci_high", "n"}
        if lacking := [needed - item.keys() for item in items if not needed <= item.keys()]:
            raise ValueError(f"an item lacks {', '.join(sorted(lacking[0]))}")
    return items


def read_examples(path: Path) -> list[dict[str, Any]]:
    """The examples in examples.json: see tasks.task.Measured."""
    remedy = "delete it, and results.csv beside it to have its examples again, and evaluate the run again"
    with reading(path, "list of examples", remedy):
        examples = [{"title": str(e.get("key", "")), "audio": {}, **e} for e in json.loads(path.read_text("utf-8"))]
        if not all(isinstance(e["title"], str) and isinstance(e["audio"], dict) for e in examples):
            raise ValueError("each example needs a title, and a name for each sound")
    return examples


def _counts(rows: Iterable[Result]) -> dict[tuple, float]:
    """Samples or windows of each item, where they were noted."""
    return {(row.model, row.task, row.item, row.metric): row.value for row in rows if row.metric in WEIGHTS.values()}


def _weight(row: Result, counts: Mapping[tuple, float]) -> float:
    return counts.get((row.model, row.task, row.item, WEIGHTS.get(row.metric)), 1.0)


def mixture_in_words(task: str, item: str, noise: str, snr: float | None) -> str:
    """An item in its noise, if any."""
    return f"{item}, {noise or task}" + ("" if snr is None else f" at {snr:g} dB")


class _Measured(NamedTuple):
    key: tuple  # of the mean that it is averaged into
    row: Result
    value: float
    weight: float


_Mean = tuple[tuple, str, float | None, dict[str, Any]]  # key, noise, SNR, the mean with its interval
_Items = Mapping[tuple[str, str], Sequence[tuple[float, float]]]  # values and weights by speaker and item


def _means(measured: Iterable[_Measured], groups: Mapping[str, Sequence[str]], overall: bool) -> Iterator[_Mean]:
    """For each key and SNR: each noise, then all noises and each group, where there are several noises."""
    if overall:
        measured = [m._replace(row=replace(m.row, noise="", snr=None)) for m in measured]
    values: dict[tuple, dict[str, dict[tuple[str, str], list[tuple[float, float]]]]] = {}
    for key, row, value, weight in measured:
        items = values.setdefault((key, row.snr), {}).setdefault(row.noise, {})
        items.setdefault((row.speaker, row.item), []).append((value, weight))
    for (key, snr), noises in values.items():
        for noise, items in noises.items():
            yield key, noise, snr, _mean(items)
        for group, members in {ALL_NOISES: list(noises), **groups}.items():
            present = [noises[noise] for noise in members if noise in noises]
            if len(present) > 1:
                names = set[tuple[str, str]]().union(*present)
                yield (
                    key,
                    group,
                    snr,
                    _mean({name: [v for items in present for v in items.get(name, [])] for name in names}),
                )


def _mean(items: _Items) -> dict[str, Any]:
    """The mean and interval defined at the top of this file."""
    from scipy.special import stdtrit

    finite = {name: [(v * w, w) for v, w in values if math.isfinite(v)] for name, values in sorted(items.items())}
    totals = {name: np.sum(values, axis=0) for name, values in finite.items() if values}
    speakers = {speaker: [total for (owner, _), total in totals.items() if owner == speaker] for speaker, _ in totals}
    units = [np.sum(mine, axis=0) for mine in speakers.values()] if len(speakers) > 1 else list(totals.values())
    mean, half = float("nan"), float("nan")
    if units:
        T_G, W_G = np.stack(units, axis=1)
        mean = float(T_G.sum() / W_G.sum())
    if (G := len(units)) > 1:
        u_G = T_G - mean * W_G
        half = float(stdtrit(G - 1, 0.975) * math.sqrt(G / (G - 1) * np.square(u_G).sum()) / W_G.sum())
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n": len(totals), "speakers": len(speakers)}
