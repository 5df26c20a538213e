"""Figures from the literature, corpus by corpus, as tables of a report.

data/published/*.csv    corpus (the name of its reader), task, source, protocol, model, condition, metric, value
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "data" / "published"
_Row = dict[str, str]


def published_on(corpus: str, tasks: Sequence[str], file: str = "*.csv") -> str:
    """Every table of these tasks on this corpus; nothing where there is none."""
    rows: list[_Row] = []
    for path in sorted(_FOLDER.glob(file)):
        with path.open(encoding="utf-8", newline="") as table:
            rows += [row for row in csv.DictReader(table) if row["corpus"] == corpus and row["task"] in tasks]
    kinds = dict.fromkeys((row["source"], row["protocol"], row["metric"]) for row in rows)
    return "\n".join(
        _table(*kind, [row for row in rows if (row["source"], row["protocol"], row["metric"]) == kind])
        for kind in kinds
    )


def _table(source: str, protocol: str, metric: str, rows: list[_Row]) -> str:
    """A row a model and what is special to it, a column an SNR, where there are SNRs."""
    values = {(row["model"], *_split(row["condition"])): row["value"] for row in rows}
    columns = list(dict.fromkeys(column for _, column, _ in values))
    head = "".join(f'<th scope="col">{escape(column or "value")}</th>' for column in columns)
    lines = "".join(
        f'<tr><th scope="row">{escape(model)}{escape(special and f", {special}")}</th>'
        + "".join(f"<td>{values.get((model, column, special), '–')}</td>" for column in columns)
        + "</tr>\n"
        for model, special in dict.fromkeys((model, special) for model, _, special in values)
    )
    return (
        f"<h3>{escape(metric)}: {escape(source)}</h3>\n<p>{escape(protocol)}</p>\n"
        f'<div class="wide"><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>'
    )


def _split(condition: str) -> tuple[str, str]:
    """The SNR and the rest: "-5 dB, clean lips" has both."""
    first, _, rest = condition.partition(", ")
    return (first.replace("-", "−"), rest) if first.endswith(" dB") else ("", condition)
