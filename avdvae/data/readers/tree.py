"""The reader of a corpus whose clips follow from the paths of their files.

A subclass describes one corpus: which files are clips, and which labels their paths give.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from avdvae.data.clips import SPLITS, Clip, Extent, Split, Unreadable, files_below
from avdvae.errors import UserError


@dataclass(frozen=True)
class Tree:
    """`CLIP` is matched with the path, below the root, of every file; a full match is a clip unless `clip` rejects it.
    A clip of which a file is missing is a fault, and so is a speaker of `speakers` without any clip."""

    root: Path

    NAME: ClassVar[str]
    PLACE: ClassVar[str]  # the paths that CLIP matches, for messages
    CLIP: ClassVar[re.Pattern[str]]
    EXTENT: ClassVar[Extent]

    @property
    def extent(self) -> Extent:
        """Of the part of the whole corpus that these parameters choose."""
        return self.EXTENT

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        """The split of each speaker, where there is a list."""
        return {}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | Unreadable | None:
        """The clip or the fault of a file that CLIP matches; None: not in the part that the parameters choose."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        chosen = [str(self.root.resolve()), *map(repr, astuple(self)[1:])]
        return f"{self.NAME}-{hashlib.sha256('|'.join(chosen).encode()).hexdigest()[:8]}"

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        return self._found

    @cached_property
    def _found(self) -> tuple[list[Clip], list[Unreadable]]:
        """Found once: checking a corpus and then preparing it takes the same files."""
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder: give that of {self.NAME}")
        clips: list[Clip] = []
        faults: list[Unreadable] = []
        there = set()
        for path in files_below(self.root, faults, follow_links=True):
            if match := self.CLIP.fullmatch(path.relative_to(self.root).as_posix()):
                found = self.clip(path, match)
                if isinstance(found, Clip):
                    there.add(found.speaker)
                    missing = [Unreadable(p, "is missing") for p in found.files if not p.exists()]
                    faults += missing
                    clips += [] if missing else [found]
                elif found:
                    faults.append(found)
        if not there and not faults:
            raise UserError(f"data.root={self.root} has nothing of {self.NAME}: its clips are {self.PLACE} below it")
        if absent := [f"{speaker} ({split})" for speaker, split in self.speakers.items() if speaker not in there]:
            faults.append(Unreadable(self.root, f"nothing of {', '.join(absent)} is there"))
        return sorted(clips, key=lambda clip: clip.id), list(dict.fromkeys(faults))  # clips may share what they lack

    def choose(self, name: str, given: str, known: Sequence[str]) -> None:
        """Refuse a parameter that is not one of `known`."""
        if given not in known:
            raise UserError(f"data.{name}={given}: choose from {', '.join(known)}")


def by_list(lists: Mapping[Split, str]) -> dict[str, Split]:
    """{"test": "08F 09F"} -> {"08F": "test", "09F": "test"}"""
    return {speaker: split for split in SPLITS for speaker in lists.get(split, "").split()}
