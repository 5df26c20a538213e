"""LibriSpeech: passages of audiobooks by 2484 volunteers, with their words.

V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "Librispeech: an ASR corpus based on public domain audio books", ICASSP
2015.

    <subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac
    <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt    utterance and words, a line each
    SPEAKERS.TXT    sex, subset, minutes, name

No speaker is in two subsets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split, Unreadable
from avdvae.data.readers.tree import Tree
from avdvae.errors import UserError

SUBSETS = {
    "train-clean-100": Extent(speakers=251, clips=28539, hours=100.6),
    "train-clean-360": Extent(speakers=921, clips=104014, hours=363.6),
    "train-other-500": Extent(speakers=1166, clips=148688, hours=496.7),
    "dev-clean": Extent(speakers=40, clips=2703, hours=5.4),
    "dev-other": Extent(speakers=33, clips=2864, hours=5.1),
    "test-clean": Extent(speakers=40, clips=2620, hours=5.4),
    "test-other": Extent(speakers=33, clips=2939, hours=5.3),
}


@dataclass(frozen=True)
class LibriSpeech(Tree):
    """`train`, `valid`, `test`: the subsets of each split."""

    train: Sequence[str] = ("train-clean-100",)
    valid: Sequence[str] = ("dev-clean",)
    test: Sequence[str] = ("test-clean",)

    NAME = "librispeech"
    PLACE = "<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac"
    CLIP = re.compile(
        r"(?:LibriSpeech/)?(?P<subset>[a-z]+-[a-z]+(-\d+)?)/(?P<speaker>\d+)/(?P<chapter>\d+)/(?P<name>[\d-]+)\.flac"
    )

    def __post_init__(self) -> None:
        chosen = [*self.train, *self.valid, *self.test]
        for split, subsets in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            for subset in subsets:
                self.choose(split, subset, list(SUBSETS))
                if chosen.count(subset) > 1:
                    raise UserError(f"data.{split}={subset}: it is named twice: give each subset to one split")

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """Of the chosen subsets."""
        return {
            **dict.fromkeys(self.train, "train"),
            **dict.fromkeys(self.valid, "valid"),
            **dict.fromkeys(self.test, "test"),
        }

    @property
    def extent(self) -> Extent:
        parts = [SUBSETS[subset] for subset in self.splits]
        return Extent(
            speakers=sum(part.speakers for part in parts),
            clips=sum(part.clips for part in parts),
            hours=round(sum(part.hours or 0 for part in parts), 1),
        )

    @cached_property
    def sexes(self) -> dict[str, str]:
        lines = [
            line for path in self.root.rglob("SPEAKERS.TXT") for line in path.read_text("utf-8", "replace").splitlines()
        ]
        rows = [line.split("|") for line in lines if not line.startswith(";") and "|" in line]
        return {row[0].strip(): row[1].strip() for row in rows}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | Unreadable | None:
        if match["subset"] not in self.splits:
            return None
        speaker, name = match["speaker"], match["name"]
        transcript = transcript_of(path)
        words = read_words(transcript) if transcript.exists() else {}
        labels = {"text": words[name]} if name in words else {}
        labels |= {"sex": self.sexes[speaker]} if speaker in self.sexes else {}
        return Clip(f"{speaker}/{name}", self.NAME, self.splits[match["subset"]], speaker, None, path, labels=labels)

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        """A clip whose words are missing is kept, for its sound is there; the transcript is a fault."""
        clips, faults = super().clips(workers)
        lost: dict[Path, list[str]] = {}
        for clip in clips:
            if "text" not in clip.labels:
                lost.setdefault(transcript_of(clip.source), []).append(clip.source.stem)
        for path, names in lost.items():
            reason = f"has no line for {', '.join(names)}" if path.exists() else "is missing"
            faults.append(Unreadable(path, f"{reason}, and these clips are kept without words"))
        return clips, faults


def transcript_of(path: Path) -> Path:
    """Of the chapter of a clip."""
    return path.with_name(f"{path.parents[1].name}-{path.parent.name}.trans.txt")


@lru_cache(maxsize=1)  # the utterances of a chapter come one after another
def read_words(path: Path) -> dict[str, str]:
    """The words of each utterance of a chapter."""
    return dict(line.split(" ", 1) for line in path.read_text("utf-8", "replace").splitlines() if " " in line)
