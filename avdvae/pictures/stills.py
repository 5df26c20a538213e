"""Spectrograms and strips of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from avdvae.files import replacing
from avdvae.pictures.style import COLOURS, LINES, RANGE_DB, STYLE
from avdvae.signals.audio import Stft

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    import cv2

    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with replacing(path) as new:
        new.write_bytes(encoded.tobytes())


def spectrogram(power_TF: Float[np.ndarray, "T F"]) -> UInt8[np.ndarray, "h w 3"]:
    """A power spectrogram as a picture: low frequencies at the bottom, 60 dB from black to the brightest point.

    One row per frequency; frames are repeated until the picture is about twice as wide as high.
    """
    from matplotlib import colormaps

    frames, frequencies = power_TF.shape
    shades = 1 + decibels(power_TF, float(power_TF.max())).T[::-1] / RANGE_DB
    return colormaps[COLOURS](np.repeat(shades, max(1, 2 * frequencies // frames), axis=1), bytes=True)[..., :3]


def decibels(power: Float[np.ndarray, "T F"], loudest: float) -> Float[np.ndarray, "T F"]:
    """Decibels below `loudest`, from 0 to -60; silence is -60 throughout."""
    return 10 * np.log10(np.clip(power / max(loudest, np.finfo(power.dtype).tiny), 10 ** (-RANGE_DB / 10), 1))


def lip_strip(pictures: UInt8[np.ndarray, "T H W *colours"], count: int = 12) -> UInt8[np.ndarray, "h w 3"]:
    """At most `count` crops side by side, evenly spaced in time."""
    count = min(count, len(pictures))
    middles = ((np.arange(count) + 0.5) * len(pictures) / count).astype(int)
    strip = np.hstack(list(pictures[middles]))
    return strip if strip.ndim == 3 else np.repeat(strip[..., None], 3, axis=2)


def pose_strip(
    pictures_THWC: UInt8[np.ndarray, "T H W 3"], count: int = 4, axis: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures of a film side by side (axis 1) or below each other (0), evenly spaced, with the first and the last."""
    chosen = np.linspace(0, len(pictures_THWC) - 1, count).round().astype(int)
    return np.concatenate(list(pictures_THWC[chosen]), axis)


def triptych(
    signals: Mapping[str, Float[np.ndarray, " _"]],
    rate: int,
    hop: int,
    lips_THW: UInt8[np.ndarray, "T H W"] | None = None,
    confidence_T: Float[np.ndarray, " T"] | None = None,
    corrupted_T: Bool[np.ndarray, " T"] | None = None,
    weights: Mapping[str, Float[np.ndarray, " T"]] | None = None,
    strips: Mapping[str, UInt8[np.ndarray, "_ _ _ 3"]] | None = None,
    mark: float | None = None,
) -> matplotlib.figure.Figure:
    """Spectrograms below each other on one scale of decibels, and the lips on the same time axis, a picture per frame.

    Where `confidence_T` is 0 no face was found: there the lips are red. `weights` are posterior probabilities of the
    components of a mixture, smoothed over a fifth of a second. Dashed lines enclose corrupted lips. `strips` are
    pictures by the name of their signal; `mark`, in seconds, is a dashed line in the spectrograms.
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
    heights = [1.5] * len(powers) + [0.75] * ((lips_THW is not None) + (weights is not None) + len(strips))
    with rc_context(STYLE), rc_context({"axes.grid": False}):
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for ax, (name, power) in zip(axes, powers.items(), strict=False):
            image = ax.imshow(  # each frame around its centre
                decibels(power, loudest).T,
                origin="lower",
                aspect="auto",
                extent=(
                    -hop / 2 / rate,
                    (len(power) - 0.5) * hop / rate,
                    0,
                    rate / 2000,
                ),
                cmap=COLOURS,
                vmin=-RANGE_DB,
                vmax=0,
                interpolation="nearest",
            )
            ax.set(title=name, ylabel="kHz", yticks=range(0, rate // 2000 + 1, 2))
            if mark is not None:
                ax.axvline(mark, color="white", linewidth=1, linestyle="--")
        figure.colorbar(image, ax=axes[: len(powers)].tolist(), label="dB", aspect=40, pad=0.01)
        if lips_THW is not None:
            _draw_lips(axes[len(powers)], lips_THW, confidence_T, seconds)
        below = len(powers) + (lips_THW is not None)
        for ax, (name, pictures) in zip(axes[below : below + len(strips)], strips.items(), strict=True):
            _draw_lips(ax, pictures, None, len(signals[name]) / rate, name)
        if weights is not None:
            around = np.ones(max(1, round(0.2 * rate / hop)))
            smooth_CT = np.stack([np.convolve(weight_T, around, "same") for weight_T in weights.values()])
            times = np.arange(smooth_CT.shape[1]) * hop / rate
            axes[-1].stackplot(times, smooth_CT / smooth_CT.sum(0), labels=list(weights), colors=LINES, lw=0)
            axes[-1].set(title="switch", ylabel="weight", ylim=(0, 1), yticks=[0, 1])
            axes[-1].legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=len(weights), borderaxespad=0.3)
        if corrupted_T is not None:
            for edge in np.flatnonzero(np.diff(corrupted_T, prepend=False, append=False)):
                for ax in axes[len(powers) :]:
                    ax.axvline((edge - 0.5) * hop / rate, color="black", linestyle=(0, (3, 2)), linewidth=1.2)
        axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    return figure


def _draw_lips(
    ax: matplotlib.axes.Axes,
    pictures: UInt8[np.ndarray, "T H W *colours"],
    confidence_T: Float[np.ndarray, " T"] | None,
    seconds: float,
    title: str = "lips",
) -> None:
    ax.imshow(lip_strip(pictures), aspect="auto", extent=(0, seconds, 0, 1))
    if confidence_T is not None:
        frame = seconds / len(confidence_T)
        lost = [(index * frame, frame) for index in np.flatnonzero(confidence_T == 0).tolist()]
        ax.broken_barh(lost, (0, 1), color="#d00000", alpha=0.5, linewidth=0)
    ax.set(yticks=[], ylim=(0, 1), title=title)
