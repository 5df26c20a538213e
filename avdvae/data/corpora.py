"""What a corpus reader says of its clips, before anything is decoded, and the reader of any folder of videos."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from avdvae.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Clip:
    """One recording: where its picture and its sound lie (`audio` None: inside the video) and what is known of it."""

    id: str
    corpus: str
    split: Split
    speaker: str
    video: Path
    audio: Path | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """A place in the corpus that could not be looked into."""

    path: Path
    reason: str


@runtime_checkable
class Corpus(Protocol):
    @property
    def key(self) -> str:
        """A name for the folder that its preparation goes to; another corpus, or other parameters, another key."""
        ...

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        """All clips, ordered by id."""
        ...


@dataclass(frozen=True)
class Folder:
    """Any folder of videos, at any depth; a wav beside a video, with the same stem, is its sound.

    The first folder below the root names the speaker, unless the folders there are train, valid and test: then they are
    the splits and the speakers come below. `valid` and `test` name the speakers of those splits otherwise.
    """

    root: Path
    valid: Sequence[str] = ()
    test: Sequence[str] = ()

    SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")

    @property
    def key(self) -> str:
        """Two folders of one name have two keys."""
        return f"{self.root.resolve().name}-{hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]}"

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder: give one that holds {', '.join(self.SUFFIXES)} files")
        unreadable: list[Unreadable] = []
        videos: list[Path] = []
        wavs: dict[Path, Path] = {}
        note = lambda error: unreadable.append(Unreadable(Path(error.filename), error.strerror))  # noqa: E731
        for folder, _, names in os.walk(self.root, onerror=note):
            paths = [Path(folder, name) for name in names if not name.startswith(".")]
            videos += [path for path in paths if path.suffix.lower() in self.SUFFIXES]
            wavs |= {path.with_suffix(""): path for path in paths if path.suffix.lower() == ".wav"}
        if not videos and not unreadable:
            raise UserError(f"data.root={self.root} holds no video: looked for {', '.join(self.SUFFIXES)} at any depth")

        namesakes = Counter(video.with_suffix("") for video in videos)
        clips = []
        for video in videos:
            stem = video.with_suffix("")
            named = (stem if namesakes[stem] == 1 else video).relative_to(self.root)
            *folders, _ = named.parts
            split: Split | None = next((s for s in SPLITS if folders[:1] == [s]), None)
            below = folders[1:] if split else folders
            speaker = below[0] if below else self.root.resolve().name
            split = split or ("test" if speaker in self.test else "valid" if speaker in self.valid else "train")
            clips.append(Clip(named.as_posix(), "folder", split, speaker, video, wavs.get(stem)))
        if strangers := {*self.valid, *self.test} - {clip.speaker for clip in clips}:
            raise UserError(
                f"no speaker is called {', '.join(sorted(strangers))} in {self.root}: "
                f"data.valid and data.test choose from {', '.join(sorted({clip.speaker for clip in clips}))}"
            )
        return sorted(clips, key=lambda clip: clip.id), unreadable


def open_corpus(config: Mapping[str, Any]) -> Corpus:
    """The reader that `config` names, with the rest of it as the reader's parameters."""
    from avdvae.data.talker.corpus import Talker

    readers = {"talker": Talker, "folder": Folder}
    name = config["reader"]
    if name not in readers:
        raise UserError(f"no corpus reader is called {name}: choose from {', '.join(readers)}")
    if not config["root"]:
        raise UserError(f"data.root is not given: say where the corpus lies, as in data={name} data.root=DIR")
    parameters = {key: value for key, value in config.items() if key != "reader"}
    return readers[name](**parameters | {"root": Path(config["root"])})
