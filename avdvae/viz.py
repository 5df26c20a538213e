"""Pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from avdvae.audio import Stft
from avdvae.data.poses import Skeleton
from avdvae.data.shards import PreparedCorpus
from avdvae.files import replacing
from avdvae.metrics import INPUT, Look
from avdvae.results import ALL_NOISES

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

    from avdvae.inference.control import Relation, Subspace

_MARGIN, _NAME_WIDTH = 6, 150
_INK, _FAINT, _PAPER = (40, 40, 40), (130, 130, 130), 255
_RIGHT = (200, 60, 50)
_RANGE_DB, _COLOURS = 60, "magma"  # of spectrograms
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by every eye
_GREY = "#8a8a8a"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "#404040",
    "ytick.labelcolor": "#404040",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def contact_sheet(
    corpus: PreparedCorpus, crops: int = 14, most_speakers: int = 100
) -> UInt8[np.ndarray, "height width 3"]:
    """For each speaker a strip of crops, evenly spread over all their clips: one look tells whether they are right.

    Crops of frames without a face have a red edge. Of more than `most_speakers` an even choice is shown.
    """
    speakers = corpus.speakers
    if len(speakers) > most_speakers:
        speakers = [speakers[round(i)] for i in np.linspace(0, len(speakers) - 1, most_speakers)]
    return np.vstack([_strip(corpus, speaker, crops) for speaker in speakers])


def _strip(corpus: PreparedCorpus, speaker: str, crops: int) -> np.ndarray:
    clips = [u for u in corpus.utterances if u.speaker == speaker]
    ends = np.cumsum([u.lips_stop - u.lips_start for u in clips])
    size = corpus.lips(clips[0]).shape[1]
    strip = np.full((size + _MARGIN, _NAME_WIDTH + crops * (size + _MARGIN), 3), _PAPER, np.uint8)
    font = cv2.FontFace("sans")
    split = ", ".join(sorted({u.split for u in clips}))
    for text, line, colour, points in (
        (speaker, 0.4, _INK, 17),
        (split, 0.68, _FAINT, 12),
        (f"{len(clips)} clips, {ends[-1]} frames", 0.92, _FAINT, 12),
    ):
        place = _MARGIN, int(line * size)
        cv2.putText(strip, _shortened(text, font, points), place, colour, font, points, 400)
    for column, frame in enumerate(np.linspace(0, ends[-1] - 1, crops).astype(int)):
        clip = int(np.searchsorted(ends, frame, side="right"))
        within = frame - (ends[clip - 1] if clip else 0)
        crop = np.repeat(corpus.lips(clips[clip])[within][..., None], 3, axis=2)
        if corpus.confidence(clips[clip])[within] == 0:
            cv2.rectangle(crop, (0, 0), (size - 1, size - 1), (220, 30, 30), 2)
        left = _NAME_WIDTH + column * (size + _MARGIN)
        strip[:size, left : left + size] = crop
    return strip


def _shortened(text: str, font: cv2.FontFace, points: int) -> str:
    """As much of a line of the contact sheet as there is room for beside the pictures."""

    def fits(text: str) -> bool:
        _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), font, points, 400)
        return width <= _NAME_WIDTH - 2 * _MARGIN

    kept = len(text)
    while not fits(shown := text if kept == len(text) else f"{text[:kept].rstrip()}…") and kept:
        kept -= 1
    return shown


def write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with replacing(path) as new:
        new.write_bytes(encoded.tobytes())


def spectrogram(power_TF: Float[np.ndarray, "T F"]) -> UInt8[np.ndarray, "h w 3"]:
    """A power spectrogram as a picture: low frequencies below, 60 dB from black to bright, the loudest point bright.

    A row a frequency; frames are repeated until the picture is about twice as wide as high.
    """
    from matplotlib import colormaps

    frames, frequencies = power_TF.shape
    shades = 1 + _decibels(power_TF, float(power_TF.max())).T[::-1] / _RANGE_DB
    return colormaps[_COLOURS](np.repeat(shades, max(1, 2 * frequencies // frames), axis=1), bytes=True)[..., :3]


def lip_strip(pictures: UInt8[np.ndarray, "T H W *colours"], count: int = 12) -> UInt8[np.ndarray, "h w 3"]:
    """Crops side by side, each from the middle of its share of the time; fewer than `count` where there are fewer."""
    count = min(count, len(pictures))
    middles = ((np.arange(count) + 0.5) * len(pictures) / count).astype(int)
    strip = np.hstack(list(pictures[middles]))
    return strip if strip.ndim == 3 else np.repeat(strip[..., None], 3, axis=2)


def film_of_clips(
    clips: Mapping[str, tuple[UInt8[np.ndarray, "M H W 3"] | None, Float[np.ndarray, "T F"]]],
    every: int = 1,
    mark: float | None = None,
    side: int = 256,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Pictures and power spectra of clips beside each other, a line moving along the spectrogram of each.

    One of `every` frames of the last clip is shown; what is shorter holds its last picture, and where there are none
    the spectrogram takes their room. `mark` is a frame.
    """
    from matplotlib import colormaps

    loudest = max(float(power.max()) for _, power in clips.values())
    top, seen = 28, side * any(pictures is not None for pictures, _ in clips.values())
    stills, longest = [], max(len(power) for _, power in clips.values())
    tops = [top + (0 if pictures is None else side) for pictures, _ in clips.values()]  # of the spectrograms
    for (name, (_, power_TF)), above in zip(clips.items(), tops, strict=True):
        shades = 1 + _decibels(power_TF, loudest).T[::-1] / _RANGE_DB
        width = max(1, round(side * len(power_TF) / longest))  # all on one scale of time
        still = np.full((top + seen + side // 2, side, 3), _PAPER, np.uint8)
        cv2.putText(still, name, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
        colours = np.ascontiguousarray(colormaps[_COLOURS](shades, bytes=True)[..., :3])
        still[above:, :width] = cv2.resize(colours, (width, len(still) - above), interpolation=cv2.INTER_AREA)
        if mark is not None:
            still[above:, min(round(side * mark / longest), side - 1)] = _FAINT
        stills.append(still)
    *_, (_, last) = clips.values()
    for t in range(0, len(last), every):
        columns = [still.copy() for still in stills]
        for column, above, (pictures, power_TF) in zip(columns, tops, clips.values(), strict=True):
            if pictures is not None:
                picture = np.ascontiguousarray(pictures[min(t, len(pictures) - 1)])
                column[top : top + side] = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
            now = round(side * min(t, len(power_TF) - 1) / longest)
            column[above:, now : now + 2] = _PAPER
        yield np.hstack(columns)


def _decibels(power: Float[np.ndarray, "T F"], loudest: float) -> Float[np.ndarray, "T F"]:
    """Decibels below `loudest`, from 0 to -60; silence is -60 throughout."""
    return 10 * np.log10(np.clip(power / max(loudest, np.finfo(power.dtype).tiny), 10 ** (-_RANGE_DB / 10), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Figures. They keep out of pyplot, whose figures belong to the whole process.


def triptych(
    signals: Mapping[str, Float[np.ndarray, " _"]],
    rate: int,
    hop: int,
    lips_THW: UInt8[np.ndarray, "T H W"] | None = None,
    sure_T: Float[np.ndarray, " T"] | None = None,
    spoilt_T: Bool[np.ndarray, " T"] | None = None,
    shares: Mapping[str, Float[np.ndarray, " T"]] | None = None,
    strips: Mapping[str, UInt8[np.ndarray, "_ _ _ 3"]] | None = None,
    mark: float | None = None,
) -> matplotlib.figure.Figure:
    """Spectrograms below each other on one scale of decibels, and the lips on the same clock, a picture a frame.

    Where `sure_T` is 0 no face was found: there the lips are red. `shares` are those of the components of a mixture,
    which add up to 1 in each frame, here of a fifth of a second. Dashed lines enclose where the lips are spoilt.
    `strips` are pictures of signals, by their names; `mark`, a moment in seconds, is dashed in the spectrograms.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    powers = {
        name: Stft(hop).analyse(torch.from_numpy(signal[None].astype(np.float32)))[0].abs().square().numpy()
        for name, signal in signals.items()
    }
    loudest = max(float(power.max()) for power in powers.values())
    seconds = max(len(signal) for signal in signals.values()) / rate
    strips = strips or {}
    heights = [1.5] * len(powers) + [0.75] * ((lips_THW is not None) + (shares is not None) + len(strips))
    with rc_context(_STYLE), rc_context({"axes.grid": False}):
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for ax, (name, power) in zip(axes, powers.items(), strict=False):
            image = ax.imshow(  # each frame around the time on which it is centred
                _decibels(power, loudest).T,
                origin="lower",
                aspect="auto",
                extent=(
                    -hop / 2 / rate,
                    (len(power) - 0.5) * hop / rate,
                    0,
                    rate / 2000,
                ),
                cmap=_COLOURS,
                vmin=-_RANGE_DB,
                vmax=0,
                interpolation="nearest",
            )
            ax.set(title=name, ylabel="kHz", yticks=range(0, rate // 2000 + 1, 2))
            if mark is not None:
                ax.axvline(mark, color="white", linewidth=1, linestyle="--")
        figure.colorbar(image, ax=axes[: len(powers)].tolist(), label="dB", aspect=40, pad=0.01)
        if lips_THW is not None:
            _draw_lips(axes[len(powers)], lips_THW, sure_T, seconds)
        below = len(powers) + (lips_THW is not None)
        for ax, (name, pictures) in zip(axes[below : below + len(strips)], strips.items(), strict=True):
            _draw_lips(ax, pictures, None, len(signals[name]) / rate, name)
        if shares is not None:
            around = np.ones(max(1, round(0.2 * rate / hop)))
            smooth_MT = np.stack([np.convolve(share, around, "same") for share in shares.values()])
            times = np.arange(smooth_MT.shape[1]) * hop / rate
            axes[-1].stackplot(times, smooth_MT / smooth_MT.sum(0), labels=list(shares), colors=_LINES, lw=0)
            axes[-1].set(title="switch", ylabel="share", ylim=(0, 1), yticks=[0, 1])
            axes[-1].legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=len(shares), borderaxespad=0.3)
        if spoilt_T is not None:
            for edge in np.flatnonzero(np.diff(spoilt_T, prepend=False, append=False)):
                for ax in axes[len(powers) :]:
                    ax.axvline((edge - 0.5) * hop / rate, color="black", linestyle=(0, (3, 2)), linewidth=1.2)
        axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    return figure


def stick_figures(
    figures: Mapping[str, Float[np.ndarray, "T J 3"]], skeleton: Skeleton, side: int = 320
) -> UInt8[np.ndarray, "T h w 3"]:
    """A film of figures beside each other, seen from before them and a little from the side; what is right is red."""
    everything = np.concatenate(list(figures.values()))
    turn = np.deg2rad(25)
    across, up = np.array([-np.cos(turn), -np.sin(turn), 0]), np.array([0, 0, 1])
    reach = 1.1 * np.abs(everything).max()
    columns = []
    for name, poses_TJ3 in figures.items():
        flat_TJ2 = np.stack([poses_TJ3 @ across, -(poses_TJ3 @ up)], -1)
        pixels_TJ2 = np.rint((flat_TJ2 / reach + 1) * side / 2).astype(int)
        column = np.full((len(poses_TJ3), side, side, 3), _PAPER, np.uint8)
        for picture, joints in zip(column, pixels_TJ2, strict=True):
            for parent, child in skeleton.bones:
                right = skeleton.joints[child].startswith("right")
                cv2.line(
                    picture, tuple(joints[parent]), tuple(joints[child]), _RIGHT if right else _INK, 2, cv2.LINE_AA
                )
            cv2.putText(picture, name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _FAINT, 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, 2)


def pose_strip(pictures_THWC: UInt8[np.ndarray, "T H W 3"], count: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """Some of a film's pictures, evenly apart."""
    chosen = np.linspace(0, len(pictures_THWC) - 1, count).round().astype(int)
    return np.concatenate(list(pictures_THWC[chosen]), 1)


def _draw_lips(
    ax: matplotlib.axes.Axes,
    pictures: UInt8[np.ndarray, "T H W *colours"],
    sure_T: Float[np.ndarray, " T"] | None,
    seconds: float,
    title: str = "lips",
) -> None:
    ax.imshow(lip_strip(pictures), aspect="auto", extent=(0, seconds, 0, 1))
    if sure_T is not None:
        frame = seconds / len(sure_T)
        lost = [(index * frame, frame) for index in np.flatnonzero(sure_T == 0).tolist()]
        ax.broken_barh(lost, (0, 1), color="#d00000", alpha=0.5, linewidth=0)
    ax.set(yticks=[], ylim=(0, 1), title=title)


def metric_curves(summary: Sequence[Mapping[str, Any]], metric: str) -> matplotlib.figure.Figure:
    """A metric against the SNR: a panel for each noise, a line with its interval for each model and lips condition, the
    unprocessed input dashed. `summary` holds what `results.summarise` makes."""
    from matplotlib import rc_context

    shown = [item for item in summary if item["snr"] is not None and "compared_with" not in item]
    outputs = [item for item in shown if item["metric"] == metric]
    lines = list(dict.fromkeys((item["model"], item["lips"]) for item in outputs))
    noises = list(dict.fromkeys(item["noise"] for item in outputs if item["noise"] != ALL_NOISES))
    with rc_context(_STYLE):
        figure, axes = _panels(len(noises), sharey=True)
        for ax, noise in zip(axes, noises, strict=True):
            here = [item for item in shown if item["noise"] == noise]
            if inputs := [item for item in here if item["metric"] == INPUT + metric]:
                snrs, means, _, _ = _curve(inputs)
                ax.plot(snrs, means, color=_GREY, linestyle=(0, (4, 3)), label="unprocessed input")
            for colour, (model, lips) in zip(cycle(_LINES), lines, strict=False):
                own = [i for i in here if (i["metric"], i["model"], i["lips"]) == (metric, model, lips)]
                snrs, means, lows, highs = _curve(own)
                ax.fill_between(snrs, lows, highs, color=colour, alpha=0.2, linewidth=0)
                label = f"{model}, lips {lips}" if lips else model
                ax.plot(snrs, means, color=colour, marker="o", markersize=4, label=label)
            ax.set(title=noise, xticks=sorted({item["snr"] for item in outputs}))
        _legend_above(figure, axes[0])
        look = Look.of(metric)
        figure.supxlabel("SNR of the input in dB", fontsize=10)
        figure.supylabel(f"{look.name} in {look.unit}" if look.unit else look.name, fontsize=10)
    return figure


def difference_curves(compared: Sequence[Mapping[str, Any]], metric: str) -> matplotlib.figure.Figure:
    """How far models lie above one, on the same mixtures of all noises, against the SNR: a panel for each state of the
    lips, a line with its interval for each model. `compared`: items of a summary, all compared with the one."""
    from matplotlib import rc_context

    shown = [item for item in compared if item["metric"] == metric and item["snr"] is not None]
    pooled = [item for item in shown if item["noise"] == ALL_NOISES] or shown
    states, models = (list(dict.fromkeys(item[key] for item in pooled)) for key in ("lips", "model"))
    with rc_context(_STYLE):
        figure, axes = _panels(len(states), sharey=True)
        for ax, lips in zip(axes, states, strict=True):
            ax.axhline(0, color=_GREY, linestyle=(0, (4, 3)))
            for colour, model in zip(cycle(_LINES), models, strict=False):
                own = [item for item in pooled if (item["lips"], item["model"]) == (lips, model)]
                snrs, means, lows, highs = _curve(own)
                ax.fill_between(snrs, lows, highs, color=colour, alpha=0.2, linewidth=0)
                ax.plot(snrs, means, color=colour, marker="o", markersize=4, label=model)
            ax.set(title=f"lips {lips}" if lips else "", xticks=sorted({item["snr"] for item in pooled}))
        _legend_above(figure, axes[0])
        look = Look.of(metric)
        figure.supxlabel("SNR of the input in dB", fontsize=10)
        base = Path(pooled[0]["compared_with"]).name
        figure.supylabel(f"{look.name} above {base}{f', {look.unit}' if look.unit else ''}", fontsize=10)
    return figure


def _curve(items: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "4 snrs"]:
    """SNRs, means, lower and upper ends. The input is the same for all lips, so the first of each SNR will do."""
    first = {item["snr"]: item for item in reversed(items)}
    keys = ("snr", "mean", "ci_low", "ci_high")
    return np.array([[item[key] for key in keys] for _, item in sorted(first.items())], float).reshape(-1, 4).T


def training_curves(records: Sequence[Mapping[str, Any]]) -> matplotlib.figure.Figure:
    """A panel for each quantity that was logged as train/... or valid/..., the loss first: means over each epoch."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    series: dict[str, dict[str, dict[float, list[float]]]] = {"loss": {}}
    for record in records:
        for key, value in record.items():
            part, _, quantity = key.partition("/")
            if quantity:
                epochs = series.setdefault(quantity, {}).setdefault(part, {})
                epochs.setdefault(record["epoch"], []).append(value)
    with rc_context(_STYLE):
        figure, axes = _panels(len(series))
        for ax, (quantity, parts) in zip(axes, series.items(), strict=True):
            for part, colour in zip(("train", "valid"), _LINES, strict=False):
                epochs = parts.get(part, {})
                ax.plot(
                    list(epochs), [sum(values) / len(values) for values in epochs.values()], color=colour, label=part
                )
            ax.set(title=quantity)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(figure, axes[0])
        figure.supxlabel("epoch", fontsize=10)
    return figure


def cost_curves(costs: Mapping[str, Sequence[float]]) -> matplotlib.figure.Figure:
    """The cost in each iteration. More lines than colours are all grey, without names."""
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    named = len(costs) <= len(_LINES)
    with rc_context(_STYLE):
        figure, (ax,) = _panels(1)
        figure.set_size_inches(6.4, 3.4)
        for colour, (label, values) in zip(cycle(_LINES if named else [_GREY]), costs.items(), strict=False):
            ax.plot(range(1, len(values) + 1), values, color=colour, alpha=1 if named else 0.4, label=label)
        ax.set(xlabel="iteration", ylabel="cost")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if named:
            _legend_above(figure, ax)
    return figure


def latent_trajectories(subspaces: Mapping[str, Subspace]) -> matplotlib.figure.Figure:
    """The way of each factor through the first dimensions of its subspace, from low, blue, to high, yellow. Points are
    the means of artificial vowels, the line is what was fitted to them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(3.4 * len(subspaces), 3.6), layout="constrained")
        for number, (factor, subspace) in enumerate(subspaces.items(), start=1):
            ax: Any = figure.add_subplot(1, len(subspaces), number, projection="3d")
            points, line = (
                np.pad(coordinates.cpu().numpy()[:, :3], ((0, 0), (0, max(0, 3 - coordinates.shape[1]))))
                for coordinates in (subspace.of(subspace.along_NL), subspace.coordinates_JM)
            )
            ax.scatter(*points.T, c=subspace.hertz_N.cpu().numpy(), cmap="viridis", s=6)
            ax.plot(*line.T, color=_GREY)
            low, high = subspace.range
            ax.set(title=f"{factor}, {low:g} to {high:g} Hz", xticklabels=[], yticklabels=[], zticklabels=[])
    return figure


def variance_curves(subspaces: Mapping[str, Subspace]) -> matplotlib.figure.Figure:
    """How much of the variance that each factor makes lies in how many dimensions."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure, (ax,) = _panels(1)
        figure.set_size_inches(6.4, 3.4)
        for colour, (factor, subspace) in zip(cycle(_LINES), subspaces.items(), strict=False):
            shares = subspace.shares_L.cpu().numpy()
            ax.plot(range(1, len(shares) + 1), 100 * shares, color=colour, marker="o", markersize=4, label=factor)
        ax.axhline(80, color=_GREY, linestyle=(0, (4, 3)))
        ax.set(xlabel="dimensions", ylabel="% of the variance", ylim=(0, 102), xticks=range(1, len(shares) + 1))
        _legend_above(figure, ax)
    return figure


def factor_relations(related: Mapping[tuple[str, str], Relation]) -> matplotlib.figure.Figure:
    """Each pair of factors: above the diagonal the smallest angle between their subspaces, below it the largest cosine
    between vectors of their bases, with intervals over the settings of the other factors."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    factors = list(dict.fromkeys(factor for pair in related for factor in pair))
    shades = np.ones((len(factors), len(factors)))
    with rc_context(_STYLE), rc_context({"axes.grid": False}):
        figure = Figure(figsize=(1.7 * len(factors), 1.3 * len(factors)), layout="constrained")
        ax = figure.subplots()
        for (one, other), relation in related.items():
            row, column = factors.index(one), factors.index(other)
            for (y, x), (mean, low, high), text, share in (
                ((row, column), relation.angle, "{:.0f}°\n[{:.0f}, {:.0f}]", relation.angle[0] / 90),
                ((column, row), relation.cosine, "cos {:.2f}\n[{:.2f}, {:.2f}]", 1 - relation.cosine[0]),
            ):
                shades[y, x] = share
                ax.text(x, y, text.format(mean, low, high), ha="center", va="center", fontsize=9)
        ax.imshow(shades, cmap="Blues_r", vmin=-1, vmax=1.2)
        ax.set(xticks=range(len(factors)), yticks=range(len(factors)), xticklabels=factors, yticklabels=factors)
        ax.set(title="smallest angle (above) and largest cosine (below) between factors")
    return figure


def _panels(count: int, sharey: bool = False) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(1 + 3 * columns, 0.8 + 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _legend_above(figure: matplotlib.figure.Figure, *axes: matplotlib.axes.Axes) -> None:
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=int(figure.get_figwidth() / 2.4))


def probe_curves(summary: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> matplotlib.figure.Figure:
    """What share neighbours tell right, over how many are asked, with intervals: a panel a label, a line a latent."""
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
    with rc_context(_STYLE):
        figure, axes = _panels(len(curves))
        colours = dict(zip(dict.fromkeys(latent for lines in curves.values() for latent in lines), cycle(_LINES)))
        for ax, (label, lines) in zip(axes, curves.items(), strict=True):
            for latent, points in lines.items():
                k, mean, low, high = np.array(sorted(points)).T
                ax.plot(k, mean, "o-", color=colours[latent], label=latent)
                ax.fill_between(k, low, high, color=colours[latent], alpha=0.15)
            ax.set(title=label.replace("_", " "), xlabel="neighbours", xlim=(0, most + 1), ylim=(0, 1))
        axes[0].set_ylabel("told right")
        _legend_above(figure, *axes)
    return figure
