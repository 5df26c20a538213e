"""VoiceBank-DEMAND: sentences of the Voice Bank corpus, clean and in noise, the noise mostly of DEMAND.

C. Valentini-Botinhao, "Noisy speech database for training speech enhancement algorithms and TTS models", University of
Edinburgh, 2017.

    {clean,noisy}_trainset_28spk_wav/<speaker>_<number>.wav    48 kHz
    {clean,noisy}_testset_wav/<speaker>_<number>.wav
    log_{trainset_28spk,testset}.txt    optional, here or in a folder: utterance, noise and its SNR in dB

Two of the 28 speakers of the training part validate, as in most of the literature. A clip is the clean sound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avdvae.data.clips import Clip, Extent, Split, Unreadable
from avdvae.data.readers.tree import Tree, by_list
from avdvae.errors import reading

TRAIN = (
    "p227 p228 p230 p231 p233 p236 p239 p243 p244 p250 p254 p256 p258 p259 p267 p268 p269 p270 p273 p274 p276 p277 "
    "p278 p279 p282 p286"
)
VALID = "p226 p287"
TEST = "p232 p257"


@dataclass(frozen=True)
class VoicebankDemand(Tree):
    NAME = "voicebank_demand"
    PLACE = "clean_{trainset_28spk,testset}_wav/<speaker>_<number>.wav"
    CLIP = re.compile(r"clean_(?P<part>trainset_28spk|testset)_wav/(?P<name>(?P<speaker>p\d+)_\d+)\.wav")
    EXTENT = Extent(speakers=30, clips=11572 + 824, hours=10.0)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return by_list({"train": TRAIN, "valid": VALID, "test": TEST})

    @cached_property
    def noises(self) -> dict[str, dict[str, Any]]:
        """The labels that the logs give of each utterance."""
        noises = {}
        for path in self.root.rglob("log_*set*.txt"):
            with reading(path, "list of noises", "get it again, or delete it to do without"):
                lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
                noises |= {words[0]: {"noise": words[1], "snr": float(words[2])} for words in lines if len(words) == 3}
        return noises

    def clip(self, path: Path, match: re.Match[str]) -> Clip | Unreadable | None:
        speaker, name = match["speaker"], match["name"]
        if speaker not in self.speakers:
            return None
        noisy = self.root / f"noisy_{match['part']}_wav" / path.name
        if not noisy.exists():
            return Unreadable(noisy, "is missing")
        labels = self.noises.get(name, {})
        return Clip(f"{speaker}/{name}", self.NAME, self.speakers[speaker], speaker, None, path, labels=labels)
