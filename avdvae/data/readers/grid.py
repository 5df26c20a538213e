"""GRID: commands of six words such as "bin blue at f two now", a thousand by each of 34 speakers.

M. Cooke, J. Barker, S. Cunningham, X. Shao, "An audio-visual corpus for speech perception and automatic speech
recognition", Journal of the Acoustical Society of America 120, 2006. https://zenodo.org/records/3625687

    <speaker>/<utterance>.mpg    s1.zip ... s34.zip, unpacked side by side; there is no film of s21

The sound is that of the films: the files of audio_25k.zip are cut to the speech and no longer in sync with them.

No split is official. The four speakers that LipNet did not train on test (Y. Assael et al., 2016); two men and two
women of the others validate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tree import Tree, by_list

VALID = "s3 s4 s5 s7"
TEST = "s1 s2 s20 s22"
FILMED = [f"s{number}" for number in range(1, 35) if number != 21]
FEMALE = "s4 s7 s11 s15 s16 s18 s20 s21 s22 s23 s24 s25 s29 s31 s33 s34"
CODE = "[blps][bgrw][abiw][a-vx-z][1-9z][anps]"  # a letter or digit for each word
WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five"}
    | {"6": "six", "7": "seven", "8": "eight", "9": "nine", "z": "zero"},
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


@dataclass(frozen=True)
class Grid(Tree):
    NAME = "grid"
    PLACE = "<speaker>/<utterance>.mpg"
    CLIP = re.compile(rf"(?P<speaker>s\d+)/(?P<name>{CODE})\.mpg")
    EXTENT = Extent(speakers=33, clips=33_000, hours=27.5)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return {**dict.fromkeys(FILMED, "train"), **by_list({"valid": VALID, "test": TEST})}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        speaker, name = match["speaker"], match["name"]
        if speaker not in self.speakers:
            return None
        labels = {"text": text(name), "sex": "F" if speaker in FEMALE.split() else "M"}
        return Clip(f"{speaker}/{name}", self.NAME, self.speakers[speaker], speaker, path, labels=labels)


def text(code: str) -> str:
    """bbaf2n -> bin blue at f two now"""
    return " ".join(words[letter] for words, letter in zip(WORDS, code, strict=True))
