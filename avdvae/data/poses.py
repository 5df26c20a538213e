"""Human figures: their joints, and poses as corpora store them.

A pose is J joints x 3 coordinates in metres, in the frame of the hips: the origin between them, x to the right hip, y
forward, z up along the body. It does not contain position, heading and lean of the body. FPS poses make a second.
A PoseFormat may differ from that in rate, joints and frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from avdvae.errors import UserError

FPS = 25


@dataclass(frozen=True)
class PoseFormat:
    """`fps`: poses a second; `joints`: those that are kept, None for all; `turned`: into the frame of the hips. Without
    that, the axes stay those of the room, and the origin alone is that of the hips."""

    fps: int = FPS
    joints: tuple[int, ...] | None = None
    turned: bool = True


@dataclass(frozen=True)
class Skeleton:
    """The joints of a figure by name, the root first, and the joint that each hangs from."""

    joints: tuple[str, ...]
    parents: tuple[int, ...]  # of each joint but the root; a parent comes before its children

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """What a drawing joins: (parent, child)."""
        return tuple((parent, child) for child, parent in enumerate(self.parents, start=1))


SKELETONS = {
    "gait": Skeleton(
        joints=(
            *("hips", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle"),
            *("spine", "chest", "neck", "head"),
            *("left shoulder", "left elbow", "left wrist", "right shoulder", "right elbow", "right wrist"),
        ),
        parents=(0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    ),
    "h36m": Skeleton(  # some joints lie in one place: 0 and 11; 13, 16 and 24; 19 and 20; 27 and 28
        joints=(
            *("hips", "right hip", "right knee", "right ankle", "right toes", "right toe end"),
            *("left hip", "left knee", "left ankle", "left toes", "left toe end"),
            *("lower spine", "spine", "neck", "head", "head end"),
            *("left collar", "left shoulder", "left elbow", "left wrist"),
            *("left thumb", "left thumb end", "left hand", "left hand end"),
            *("right collar", "right shoulder", "right elbow", "right wrist"),
            *("right thumb", "right thumb end", "right hand", "right hand end"),
        ),
        parents=(
            *(0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14),
            *(12, 16, 17, 18, 19, 20, 19, 22, 12, 24, 25, 26, 27, 28, 27, 30),
        ),
    ),
}  # by the name of the corpus


def skeleton_of(joints: int) -> Skeleton:
    """Of figures with this number of joints."""
    known = {len(skeleton.joints): skeleton for skeleton in SKELETONS.values()}
    if joints not in known:
        numbers = " or ".join(map(str, sorted(known)))
        raise UserError(f"no skeleton of {joints} joints is known: give figures of {numbers} joints")
    return known[joints]


_RIGHT_HIP, _LEFT_HIP, _SPINE = 1, 6, 12  # of h36m
_FILE_FPS = 50  # of its files


def read_poses(path: Path, how: PoseFormat = PoseFormat()) -> Float32[np.ndarray, "T J 3"]:
    """From a CDF file of Human3.6M, world coordinates in millimetres at 50 Hz, or a NumPy file of what is returned."""
    if not path.stat().st_size:
        raise UserError("is empty")
    if path.suffix != ".npy":
        import cdflib
    try:
        if path.suffix == ".npy":
            poses_TJ3 = np.load(path, allow_pickle=False)
        else:
            with cdflib.CDF(path) as file:
                world_TJ3 = np.asarray(file.varget("Pose")).reshape(-1, len(SKELETONS["h36m"].joints), 3)
            metres_TJ3 = world_TJ3[:: _FILE_FPS // how.fps].astype(np.float64) / 1000
            poses_TJ3 = in_frame_of_hips(metres_TJ3) if how.turned else metres_TJ3 - metres_TJ3[:, :1]
            poses_TJ3 = poses_TJ3 if how.joints is None else poses_TJ3[:, list(how.joints)]
    except Exception as error:  # cdflib raises errors of any kind on damaged files
        raise UserError(f"cannot be read as poses ({error})") from error
    lost = int((~np.isfinite(poses_TJ3).all(axis=(1, 2))).sum())
    if lost or not len(poses_TJ3):
        fault = f"{lost} of its {len(poses_TJ3)} poses lack the place of a joint" if lost else "it has no poses"
        raise UserError(f"cannot be used: {fault}, so get the file again")
    return poses_TJ3.astype(np.float32)


def in_frame_of_hips(world_TJ3: Float[np.ndarray, "T 32 3"]) -> Float[np.ndarray, "T 32 3"]:
    """Figures of h36m without position and orientation; nan where the hips and the spine span no frame."""
    centred_TJ3 = world_TJ3 - world_TJ3[:, :1]
    right_T3 = centred_TJ3[:, _RIGHT_HIP] - centred_TJ3[:, _LEFT_HIP]
    forward_T3 = np.cross(centred_TJ3[:, _SPINE], right_T3)
    axes_T33 = np.stack([right_T3, forward_T3, np.cross(right_T3, forward_T3)], axis=1)
    with np.errstate(invalid="ignore"):
        axes_T33 = axes_T33 / np.linalg.norm(axes_T33, axis=2, keepdims=True)
    return np.einsum("tjc,tac->tja", centred_TJ3, axes_T33)
