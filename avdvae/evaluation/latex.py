"""The tables of a leaderboard for a paper: LaTeX with booktabs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from avdvae.evaluation.boards import INPUT_ROW, Board, Line, best_of
from avdvae.evaluation.report import TITLES
from avdvae.signals.metrics import Look

_Column = Mapping[tuple[str, str], str]  # cells by model and state of the lips
_HALF = r"$\pm$ half of the 95\,\% interval"
_SPECIAL = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escaped(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^<>|]", lambda found: _SPECIAL[found[0]], text)


def latex_tables(boards: Sequence[Board], base: str) -> str:
    """A table for each task, and one of its first metric over SNR, if there are several."""
    tables = ["% \\usepackage{booktabs}  % in the preamble; \\input{leaderboard.tex} where the tables are to stand"]
    for board in boards:
        tables.append(_by_metric(board, base))
        if len({line.snr for line in board.by_snr}) > 1:
            tables.append(_by_snr(board))
    return "\n\n".join(tables) + "\n"


def _by_metric(board: Board, base: str) -> str:
    """A column per metric, and the differences in the first."""
    columns = [[line for line in board.overall if line.metric == metric] for metric in board.metrics]
    cells = [_means(board, column) for column in columns]
    heads = [_heading(metric) for metric in board.metrics]
    most = max((line for column in columns for line in column), key=lambda line: line.n)
    caption = f"means over {most.n} items of {most.speakers} speaker{'s' * (most.speakers > 1)}"
    caption += ", all noises and SNRs" * bool(board.by_snr) + f", {_HALF}. Bold: best mean."
    if any(line.difference is not None for line in columns[0]):
        cells.append({(line.model, line.lips): _difference(line) for line in columns[0]})
        heads.append(rf"$\Delta$ {heads[0]}")
        caption += rf" $\Delta$: paired difference to {escaped(base)}."
    return _table(board, cells, heads, caption, board.task)


def _by_snr(board: Board) -> str:
    lines = [line for line in board.by_snr if line.metric == board.metrics[0]]
    snrs = sorted({line.snr for line in lines if line.snr is not None})
    cells = [_means(board, [line for line in lines if line.snr == snr]) for snr in snrs]
    caption = f"{_heading(board.metrics[0])} by SNR, {_HALF}. Bold: best mean."
    return _table(board, cells, [_signs(rf"{snr:g}\,dB") for snr in snrs], caption, f"{board.task}-snr")


def _table(board: Board, columns: Sequence[_Column], heads: Sequence[str], caption: str, label: str) -> str:
    """The unprocessed input, then the models, best first."""
    rows = []
    for model, lips in [(INPUT_ROW, ""), *board.ranked]:
        if any((model, lips) in column for column in columns):
            cells = [column.get((model, lips), "--") for column in columns]
            rows.append(" & ".join([escaped(f"{model}, lips {lips}" if lips else model), *cells]) + r" \\")
            rows += [r"\midrule"] if model == INPUT_ROW else []
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{TITLES[board.task]}: {caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["Model", *heads]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )


def _means(board: Board, lines: Sequence[Line]) -> _Column:
    best = best_of(lines)
    return {(line.model, line.lips): _mean(line, line in best) for line in lines}


def _heading(metric: str) -> str:
    look = Look.of(metric)
    return escaped(f"{look.name} ({look.unit})" if look.unit else look.name)


def _mean(line: Line, bold: bool) -> str:
    digits = Look.of(line.metric).digits
    mean = _number(line.mean, digits)
    return (rf"\textbf{{{mean}}}" if bold else mean) + _half(line.ci_high - line.mean, digits)


def _difference(line: Line) -> str:
    if line.difference is None or line.difference_high is None:
        return "--"
    digits = max(2, Look.of(line.metric).digits)
    return _number(line.difference, digits, "+") + _half(line.difference_high - line.difference, digits)


def _half(width: float, digits: int) -> str:
    return f" $\\pm$ {width:.{digits}f}" if math.isfinite(width) else ""


def _number(value: float, digits: int, sign: str = "") -> str:
    return _signs(f"{value:{sign}z.{digits}f}") if math.isfinite(value) else "--"


def _signs(text: str) -> str:
    """A hyphen as a minus sign."""
    return text.replace("-", "$-$").replace("+", "$+$")
