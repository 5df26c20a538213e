"""Inpainting: frames in the middle of an utterance are hidden, and a model that denoises fills them in.

GAP seconds of sound are in none of the frames that remain. The score is the log-spectral distance of one draw,
sqrt(mean_f (10 log10 P_f / P'_f)^2) on average over the hidden frames. The baseline, `interpolated`, is the line
between the log-spectra of the frames before and after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.enhancement.contract import RandomNumbers
from avdvae.enhancement.denoising import DRAWING
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.protocols import Denoises
from avdvae.signals.audio import WINDOW
from avdvae.signals.clock import RATE

GAP = 0.2  # seconds
FLOOR = 1e-3  # of powers, in their logarithm


class Inpainting:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not isinstance(subject.model, Denoises):
            name = type(subject.model).__name__
            raise UserError(f"task inpainting: {name} does not denoise spectra: give exp=denoiser, flow or av_denoiser")
        if wrong := {*subject.states} - {"", "clean", "none"}:
            raise UserError(f"task inpainting, evaluate.lips=[{', '.join(sorted(wrong))}]: give clean, none or both")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("inpainting")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, count = Measured(), (round(GAP * RATE) + WINDOW) // subject.stft.hop + 1
        for utterance in subject.items(part).utterances:
            batch = next(iter(subject.loader(subject.corpus.only([utterance]))))
            true_BTF, frames = batch.need("spectrum", subject.model), batch.mask.shape[1]
            if frames < count + 2:
                continue
            first = (frames - count) // 2
            hidden_T = torch.zeros(frames, dtype=torch.bool, device=true_BTF.device)
            hidden_T[first : first + count] = True
            power_TF = true_BTF[0].abs().square()
            line_TF = interpolated(power_TF[first - 1], power_TF[first + count], count)
            for lips in subject.states:
                context = subject.model.context(batch if lips != "none" else replace(batch, lips=None))
                random = RandomNumbers.seeded(batch.ids, [frames], subject.settings.seed)
                filled_BTF = DRAWING.fill(subject.model, true_BTF, hidden_T, context, random)
                found_TF = filled_BTF[0, hidden_T].abs().square()
                scores = {"log_spectral_distance": distance(power_TF[hidden_T], found_TF)}
                scores["log_spectral_distance_interpolated"] = distance(power_TF[hidden_T], line_TF)
                measured.rows += subject.rows(part, utterance.id, lips, scores)
                if utterance.id in subject.shown:
                    assert batch.waveform is not None and batch.lengths is not None
                    length = int(batch.lengths[0])
                    signals = {
                        name: subject.stft.synthesise(spectrum, length)[0].cpu().numpy()
                        for name, spectrum in (
                            ("clean", true_BTF),
                            ("with a gap", true_BTF * ~hidden_T[:, None]),
                            ("filled", filled_BTF),
                        )
                    }
                    measured.examples.append(subject.example(part, utterance.id, lips, signals, scores))
        return measured


def interpolated(before_F: Tensor, after_F: Tensor, count: int) -> Float[Tensor, "T F"]:
    weight_T1 = torch.linspace(0, 1, count + 2, device=before_F.device)[1:-1, None]
    return torch.lerp((before_F + FLOOR).log(), (after_F + FLOOR).log(), weight_T1).exp()


def distance(true_TF: Float[Tensor, "T F"], found_TF: Float[Tensor, "T F"]) -> float:
    decibels_TF = 10 * ((true_TF + FLOOR) / (found_TF + FLOOR)).log10()
    return decibels_TF.square().mean(1).sqrt().mean().item()
