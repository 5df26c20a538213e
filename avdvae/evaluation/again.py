"""Evaluate a trained model again, with other settings or on another corpus; the results as rows with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from avdvae.data.corpora import find_corpus
from avdvae.errors import UserError, check_settings, in_file
from avdvae.evaluation.measure import evaluate_run, find_other_runs, settings_of
from avdvae.evaluation.results import read_summary
from avdvae.evaluation.tasks.task import Evaluation
from avdvae.runs import Configuration, Run, build_vem, changed, create_run, open_run
from avdvae.signals.metrics import Look


def evaluate_again(run: Run, changes: Mapping[str, Any], compare: Sequence[str] = (), out: Path | None = None) -> Path:
    """Measure a run's model, compare it with other runs, and write the report; returns the folder of the results.

    changes   settings that differ from the run's: `prepared`, and those in the sections `evaluate` and `enhance`
    out       None: RUN/evaluations/<date-time>; the same `out` continues an interrupted evaluation
    """
    with in_file(run.path / "config.yaml"):
        check_settings(Evaluation, "evaluate", **run.config["evaluate"])
        build_vem(run.config["enhance"])
    out = out or run.results / "evaluations" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    asked = changed(run.config, changes)
    begun = (out / "config.yaml").exists()
    if begun and open_run(out).config != asked:
        raise UserError(f"{out} holds an evaluation with other settings: choose another out=")
    Configuration.check(asked | {"compare": compare})
    settings_of(asked["evaluate"])  # errors come before a folder is created
    build_vem(asked["enhance"], run)
    find_other_runs(compare)
    prepared = find_corpus(asked)
    evaluation = create_run(out, asked)
    with nullcontext() if begun else evaluation.undone_unless("results.csv"):
        evaluate_run(Run(run.path, asked), out, prepared, compare)
    return out


@dataclass(frozen=True)
class Row:
    """A mean with its 95 % interval, or, of a comparison, the mean difference to `compared_with` on the same items.

    `noise` is "all" where items of all noises are pooled, and "" where a task has no noise; the SNR is in dB. Where
    nothing could be measured, or there is no interval, values are None. `n` counts the items.
    """

    model: str
    task: str
    noise: str
    snr: float | None
    lips: str
    metric: str
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    speakers: int
    compared_with: str = ""


class Rows(list[Row]):
    """Rows of results, printed as a table. `folder` has the report and the value of each utterance."""

    def __init__(self, rows: Sequence[Row], folder: Path):
        super().__init__(rows)
        self.folder = folder

    @classmethod
    def of(cls, evaluation: Path) -> Rows:
        """The rows of an evaluation."""
        items = read_summary(evaluation / "summary.json")
        names = Row.__dataclass_fields__
        rows = [Row(**{name: value for name, value in item.items() if name in names}) for item in items]
        return cls(rows, evaluation)

    def __str__(self) -> str:
        heads = "task", "metric", "noise", "SNR", "lips", "mean", "95 % interval", "n", "compared with"
        shown = [column for column in zip(heads, *map(_cells, self), strict=True) if any(column[1:])]
        padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in shown]
        return "\n".join("  ".join(cells).rstrip() for cells in zip(*padded, strict=True))

    __repr__ = __str__


def _cells(row: Row) -> tuple[str, ...]:
    look = Look.of(row.metric)
    digits, sign = (max(2, look.digits), "+") if row.compared_with else (look.digits, "")
    mean = "" if row.mean is None else f"{row.mean:{sign}.{digits}f}"
    ends = "" if row.ci_low is None else f"[{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"
    name = f"{look.name} ({look.unit})" if look.unit else look.name
    snr = "" if row.snr is None else f"{row.snr:g}"
    return row.task, name, row.noise, snr, row.lips, mean, ends, str(row.n), row.compared_with
