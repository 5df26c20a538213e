"""Films of clips beside their spectrograms, of stick figures, and of boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avdvae.pictures.stills import decibels
from avdvae.pictures.style import COLOURS, FAINT, INK, LINES, PAPER, RANGE_DB, RIGHT


def film_of_clips(
    clips: Mapping[str, tuple[UInt8[np.ndarray, "M H W 3"] | None, Float[np.ndarray, "T F"]]],
    every: int = 1,
    mark: float | None = None,
    side: int = 256,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Pictures and power spectra of clips beside each other, with a moving line in each spectrogram.

    Every `every`-th frame of the last clip is shown. Shorter clips stay at their last picture; a clip without pictures
    has a higher spectrogram. `mark` is a frame.
    """
    from matplotlib import colormaps

    loudest = max(float(power.max()) for _, power in clips.values())
    top, height = 28, side * any(pictures is not None for pictures, _ in clips.values())
    stills, longest = [], max(len(power) for _, power in clips.values())
    tops = [top + (0 if pictures is None else side) for pictures, _ in clips.values()]  # of the spectrograms
    for (name, (_, power_TF)), above in zip(clips.items(), tops, strict=True):
        shades = 1 + decibels(power_TF, loudest).T[::-1] / RANGE_DB
        width = max(1, round(side * len(power_TF) / longest))  # all on one scale of time
        still = np.full((top + height + side // 2, side, 3), PAPER, np.uint8)
        cv2.putText(still, name, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
        colours = np.ascontiguousarray(colormaps[COLOURS](shades, bytes=True)[..., :3])
        still[above:, :width] = cv2.resize(colours, (width, len(still) - above), interpolation=cv2.INTER_AREA)
        if mark is not None:
            still[above:, min(round(side * mark / longest), side - 1)] = FAINT
        stills.append(still)
    *_, (_, last) = clips.values()
    for t in range(0, len(last), every):
        columns = [still.copy() for still in stills]
        for column, above, (pictures, power_TF) in zip(columns, tops, clips.values(), strict=True):
            if pictures is not None:
                picture = np.ascontiguousarray(pictures[min(t, len(pictures) - 1)])
                column[top : top + side] = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
            now = round(side * min(t, len(power_TF) - 1) / longest)
            column[above:, now : now + 2] = PAPER
        yield np.hstack(columns)


def stick_figures(
    figures: Mapping[str, Float[np.ndarray, "T J 3"]],
    joints: Sequence[str],
    bones: Sequence[tuple[int, int]],
    side: int = 320,
) -> UInt8[np.ndarray, "T h w 3"]:
    """A film of figures beside each other, from the front and a little from the side; right limbs are red."""
    everything = np.concatenate(list(figures.values()))
    turn = np.deg2rad(25)
    across, up = np.array([-np.cos(turn), -np.sin(turn), 0]), np.array([0, 0, 1])
    reach = 1.1 * np.abs(everything).max()
    columns = []
    for name, poses_TJ3 in figures.items():
        flat_TJ2 = np.stack([poses_TJ3 @ across, -(poses_TJ3 @ up)], -1)
        pixels_TJ2 = np.rint((flat_TJ2 / reach + 1) * side / 2).astype(int)
        column = np.full((len(poses_TJ3), side, side, 3), PAPER, np.uint8)
        for picture, places in zip(column, pixels_TJ2, strict=True):
            for parent, child in bones:
                colour = RIGHT if joints[child].startswith("right") else INK
                cv2.line(picture, tuple(places[parent]), tuple(places[child]), colour, 2, cv2.LINE_AA)
            cv2.putText(picture, name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, FAINT, 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, 2)


def moving_boxes(
    boxes: Mapping[str, Float[np.ndarray, "T J 4"]], width: int = 240, height: int = 180
) -> UInt8[np.ndarray, "T h w 3"]:
    """A film of sets of boxes beside each other, the part of the picture in which they are; nan is not drawn. Boxes are
    those of data/boxes.py, of a picture of 16 to 9; each column has a colour."""
    shown = np.concatenate([boxes_TJ4.reshape(-1, 4) for boxes_TJ4 in boxes.values()])
    low, high = np.nanmin(shown[:, [0, 3]], 0) * (16, 9), np.nanmax(shown[:, [2, 1]], 0) * (16, 9)
    scale, top = 0.9 * min(width / (high[0] - low[0]), (height - 24) / (high[1] - low[1])), 24
    colours = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in LINES]
    columns = []
    for name, boxes_TJ4 in boxes.items():
        column = np.full((len(boxes_TJ4), height, width, 3), PAPER, np.uint8)
        x_TJ2 = 0.05 * width + scale * (16 * boxes_TJ4[..., [0, 2]] - low[0])
        y_TJ2 = 0.95 * height - scale * (9 * boxes_TJ4[..., [1, 3]] - low[1])
        for picture, x_J2, y_J2 in zip(column, x_TJ2, y_TJ2, strict=True):
            for j, (x, y) in enumerate(zip(x_J2, y_J2, strict=True)):
                if np.isfinite(x).all():
                    (left, right), (upper, lower) = np.rint(x).astype(int).tolist(), np.rint(y).astype(int).tolist()
                    cv2.rectangle(picture, (left, max(upper, top)), (right, lower), colours[j % len(colours)], 2)
            cv2.putText(picture, name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, FAINT, 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, 2)
