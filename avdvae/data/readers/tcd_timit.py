"""TCD-TIMIT: sentences of TIMIT, filmed from two sides.

N. Harte, E. Gillen, "TCD-TIMIT: an audio-visual corpus of continuous speech", IEEE Transactions on Multimedia 17, 2015.

    volunteers/<speaker>/Clips/{straightcam,30degcam}/<utterance>.{mp4,wav}
    lipspeakers/<speaker>/Clips/{straightcam,30degcam}/<utterance>.{mp4,wav}

The split by speakers is the usual one of 39 and 17 volunteers; three whose accent is not Irish are left out, and eight
of the 17 validate. The lipspeakers, professionals whose lips are easy to read, are a part of their own and train.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tree import Tree, by_list

TRAIN = (
    "01M 02M 03F 04M 05F 06M 07F 10M 11F 12M 13F 14M 16M 17F 19M 20M 21M 22M 23M 24M 26M 29M 30F 31F 32F 37F 38F 39M "
    "40F 42M 43F 46F 47M 48M 50F 51F 52M 57M 59F"
)
VALID = "15F 18M 44F 45F 49F 54M 56M 58F"
TEST = "08F 09F 25M 28M 33F 34M 36F 41M 55F"
LIPSPEAKERS = "Lipspkr1 Lipspkr2 Lipspkr3"
UTTERANCES = 98  # of a volunteer


@dataclass(frozen=True)
class TcdTimit(Tree):
    """`audio`: the folder Clean of NTCD-TIMIT, whose wavs then replace the sound of the films."""

    part: str = "volunteers"
    camera: str = "straightcam"
    audio: Path | None = None

    NAME = "tcd_timit"
    PLACE = "volunteers/<speaker>/Clips/straightcam/<utterance>.mp4"
    CLIP = re.compile(r"(?P<part>volunteers|lipspeakers)/(?P<speaker>\w+)/Clips/(?P<camera>\w+)/(?P<name>\w+)\.mp4")

    def __post_init__(self) -> None:
        self.choose("part", self.part, ["volunteers", "lipspeakers"])
        self.choose("camera", self.camera, ["straightcam", "30degcam"])

    @property
    def extent(self) -> Extent:
        if self.part == "volunteers":
            return Extent(speakers=56, clips=56 * UTTERANCES, hours=7.6)
        return Extent(speakers=3, clips=6913 - 59 * UTTERANCES)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        if self.part == "lipspeakers":
            return by_list({"train": LIPSPEAKERS})
        return by_list({"train": TRAIN, "valid": VALID, "test": TEST})

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        speaker, name = match["speaker"], match["name"]
        if (match["part"], match["camera"]) != (self.part, self.camera) or speaker not in self.speakers:
            return None
        if self.audio:
            sound = Path(self.audio, self.part, speaker, self.camera, f"{name}.wav")
        else:
            beside = path.with_suffix(".wav")
            sound = beside if beside.exists() else None
        labels = {"sentence": name, "camera": self.camera}
        if self.part == "volunteers":
            labels["sex"] = speaker[-1]
        return Clip(f"{speaker}/{name}", self.NAME, self.speakers[speaker], speaker, path, sound, labels=labels)
