"""Calibration: do intervals of posterior draws contain the clean power as often as they should?

Clean utterances are encoded, and K = 20 draws of the latents decoded; the past of autoregressive models is their own
output. Given a draw z_k, the power |s|^2 of a bin of the STFT is exponential with mean sigma^2(z_k), so that

    u = sum_k w_k (1 - exp(-|s|^2 / sigma^2(z_k)))

is the cumulative probability of the observed power, with w_k = 1 / K; a mixture of models has K draws of each
component, weighted by the posterior of the switch. Of a calibrated model, u is uniform over the bins.

coverage_50, _90, _95   share of the bins in the central interval of probability p, |u - 1/2| <= p / 2: it should be p
calibration_error       mean of |F(u) - u| over the bins, F(u) the share of bins with no higher u: it should be 0
..._loud, ..._quiet     of the tenth of an utterance's bins with the highest mean sum_k w_k sigma^2(z_k), and of the
                        others. Bins chosen by the observed power would have a high u under any model
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.latents.resynthesis import decode_free_running
from avdvae.probability.spectrum import Components
from avdvae.protocols import is_speech_prior

DRAWS = 20
LEVELS = (50, 90, 95)  # %
LOUD = 0.1  # of the bins


class Calibration:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not is_speech_prior(subject.model):
            raise UserError(
                f"{type(subject.model).__name__} has no draws of latents that power spectra are decoded from: choose "
                "another task, or a model that is a protocols.SpeechPrior"
            )

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("calibration")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, model = Measured(), subject.model
        lips = "clean" if "lips" in model.sees else ""
        torch.manual_seed(subject.settings.seed)
        for batch in subject.loader(subject.items(part)):
            power_BTF, inferred = batch.need("power", model), model.infer(batch, DRAWS)
            likelihood = decode_free_running(model, inferred.z, model.context(batch))["power"]
            components = likelihood.drawn(inferred.z, inferred.q).components(power_BTF)
            u_BTF, mean_BTF = cumulative(components, power_BTF), components.mean()
            for item, mask_T, u_TF, mean_TF in zip(batch.ids, batch.mask, u_BTF, mean_BTF, strict=True):
                scores = scores_of(u_TF[mask_T].flatten(), mean_TF[mask_T].flatten())
                measured.rows += subject.rows(part, item, lips, scores)
        return measured


def cumulative(components: Components, power_BTF: Float[Tensor, "B T F"]) -> Float[Tensor, "B T F"]:
    """u"""
    each_RBTF = -torch.expm1(-power_BTF * components.precision)
    return each_RBTF.mean(0) if components.weight is None else (components.weight * each_RBTF).sum(0)


def scores_of(u_N: Float[Tensor, " N"], mean_N: Float[Tensor, " N"]) -> dict[str, float]:
    """Of N bins."""
    order_N = mean_N.argsort(descending=True)
    loud = round(LOUD * len(order_N))
    scores = {}
    for suffix, chosen in (("", order_N), ("_loud", order_N[:loud]), ("_quiet", order_N[loud:])):
        u = u_N[chosen].double().sort().values
        share = torch.arange(1, len(u) + 1, device=u.device) / len(u)
        scores[f"calibration_error{suffix}"] = (share - u).abs().mean().item()
        for level in LEVELS:
            inside = (u - 0.5).abs() <= level / 200
            scores[f"coverage_{level}{suffix}"] = 100 * inside.double().mean().item()
    return scores
