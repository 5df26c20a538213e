"""Boxes of moving objects: scenes as the suite stores them, and the lines of MOTChallenge.

A box is (x1, y1, x2, y2): left, top, right and bottom, in widths and heights of the picture, y upward from its bottom,
so that y2 = y1 - height. A scene is T frames of the true boxes of N objects and of K detections; a missing box is nan.

    det/det.txt   frame, -1, left, top, width, height, ...    in pixels, frames from 1, y downward
    gt/gt.txt     frame, identity, left, top, width, height, counts or not, class, visible share
    seqinfo.ini   the size of the picture

(L. Leal-Taixé, A. Milan, I. Reid, S. Roth, K. Schindler, "MOTChallenge 2015: Towards a benchmark for multi-target
tracking", arXiv 1504.01942.) In gt.txt, lines whose seventh number is 0, or whose class is not 1, a pedestrian, are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from avdvae.errors import UserError, reading
from avdvae.files import replacing

FPS = 30  # of the pictures


@dataclass(frozen=True)
class BoxScene:
    truth: Float32[np.ndarray, "T N 4"]
    detections: Float32[np.ndarray, "T K 4"]

    def shuffled(self, rng: np.random.Generator) -> BoxScene:
        """With the detections of each frame in a random order, the first excepted."""
        order_TK = np.tile(np.arange(self.detections.shape[1]), (len(self.detections), 1))
        order_TK[1:] = rng.permuted(order_TK[1:], axis=1)
        return BoxScene(self.truth, np.take_along_axis(self.detections, order_TK[..., None], 1))


def read_boxes(path: Path) -> Float32[np.ndarray, "T J 4"]:
    """From a NumPy file."""
    if not path.stat().st_size:
        raise UserError("is empty")
    try:
        boxes_TJ4 = np.load(path, allow_pickle=False).astype(np.float32)
    except Exception as error:  # NumPy raises errors of any kind on damaged files
        raise UserError(f"cannot be read as boxes ({error})") from error
    if boxes_TJ4.ndim != 3 or boxes_TJ4.shape[2] != 4 or not boxes_TJ4.size:
        raise UserError(f"cannot be used: it has the shape {boxes_TJ4.shape}, and frames x boxes x 4 is needed")
    return boxes_TJ4


def sizes(boxes: Float[np.ndarray, "*some 4"]) -> Float[np.ndarray, "*some 4"]:
    """(width, height, width, height) of each box."""
    size = np.stack([boxes[..., 2] - boxes[..., 0], boxes[..., 1] - boxes[..., 3]], -1)
    return np.concatenate([size, size], -1)


# ---------------------------------------------------------------------------------------------------------------------
# MOTChallenge


def read_scene(folder: Path) -> tuple[BoxScene, tuple[int, int]]:
    """A sequence of MOTChallenge and the size of its picture; without gt/gt.txt, no object is true."""
    if not (folder / "det" / "det.txt").is_file():
        raise UserError(
            f"{folder} is no sequence of MOTChallenge, for it has no det/det.txt: give a folder that has one"
        )
    picture = _picture_of(folder / "seqinfo.ini")
    detections_TK4 = read_detections(folder / "det" / "det.txt", picture)
    truth_TN4 = np.zeros((len(detections_TK4), 0, 4), np.float32)
    if (folder / "gt" / "gt.txt").is_file():
        truth_TN4 = _truth(folder / "gt" / "gt.txt", picture)
    frames = max(len(detections_TK4), len(truth_TN4))
    return BoxScene(_padded(truth_TN4, frames), _padded(detections_TK4, frames)), picture


def _padded(boxes_TJ4: np.ndarray, frames: int) -> Float32[np.ndarray, "T J 4"]:
    missing = np.full((frames - len(boxes_TJ4), *boxes_TJ4.shape[1:]), np.nan, np.float32)
    return np.concatenate([boxes_TJ4, missing])


def read_detections(path: Path, picture: tuple[int, int]) -> Float32[np.ndarray, "T K 4"]:
    """As many columns as the fullest frame has detections, each frame in the order of its lines."""
    rows = _lines(path)
    count, columns = Counter[int](), []
    for frame in rows[:, 0].astype(int):
        columns.append(count[frame])
        count[frame] += 1
    return _placed(rows, columns, picture)


def _truth(path: Path, picture: tuple[int, int]) -> Float32[np.ndarray, "T N 4"]:
    rows = _lines(path)
    if rows.shape[1] >= 8:
        rows = rows[(rows[:, 6] != 0) & (rows[:, 7] == 1)]
    if not len(rows):
        raise UserError(f"{path} has no pedestrian that counts: give a sequence with one")
    identities, columns = np.unique(rows[:, 1], return_inverse=True)
    truth_TN4 = _placed(rows, columns.tolist(), picture)
    if len({*zip(rows[:, 0], columns, strict=True)}) < len(rows):
        raise UserError(f"{path} has two boxes of one identity in a frame: get the file again")
    assert truth_TN4.shape[1] == len(identities)
    return truth_TN4


def _placed(
    rows: Float[np.ndarray, "M _"], columns: Sequence[int], picture: tuple[int, int]
) -> Float32[np.ndarray, "T J 4"]:
    """Rows of a file at their frames and in these columns."""
    frames, (left, top, width, height), (wide, high) = rows[:, 0].astype(int), rows[:, 2:6].T, picture
    boxes_TJ4 = np.full((frames.max(), max(columns) + 1, 4), np.nan, np.float32)
    boxes_M4 = np.stack([left / wide, 1 - top / high, (left + width) / wide, 1 - (top + height) / high], -1)
    boxes_TJ4[frames - 1, columns] = boxes_M4
    return boxes_TJ4


def _lines(path: Path) -> Float[np.ndarray, "M _"]:
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a file of detections, or a sequence of MOTChallenge")
    with reading(path, "file of boxes", "give lines of frame, -1, left, top, width, height, with commas"):
        text = path.read_text(encoding="utf-8").strip()
        rows = np.loadtxt(text.splitlines(), delimiter=",", ndmin=2) if text else np.zeros((0, 6))
    if not len(rows) or rows.shape[1] < 6:
        raise UserError(f"{path} has no boxes: give lines of frame, -1, left, top, width, height, with commas")
    if not np.isfinite(rows[:, :6]).all() or (rows[:, 0] < 1).any() or (rows[:, 0] % 1).any():
        raise UserError(f"{path} has a line whose frame is no whole number of 1 or more, or a place that is no number")
    if (rows[:, 4:6] <= 0).any():
        raise UserError(f"{path} has a box without width or height: leave its line out")
    return rows


def _picture_of(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise UserError(f"{path} is missing, which has the size of the picture: get the whole sequence")
    with reading(path, "description of a sequence", "get the whole sequence again"):
        info = ConfigParser()
        info.read_string(path.read_text(encoding="utf-8"))
        return info.getint("Sequence", "imWidth"), info.getint("Sequence", "imHeight")


def write_tracks(path: Path, boxes_TN4: Float[np.ndarray, "T N 4"], picture: tuple[int, int]) -> None:
    """Lines of frame, identity, left, top, width, height, 1, -1, -1, -1, as MOTChallenge takes results."""
    wide, high = picture
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        for t, boxes_N4 in enumerate(boxes_TN4, start=1):
            for n, (x1, y1, x2, y2) in enumerate(boxes_N4.tolist(), start=1):
                if not np.isfinite(x1):
                    continue
                place = (x1 * wide, (1 - y1) * high, (x2 - x1) * wide, (y1 - y2) * high)
                file.write(f"{t},{n},{','.join(f'{value:.2f}' for value in place)},1,-1,-1,-1\n")
