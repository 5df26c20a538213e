"""What a corpus reader gives: clips, before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from avdvae.data.poses import PoseFormat

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
GENERATED = ("talker", "gait", "gait_futures", "flute", "tracks")  # corpora that are not recorded


def split_of(number: int, people: int) -> Split:
    """Of six people one validates and one tests; at least one of each, at most eight. They count from 1."""
    each = min(max(1, people // 6), 8)
    return "test" if number > people - each else "valid" if number > people - 2 * each else "train"


@dataclass(frozen=True)
class Clip:
    """One recording: its files and its labels.

    `audio` None: the sound is inside the video. `video` None: there is sound alone, or sound and `lips`, a file of
    mouths that are cropped already, or `poses` alone, or `boxes` alone, whose label `objects` counts the true ones.
    """

    id: str
    corpus: str
    split: Split
    speaker: str
    video: Path | None
    audio: Path | None = None
    lips: Path | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    poses: Path | None = None
    pose_format: PoseFormat = field(default_factory=PoseFormat)
    boxes: Path | None = None

    @property
    def source(self) -> Path:
        """The file that errors and tables name."""
        path = self.video or self.lips or self.poses or self.boxes or self.audio
        assert path, f"clip {self.id} has no file"
        return path

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.video, self.audio, self.lips, self.poses, self.boxes) if path]


@dataclass(frozen=True)
class Extent:
    """The size of a whole corpus, as its makers give it, or of the part that was asked for."""

    speakers: int
    clips: int
    hours: float | None = None


@dataclass(frozen=True)
class Unreadable:
    """A file or folder of the corpus that could not be read."""

    path: Path
    reason: str


def files_below(root: Path, unreadable: list[Unreadable], follow_links: bool = False) -> Iterator[Path]:
    """Every file that is not hidden, in order; folders that cannot be opened are added to `unreadable`."""

    def note(error: OSError) -> None:
        unreadable.append(Unreadable(Path(error.filename), f"cannot be opened ({error.strerror})"))

    for folder, folders, names in os.walk(root, onerror=note, followlinks=follow_links):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


@runtime_checkable
class Corpus(Protocol):
    @property
    def key(self) -> str:
        """The name of the folder it is prepared in; another corpus, or other parameters, have another key."""
        ...

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        """All clips, ordered by id."""
        ...
