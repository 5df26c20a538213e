"""MEAD: sentences in eight emotions at three levels, filmed from seven sides.

K. Wang et al., "MEAD: a large-scale audio-visual dataset for emotional talking-face generation", ECCV 2020.
https://wywu.github.io/projects/MEAD/MEAD.html

    <speaker>/video/<view>/<emotion>/level_<n>/<number>.mp4    neutral: level_1 alone
    <speaker>/audio/<emotion>/level_<n>/<number>.m4a

The split by speakers is that of EMOTE (R. Daněček et al., SIGGRAPH Asia 2023): 32, 7 and 8 of the 48 who were released;
W017, of whom most films are missing, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tree import Tree, by_list

TRAIN = (
    "M003 M005 M007 M009 M011 M012 M013 M019 M022 M023 M024 M025 M026 M027 M028 M029 M030 M031 "
    "W009 W011 W014 W015 W016 W018 W019 W021 W023 W024 W025 W026 W028 W029"
)
VALID = "M032 M033 M034 M035 W033 W035 W036"
TEST = "M037 M039 M040 M041 M042 W037 W038 W040"
VIEWS = ("front", "left_30", "left_60", "right_30", "right_60", "top", "down")
EMOTIONS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
LEVELS = (1, 2, 3)
SENTENCES = 30  # of an emotion at a level
NEUTRAL_SENTENCES = 40


@dataclass(frozen=True)
class Mead(Tree):
    view: str = "front"
    emotions: Sequence[str] = EMOTIONS
    levels: Sequence[int] = LEVELS

    NAME = "mead"
    PLACE = "<speaker>/video/<view>/<emotion>/level_<n>/<number>.mp4"
    CLIP = re.compile(
        r"(?P<speaker>[MW]\d{3})/video/(?P<view>\w+)/(?P<emotion>\w+)/level_(?P<level>\d)/(?P<number>\d+)\.mp4"
    )

    def __post_init__(self) -> None:
        self.choose("view", self.view, VIEWS)
        for emotion in self.emotions:
            self.choose("emotions", emotion, EMOTIONS)
        for level in self.levels:
            self.choose("levels", str(level), [str(known) for known in LEVELS])

    @property
    def extent(self) -> Extent:
        """As planned; some speakers have a few clips less or more."""
        felt = SENTENCES * len(self.levels) * len(set(self.emotions) - {"neutral"})
        neutral = NEUTRAL_SENTENCES if "neutral" in self.emotions and 1 in self.levels else 0
        return Extent(speakers=len(self.speakers), clips=len(self.speakers) * (felt + neutral))

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return by_list({"train": TRAIN, "valid": VALID, "test": TEST})

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        speaker, emotion, level = match["speaker"], match["emotion"], int(match["level"])
        if match["view"] != self.view or emotion not in self.emotions or level not in self.levels:
            return None
        if speaker not in self.speakers:
            return None
        take = f"{emotion}/level_{level}/{match['number']}"
        sound = self.root / speaker / "audio" / f"{take}.m4a"
        sex = "F" if speaker[0] == "W" else "M"
        labels = {"emotion": emotion, "level": level, "view": self.view, "sex": sex}
        return Clip(f"{speaker}/{take}", self.NAME, self.speakers[speaker], speaker, path, sound, labels=labels)
