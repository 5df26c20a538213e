"""Motion: poses are encoded and decoded, and scored by the mean distance of the joints, MPJPE; also with the true past,
as in tasks/resynthesis.py."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch

from avdvae.data.poses import skeleton_of
from avdvae.errors import UserError, require
from avdvae.evaluation.tasks.task import Measured, Part, Subject, file_name
from avdvae.latents.resynthesis import reconstruct_poses
from avdvae.pictures.stills import pose_strip, write_png
from avdvae.probability.observed import Joints
from avdvae.protocols import Autoregressive


class Motion:
    takes: Literal["sound", "poses"] = "poses"

    def __init__(self, true_past: bool):
        self.true_past = true_past

    def check(self, subject: Subject) -> None:
        if "pose" not in subject.model.sees:
            raise UserError(f"{type(subject.model).__name__} as configured models no poses: give model.observes=pose")
        require("av", "cv2")  # of the films of its examples

    def parts(self, subject: Subject) -> list[Part]:
        if self.true_past and not isinstance(subject.model, Autoregressive):
            return []
        return subject.parts("motion_true_past" if self.true_past else "motion")

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured = Measured()
        torch.manual_seed(subject.settings.seed)
        for batch in subject.loader(subject.items(part)):
            pose_BTD = batch.need("pose", subject.model)
            again_BTD = reconstruct_poses(subject.model, batch, self.true_past)
            errors_BT = Joints(again_BTD).distances(pose_BTD).mean(-1) * 1000
            for b, item in enumerate(batch.ids):
                mask_T = batch.mask[b]
                scores = {"mpjpe_mm": errors_BT[b][mask_T].mean().item()}
                measured.rows += subject.rows(part, item, "", scores)
                if item in subject.shown:
                    from avdvae.pictures.films import stick_figures
                    from avdvae.signals.video import write_mp4

                    key = file_name(item, part.task)
                    figures = {
                        name: pose_TD[mask_T].unflatten(-1, (-1, 3)).cpu().numpy()
                        for name, pose_TD in (("true", pose_BTD[b]), ("resynthesised", again_BTD[b]))
                    }
                    skeleton = skeleton_of(figures["true"].shape[1])
                    pictures = stick_figures(figures, skeleton.joints, skeleton.bones)
                    write_mp4(subject.out / f"videos/{key}.mp4", pictures, Fraction(subject.fps))
                    write_png(subject.out / f"figures/{key}.png", pose_strip(pictures))
                    example = {"key": key, "title": f"{item}, {part.task.replace('_', ' ')}", "audio": {}}
                    example |= {"figure": f"figures/{key}.png", "video": f"videos/{key}.mp4"}
                    measured.examples.append(example | {"scores": scores})
        return measured
