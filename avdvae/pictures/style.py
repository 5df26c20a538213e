"""Colours and layout of all pictures. pyplot is not used: its figures are global to the process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

INK, FAINT, PAPER = (40, 40, 40), (130, 130, 130), 255
RIGHT = (200, 60, 50)
RANGE_DB, COLOURS = 60, "magma"  # of spectrograms
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # colour-blind safe
GREY = "#8a8a8a"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#404040",
    "ytick.labelcolor": "#404040",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def panels(count: int, sharey: bool = False) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(1 + 3 * columns, 0.8 + 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; beyond seven, they repeat."""
    return dict(zip(names, cycle(LINES), strict=False))


def drawn(figure: matplotlib.figure.Figure, kind: Literal["svg", "pdf"]) -> bytes:
    """The content of a file; equal figures give equal bytes. Letters in a pdf are type, not outlines."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "avdvae", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind])
    return file.getvalue()


def legend_above(figure: matplotlib.figure.Figure, *axes: matplotlib.axes.Axes) -> None:
    """In as many columns as fit into the width, at least one."""
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for columns in range(int(figure.get_figwidth() / 2.4), 0, -1):
        legend = figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
