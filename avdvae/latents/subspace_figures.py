"""Figures of the subspaces in which factors of speech are controlled."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from avdvae.latents.subspaces import Relation, Subspace
from avdvae.pictures.style import GREY, LINES, STYLE, legend_above, panels

if TYPE_CHECKING:
    import matplotlib.figure


def latent_trajectories(subspaces: Mapping[str, Subspace]) -> matplotlib.figure.Figure:
    """The trajectory of each factor in the first dimensions of its subspace, from low (blue) to high (yellow). Points
    are means of artificial vowels, the line is the curve fitted to them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(subspaces), 3.6), layout="constrained")
        for number, (factor, subspace) in enumerate(subspaces.items(), start=1):
            ax: Any = figure.add_subplot(1, len(subspaces), number, projection="3d")
            points, line = (
                np.pad(coordinates.cpu().numpy()[:, :3], ((0, 0), (0, max(0, 3 - coordinates.shape[1]))))
                for coordinates in (subspace.of(subspace.along_NL), subspace.coordinates_JM)
            )
            ax.scatter(*points.T, c=subspace.hertz_N.cpu().numpy(), cmap="viridis", s=6)
            ax.plot(*line.T, color=GREY)
            low, high = subspace.range
            ax.set(title=f"{factor}, {low:g} to {high:g} Hz", xticklabels=[], yticklabels=[], zticklabels=[])
    return figure


def variance_curves(subspaces: Mapping[str, Subspace]) -> matplotlib.figure.Figure:
    """Cumulative variance explained by the dimensions of each factor's subspace."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, (ax,) = panels(1)
        figure.set_size_inches(6.4, 3.4)
        for colour, (factor, subspace) in zip(cycle(LINES), subspaces.items(), strict=False):
            parts_L = subspace.shares_L.cpu().numpy()
            ax.plot(range(1, len(parts_L) + 1), 100 * parts_L, color=colour, marker="o", markersize=4, label=factor)
        ax.axhline(80, color=GREY, linestyle=(0, (4, 3)))
        ax.set(xlabel="dimensions", ylabel="% of the variance", ylim=(0, 102), xticks=range(1, len(parts_L) + 1))
        legend_above(figure, ax)
    return figure


def factor_relations(related: Mapping[tuple[str, str], Relation]) -> matplotlib.figure.Figure:
    """For each pair of factors, the smallest angle between their subspaces, above the diagonal, and the largest cosine
    between vectors of their bases, below it, with intervals over the settings of the other factors."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    factors = list(dict.fromkeys(factor for pair in related for factor in pair))
    shades = np.ones((len(factors), len(factors)))
    with rc_context(STYLE), rc_context({"axes.grid": False}):
        figure = Figure(figsize=(1.7 * len(factors), 1.3 * len(factors)), layout="constrained")
        ax = figure.subplots()
        for (one, other), relation in related.items():
            row, column = factors.index(one), factors.index(other)
            for (y, x), (mean, low, high), text, shade in (
                ((row, column), relation.angle, "{:.0f}°\n[{:.0f}, {:.0f}]", relation.angle[0] / 90),
                ((column, row), relation.cosine, "cos {:.2f}\n[{:.2f}, {:.2f}]", 1 - relation.cosine[0]),
            ):
                shades[y, x] = shade
                ax.text(x, y, text.format(mean, low, high), ha="center", va="center", fontsize=9)
        ax.imshow(shades, cmap="Blues_r", vmin=-1, vmax=1.2)
        ax.set(xticks=range(len(factors)), yticks=range(len(factors)), xticklabels=factors, yticklabels=factors)
        ax.set(title="smallest angle (above) and largest cosine (below) between factors")
    return figure
