"""Gait, the embedded corpus of moving figures: generated, not recorded; what is measured on it is no result on people.

Angles at the joints are sinusoids of one phase, whose speed drifts; they turn the bones of a figure of 17 joints.
Subjects differ in the lengths of bones and in manner: tempo, reach, lean, spread of the arms, bend of the knees, and
asymmetry of the sides. There is no noise. Joints, bones and units are those of poses.py; hips and lower spine stay
upright, so the frame of the hips is that of the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32

from avdvae.data.clips import Clip, Unreadable, split_of
from avdvae.data.generated import generating, key_of
from avdvae.data.poses import FPS, SKELETONS, PoseFormat
from avdvae.errors import UserError
from avdvae.files import replacing

Swing = tuple[float, float, float]  # mean + swing * sin(phase - lag), in radians


@dataclass(frozen=True)
class Movement:
    """The swings of the angles by name: hip (forward), spread (of the legs), knee, shoulder (forward), raise (of the
    arms, sideways), elbow; lean, twist and nod of trunk and head. A side before the name means that side alone."""

    cycles: float  # a second
    swings: dict[str, Swing]
    alternating: bool = True  # the left side half a cycle after the right


_HALF = np.pi
MOVEMENTS = {
    "walking": Movement(
        0.9,
        {
            "hip": (0.10, 0.42, 0),
            "knee": (0.45, 0.40, -1.2),
            "shoulder": (0, 0.35, _HALF),
            "elbow": (0.35, 0.15, _HALF),
            "twist": (0, 0.10, _HALF),
        },
    ),
    "running": Movement(
        1.35,
        {
            "hip": (0.35, 0.70, 0),
            "knee": (1.00, 0.75, -1.5),
            "shoulder": (-0.10, 0.60, _HALF),
            "elbow": (1.50, 0.20, _HALF),
            "twist": (0, 0.20, _HALF),
            "lean": (0.18, 0, 0),
        },
    ),
    "marching": Movement(
        0.8,
        {
            "hip": (0.70, 0.65, 0),
            "knee": (0.75, 0.65, 0),
            "shoulder": (0.10, 0.55, _HALF),
            "elbow": (0.10, 0, 0),
        },
    ),
    "jumping": Movement(
        1.1,
        {
            "spread": (0.25, 0.20, 0),
            "raise": (1.40, 1.10, 0),
            "hip": (0.15, 0.10, 1.6),
            "knee": (0.30, 0.20, 1.6),
            "elbow": (0.20, 0.10, 0),
        },
        alternating=False,
    ),
    "waving": Movement(
        1.6,
        {
            "right raise": (2.00, 0.15, 0),
            "right elbow": (0.80, 0.50, 1.6),
            "elbow": (0.25, 0, 0),
            "twist": (0, 0.06, 1.0),
            "nod": (0.05, 0.05, 0.5),
        },
    ),
    "squatting": Movement(
        0.4,
        {
            "hip": (0.85, 0.75, 0),
            "knee": (1.00, 0.90, 0),
            "shoulder": (0.75, 0.65, 0),
            "lean": (0.30, 0.20, 0),
            "nod": (-0.10, 0.10, 0),
        },
        alternating=False,
    ),
}
_OF_A_SIDE = ("hip", "spread", "knee", "shoulder", "raise", "elbow")
_OF_THE_MIDDLE = ("lean", "twist", "nod")

_SKELETON = SKELETONS["gait"]
_UP, _DOWN, _ASIDE = np.array([0, 0, 1.0]), np.array([0, 0, -1.0]), np.array([1.0, 0, 0])
_BONES = {  # to this joint: direction at rest on the right side, and length, as a share of the stature
    "hip": (_ASIDE, 0.055),
    "knee": (_DOWN, 0.245),
    "ankle": (_DOWN, 0.246),
    "spine": (_UP, 0.12),
    "chest": (_UP, 0.17),
    "neck": (_UP, 0.05),
    "head": (_UP, 0.12),
    "shoulder": (_ASIDE, 0.115),
    "elbow": (_DOWN, 0.186),
    "wrist": (_DOWN, 0.15),
}


@dataclass(frozen=True)
class Subject:
    name: str
    lengths: Mapping[str, float]  # metres, by the joint at the far end of the bone
    tempo: float  # these two multiply
    reach: float
    offsets: Mapping[str, float]  # radians, added to the angles
    right: float  # by how much more the right side moves than the left


def subject(seed: int, number: int) -> Subject:
    rng = np.random.default_rng([seed, number])
    stature = rng.uniform(1.5, 1.95)
    lengths = {joint: stature * share * rng.uniform(0.94, 1.06) for joint, (_, share) in _BONES.items()}
    tempo, reach = rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.15)
    bend = rng.uniform(0, 0.15)
    offsets = {"lean": rng.uniform(-0.05, 0.15), "raise": rng.uniform(0.05, 0.2), "knee": bend, "hip": bend / 2}
    return Subject(f"g{number:03d}", lengths, tempo, reach, offsets, rng.uniform(-0.1, 0.1))


def perform(
    person: Subject, movement: Movement, seconds: float, rng: np.random.Generator
) -> Float32[np.ndarray, "T 17 3"]:
    time_T = np.arange(round(seconds * FPS)) / FPS
    rate, drift, reach = person.tempo * rng.uniform(0.9, 1.1), rng.uniform(0.03, 0.1), rng.uniform(0.9, 1.1)
    cycles_T = rate * (movement.cycles * time_T + drift * np.sin(1.3 * time_T + rng.uniform(0, 2 * np.pi)))
    phase_T = 2 * np.pi * (cycles_T + rng.uniform())
    return figure(person.lengths, angles_of(person, movement, phase_T, reach))


def angles_of(
    person: Subject, movement: Movement, phase_T: Float[np.ndarray, " T"], reach: float | Float[np.ndarray, " T"]
) -> dict[str, Float[np.ndarray, " T"]]:
    """In radians, by name, with the side before it; `reach` multiplies that of the person."""
    rest: Swing = (0.0, 0.0, 0.0)

    def angle(name: str, swing: Swing, lag: float, share: float) -> Float[np.ndarray, " T"]:
        mean, width, own_lag = swing
        moved_T = person.reach * reach * share * width * np.sin(phase_T - own_lag - lag)
        return person.offsets.get(name, 0.0) + mean + moved_T

    angles = {name: angle(name, movement.swings.get(name, rest), 0, 1) for name in _OF_THE_MIDDLE}
    for side, lag, share in (
        ("right", 0.0, 1 + person.right),
        ("left", _HALF * movement.alternating, 1 - person.right),
    ):
        for name in _OF_A_SIDE:
            swing = movement.swings.get(f"{side} {name}", movement.swings.get(name, rest))
            angles[f"{side} {name}"] = angle(name, swing, lag, share)
    return angles


def figure(
    lengths: Mapping[str, float], angles: Mapping[str, Float[np.ndarray, " T"]]
) -> Float32[np.ndarray, "T 17 3"]:
    """Forward kinematics."""
    trunk = _turn(0, -angles["lean"]) @ _turn(2, angles["twist"])
    upright = np.broadcast_to(np.eye(3), trunk.shape)
    along = {"spine": upright, "chest": trunk, "neck": trunk, "head": trunk @ _turn(0, -angles["nod"])}
    for side, out in (("right", -1), ("left", 1)):
        thigh = _turn(1, out * angles[f"{side} spread"]) @ _turn(0, angles[f"{side} hip"])
        arm = trunk @ _turn(1, out * angles[f"{side} raise"]) @ _turn(0, angles[f"{side} shoulder"])
        along |= {f"{side} hip": upright, f"{side} knee": thigh, f"{side} shoulder": trunk, f"{side} elbow": arm}
        along[f"{side} ankle"] = thigh @ _turn(0, -angles[f"{side} knee"])
        along[f"{side} wrist"] = arm @ _turn(0, angles[f"{side} elbow"])
    poses_TJ3 = np.zeros((len(trunk), len(_SKELETON.joints), 3))
    for parent, child in _SKELETON.bones:
        *side, joint = _SKELETON.joints[child].split()
        direction = _BONES[joint][0] * ([-1, 1, 1] if side == ["left"] else 1)
        poses_TJ3[:, child] = poses_TJ3[:, parent] + lengths[joint] * along[_SKELETON.joints[child]] @ direction
    return poses_TJ3.astype(np.float32)


def _turn(axis: int, angle_T: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3 3"]:
    """Counter-clockwise about x, y or z. A positive angle about x turns a limb that hangs down forward."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    turn_T33 = np.tile(np.eye(3), (len(angle_T), 1, 1))
    turn_T33[:, one, one] = turn_T33[:, two, two] = np.cos(angle_T)
    turn_T33[:, two, one] = np.sin(angle_T)
    turn_T33[:, one, two] = -turn_T33[:, two, one]
    return turn_T33


@dataclass(frozen=True)
class Gait:
    """`sequences` of about `seconds` by each of `subjects`, who go through the movements in turn."""

    NAME: ClassVar[str] = "gait"
    VERSION: ClassVar[int] = 1  # goes up when the same parameters give other bytes
    FORMAT: ClassVar[PoseFormat] = PoseFormat()

    root: Path
    subjects: int = 48
    sequences: int = 12
    seconds: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subjects < 3:
            raise UserError(f"data.subjects={self.subjects}: at least 3 are needed, to train, validate and test")
        if self.sequences < 1:
            raise UserError(f"data.sequences={self.sequences}: give 1 or more for each subject")
        if not 1 <= self.seconds <= 60:
            raise UserError(f"data.seconds={self.seconds}: a sequence lasts from 1 to 60 seconds")

    @property
    def key(self) -> str:
        return key_of(self.NAME, self.VERSION, asdict(self))

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        with generating(type(self).__name__, self.root):
            clips = [self._clip(n, s) for n in range(1, self.subjects + 1) for s in range(self.sequences)]
        return sorted(clips, key=lambda clip: clip.id), []

    def _clip(self, number: int, sequence: int) -> Clip:
        """Generated unless it is there."""
        person = subject(self.seed, number)
        name, labels = self.described(number, sequence)
        name = f"{person.name}/{name}"
        path = self.root / self.key / f"{name}.npy"
        if not path.exists():
            poses_TJ3 = self.generated(number, sequence)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new, new.open("wb") as file:
                np.save(file, poses_TJ3)
        return Clip(
            name,
            self.NAME,
            split_of(number, self.subjects),
            person.name,
            None,
            labels={**labels, "subject": person.name},
            poses=path,
            pose_format=self.FORMAT,
        )

    def described(self, number: int, sequence: int) -> tuple[str, dict[str, Any]]:
        """The name of a sequence, after that of its subject, and its labels."""
        action = list(MOVEMENTS)[(number + sequence) % len(MOVEMENTS)]
        return f"{action} {sequence // len(MOVEMENTS) + 1}", {"action": action}

    def generated(self, number: int, sequence: int) -> Float32[np.ndarray, "T 17 3"]:
        rng = np.random.default_rng([self.seed, number, sequence])
        _, labels = self.described(number, sequence)
        seconds = self.seconds * rng.uniform(0.85, 1.15)
        return perform(subject(self.seed, number), MOVEMENTS[labels["action"]], seconds, rng)
