"""MVAE: one latent of sound and lips, inferred from either or both by a product of experts; and its mixtures.

M. Wu, N. Goodman, "Multimodal generative models for scalable weakly-supervised learning", NeurIPS 2018 (poe);
Y. Shi et al., "Variational mixture-of-experts autoencoders", NeurIPS 2019 (moe); T. Sutter, I. Daunhawer, J. Vogt,
"Generalized multimodal ELBO", ICLR 2021 (mopoe).

    p(z_t) = N(0, I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))        p(v_t | z_t) = N(mu(z_t), var I)
    q_A(z_t | .) in proportion to p(z_t) prod_{m in A} q_m(z_t | m), for a set A of {sound, lips}
    ELBO = mean over the sets A of a family of E_q_A[ln p(s_t | z_t) + ln p(v_t | z_t)] - KL(q_A || p(z_t))

The family is {both} for poe, {sound}, {lips} for moe, and all three for mopoe. In training, poe adds the bounds of
each modality by itself, and the pixels, of which there are many, count less. What is missing is no expert. Where the
lips are seen, the prior of enhancement is q_lips, which stands for p(z | v).

    s_t   speech spectrum    power_BTF holds |s_t|^2
    v_t   mouth crop         lips_BTHW, standardised; mean and log-variance of q_lips: context.video_BTM
    z_t   latent             z_KBTL
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_floor, encoder_input, keep_given, mlp, standardised
from avdvae.probability.distributions import ComplexGaussian, Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed

FAMILIES = {"poe": ("both",), "moe": ("sound", "lips"), "mopoe": ("sound", "lips", "both")}


class MVAE(nn.Module):
    observes: Observed = "power"
    sees: tuple[str, ...] = ("power", "lips")
    can_miss = ("power", "lips")  # either, not both

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,
        joint: str = "poe",
        lips_weight: float = 0.1,  # of ln p(v | z) in the loss
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__()
        if joint not in FAMILIES:
            raise UserError(f"model.joint={joint}: choose from {', '.join(FAMILIES)}")
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio-visual"),)
        check_floor(self.observes, floor)
        self.joint, self.lips_weight, self.floor = joint, lips_weight, floor
        self.hear = nn.Sequential(*mlp([frequencies, hidden], nn.Tanh), GaussianHead(hidden, dim))
        look = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.look = nn.Sequential(look, nn.Tanh(), GaussianHead(hidden, dim))
        self.speak = nn.Sequential(*mlp([dim, hidden], nn.Tanh), nn.Linear(hidden, frequencies))
        self.draw = nn.Sequential(*mlp([dim, hidden, 4 * hidden], nn.ReLU), nn.Linear(4 * hidden, pixels))
        self.pixel_log_var = nn.Parameter(torch.zeros(1))

    def context(self, batch: Batch) -> Context:
        if batch.lips is None:
            return Context(batch.mask)
        q = product([self.look(batch.lips)])
        return Context(batch.mask, torch.cat([q.mean, q.log_var], -1))

    def prior(self, context: Context) -> Gaussian:
        if context.video is None:
            return Gaussian.standard(*context.mask.shape, self.latents[0].dim, like=context.mask)
        return Gaussian(*context.video.chunk(2, -1))

    def posterior(self, batch: Batch, family: str) -> Gaussian:
        """q of a set: sound, lips or both."""
        heard = [] if family == "lips" else [self.hear(encoder_input(batch.need("power", self), self.floor))]
        return product([*heard, *([self.look(batch.need("lips", self))] if family != "sound" else [])])

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        q = self.posterior(batch, "sound" if batch.lips is None else "lips" if batch.power is None else "both")
        z = q.sample(k) if mode == "sample" else q.mean.expand(k, *q.mean.shape)
        return Inferred({"z": z}, {"z": q}, {"z": self.prior(self.context(batch))})

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        return {"power": ComplexGaussian(self.speak(z["z"]))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        return self.prior(context).log_prob(z["z"])

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        return keep_given(given, {"z": self.prior(context).sample(k)})

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        standard, n = Gaussian.standard(self.latents[0].dim, like=batch.mask), batch.mask.sum(1).float()
        sets = ("sound", "lips") if self.joint == "moe" else ("sound", "lips", "both")
        bounds = {name: self._terms(batch, self.posterior(batch, name), standard) for name in sets}
        family = [bounds[name] for name in FAMILIES[self.joint]]
        sound_B, lips_B, kl_B = (torch.stack(terms).mean(0) for terms in zip(*family, strict=True))
        aux = {"pixels": (self.lips_weight - 1) * lips_B}
        if self.joint == "poe":
            (sound, _, kl_sound), (_, lips, kl_lips) = bounds["sound"], bounds["lips"]
            beta = schedule.beta
            aux["alone"] = sound - beta * kl_sound + self.lips_weight * (lips - beta * kl_lips)
        return Elbo(recon={"power": sound_B, "lips": lips_B}, kl={"z": kl_B}, n=n, aux=aux)

    def _terms(self, batch: Batch, q: Gaussian, prior: Gaussian) -> tuple[Tensor, Tensor, Tensor]:
        sound_BT, lips_BT = (terms[0] for terms in self._log_likelihoods(batch, q.sample()))
        return tuple((terms * batch.mask).sum(1) for terms in (sound_BT, lips_BT, q.kl(prior)))  # type: ignore[return-value]

    def _log_likelihoods(self, batch: Batch, z_KBTL: Tensor) -> tuple[Float[Tensor, "K B T"], Float[Tensor, "K B T"]]:
        pixels_BTP = standardised(batch.need("lips", self))
        drawn = Gaussian.floored(self.draw(z_KBTL), self.pixel_log_var)
        return ComplexGaussian(self.speak(z_KBTL)).log_prob(batch.need("power", self)), drawn.log_prob(pixels_BTP)

    @torch.no_grad()
    def log_joint_likelihood(self, batch: Batch, draws: int = 1000, chunk: int = 20) -> Float[Tensor, "B T"]:
        """ln p(s_t, v_t), by importance sampling from the posterior given both."""
        q, standard = self.posterior(batch, "both"), Gaussian.standard(self.latents[0].dim, like=batch.mask)
        weights = []
        for first in range(0, draws, chunk):
            z_KBTL = q.sample(min(chunk, draws - first))
            log_joint_KBT = sum(self._log_likelihoods(batch, z_KBTL)) + standard.log_prob(z_KBTL)
            weights.append(log_joint_KBT - q.log_prob(z_KBTL))
        return torch.cat(weights).logsumexp(0) - math.log(draws)


def product(experts: Sequence[Gaussian]) -> Gaussian:
    """Of the experts and of N(0, I)."""
    log_precisions = torch.stack([-expert.log_var for expert in experts])
    log_var = -torch.cat([torch.zeros_like(log_precisions[:1]), log_precisions]).logsumexp(0)
    weights = (log_precisions + log_var).exp()
    return Gaussian((weights * torch.stack([expert.mean for expert in experts])).sum(0), log_var)
