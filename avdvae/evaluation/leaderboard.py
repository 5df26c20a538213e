"""A leaderboard over evaluations on the same mixtures: a page, a table as CSV and LaTeX, and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.evaluation.boards import INPUT_ROW, Board, Entry, Line, best_of, boards_of, entries_of
from avdvae.evaluation.latex import latex_tables
from avdvae.evaluation.measure import enhancement_of, unlike
from avdvae.evaluation.report import TITLES, Passage, Picture, Section, intervals_of, page, picture_of, sample_of
from avdvae.evaluation.tables import Cell, Group, Table, columns_of, difference_cell, interval, number
from avdvae.files import replacing
from avdvae.pictures.figures import difference_curves, forest
from avdvae.pictures.style import colours_of, drawn
from avdvae.signals.metrics import Look


def write_leaderboard(
    runs: Sequence[Path], out: Path, baseline: Path | None = None, metrics: Sequence[str] = ()
) -> list[str]:
    """Write leaderboard.html, .csv, .tex and figures/*.pdf and *.svg into the folder `out`; returns the ranking as
    lines of text.

    runs       folders with results.csv: runs, or evaluations of them or of wavs that another system made
    baseline   one of `runs`; None: the first
    metrics    those shown, the first of which ranks; none: those that all models have, in the order of `LOOKS`
    """
    baseline = baseline or next(iter(runs), None)
    if len({path.resolve() for path in runs}) != len(runs) or baseline is None:
        raise UserError("a leaderboard needs runs, each once: give the folders of two or more")
    if baseline.resolve() not in [path.resolve() for path in runs]:
        raise UserError(f"baseline={baseline} is not among the runs: give one of {', '.join(map(str, runs))}")
    entries = entries_of(runs)
    base = next(entry for entry in entries if entry.path.resolve() == baseline.resolve())
    if len(entries) < 2:
        raise UserError(f"{base.path} has results of {base.name} alone: give two runs or more")
    boards = boards_of(entries, base, metrics)
    colours = colours_of([entry.name for entry in entries])
    files: dict[str, bytes] = {}
    pictures: dict[str, list[Picture]] = {}
    for board in boards:
        for name, title, figure in _figures(board, base.name, colours):
            files |= {f"figures/{name}.{kind}": drawn(figure, kind) for kind in ("pdf", "svg")}
            pictures.setdefault(board.task, []).append(picture_of(figure, title))
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([field.name for field in fields(Line)])
    for line in (line for board in boards for line in board.lines):
        writer.writerow(["" if value is None else value for value in vars(line).values()])
    files["leaderboard.csv"] = table.getvalue().encode()
    files["leaderboard.tex"] = latex_tables(boards, base.name).encode()
    files["leaderboard.html"] = page(_head(entries, base, boards), _sections(entries, base, boards, pictures)).encode()

    (out / "figures").mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("figures/means_*.*"), *out.glob("figures/differences_*.*")):  # of an earlier leaderboard
        if old.relative_to(out).as_posix() not in files:
            old.unlink()
    for name, content in files.items():
        with replacing(out / name) as new:
            new.write_bytes(content)
    return [text for board in boards for text in _in_text(board, base.name)]


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


def _figures(board: Board, base: str, colours: Mapping[str, str]) -> Iterable[tuple[str, str, Any]]:
    """Name, title and figure: means of all metrics, and differences over SNR of each."""
    rows = [*board.ranked, *({(INPUT_ROW, "")} & {(line.model, line.lips) for line in board.overall})]
    means = forest(rows, [vars(line) for line in board.overall], colours, board.metrics)
    yield f"means_{board.task}", "Means with 95 % intervals", means
    for metric in board.metrics:
        items = [
            {"mean": line.difference, "ci_low": line.difference_low, "ci_high": line.difference_high}
            | {key: getattr(line, key) for key in ("model", "noise", "snr", "lips", "metric")}
            | {"compared_with": base}
            for line in board.by_snr
            if line.metric == metric and line.difference is not None
        ]
        if len({item["snr"] for item in items}) > 1:
            figure = difference_curves(_in_each_state(items, board, base), metric, colours)
            yield f"differences_{board.task}_{metric}", f"{Look.of(metric).name}: differences to {base}", figure


def _in_each_state(items: Sequence[dict[str, Any]], board: Board, base: str) -> list[dict[str, Any]]:
    """Models of the sound alone, beside models with lips: with the clean lips of the baseline, which they are compared
    with, or in each state where it has none."""
    states = [lips for lips in dict.fromkeys(lips for _, lips in board.ranked) if lips]
    if any(model == base and lips for model, lips in board.ranked):
        states = [lips for lips in states if lips == "clean"]
    return [item | {"lips": lips} for item in items for lips in (([] if item["lips"] else states) or [item["lips"]])]


def _head(entries: Sequence[Entry], base: Entry, boards: Sequence[Board]) -> dict[str, Any]:
    rows = [row for row in base.rows if row.task in {board.task for board in boards}]
    facts = {
        "Baseline": base.name,
        "Utterances": str(len({row.item for row in rows})),
        "Speakers": str(len({row.speaker for row in rows})),
        "Noises": ", ".join(dict.fromkeys(row.noise for row in rows if row.noise)),
        "SNRs": ", ".join(number(snr) for snr in sorted({row.snr for row in rows if row.snr is not None})),
    }
    return {
        "title": "Leaderboard",
        "lead": f"{len(entries)} models on the corpus {rows[0].corpus} ({rows[0].split})",
        "facts": {name: fact for name, fact in facts.items() if fact},
        "command": "",
        "generated": rows[0].corpus in ("talker", "gait", "tracks"),
    }


def _sections(
    entries: Sequence[Entry], base: Entry, boards: Sequence[Board], pictures: Mapping[str, list[Picture]]
) -> list[Section]:
    settings = enhancement_of(base.path)
    unlikes = {entry.name: unlike(settings, enhancement_of(entry.path)) for entry in entries}
    sections = []
    for board in boards:
        title = TITLES[board.task]
        items = [vars(line) for line in board.overall]
        over = ", all noises and SNRs" if board.by_snr else ""
        note = f"Means over {sample_of(items, 'items')}{over}. {intervals_of(items)} Bold: the best mean."
        note += f" Not measured: {', '.join(board.missing)}." if board.missing else ""
        paired = f"Mean differences to {base.name} on the same items. Bold: zero lies outside the interval."
        if board.task == "enhancement":
            paired += "".join(f" {name} was measured with {how}." for name, how in unlikes.items() if how)
        parts = [
            Passage("Ranking", note, _by_metric(board, _mean_cells, [*board.ranked, (INPUT_ROW, "")], numbered=True)),
            Passage(f"Differences to {base.name}", paired, _by_metric(board, _difference_cells, board.ranked)),
        ]
        sections.append(Section(title, "tables", {"note": "", "parts": parts}))
        note = "Bars and bands: 95 % intervals. Filled dots: clean lips, or none; open dots: other states of the lips."
        sections.append(Section(f"{title}: figures", "pictures", {"note": note, "pictures": pictures[board.task]}))
        if board.by_snr:
            parts = [_snr_passage(board, metric, base.name) for metric in board.metrics]
            sections.append(Section(f"{title}: by SNR", "tables", {"note": "Over all noises.", "parts": parts}))
    return sections


def _by_metric(board: Board, cells: Any, models: Sequence[tuple[str, str]], numbered: bool = False) -> Table:
    """A row per model, a column per metric."""
    columns = [cells([line for line in board.overall if line.metric == metric], models) for metric in board.metrics]
    return _table(columns_of(board.metrics), columns, models, "", len(board.ranked) if numbered else 0)


def _snr_passage(board: Board, metric: str, base: str) -> Passage:
    lines = [line for line in board.by_snr if line.metric == metric]
    snrs = sorted({line.snr for line in lines if line.snr is not None})
    tables = []
    for cells, models in ((_mean_cells, [*board.ranked, (INPUT_ROW, "")]), (_difference_cells, board.ranked)):
        columns = [cells([line for line in lines if line.snr == snr], models) for snr in snrs]
        tables.append(_table([(number(snr), "dB") for snr in snrs], columns, models, "SNR"))
    look = Look.of(metric)
    title = f"{look.name} in {look.unit}" if look.unit else look.name
    more = (f"Differences to {base}", tables[1])
    return Passage(title, "", tables[0], more if any(line.difference is not None for line in lines) else None)


def _table(
    columns: list[tuple[str, str]],
    cells: Sequence[Sequence[Cell]],
    models: Sequence[tuple[str, str]],
    corner: str,
    places: int = 0,
) -> Table:
    """`cells`: of each column; models without any are left out; the first `places` are numbered."""
    rows = []
    for place, ((model, lips), row) in enumerate(zip(models, zip(*cells, strict=True), strict=True), start=1):
        if any(cell.value for cell in row):
            label = f"{model}, lips {lips}" if lips else model
            rows.append((f"{place}. {label}" if place <= places else label, list(row)))
    return Table(columns, [Group("", rows)], corner, stacked=True)


def _mean_cells(lines: Sequence[Line], models: Sequence[tuple[str, str]]) -> list[Cell]:
    """Of one metric; the best is bold."""
    best, found = best_of(lines), {(line.model, line.lips): line for line in lines}
    cells = []
    for model in models:
        if line := found.get(model):
            digits = Look.of(line.metric).digits
            cells.append(Cell(number(line.mean, digits), "", interval(vars(line), digits), line in best))
        else:
            cells.append(Cell())
    return cells


def _difference_cells(lines: Sequence[Line], models: Sequence[tuple[str, str]]) -> list[Cell]:
    found = {
        (line.model, line.lips): {
            line.metric: {
                "mean": line.difference,
                "ci_low": line.difference_low,
                "ci_high": line.difference_high,
            }
        }
        for line in lines
        if line.difference is not None
    }
    return [difference_cell(found.get(model, {}), lines[0].metric) for model in models]


def _in_text(board: Board, base: str) -> list[str]:
    """The ranking by the first metric, as lines."""
    first = board.metrics[0]
    look, digits = Look.of(first), max(2, Look.of(first).digits)
    unit = f" {look.unit}" if look.unit else ""
    found = {(line.model, line.lips): line for line in board.overall if line.metric == first}
    columns = []
    for place, model in enumerate(board.ranked, start=1):
        line = found[model]
        low, mean, high = (f"{value:.{look.digits}f}" for value in (line.ci_low, line.mean, line.ci_high))
        difference = ""
        if line.difference is not None:
            low_end, high_end = (f"{value:.{digits}f}" for value in (line.difference_low, line.difference_high))
            difference = f"{line.difference:+.{digits}f} [{low_end}, {high_end}]"
        columns.append((f"{place:>4}. {line.label}", f"{mean} [{low}, {high}]{unit}", difference))
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    rows = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in columns]
    return [f"{TITLES[board.task]}, by {look.name}; differences to {base}", *rows]
