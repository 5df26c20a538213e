"""Figures from the literature, corpus by corpus, as tables of a report.

data/published/*.csv    corpus (the name of its reader), task, source, protocol, model, condition, metric, value
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from avdvae.evaluation.tables import Cell, Group, Table

_FOLDER = Path(__file__).parents[1] / "data" / "published"
_Row = dict[str, str]


def published_on(corpus: str, tasks: Sequence[str], file: str = "*.csv") -> list[tuple[str, str, Table]]:
    """The tables of these tasks on this corpus, each with its title and the protocol of its figures."""
    rows: list[_Row] = []
    for path in sorted(_FOLDER.glob(file)):
        with path.open(encoding="utf-8", newline="") as table:
            rows += [row for row in csv.DictReader(table) if row["corpus"] == corpus and row["task"] in tasks]
    kinds: dict[tuple[str, str, str], list[_Row]] = {}
    for row in rows:
        kinds.setdefault((row["source"], row["protocol"], row["metric"]), []).append(row)
    return [(f"{metric}: {source}", protocol, _table(those)) for (source, protocol, metric), those in kinds.items()]


def _table(rows: list[_Row]) -> Table:
    """A row a model and what is special to it, a column an SNR, where there are SNRs."""
    values = {(row["model"], *_split(row["condition"])): row["value"] for row in rows}
    columns = list(dict.fromkeys(column for _, column, _ in values))
    lines = [
        (
            ", ".join(filter(None, (model, special))),
            [Cell(values.get((model, column, special), "–")) for column in columns],
        )
        for model, special in dict.fromkeys((model, special) for model, _, special in values)
    ]
    return Table([(column or "value", "") for column in columns], [Group("", lines)])


def _split(condition: str) -> tuple[str, str]:
    """The SNR and the rest: "-5 dB, clean lips" has both."""
    first, _, rest = condition.partition(", ")
    return (first.replace("-", "−"), rest) if first.endswith(" dB") else ("", condition)
