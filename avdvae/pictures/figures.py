"""Curves of metrics, training, EM runs and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from avdvae.pictures.style import GREY, LINES, STYLE, colours_of, legend_above, panels
from avdvae.signals.metrics import ALL_NOISES, INPUT, Look

if TYPE_CHECKING:
    import matplotlib.figure

LABEL = 84  # characters of a label in a line


def metric_curves(summary: Sequence[Mapping[str, Any]], metric: str) -> matplotlib.figure.Figure:
    """A metric against the SNR: a panel per noise, a line with its interval per model and state of the lips, the
    unprocessed input dashed. `summary` is that of `results.summarise`."""
    from matplotlib import rc_context

    shown = [item for item in summary if item["snr"] is not None and "compared_with" not in item]
    outputs = [item for item in shown if item["metric"] == metric]
    lines = list(dict.fromkeys((item["model"], item["lips"]) for item in outputs))
    noises = list(dict.fromkeys(item["noise"] for item in outputs if item["noise"] != ALL_NOISES))
    with rc_context(STYLE):
        figure, axes = panels(len(noises), sharey=True)
        for ax, noise in zip(axes, noises, strict=True):
            here = [item for item in shown if item["noise"] == noise]
            if inputs := [item for item in here if item["metric"] == INPUT + metric]:
                snrs, means, _, _ = _curve(inputs)
                ax.plot(snrs, means, color=GREY, linestyle=(0, (4, 3)), label="unprocessed input")
            for colour, (model, lips) in zip(cycle(LINES), lines, strict=False):
                own = [i for i in here if (i["metric"], i["model"], i["lips"]) == (metric, model, lips)]
                snrs, means, lows, highs = _curve(own)
                ax.fill_between(snrs, lows, highs, color=colour, alpha=0.2, linewidth=0)
                label = f"{model}, lips {lips}" if lips else model
                ax.plot(snrs, means, color=colour, marker="o", markersize=4, label=label)
            ax.set(title=noise, xticks=sorted({item["snr"] for item in outputs}))
        legend_above(figure, axes[0])
        look = Look.of(metric)
        figure.supxlabel("SNR of the input in dB", fontsize=10)
        figure.supylabel(f"{look.name} in {look.unit}" if look.unit else look.name, fontsize=10)
    return figure


def difference_curves(
    compared: Sequence[Mapping[str, Any]], metric: str, colours: Mapping[str, str] | None = None
) -> matplotlib.figure.Figure:
    """Differences of models to one model, on the same mixtures of all noises, against the SNR: a panel per state of the
    lips, a line with its interval per model. `compared`: items of a summary, all compared with that model."""
    from matplotlib import rc_context

    shown = [item for item in compared if item["metric"] == metric and item["snr"] is not None]
    pooled = [item for item in shown if item["noise"] == ALL_NOISES] or shown
    states, models = (list(dict.fromkeys(item[key] for item in pooled)) for key in ("lips", "model"))
    with rc_context(STYLE):
        figure, axes = panels(len(states), sharey=True)
        figure.set_figwidth(max(figure.get_figwidth(), 7))  # pages scale figures to one width
        for ax, lips in zip(axes, states, strict=True):
            ax.axhline(0, color=GREY, linestyle=(0, (4, 3)))
            for model, colour in (colours or colours_of(models)).items():
                if not (own := [item for item in pooled if (item["lips"], item["model"]) == (lips, model)]):
                    continue
                snrs, means, lows, highs = _curve(own)
                ax.fill_between(snrs, lows, highs, color=colour, alpha=0.2, linewidth=0)
                ax.plot(snrs, means, color=colour, marker="o", markersize=4, label=model)
            ax.set(title=f"lips {lips}" if lips else "", xticks=sorted({item["snr"] for item in pooled}))
        legend_above(figure, *axes)
        look = Look.of(metric)
        figure.supxlabel("SNR of the input in dB", fontsize=10)
        base = Path(pooled[0]["compared_with"]).name
        figure.supylabel(f"{look.name} minus {base}{f', {look.unit}' if look.unit else ''}", fontsize=10)
    return figure


def forest(
    rows: Sequence[tuple[str, str]],
    items: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
    metrics: Sequence[str],
) -> matplotlib.figure.Figure:
    """Means with intervals, a panel per metric: a line for each of `rows`, which are a model and a state of its lips,
    the first on top. Filled dots: clean lips, or none. A model without a colour, such as the input, is grey."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    labels = [f"{model}, lips {lips}" if lips else model for model, lips in rows]
    style: dict[Any, Any] = STYLE | {"axes.grid.axis": "x", "axes.spines.left": False, "ytick.left": False}
    with rc_context(style):
        left = 0.4 + 0.075 * max(map(len, labels))  # inches for the names
        figure = Figure(figsize=(left + 2.2 * columns, lines * (0.75 + 0.26 * len(rows))))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)  # labels of neighbours stay apart
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for ax in grid.ravel()[len(metrics) :]:
            ax.remove()
        for metric, ax in zip(metrics, grid.ravel(), strict=False):
            for place, (model, lips) in enumerate(rows):
                own = [i for i in items if (i["model"], i["lips"], i["metric"]) == (model, lips, metric)]
                colour = colours.get(model, GREY)
                for item in own:
                    ax.plot([item["ci_low"], item["ci_high"]], [place] * 2, color=colour, solid_capstyle="butt")
                    face = colour if lips in ("", "clean") else "white"
                    ax.plot(item["mean"], place, "o", color=colour, markerfacecolor=face, markersize=6)
            look = Look.of(metric)
            ax.set(title=f"{look.name}, {look.unit}" if look.unit else look.name, ylim=(len(rows) - 0.4, -0.6))
            ax.set_yticks(range(len(rows)), labels)
            ax.margins(x=0.08)
    return figure


def contrasts_forest(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], colours: Mapping[str, str]
) -> matplotlib.figure.Figure:
    """Differences with intervals: a panel for each unit, the key of `groups`, a line for each of its rows, which have
    label, place, mean, ci_low, ci_high, bound, sign and holds; `colours`: of the places. Triangles: the smallest effect
    that counts, and in which direction. Filled dots: the contrast holds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = STYLE | {"axes.grid.axis": "x", "axes.spines.left": False, "ytick.left": False}
    lines = {unit: list(dict.fromkeys(row["label"] for row in rows)) for unit, rows in groups.items()}
    here = {row["place"] for rows in groups.values() for row in rows}
    places = [place for place in colours if place in here]
    step = 0.8 / len(places)
    with rc_context(style):
        count = sum(map(len, lines.values()))
        wrapped = sum(len(label) > LABEL for labels in lines.values() for label in labels)
        height = 0.5 + 0.75 * len(groups) + (0.16 + 0.16 * len(places)) * count + 0.14 * wrapped
        figure = Figure(figsize=(8.5, height))
        figure.set_layout_engine("constrained", h_pad=0.06)
        axes = figure.subplots(
            len(groups), 1, squeeze=False, height_ratios=[len(labels) + 0.6 for labels in lines.values()]
        )
        for (unit, rows), ax in zip(groups.items(), axes.ravel(), strict=True):
            ax.axvline(0, color=GREY, linewidth=1)
            for row in rows:
                number = places.index(row["place"])
                y = lines[unit].index(row["label"]) + step * (number - (len(places) - 1) / 2)
                colour = colours[row["place"]]
                ax.plot([row["ci_low"], row["ci_high"]], [y] * 2, color=colour, solid_capstyle="butt")
                face = colour if row["holds"] else "white"
                ax.plot(row["mean"], y, "o", color=colour, markerfacecolor=face, markersize=6)
                ax.plot(row["bound"], y, ">" if row["sign"] > 0 else "<", color="#404040", markersize=5)
            ax.set(xlabel=unit, ylim=(len(lines[unit]) - 0.4, -0.6))
            ax.set_yticks(range(len(lines[unit])), [fill(label, LABEL) for label in lines[unit]])
            ax.margins(x=0.08)
        if len(places) > 1:
            for place in places:
                axes[0, 0].plot([], [], "o-", color=colours[place], label=place)
            legend_above(figure, axes[0, 0])
    return figure


def _curve(items: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "4 snrs"]:
    """SNRs, means, lower and upper ends. The input is the same for all lips, so the first of each SNR is taken."""
    first = {item["snr"]: item for item in reversed(items)}
    keys = ("snr", "mean", "ci_low", "ci_high")
    return np.array([[item[key] for key in keys] for _, item in sorted(first.items())], float).reshape(-1, 4).T


def training_curves(records: Sequence[Mapping[str, Any]]) -> matplotlib.figure.Figure:
    """A panel per quantity logged as train/... or valid/..., the loss first: means over each epoch."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    series: dict[str, dict[str, dict[float, list[float]]]] = {"loss": {}}
    for record in records:
        for key, value in record.items():
            part, _, quantity = key.partition("/")
            if quantity:
                epochs = series.setdefault(quantity, {}).setdefault(part, {})
                epochs.setdefault(record["epoch"], []).append(value)
    with rc_context(STYLE):
        figure, axes = panels(len(series))
        for ax, (quantity, parts) in zip(axes, series.items(), strict=True):
            for part, colour in zip(("train", "valid"), LINES, strict=False):
                epochs = parts.get(part, {})
                ax.plot(
                    list(epochs), [sum(values) / len(values) for values in epochs.values()], color=colour, label=part
                )
            ax.set(title=quantity)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(figure, axes[0])
        figure.supxlabel("epoch", fontsize=10)
    return figure


def cost_curves(costs: Mapping[str, Sequence[float]]) -> matplotlib.figure.Figure:
    """The cost in each iteration. If there are more lines than colours, all are grey and without names."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    named = len(costs) <= len(LINES)
    with rc_context(STYLE):
        figure, (ax,) = panels(1)
        figure.set_size_inches(6.4, 3.4)
        for colour, (label, values) in zip(cycle(LINES if named else [GREY]), costs.items(), strict=False):
            ax.plot(range(1, len(values) + 1), values, color=colour, alpha=1 if named else 0.4, label=label)
        ax.set(xlabel="iteration", ylabel="cost")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if named:
            legend_above(figure, ax)
    return figure


def probe_curves(summary: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> matplotlib.figure.Figure:
    """Accuracy against the number of neighbours, with intervals: a panel per label, a line per latent."""
    from matplotlib import rc_context

    curves: dict[str, dict[str, list[tuple[int, float, float, float]]]] = {}
    for item in summary:
        name, _, k = item["metric"].rpartition("_k")
        label = next(label for label in labels if name.startswith(f"{label}_"))
        latent = name.removeprefix(f"{label}_")
        curves.setdefault(label, {}).setdefault(latent, []).append(
            (int(k), item["mean"], item["ci_low"], item["ci_high"])
        )
    most = max(k for lines in curves.values() for points in lines.values() for k, *_ in points)
    with rc_context(STYLE):
        figure, axes = panels(len(curves))
        colours = dict(zip(dict.fromkeys(latent for lines in curves.values() for latent in lines), cycle(LINES)))
        for ax, (label, lines) in zip(axes, curves.items(), strict=True):
            for latent, points in lines.items():
                k, mean, low, high = np.array(sorted(points)).T
                ax.plot(k, mean, "o-", color=colours[latent], label=latent)
                ax.fill_between(k, low, high, color=colours[latent], alpha=0.15)
            ax.set(title=label.replace("_", " "), xlabel="neighbours", xlim=(0, most + 1), ylim=(0, 1))
        axes[0].set_ylabel("accuracy")
        legend_above(figure, *axes)
    return figure
