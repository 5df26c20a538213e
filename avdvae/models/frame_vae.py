"""The base of VAEs with one Gaussian latent per frame and no dependence between frames.

    p(s, z | v) = prod_t p(s_t | z_t, v_t) p(z_t | v_t)        q(z | s, v) = prod_t q(z_t | s_t, v_t)
    ELBO = sum_t E_q[ln p(s_t | z_t, v_t)] - KL(q(z_t | s_t, v_t) || p(z_t | v_t))

A subclass gives `posterior` and `decode`; `video` and `prior` if it is conditioned on the lips.

    s   speech spectrum, given by its power |s|^2    power_BTF
    v   features of the lips                         video: context.video_BTM
    z   latent                                       z_KBTL
    q   posterior of z                               posterior: Gaussian, B T L
    p   prior of z, and likelihood of s              prior: Gaussian, B T L; decode: ComplexGaussian, K B T F
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.nn.blocks import keep_given
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed


class FrameVAE(nn.Module):
    observes: Observed = "power"
    sees: tuple[str, ...] = ("power",)
    can_miss: tuple[str, ...] = ()
    floor: float | None = None  # of the power, for `encoder_input`

    def __init__(self, dim: int, modality: Literal["audio", "audio-visual", "motion"] = "audio"):
        super().__init__()
        self.latents = (LatentSpec("z", dim, rate=1, modality=modality),)

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        """q(z | s, v)"""
        raise NotImplementedError

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Mapping[str, Any]:
        """p(s | z, v)"""
        raise NotImplementedError

    def video(self, batch: Batch) -> Float[Tensor, "B T M"] | None:
        """v"""
        return None

    def prior(self, context: Context) -> Gaussian:
        """p(z | v), here N(0, I)"""
        return Gaussian.standard(*context.mask.shape, self.latents[0].dim, like=context.mask)

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, self.video(batch))

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        context = self.context(batch)
        q = self.posterior(batch, context)
        return Inferred({"z": q.draw(k, mode)}, {"z": q}, {"z": self.prior(context)})

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        return self.prior(context).log_prob(z["z"])

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        return keep_given(given, {"z": self.prior(context).sample(k)})

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        return self.elbo(batch, self.context(batch))

    def terms(self, batch: Batch, context: Context) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """E_q[ln p(s_t | z_t, v_t)] and KL(q || p), the two terms of the bound in each frame."""
        q = self.posterior(batch, context)
        return self.log_likelihood({"z": q.sample()}, context, batch), q.kl(self.prior(context))

    def elbo(self, batch: Batch, context: Context) -> Elbo:
        log_likelihood_BT, kl_BT = self.terms(batch, context)
        return Elbo(
            recon={self.observes: (log_likelihood_BT * batch.mask).sum(1)},
            kl={"z": (kl_BT * batch.mask).sum(1)},
            n=batch.mask.sum(1).float(),
        )

    def log_likelihood(self, z: Latents, context: Context, batch: Batch) -> Float[Tensor, "B T"]:
        """The mean of ln p(s_t | z_t, v_t) over the draws of z."""
        return self.decode(z, context)[self.observes].log_prob(batch.need(self.observes, self)).mean(0)
