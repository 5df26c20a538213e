"""CREMA-D: twelve sentences in six emotions by each of 91 actors.

H. Cao et al., "CREMA-D: crowd-sourced emotional multimodal actors dataset", IEEE Transactions on Affective Computing 5,
2014. https://github.com/CheyneyComputerScience/CREMA-D

    VideoFlash/<actor>_<sentence>_<emotion>_<level>.flv
    AudioWAV/<actor>_<sentence>_<emotion>_<level>.wav    converted from the films as they were taken
    VideoDemographics.csv                                age, sex ... of the actors

No split is official: of every ten actors the fourth validates and the tenth tests, about as many women as men.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tree import Tree, by_list
from avdvae.errors import reading

VALID = "1004 1014 1024 1034 1044 1054 1064 1074 1084"
TEST = "1010 1020 1030 1040 1050 1060 1070 1080 1090"
ACTORS = [str(number) for number in range(1001, 1092)]
EMOTIONS = {"ANG": "angry", "DIS": "disgusted", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LEVELS = {"LO": 1, "MD": 2, "HI": 3}  # XX: none was asked for; one file is called X


@dataclass(frozen=True)
class CremaD(Tree):
    NAME = "crema_d"
    PLACE = "VideoFlash/<actor>_<sentence>_<emotion>_<level>.flv"
    CLIP = re.compile(
        rf"VideoFlash/(?P<actor>\d{{4}})_(?P<sentence>[A-Z]{{3}})_(?P<emotion>{'|'.join(EMOTIONS)})"
        rf"_(?P<level>{'|'.join(LEVELS)}|XX?)\.flv"
    )
    EXTENT = Extent(speakers=91, clips=7442, hours=5.3)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return {**dict.fromkeys(ACTORS, "train"), **by_list({"valid": VALID, "test": TEST})}

    @cached_property
    def people(self) -> dict[str, dict[str, Any]]:
        path = self.root / "VideoDemographics.csv"
        if not path.exists():
            return {}
        remedy = "get it again, or delete it to do without"
        with reading(path, "table of actors", remedy), path.open(encoding="utf-8", newline="") as file:
            return {row["ActorID"]: {"sex": row["Sex"][0], "age": int(row["Age"])} for row in csv.DictReader(file)}

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        actor = match["actor"]
        if actor not in self.speakers:
            return None
        sound = self.root / "AudioWAV" / f"{path.stem}.wav"
        labels = {"sentence": match["sentence"], "emotion": EMOTIONS[match["emotion"]]}
        labels |= {"level": LEVELS.get(match["level"]), **self.people.get(actor, {})}
        return Clip(path.stem, self.NAME, self.speakers[actor], actor, path, sound, labels=labels)
