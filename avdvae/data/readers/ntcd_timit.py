"""NTCD-TIMIT: the sentences of TCD-TIMIT in six noises at six levels, and the mouths of their speakers, cropped.

A. H. Abdelaziz, "NTCD-TIMIT: a new database and baseline for noise-robust audio-visual speech recognition",
Interspeech 2017. https://zenodo.org/records/1172064

    Clean/volunteers/<speaker>/straightcam/<utterance>.wav
    Noisy_TCDTIMIT/<noise>/<snr>/volunteers/<speaker>/straightcam/<utterance>.wav    see data/twins.py
    matlab_raw/{train,dev,test}/<speaker>/<utterance>.mat

Several splits of the speakers are in use, and results on one do not compare with those on another: `release` follows
the folders of matlab_raw, `inria` is that of the papers on audio-visual VAEs, `tcd` that of tcd_timit.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tcd_timit import TEST, TRAIN, UTTERANCES, VALID
from avdvae.data.readers.tree import Tree, by_list

FOLDERS: dict[str, Split] = {"train": "train", "dev": "valid", "test": "test"}
INRIA_VALID = "06M 17F 20M 35M 38F 42M 52M 59F"
INRIA_TEST = "09F 24M 26M 27M 33F 40F 47M 49F 56M"
VOLUNTEERS = [*f"{TRAIN} {VALID} {TEST}".split(), "27M", "35M", "53M"]


@dataclass(frozen=True)
class NtcdTimit(Tree):
    split: str = "release"
    modalities: Sequence[str] = ("audio", "lips")

    NAME = "ntcd_timit"
    PLACE = "Clean/volunteers/<speaker>/straightcam/<utterance>.wav"
    CLIP = re.compile(r"Clean/volunteers/(?P<speaker>\d\d[MF])/straightcam/(?P<name>\w+)\.wav")

    def __post_init__(self) -> None:
        self.choose("split", self.split, ["release", "inria", "tcd"])
        for name in self.modalities:
            self.choose("modalities", name, ["audio", "lips"])

    @property
    def extent(self) -> Extent:
        return Extent(speakers=56, clips=56 * UTTERANCES, hours=7.6)

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folder of matlab_raw that each speaker is in."""
        return {path.name: folder for folder in FOLDERS for path in (self.root / "matlab_raw" / folder).glob("*")}

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        if self.split == "release":
            return {speaker: FOLDERS[folder] for speaker, folder in self.folders.items()}
        if self.split == "tcd":
            return by_list({"train": TRAIN, "valid": VALID, "test": TEST})
        held = by_list({"valid": INRIA_VALID, "test": INRIA_TEST})
        rest = [s for s in VOLUNTEERS if s not in held and s in self.folders]  # of 42, the papers name 39 nowhere
        return {**dict.fromkeys(rest, "train"), **held}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        speaker, name = match["speaker"], match["name"]
        if speaker not in self.speakers:
            return None
        lips = None
        if "lips" in self.modalities:
            lips = self.root / "matlab_raw" / self.folders.get(speaker, "train") / speaker / f"{name}.mat"
        labels = {"sentence": name, "sex": speaker[-1]}
        return Clip(f"{speaker}/{name}", self.NAME, self.speakers[speaker], speaker, None, path, lips, labels)
