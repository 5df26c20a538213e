"""Tracks, the embedded corpus of moving boxes: generated, not recorded; what is measured on it is no result on people.

Trajectories for training, as those of MixDVAE, of which the paper's code has the numbers: X. Lin, L. Girin, X.
Alameda-Pineda, "Mixture of dynamical variational autoencoders for multi-source trajectory modeling and separation",
Transactions on Machine Learning Research 2023 (arXiv 2312.04167). Left and top edge move in pieces that are static, a
line, a parabola or a sinusoid; each starts at the last value of the one before. The width is one piece, the height a
fixed multiple of it. A trajectory that leaves the picture by too much is drawn again. Where boxes start is not known of
the published ones: here, anywhere in the picture.

Scenes for testing: three such tracks of 60, 120 or 300 frames, with a new piece every 30 frames on average. In half of
them, two tracks swap sides within 40 frames. Detections are the true boxes with noise, a fiftieth of their size. One in
twenty is missing; of two tracks that cross, one is missing for 5 to 20 frames. In the first frames nothing is.

A clip has 100 trajectories side by side, or one scene: see boxes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from avdvae.data.boxes import sizes
from avdvae.data.clips import Clip, Split, Unreadable
from avdvae.data.generated import generating, key_of
from avdvae.errors import UserError
from avdvae.files import replacing
from avdvae.randomness import stream

_VERSION = 1  # goes up when the same parameters give other bytes
FRAMES, GRID = 60, 3  # of a trajectory, and between places where a piece may begin
LENGTHS = (60, 120, 300)  # of the scenes
OBJECTS, TOGETHER = 3, 100  # tracks of a scene, trajectories of a clip
COMPLETE = 5  # frames at the beginning of a scene in which all are detected
CROSSING = 40  # frames in which two tracks swap sides
NOISE, MISSING, GAP = 0.02, 0.05, (5, 20)  # of the detections; frames of a gap at a crossing
_LOW, _HIGH = np.array([-0.5, 0, 0, -1.5]), np.array([1, 1.5, 0.8, 1])  # of x1, y1, x2, y2


@dataclass(frozen=True)
class Law:
    """Of the pieces of one coordinate: deviations of v and a in s + v t + a t^2, of omega in s sin(omega t + phi) /
    sin(phi), and the shares of static pieces, lines, parabolas and sinusoids."""

    v: float
    a: float
    omega: float
    shares: tuple[float, float, float, float]

    def piece(self, start: float, frames: int, rng: np.random.Generator) -> Float[np.ndarray, " T"]:
        """Its first value is `start`."""
        kind, t = rng.choice(4, p=self.shares), np.arange(frames)
        if kind == 0:
            return np.full(frames, start)
        if kind < 3:
            return start + rng.normal(0, self.v) * t + (kind == 2) * rng.normal(0, self.a) * t**2
        phi = rng.normal(0, 3.2)
        while abs(np.sin(phi)) < 0.1:  # its amplitude would be ten times the place
            phi = rng.normal(0, 3.2)
        return start * np.sin(rng.normal(0, self.omega) * t + phi) / np.sin(phi)

    def path(self, start: float, begins: list[int], frames: int, rng: np.random.Generator) -> Float[np.ndarray, " T"]:
        parts = list[np.ndarray]()
        for first, last in zip([0, *begins], [*begins, frames], strict=True):
            piece_T = self.piece(start, last - first + 1, rng)  # its end is the start of the next
            parts.append(piece_T[:-1])
            start = float(piece_T[-1])
        return np.concatenate(parts)


_ALONG = Law(0.00125, 0.000037, 0.003, (0.15, 0.30, 0.30, 0.25))
_UP = Law(0.0006, 0.00002, 0.001, (0.15, 0.30, 0.30, 0.25))
_WIDTH = Law(0.00032, 0.00001, 0, (0.25, 0.60, 0.15, 0))

Begins = Callable[[np.random.Generator], list[int]]  # of the pieces after the first


def _of_trajectory(rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(np.arange(GRID, FRAMES, GRID), rng.integers(3), replace=False).tolist())


def _of_scene(frames: int) -> Begins:
    places = np.arange(GRID, frames, GRID)
    return lambda rng: places[rng.random(len(places)) < GRID / 30].tolist()


def track(
    frames: int, begins: Begins, rng: np.random.Generator, changes_width: bool = False
) -> Float[np.ndarray, "T 4"]:
    """`changes_width`: in pieces, as the place does; else as one piece."""
    while True:
        x_T = _ALONG.path(rng.uniform(0, 0.8), begins(rng), frames, rng)
        y_T = _UP.path(rng.uniform(0.2, 1), begins(rng), frames, rng)
        width_T = _WIDTH.path(rng.lognormal(-3.8, 0.7), begins(rng) if changes_width else [], frames, rng)
        boxes_T4 = np.stack([x_T, y_T, x_T + width_T, y_T - width_T * rng.normal(5.26, 0.77)], -1)
        if _is_inside(boxes_T4):
            return boxes_T4


def trajectories(count: int, rng: np.random.Generator) -> Float[np.ndarray, "T N 4"]:
    return np.stack([track(FRAMES, _of_trajectory, rng) for _ in range(count)], 1)


def _is_inside(boxes_T4: Float[np.ndarray, "T 4"]) -> bool:
    return bool((boxes_T4 >= _LOW).all() and (boxes_T4 <= _HIGH).all() and (sizes(boxes_T4) > 0).all())


def scene(frames: int, crossing: bool, rng: np.random.Generator) -> Float[np.ndarray, "T 6 4"]:
    """The true boxes, then the detections, in the same order."""
    begins = _of_scene(frames)
    truth_TN4 = np.stack([track(frames, begins, rng, changes_width=True) for _ in range(OBJECTS)], 1)
    detections_TK4 = truth_TN4 + NOISE * sizes(truth_TN4) * rng.normal(size=truth_TN4.shape)
    missing_TK = rng.random(truth_TN4.shape[:2]) < MISSING
    if crossing:
        middle, truth_TN4[:, 1] = _crossing(truth_TN4[:, 0], begins, rng)
        detections_TK4[:, 1] = truth_TN4[:, 1] + NOISE * sizes(truth_TN4[:, 1]) * rng.normal(size=(frames, 4))
        gap = int(rng.integers(GAP[0], GAP[1] + 1))
        missing_TK[middle - gap // 2 : middle - gap // 2 + gap, rng.integers(2)] = True
    missing_TK[:COMPLETE] = False
    detections_TK4[missing_TK] = np.nan
    return np.concatenate([truth_TN4, detections_TK4], 1)


def _crossing(
    first_T4: Float[np.ndarray, "T 4"], begins: Begins, rng: np.random.Generator
) -> tuple[int, Float[np.ndarray, "T 4"]]:
    """A track that swaps sides with this one, and the frame in which both are in the same place."""
    frames, half = len(first_T4), CROSSING // 2
    while True:
        middle = int(rng.integers(half + COMPLETE, frames - half))
        other_T4 = track(frames, begins, rng, changes_width=True)
        across, _, *_ = np.maximum(sizes(first_T4[middle]), sizes(other_T4[middle]))
        ramp_T = np.clip((np.arange(frames) - middle) / half, -1, 1)
        moved_T = rng.choice([-1, 1]) * rng.uniform(1.5, 4) * across * ramp_T * (3 - ramp_T**2) / 2
        shift = first_T4[middle] - other_T4[middle]
        other_T4[:, [0, 2]] += shift[0] + moved_T[:, None]
        other_T4[:, [1, 3]] += shift[1]
        before, after = (other_T4 - first_T4)[[middle - half, middle + half - 1], 0] / across
        if before * after < 0 and min(abs(before), abs(after)) > 1 and _is_inside(other_T4):
            return middle, other_T4


@dataclass(frozen=True)
class Tracks:
    """`tracks` trajectories for training and `valid` for validation, and `scenes` for testing."""

    root: Path
    tracks: int = 20_000
    valid: int = 5_000
    scenes: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tracks", "valid"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"data.{name}={value}: give 1 or more trajectories")
        if self.scenes < 1 or self.scenes % (2 * len(LENGTHS)):
            raise UserError(
                f"data.scenes={self.scenes}: give a multiple of {2 * len(LENGTHS)}, for scenes of "
                f"{', '.join(map(str, LENGTHS))} frames with crossings and without"
            )

    @property
    def key(self) -> str:
        return key_of("tracks", _VERSION, asdict(self))

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        with generating("Tracks", self.root):
            clips = [
                *self._trajectories("train", self.tracks),
                *self._trajectories("valid", self.valid),
                *self._scenes(),
            ]
        return sorted(clips, key=lambda clip: clip.id), []

    def _trajectories(self, split: Split, count: int) -> Iterator[Clip]:
        for first in range(0, count, TOGETHER):
            objects = min(TOGETHER, count - first)
            yield self._clip(f"{split}/{first:06d}", split, partial(trajectories, objects), {"objects": objects})

    def _scenes(self) -> Iterator[Clip]:
        for frames in LENGTHS:
            for crossing in (False, True):
                labels = {"objects": OBJECTS, "frames": frames, "crossing": crossing}
                for number in range(1, self.scenes // (2 * len(LENGTHS)) + 1):
                    name = f"scene/{frames:03d} {'crossing' if crossing else 'apart'} {number:02d}"
                    yield self._clip(name, "test", partial(scene, frames, crossing), labels)

    def _clip(
        self, name: str, split: Split, make: Callable[[np.random.Generator], np.ndarray], labels: dict[str, Any]
    ) -> Clip:
        """Generated unless it is there."""
        path = self.root / self.key / f"{name}.npy"
        if not path.exists():
            boxes_TJ4 = make(stream("tracks", self.seed, name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new, new.open("wb") as file:
                np.save(file, boxes_TJ4.astype(np.float32))
        return Clip(name, "tracks", split, name, None, labels=labels, boxes=path)
