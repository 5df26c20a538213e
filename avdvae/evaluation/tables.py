"""The content of the tables of a report, from the items of summary.json. Their markup is in templates/."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from avdvae.evaluation.results import NOISE_GROUPS, ranking
from avdvae.signals.metrics import ALL_NOISES, FAILED, INPUT, LOOKS, Look

POOLED = (ALL_NOISES, *NOISE_GROUPS)
_MOST_COLUMNS = 8
Item = Mapping[str, Any]  # of summary.json
Measured = Mapping[str, Item]  # in one condition, by metric


class Cell(NamedTuple):
    value: str = ""
    before: str = ""  # of the unprocessed input
    interval: str = ""
    bold: bool = False


class Group(NamedTuple):
    title: str
    rows: list[tuple[str, list[Cell]]]


class Table(NamedTuple):
    """`stacked`: intervals below the values instead of beside them."""

    columns: list[tuple[str, str]]  # name and unit
    groups: list[Group]
    corner: str = ""
    stacked: bool = False


def by_snr(items: Sequence[Item], cell: Callable[[Measured, str], Cell]) -> Table:
    """One row per SNR, one column per metric; one group per model, noise and state of the lips, where several."""
    metrics = outputs(item["metric"] for item in items)
    conditions: dict[tuple[str, str, str], dict[float | None, dict[str, Item]]] = {}
    for item in items:
        snrs = conditions.setdefault((item["model"], item["noise"], item["lips"]), {})
        snrs.setdefault(item["snr"], {})[item["metric"]] = item
    several = [len(set(names)) > 1 for names in zip(*conditions, strict=True)]
    groups = []
    for (model, noise, lips), snrs in conditions.items():
        names = [model, f"{noise} noises" if noise in POOLED else noise, f"lips {lips}" if lips else "without lips"]
        rows = [
            ("" if snr is None else f"{number(snr)} dB", [cell(measured, metric) for metric in metrics])
            for snr, measured in sorted(snrs.items(), key=lambda row: row[0] or 0)
        ]
        groups.append(Group(", ".join(name for name, needed in zip(names, several, strict=True) if needed), rows))
    corner = "SNR" if any(item["snr"] is not None for item in items) else ""
    return Table(columns_of(metrics), groups, corner, stacked=cell is result_cell)


def by_model(items: Sequence[Item], task: str) -> Table:
    """One row per model, best first; one row per metric instead, where there are too many for columns."""
    models, metrics = dict(ranking(items, task)), outputs(item["metric"] for item in items)
    columns, names = columns_of(metrics), list(models)
    cells = [[result_cell(measured, metric) for metric in metrics] for measured in models.values()]
    if len(metrics) > _MOST_COLUMNS:
        columns, names = [(name, "") for name in models], [name for name, _ in columns]
        cells = [list(column) for column in zip(*cells, strict=True)]
    return Table(columns, [Group("", list(zip(names, cells, strict=True)))], stacked=True)


def result_cell(measured: Measured, metric: str) -> Cell:
    """The mean of the output, and that of the input before it."""
    if metric not in measured:
        return Cell()
    digits, item, before = Look.of(metric).digits, measured[metric], measured.get(INPUT + metric)
    before = number(before["mean"], digits) if before else ""
    return Cell(number(item["mean"], digits), before, interval(item, digits), bold=True)


def difference_cell(measured: Measured, metric: str) -> Cell:
    """A difference between two runs, bold if zero is outside its interval."""
    if metric not in measured:
        return Cell()
    item, digits = measured[metric], max(2, Look.of(metric).digits)
    clear = item["ci_low"] is not None and (item["ci_low"] > 0 or item["ci_high"] < 0)
    return Cell(number(item["mean"], digits, sign="+"), interval=interval(item, digits), bold=clear)


def scores_of(scores: Mapping[str, float]) -> list[tuple[Look, Cell]]:
    """The scores of one example."""
    measured = {metric: {"mean": value, "ci_low": None} for metric, value in scores.items()}
    return [(Look.of(metric), result_cell(measured, metric)) for metric in outputs(scores)]


def outputs(metrics: Iterable[str]) -> list[str]:
    """The metrics of the output, in the order of LOOKS."""
    known = list(LOOKS)
    named = {metric for metric in metrics if not metric.startswith(INPUT) and metric != FAILED}
    return sorted(named, key=lambda metric: (known.index(metric) if metric in known else len(known), metric))


def columns_of(metrics: Sequence[str]) -> list[tuple[str, str]]:
    return [Look.of(metric)[:2] for metric in metrics]


def interval(item: Item, digits: int) -> str:
    if item["ci_low"] is None or not math.isfinite(item["ci_low"]):
        return ""
    return f"[{number(item['ci_low'], digits)}, {number(item['ci_high'], digits)}]"


def number(value: float | None, digits: int | None = None, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:{sign}g}" if digits is None else f"{value:{sign}z.{digits}f}").replace("-", "−")
