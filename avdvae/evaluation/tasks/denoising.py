"""Denoising: the mouth or the eyes are occluded in the middle third of an utterance, and the model restores them.

The occluded region is first interpolated between the pictures before and after. Then, as is usual for VAEs, it is
encoded and decoded a few times over. There are two baselines without audio: the interpolation itself, `interpolated`,
and the same model with the audio of these frames replaced by the mean power of the utterance, `deaf`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.latents.probes import EYES, MOUTH
from avdvae.protocols import Batch, LatentModel
from avdvae.signals.metrics import psnr, ssim

ROUNDS = 5
REGIONS = {"mouth": MOUTH, "eyes": EYES}


class Denoising:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not isinstance(subject.model, LatentModel) or "face" not in subject.model.sees:
            raise UserError(f"task denoising: {type(subject.model).__name__} encodes no faces: give exp=mdvae")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("denoising")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured = Measured()
        for utterance in subject.items(part).utterances:
            batch = next(iter(subject.loader(subject.corpus.only([utterance]))))
            face, frames = batch.need("face", subject.model), batch.mask.shape[1]
            span, scores = slice(frames // 3, 2 * frames // 3), dict[str, float]()
            deaf = replace(batch, power=_averaged(batch.need("power", subject.model), span))
            for name, region in REGIONS.items():
                guess = interpolated(face, span, region)
                shown = {"": restored(subject.model, replace(batch, face=guess), span, region)}
                shown["_deaf"] = restored(subject.model, replace(deaf, face=guess), span, region)
                shown["_interpolated"] = guess
                for how, pictures in shown.items():
                    true, made = (p[0, span, *region].movedim(-1, 1).cpu() / 255 for p in (face, pictures))
                    scores |= {f"psnr_{name}{how}": psnr(true, made), f"ssim_{name}{how}": ssim(true, made)}
            measured.rows += subject.rows(part, utterance.id, "", scores)
        return measured


def restored(model: LatentModel, batch: Batch, span: slice, region: tuple[slice, slice]) -> UInt8[Tensor, "B T H W 3"]:
    for _ in range(ROUNDS):
        decoded = model.decode(model.infer(batch, mode="mean").z, model.context(batch))["face"].expected[0]
        face = batch.need("face", model).clone()
        face[:, span, *region] = (255 * decoded[:, span, *region]).round().clamp(0, 255).byte()
        batch = replace(batch, face=face)
    return batch.need("face", model)


def interpolated(
    face: UInt8[Tensor, "B T H W 3"], span: slice, region: tuple[slice, slice]
) -> UInt8[Tensor, "B T H W 3"]:
    """The region, interpolated over the span."""
    guess = face.clone()
    before, after = (face[:, t : t + 1, *region].float() for t in (max(span.start - 1, 0), span.stop))
    weight_T = torch.linspace(0, 1, span.stop - span.start + 2, device=face.device)[1:-1]
    guess[:, span, *region] = torch.lerp(before, after, weight_T[:, None, None, None]).round().byte()
    return guess


def _averaged(power_BTF: Tensor, span: slice) -> Tensor:
    averaged_BTF = power_BTF.clone()
    averaged_BTF[:, span] = power_BTF.mean(1, keepdim=True)
    return averaged_BTF
