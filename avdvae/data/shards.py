"""A prepared corpus: its clips as views of memory-mapped shards, which `shard_files.py` describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int16, UInt8

from avdvae.data.shard_files import (
    PREPARE,
    REMEDY,
    ShardArrays,
    Utterance,
    checksum,
    memory_map,
    read_header,
    read_manifest,
)
from avdvae.errors import UserError, nearest


class PreparedCorpus:
    """The clips of a prepared corpus, of all splits or of some, as views of files that all processes share.

    Unless `verify` is false, opening it reads every clip once and verifies its checksum.
    """

    def __init__(self, root: str | Path, split: str | Sequence[str] | None = None, verify: bool = True):
        self.root = Path(root)
        manifest = self.root / "manifest.csv"
        if not manifest.is_file():
            raise UserError(f"{root} is no prepared corpus, for {manifest} is missing: make one with `{PREPARE}`")
        rows = read_manifest(manifest)
        known = sorted({row.split for row in rows})
        wanted = known if split is None else [split] if isinstance(split, str) else list(split)
        if not known or (empty := set(wanted) - set(known)):
            asked = f"split {', '.join(sorted(empty))}" if known else "clip"
            raise UserError(f"{manifest} has no {asked}: it has {', '.join(known) or 'no rows'}")
        self.utterances = tuple(row for row in rows if row.split in wanted)
        self._open: dict[str, ShardArrays] = {}
        shards = dict.fromkeys(utterance.shard for utterance in self.utterances)
        there = {row.id: _place(row) for shard in shards for row in read_header(self._path(shard))[0]}
        if wrong := [row for row in self.utterances if there.get(row.id) != _place(row)]:
            raise UserError(
                f"{manifest} has another place for {wrong[0].id} than {self._path(wrong[0].shard)} has: {REMEDY}"
            )
        if verify:
            self.verify()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # each process maps the files itself; their pages are shared

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(sorted({utterance.speaker for utterance in self.utterances}))

    @property
    def hours(self) -> float:
        return sum(u.seconds for u in self.utterances) / 3600

    @property
    def has_lips(self) -> bool:
        """Whether there are pictures of mouths."""
        return self._has("pictures", [u.lips_stop - u.lips_start for u in self.utterances])

    @property
    def has_faces(self) -> bool:
        """Whether there are pictures of faces beside those of mouths."""
        return self.has_lips and all(len(self.arrays(shard).face) for shard in {u.shard for u in self.utterances})

    @property
    def has_poses(self) -> bool:
        """Whether there are poses, and no sound."""
        return self._has("poses", [u.pose_stop - u.pose_start for u in self.utterances])

    @property
    def has_boxes(self) -> bool:
        """Whether there are boxes, and no sound."""
        return self._has("boxes", [u.box_stop - u.box_start for u in self.utterances])

    @property
    def holds(self) -> Literal["sound", "poses", "boxes"]:
        """What tasks take of it."""
        return "poses" if self.has_poses else "boxes" if self.has_boxes else "sound"

    def _has(self, what: str, counts: Sequence[int]) -> bool:
        lacking = [u.id for u, count in zip(self.utterances, counts, strict=True) if not count]
        if 0 < len(lacking) < len(self.utterances):
            raise UserError(
                f"{self.root} has clips with {what} and {len(lacking)} without, such as {lacking[0]}: "
                f"prepare those without as a corpus of their own"
            )
        return not lacking

    def choose(
        self, per_speaker: int | None, min_seconds: float, speakers: Sequence[str] | None = None
    ) -> PreparedCorpus:
        """The same corpus with only the first utterances of each speaker, or of `speakers`, `per_speaker` at most, of
        those that last at least `min_seconds`."""
        known = {u.speaker for u in self.utterances}
        if unknown := [name for name in speakers or () if name not in known]:
            raise UserError(f"{self.root} has no speaker {unknown[0]} here: {nearest(unknown[0], known)}")
        taken, utterances = Counter[str](), []
        for u in self.utterances:
            if speakers is not None and u.speaker not in speakers:
                continue
            if u.seconds >= min_seconds and (per_speaker is None or taken[u.speaker] < per_speaker):
                taken[u.speaker] += 1
                utterances.append(u)
        if not utterances:
            longest = max(u.seconds for u in self.utterances)
            raise UserError(
                f"per_speaker={per_speaker} and min_seconds={min_seconds} leave no utterance of {self.root}: "
                f"give 1 or more, and at most the {longest:.2f} s of the longest"
            )
        return self.only(utterances)

    def only(self, utterances: Sequence[Utterance]) -> PreparedCorpus:
        """The same corpus with these utterances alone."""
        chosen = copy(self)
        chosen.utterances = tuple(utterances)
        return chosen

    def audio(self, utterance: Utterance) -> Int16[np.ndarray, " N"]:
        return self.arrays(utterance.shard).audio[utterance.audio_start : utterance.audio_stop]

    def lips(self, utterance: Utterance) -> UInt8[np.ndarray, "M H W"]:
        return self.arrays(utterance.shard).lips[utterance.lips_start : utterance.lips_stop]

    def confidence(self, utterance: Utterance) -> UInt8[np.ndarray, " M"]:
        return self.arrays(utterance.shard).confidence[utterance.lips_start : utterance.lips_stop]

    def faces(self, utterance: Utterance) -> UInt8[np.ndarray, "M H W 3"]:
        """No rows where the corpus was prepared without faces."""
        return self.arrays(utterance.shard).face[utterance.lips_start : utterance.lips_stop]

    def mouths(self, utterance: Utterance) -> Float32[np.ndarray, "M 2"]:
        """Opening and width of the lips; no rows where the corpus was prepared without faces."""
        return self.arrays(utterance.shard).mouth[utterance.lips_start : utterance.lips_stop]

    def poses(self, utterance: Utterance) -> Float32[np.ndarray, "T J 3"]:
        return self.arrays(utterance.shard).pose[utterance.pose_start : utterance.pose_stop]

    def boxes(self, utterance: Utterance) -> Float32[np.ndarray, "T J 4"]:
        """Of each frame, first the true ones, which the label `objects` counts."""
        boxes_M4 = self.arrays(utterance.shard).boxes[utterance.box_start : utterance.box_stop]
        return boxes_M4.reshape(-1, utterance.labels.get("boxes", 1), 4)

    def arrays(self, shard: str) -> ShardArrays:
        """All clips of a shard end to end, as memory maps."""
        if shard not in self._open:
            self._open[shard] = memory_map(self._path(shard))
        return self._open[shard]

    def verify(self) -> None:
        """Compare each clip with its checksum; the error names those that differ."""
        reads = (self.audio, self.lips, self.confidence, self.poses, self.faces, self.mouths, self.boxes)
        damaged = [
            f"{u.id} in {u.shard}" for u in self.utterances if checksum(*(read(u) for read in reads)) != u.sha256
        ]
        if damaged:
            more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
            raise UserError(
                f"{self.root} has damaged clips: {', '.join(damaged[:5])}{more}. "
                f"Delete the shards named and run `{PREPARE}` again"
            )

    def _path(self, shard: str) -> Path:
        return self.root / "shards" / shard


def _place(row: Utterance) -> tuple[Any, ...]:
    """The position of a clip, its checksum and its rates."""
    bounds = row.audio_start, row.audio_stop, row.lips_start, row.lips_stop, row.pose_start, row.pose_stop
    bounds += row.box_start, row.box_stop
    return row.shard, row.sha256, *bounds, row.rate, row.fps
