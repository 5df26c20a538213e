"""Human3.6M: people who walk, sit, eat or talk, their joints tracked at 50 Hz.

C. Ionescu, D. Papava, V. Olaru, C. Sminchisescu, "Human3.6M: Large scale datasets and predictive methods for 3D human
sensing in natural environments", IEEE TPAMI 36, 2014. http://vision.imar.ro/human3.6m

    <subject>/MyPoseFeatures/D3_Positions/<action>[ <number>].cdf    32 joints in millimetres, in the room

Every action was done twice; the two numbers differ from subject to subject, and "_ALL" files are no action.

    protocol      poses                                                      train            valid   test
    dvae          25 a second, 32 joints, in the frame of the hips           S1 S6 S7 S8 S9   S11     S5
    prediction    50 a second, 17 joints from the hips, axes of the room     S1 S5 S6 S7 S8           S9 S11

The first is that of the papers on dynamical VAEs, the second that of DLow and later papers on the prediction of motion
(Y. Yuan, K. Kitani, "DLow: Diversifying latent flows for diverse human motion prediction", ECCV 2020). They have no
validation set; here it is about one file in fifteen of the training subjects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from avdvae.data.clips import Clip, Extent, Split, Unreadable
from avdvae.data.poses import PoseFormat
from avdvae.data.readers.tree import Tree, by_list

TRAIN = "S1 S6 S7 S8 S9"
VALID = "S11"
TEST = "S5"
ACTIONS = (
    *("Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing", "Purchases", "Sitting"),
    *("SittingDown", "Smoking", "Waiting", "WalkDog", "WalkTogether", "Walking"),
)
_MOVING = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)  # the joints of Gait's skeleton, in its order
PROTOCOLS: Mapping[str, tuple[Mapping[Split, str], PoseFormat]] = {
    "dvae": ({"train": TRAIN, "valid": VALID, "test": TEST}, PoseFormat()),
    "prediction": (
        {"train": "S1 S5 S6 S7 S8", "test": "S9 S11"},
        PoseFormat(fps=50, joints=_MOVING, turned=False),
    ),
}
OF_S1 = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog"}  # what S1's files call them


@dataclass(frozen=True)
class H36m(Tree):
    NAME = "h36m"
    PLACE = "<subject>/MyPoseFeatures/D3_Positions/<action>.cdf"
    CLIP = re.compile(
        r"(?P<subject>S\d+)/MyPoseFeatures/D3_Positions/"
        rf"(?P<name>(?P<action>{'|'.join([*ACTIONS, *OF_S1])})(?: \d+)?)\.cdf"
    )
    EXTENT = Extent(speakers=7, clips=210, hours=2.9)

    protocol: str = "dvae"

    def __post_init__(self) -> None:
        self.choose("protocol", self.protocol, list(PROTOCOLS))

    @cached_property
    def speakers(self) -> Mapping[str, Split]:
        return by_list(PROTOCOLS[self.protocol][0])

    def clip(self, path: Path, match: re.Match[str]) -> Clip | None:
        subject = match["subject"]
        if subject not in self.speakers:
            return None
        labels = {"action": OF_S1.get(match["action"], match["action"]), "subject": subject}
        clip_id, split = f"{subject}/{match['name']}", self.speakers[subject]
        if self.protocol == "prediction" and split == "train":
            split = "valid" if int(sha256(clip_id.encode()).hexdigest(), 16) % 15 == 0 else "train"
        pose_format = PROTOCOLS[self.protocol][1]
        return Clip(clip_id, self.NAME, split, subject, None, labels=labels, poses=path, pose_format=pose_format)

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        """A missing file of an action is a fault too."""
        clips, faults = super().clips(workers)
        found = Counter((clip.speaker, clip.labels["action"]) for clip in clips)
        lacking = [
            Unreadable(self.root / subject / "MyPoseFeatures" / "D3_Positions", f"lacks {lost} of 2 files of {action}")
            for subject in sorted({clip.speaker for clip in clips})
            for action in ACTIONS
            if (lost := 2 - found[subject, action]) > 0
        ]
        return clips, faults + lacking
