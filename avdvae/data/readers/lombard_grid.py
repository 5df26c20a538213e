"""Lombard GRID: commands as in GRID, spoken in quiet and against noise in the headphones, filmed from two sides.

N. Alghamdi, S. Maddock, R. Marxer, J. Barker, G. Brown, "A corpus of audio-visual Lombard speech with frontal and
profile views", Journal of the Acoustical Society of America 143, 2018. https://zenodo.org/records/3736465

    lombardgrid/{front,side}/<speaker>_{l,p}_<utterance>.mov    l: Lombard speech, p: plain
    lombardgrid/audio/<speaker>_{l,p}_<utterance>.wav           without the noise

Sentences that were read wrongly, with WRONG in their names, are left out. In few pictures from the side lips are found.

No split is official: of every nine speakers the seventh validates and the eighth tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.grid import CODE, text
from avdvae.data.readers.tree import Tree, by_list

VALID = "s8 s17 s26 s35 s44 s53"
TEST = "s9 s18 s27 s36 s45 s54"
SPEAKERS = [f"s{number}" for number in range(2, 56)]
CONDITIONS = {"l": "lombard", "p": "plain"}
UTTERANCES = 50  # of a speaker in a condition


@dataclass(frozen=True)
class LombardGrid(Tree):
    view: str = "front"
    condition: str = "both"

    NAME = "lombard_grid"
    PLACE = "lombardgrid/front/<speaker>_<condition>_<utterance>.mov"
    CLIP = re.compile(
        rf"(?:lombardgrid/)?(?P<view>front|side)/(?P<speaker>s\d+)_(?P<condition>[lp])_(?P<name>{CODE})\.mov"
    )

    def __post_init__(self) -> None:
        self.choose("view", self.view, ["front", "side"])
        self.choose("condition", self.condition, ["both", *CONDITIONS.values()])

    @property
    def extent(self) -> Extent:
        conditions = 2 if self.condition == "both" else 1
        return Extent(speakers=len(SPEAKERS), clips=len(SPEAKERS) * conditions * UTTERANCES)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return {**dict.fromkeys(SPEAKERS, "train"), **by_list({"valid": VALID, "test": TEST})}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        speaker, condition = match["speaker"], CONDITIONS[match["condition"]]
        if match["view"] != self.view or self.condition not in ("both", condition) or speaker not in self.speakers:
            return None
        sound = path.parents[1] / "audio" / f"{path.stem}.wav"
        labels = {"text": text(match["name"]), "condition": condition, "view": self.view}
        return Clip(path.stem, self.NAME, self.speakers[speaker], speaker, path, sound, labels=labels)
