"""WSJ0: articles of the Wall Street Journal read aloud; of it the three subsets that the CHiME challenges use.

J. Garofolo et al., "CSR-I (WSJ0) complete", LDC93S6A, 1993; the same voices, of the near microphone alone, LDC93S6B.

    {si_tr_s,si_dt_05,si_et_05}/<speaker>/<utterance>.{wv1,wav}    wv1: NIST sphere, often compressed with shorten
    spkrinfo.txt, wsj0-train-spkrinfo.txt    optional, in any folder: the sex of each speaker

The subsets may be as deep as on the discs, in 11-1.1/wsj0 and the like. No speaker is in two of them. Of a file and
its conversion to wav beside it the wav is taken; the far microphone (wv2) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split
from avdvae.data.readers.tree import Tree, by_list

SUBSETS: dict[str, Split] = {"si_tr_s": "train", "si_dt_05": "valid", "si_et_05": "test"}
VALID = "050 051 052 053 22g 22h 420 421 422 423"
TEST = "440 441 442 443 444 445 446 447"


@dataclass(frozen=True)
class Wsj0(Tree):
    NAME = "wsj0"
    PLACE = "{si_tr_s,si_dt_05,si_et_05}/<speaker>/<utterance>.wv1, or .wav,"
    CLIP = re.compile(
        r"(?:[\w.-]+/){0,2}(?P<subset>si_tr_s|si_dt_05|si_et_05)/(?P<speaker>\w{3})/(?P<name>\w+)\.(?:wv1|wav)", re.I
    )
    EXTENT = Extent(speakers=101 + 10 + 8, clips=12776 + 1206 + 651, hours=28.6)

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        """There is no list of those who train."""
        return by_list({"valid": VALID, "test": TEST})

    @cached_property
    def sexes(self) -> dict[str, str]:
        people = {}
        for path in sorted(self.root.rglob("*spkrinfo.txt")):
            for line in path.read_text(encoding="latin-1").splitlines():
                if match := re.match(r"(\w{3})\s+([MF])\b", line, re.I):
                    people[match[1].lower()] = match[2].upper()
        return people

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        split, speaker, name = SUBSETS[match["subset"].lower()], match["speaker"].lower(), match["name"].lower()
        # WSJ1 calls a subset of other speakers si_dt_05 as well.
        if self.speakers.get(speaker, "train") != split:
            return None
        if path.suffix.lower() == ".wv1" and path.with_suffix(".wav").exists():
            return None
        labels = {"sex": self.sexes[speaker]} if speaker in self.sexes else {}
        return Clip(f"{speaker}/{name}", self.NAME, split, speaker, None, path, labels=labels)
