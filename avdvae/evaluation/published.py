"""Figures from the literature, corpus by corpus, as tables of a report.

data/published/*.csv    corpus (the name of its reader), task, source, protocol, model, condition, metric, value
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from avdvae.evaluation.tables import Cell, Group, Table

FOLDER = Path(__file__).parents[1] / "data" / "published"
_Row = dict[str, str]


def published_on(corpus: str, tasks: Sequence[str], file: str = "*.csv") -> list[tuple[str, str, Table]]:
    """The tables of these tasks on this corpus, each with its title and the protocol of its figures."""
    rows: list[_Row] = []
    for path in sorted(FOLDER.glob(file)):
        with path.open(encoding="utf-8", newline="") as table:
            rows += [row for row in csv.DictReader(table) if row["corpus"] == corpus and row["task"] in tasks]
    kinds: dict[tuple[str, str, str], list[_Row]] = {}
    for row in rows:
        kinds.setdefault((row["source"], row["protocol"], row["metric"]), []).append(row)
    return [(f"{metric}: {source}", protocol, _table(those)) for (source, protocol, metric), those in kinds.items()]


def _table(rows: list[_Row]) -> Table:
    """One row per model and condition, one column per SNR, where there are SNRs."""
    values = {(row["model"], *_split(row["condition"])): row["value"] for row in rows}
    columns = list(dict.fromkeys(column for _, column, _ in values))
    lines = [
        (
            ", ".join(filter(None, (model, variant))),
            [Cell(values.get((model, column, variant), "–")) for column in columns],
        )
        for model, variant in dict.fromkeys((model, variant) for model, _, variant in values)
    ]
    return Table([(column or "value", "") for column in columns], [Group("", lines)])


def _split(condition: str) -> tuple[str, str]:
    """SNR and remaining condition: "-5 dB, clean lips" has both."""
    first, _, rest = condition.partition(", ")
    return (first.replace("-", "−"), rest) if first.endswith(" dB") else ("", condition)
