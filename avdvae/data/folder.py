"""The reader of any folder of videos."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avdvae.data.clips import SPLITS, Clip, Split, Unreadable
from avdvae.errors import UserError


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
