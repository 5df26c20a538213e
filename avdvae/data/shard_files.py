"""The files of a prepared corpus: shards, and a manifest with the position of each clip in them.

    manifest.csv                 one row a clip: an `Utterance`
    shards/00000.safetensors     audio (int16, N), lips (uint8, M x H x W) and confidence (uint8, M), clips end to end;
                                 where wanted, face (uint8, M x H' x W' x 3) and mouth (float32, M x 2) for the same M
                                 or pose (float32, T x J x 3), sequences of poses end to end,
                                 or boxes (float32, M x 4), all boxes of a frame after those of the one before

A confidence of 255 means a mouth found with certainty, 0 none. Faces are RGB; `mouth` is opening and width of the lips
by the landmarks, in outer eye distances. Where there is only sound, M, fps and face_rate are 0. A clip of poses has J
joints in metres at fps, and nothing else: its rate is 0. A clip of boxes has nothing else either; its label `boxes`
counts those of a frame, of which the first `objects` are true and the others detections. The header of a shard repeats
its rows, so that a manifest can be made from shards alone. The SHA-256 of a clip runs over the bytes of its audio,
lips, confidence, pose, face, mouth and boxes, in this order.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors.numpy
from jaxtyping import Float32, Int16, UInt8
from safetensors import safe_open

from avdvae.errors import UserError, reading
from avdvae.files import replacing

PREPARE = "python preprocessing/lips.py"
REMEDY = f"delete it and run `{PREPARE}` again"
_METADATA = "avdvae"  # one key only: safetensors writes several in no fixed order


@dataclass(frozen=True)
class Utterance:
    """A row of the manifest: a clip, its shard, and its position there."""

    id: str
    corpus: str
    split: str
    speaker: str
    shard: str  # a file name in shards/
    audio_start: int
    audio_stop: int
    lips_start: int
    lips_stop: int
    rate: int  # audio samples a second
    fps: float  # pictures, poses or boxes a second
    face_rate: float  # share of the pictures in which a face was found
    labels: dict[str, Any]
    sha256: str
    pose_start: int = 0
    pose_stop: int = 0
    box_start: int = 0
    box_stop: int = 0

    @property
    def seconds(self) -> float:
        if self.rate:
            return (self.audio_stop - self.audio_start) / self.rate
        return (self.pose_stop - self.pose_start + self.box_stop - self.box_start) / self.fps


_COLUMNS = [column.name for column in fields(Utterance)]
_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("audio_start", "audio_stop", "lips_start", "lips_stop", "rate"), int),
    **dict.fromkeys(("pose_start", "pose_stop", "box_start", "box_stop"), int),
    **dict.fromkeys(("fps", "face_rate"), float),
    "labels": json.loads,
}


class ShardArrays(NamedTuple):
    audio: np.ndarray
    lips: np.ndarray
    confidence: np.ndarray
    pose: np.ndarray
    face: np.ndarray
    mouth: np.ndarray
    boxes: np.ndarray


_NOTHING = ShardArrays(
    np.zeros(0, np.int16),
    np.zeros((0, 1, 1), np.uint8),
    np.zeros(0, np.uint8),
    np.zeros((0, 1, 3), np.float32),
    np.zeros((0, 1, 1, 3), np.uint8),
    np.zeros((0, 2), np.float32),
    np.zeros((0, 4), np.float32),
)
_LATER = ("pose", "face", "mouth", "boxes")  # absent from older shards


@dataclass(frozen=True)
class PreparedClip:
    """A clip that is not yet in a shard."""

    id: str
    corpus: str
    split: str
    speaker: str
    labels: dict[str, Any]
    audio: Int16[np.ndarray, " N"] = field(default_factory=lambda: _NOTHING.audio)
    lips: UInt8[np.ndarray, "M H W"] = field(default_factory=lambda: _NOTHING.lips)
    confidence: UInt8[np.ndarray, " M"] = field(default_factory=lambda: _NOTHING.confidence)
    pose: Float32[np.ndarray, "T J 3"] = field(default_factory=lambda: _NOTHING.pose)
    face: UInt8[np.ndarray, "F R C 3"] = field(default_factory=lambda: _NOTHING.face)
    mouth: Float32[np.ndarray, "F 2"] = field(default_factory=lambda: _NOTHING.mouth)
    boxes: Float32[np.ndarray, "_ 4"] = field(default_factory=lambda: _NOTHING.boxes)
    rate: int = 0
    fps: float = 0.0
    face_rate: float = 0.0

    @property
    def arrays(self) -> ShardArrays:
        return ShardArrays(self.audio, self.lips, self.confidence, self.pose, self.face, self.mouth, self.boxes)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_shard(path: Path, clips: Sequence[PreparedClip], notes: dict[str, Any]) -> list[Utterance]:
    """Write a shard; returns its rows. Equal clips and notes give equal bytes; a failure leaves no file.

    A shard may be empty: its notes then give the reason.
    """
    for clip in clips:
        contents = [bool(len(array)) for array in (clip.audio, clip.pose, clip.boxes)]
        if sum(contents) != 1 or len(clip.lips) != len(clip.confidence):
            raise UserError(
                f"clip {clip.id} has {len(clip.audio)} samples, {len(clip.pose)} poses, {len(clip.boxes)} boxes, "
                f"{len(clip.lips)} pictures and {len(clip.confidence)} confidences: it needs sound, poses or boxes, "
                "and one confidence a picture, so leave it out or mend it"
            )
        if not (len(clip.face) == len(clip.mouth) and len(clip.face) in (0, len(clip.lips))):
            raise UserError(
                f"clip {clip.id} has {len(clip.face)} faces, {len(clip.mouth)} openings of the mouth and "
                f"{len(clip.lips)} pictures: it needs one of each a picture, or no faces, so leave it out or mend it"
            )
        if clip.face.shape[1:] != clips[0].face.shape[1:]:
            raise UserError(
                f"the faces of {clips[0].id} and of {clip.id} have {clips[0].face.shape[1]} and {clip.face.shape[1]} "
                "pixels a side: those of a shard have one size, so prepare all clips with the same settings"
            )
        if clip.lips.shape[1:] != clips[0].lips.shape[1:]:
            sizes = " and ".join(f"{c.id} has {c.lips.shape[1]} x {c.lips.shape[2]} pixels" for c in (clips[0], clip))
            raise UserError(f"{sizes}: the crops of a shard have one size, so prepare all clips with the same settings")
        if clip.pose.shape[1] != clips[0].pose.shape[1]:
            joints = " and ".join(f"{c.id} of {c.pose.shape[1]} joints" for c in (clips[0], clip))
            raise UserError(f"{joints}: the figures of a shard are alike, so prepare others as a corpus of their own")
    rows, audio, lips, pose, box = [], 0, 0, 0, 0
    for clip in clips:
        samples, pictures, poses = len(clip.audio), len(clip.lips), len(clip.pose)
        rows.append(
            Utterance(
                id=clip.id,
                corpus=clip.corpus,
                split=clip.split,
                speaker=clip.speaker,
                shard=path.name,
                audio_start=audio,
                audio_stop=(audio := audio + samples),
                lips_start=lips,
                lips_stop=(lips := lips + pictures),
                rate=clip.rate,
                fps=clip.fps,
                face_rate=clip.face_rate,
                labels=clip.labels,
                sha256=checksum(*clip.arrays),
                pose_start=pose,
                pose_stop=(pose := pose + poses),
                box_start=box,
                box_stop=(box := box + len(clip.boxes)),
            )
        )
    arrays = [clip.arrays for clip in clips] or [_NOTHING]
    tensors = {
        name: np.ascontiguousarray(np.concatenate(parts))
        for name, parts in zip(ShardArrays._fields, zip(*arrays, strict=True), strict=True)
    }
    header = json.dumps({"notes": notes, "rows": [asdict(row) for row in rows]}, sort_keys=True)
    with replacing(path) as new:
        new.write_bytes(safetensors.numpy.save(tensors, {_METADATA: header}))
    return rows


def write_manifest(path: Path, rows: Iterable[Utterance]) -> None:
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow(asdict(row) | {"labels": json.dumps(row.labels, sort_keys=True, ensure_ascii=False)})


def checksum(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_header(path: Path) -> tuple[list[Utterance], dict[str, Any]]:
    """The rows and notes of a shard. Its data are not read, but their sizes are compared with the rows."""
    if not path.exists():
        raise UserError(f"shard {path} is missing: prepare it again with `{PREPARE}`")
    with reading(path, "shard", REMEDY):
        with safe_open(path, framework="numpy") as shard:
            header = json.loads(shard.metadata()[_METADATA])
            sizes = {name: shard.get_slice(name).get_shape()[0] for name in shard.keys()}  # noqa: SIM118
        rows, notes = [Utterance(**row) for row in header["rows"]], header["notes"]
        for row in rows:
            for name, start, stop in (
                ("audio", row.audio_start, row.audio_stop),
                ("lips", row.lips_start, row.lips_stop),
                ("confidence", row.lips_start, row.lips_stop),
                ("pose", row.pose_start, row.pose_stop),
                ("boxes", row.box_start, row.box_stop),
            ):
                if not 0 <= start <= stop <= sizes.get(name, 0 if name in _LATER else -1):
                    raise ValueError(f"it has no {name} from {start} to {stop}, the place of {row.id}")
        if not isinstance(notes, dict):
            raise ValueError("it has no notes")
    return rows, notes


def read_shard(path: Path) -> tuple[list[PreparedClip], dict[str, Any]]:
    """The clips of a shard, as given to write_shard, and its notes; the checksum of each clip is verified."""
    rows, notes = read_header(path)
    arrays = memory_map(path) if rows else _NOTHING
    own = {column.name for column in fields(PreparedClip)}
    clips = [
        PreparedClip(
            **{name: value for name, value in asdict(row).items() if name in own},
            audio=arrays.audio[row.audio_start : row.audio_stop],
            lips=arrays.lips[row.lips_start : row.lips_stop],
            confidence=arrays.confidence[row.lips_start : row.lips_stop],
            pose=arrays.pose[row.pose_start : row.pose_stop],
            face=arrays.face[row.lips_start : row.lips_stop],
            mouth=arrays.mouth[row.lips_start : row.lips_stop],
            boxes=arrays.boxes[row.box_start : row.box_stop],
        )
        for row in rows
    ]
    if damaged := [row.id for row, clip in zip(rows, clips, strict=True) if checksum(*clip.arrays) != row.sha256]:
        raise UserError(f"{path} is damaged, for the bytes of {damaged[0]} are not those that were written: {REMEDY}")
    return clips, notes


def read_manifest(path: Path) -> list[Utterance]:
    return read_table(path, Utterance, _PARSERS, "manifest", REMEDY)


Row = TypeVar("Row")


def read_table(
    path: Path, kind: type[Row], parsers: Mapping[str, Callable[[str], Any]], what: str, remedy: str
) -> list[Row]:
    """The rows of a csv file with a column for each field of the dataclass `kind`; columns of fields with a default may
    be missing at the end, as in older files. The error of a damaged file names it a `what` and ends with `remedy`."""
    columns = [column.name for column in fields(kind)]  # type: ignore[arg-type]
    old = [column.name for column in fields(kind) if column.default is MISSING]  # type: ignore[arg-type]
    with reading(path, what, remedy):
        text = path.read_bytes().decode("utf-8")
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        found = list(table.fieldnames or ())
        if not (found[: len(old)] == old and found == columns[: len(found)]):
            raise UserError(
                f"{path} has the columns {', '.join(found) or 'none'} instead of {', '.join(columns)}: {remedy}"
            )
        rows = []
        for row in table:
            if None in row or None in row.values():
                raise ValueError(f"line {table.line_num} has not {len(found)} columns")
            rows.append(kind(**{name: parsers.get(name, str)(text) for name, text in row.items()}))
        if not text.endswith("\n"):
            raise ValueError("its last line has no end")
    return rows


def memory_map(path: Path) -> ShardArrays:
    """The arrays of a shard: a safetensors file is the length of its header (8 bytes, little-endian), the header (JSON)
    and the data."""
    with reading(path, "shard", REMEDY):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r").view(np.ndarray)[8 + length :]  # one map a shard: each keeps a file open

        def view(name: str, empty: np.ndarray) -> np.ndarray:
            if name in _LATER and name not in header:
                return empty
            shape = header[name]["shape"]
            if len(shape) != empty.ndim or (name in _LATER and shape[-1] != empty.shape[-1]):
                raise ValueError(f"its {name} has the shape {shape}")
            return data[slice(*header[name]["data_offsets"])].view(empty.dtype).reshape(shape)

        return ShardArrays(**{name: view(name, empty) for name, empty in _NOTHING._asdict().items()})
