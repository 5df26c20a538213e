"""MVAE: one latent of sound and lips, inferred from either or both by a product of experts; and mixtures of these.

M. Wu, N. Goodman, "Multimodal generative models for scalable weakly-supervised learning", NeurIPS 2018 (poe);
Y. Shi et al., "Variational mixture-of-experts autoencoders", NeurIPS 2019 (moe); T. Sutter, I. Daunhawer, J. Vogt,
"Generalized multimodal ELBO", ICLR 2021 (mopoe).

    p(z_t) = N(0, I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))        p(v_t | z_t) = N(mu(z_t), var I)
    q_A(z_t | .) proportional to p(z_t) prod_{m in A} q_m(z_t | m), for a subset A of {sound, lips}
    ELBO = mean over some subsets A of E_q_A[ln p(s_t | z_t) + ln p(v_t | z_t)] - KL(q_A || p(z_t))

The subsets are both for poe, sound and lips for moe, and all three for mopoe. In training, poe adds the bounds of each
modality alone, and the many pixels have a smaller weight. A missing modality is left out of the product. With lips, the
prior in enhancement is q_lips, in place of p(z | v).

    |s_t|^2    power spectrum           power_BTF
    v_t        mouth crop               lips_BTHW, standardised
    z_t        latent                   z_KBTL
    q_sound    expert of the sound      audio_encoder: Gaussian, B T L
    q_lips     expert of the lips       visual_encoder: Gaussian, B T L
    q_A        product of experts       posterior_given: Gaussian, B T L; that of the lips: context.video_BTM
    sigma      variance of speech       audio_decoder: exp(log_var_KBTF)
    mu, var    of the pixels            visual_decoder: K B T P; exp(pixel_log_var)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_floor, encoder_input, mlp, standardised
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents

SUBSETS = {"poe": ("both",), "moe": ("sound", "lips"), "mopoe": ("sound", "lips", "both")}


class MVAE(FrameVAE):
    sees = ("power", "lips")
    can_miss: tuple[str, ...] = ("power", "lips")  # either, not both

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,  # of the hidden units of the lip encoder
        joint: str = "poe",  # or moe, mopoe
        lips_weight: float = 0.1,  # of ln p(v | z) in the loss
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(dim, "audio-visual")
        if joint not in SUBSETS:
            raise UserError(f"model.joint={joint}: choose from {', '.join(SUBSETS)}")
        check_floor(self.observes, floor)
        self.joint, self.lips_weight, self.floor = joint, lips_weight, floor
        self.audio_encoder = nn.Sequential(*mlp([frequencies, hidden], nn.Tanh), GaussianHead(hidden, dim))
        lip_encoder = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.visual_encoder = nn.Sequential(lip_encoder, nn.Tanh(), GaussianHead(hidden, dim))
        self.audio_decoder = nn.Sequential(*mlp([dim, hidden], nn.Tanh), nn.Linear(hidden, frequencies))
        self.visual_decoder = nn.Sequential(*mlp([dim, hidden, 4 * hidden], nn.ReLU), nn.Linear(4 * hidden, pixels))
        self.pixel_log_var = nn.Parameter(torch.zeros(1))

    def video(self, batch: Batch) -> Float[Tensor, "B T M"] | None:
        if batch.lips is None:
            return None
        q = self.posterior_given("lips", batch)
        return torch.cat([q.mean, q.log_var], -1)

    def prior(self, context: Context) -> Gaussian:
        return super().prior(context) if context.video is None else Gaussian(*context.video.chunk(2, -1))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        subset = "sound" if batch.lips is None else "lips" if batch.power is None else "both"
        return self.posterior_given(subset, batch)

    def posterior_given(self, subset: str, batch: Batch) -> Gaussian:
        """q_A, for sound, lips or both."""
        experts = []
        if subset != "lips":
            experts.append(self.audio_encoder(encoder_input(batch.need("power", self), self.floor)))
        if subset != "sound":
            experts.append(self.visual_encoder(batch.need("lips", self)))
        return product_of_experts(experts)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        return {"power": ComplexGaussian(self.audio_decoder(z["z"]))}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        standard, n = Gaussian.standard(self.latents[0].dim, like=batch.mask), batch.mask.sum(1).float()
        computed = ("sound", "lips") if self.joint == "moe" else ("sound", "lips", "both")
        bounds = {subset: self._terms(batch, self.posterior_given(subset, batch), standard) for subset in computed}
        averaged = [bounds[subset] for subset in SUBSETS[self.joint]]
        sound_B, lips_B, kl_B = (torch.stack(terms).mean(0) for terms in zip(*averaged, strict=True))
        aux = {"pixels": (self.lips_weight - 1) * lips_B}
        if self.joint == "poe":
            (sound, _, kl_sound), (_, lips, kl_lips) = bounds["sound"], bounds["lips"]
            beta = schedule.beta
            aux["alone"] = sound - beta * kl_sound + self.lips_weight * (lips - beta * kl_lips)
        return Elbo(recon={"power": sound_B, "lips": lips_B}, kl={"z": kl_B}, n=n, aux=aux)

    def _terms(self, batch: Batch, q: Gaussian, prior: Gaussian) -> tuple[Tensor, Tensor, Tensor]:
        """E_q[ln p(s | z)], E_q[ln p(v | z)] and KL(q || p) of each utterance."""
        sound_BT, lips_BT = (terms[0] for terms in self._log_likelihoods(batch, q.sample()))
        return tuple((terms * batch.mask).sum(1) for terms in (sound_BT, lips_BT, q.kl(prior)))  # type: ignore[return-value]

    def _log_likelihoods(self, batch: Batch, z_KBTL: Tensor) -> tuple[Float[Tensor, "K B T"], Float[Tensor, "K B T"]]:
        pixels_BTP = standardised(batch.need("lips", self))
        sound = ComplexGaussian(self.audio_decoder(z_KBTL))
        lips = Gaussian.floored(self.visual_decoder(z_KBTL), self.pixel_log_var)
        return sound.log_prob(batch.need("power", self)), lips.log_prob(pixels_BTP)

    @torch.no_grad()
    def log_joint_likelihood(self, batch: Batch, samples: int = 1000, chunk: int = 20) -> Float[Tensor, "B T"]:
        """ln p(s_t, v_t), by importance sampling from the posterior given both."""
        q, standard = self.posterior_given("both", batch), Gaussian.standard(self.latents[0].dim, like=batch.mask)
        weights = []
        for first in range(0, samples, chunk):
            z_KBTL = q.sample(min(chunk, samples - first))
            log_joint_KBT = sum(self._log_likelihoods(batch, z_KBTL)) + standard.log_prob(z_KBTL)
            weights.append(log_joint_KBT - q.log_prob(z_KBTL))
        return torch.cat(weights).logsumexp(0) - math.log(samples)


def product_of_experts(experts: Sequence[Gaussian]) -> Gaussian:
    """The normalised product of the experts and of N(0, I)."""
    log_precisions = torch.stack([-expert.log_var for expert in experts])
    log_var = -torch.cat([torch.zeros_like(log_precisions[:1]), log_precisions]).logsumexp(0)
    weights = (log_precisions + log_var).exp()
    return Gaussian((weights * torch.stack([expert.mean for expert in experts])).sum(0), log_var)
