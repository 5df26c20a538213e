"""What the dynamical VAEs of speech share: latents z_1:T that depend on each other, on the past of the sound, or both.

L. Girin, S. Leglaive, X. Bie, J. Diard, T. Hueber, X. Alameda-Pineda, "Dynamical variational autoencoders: a
comprehensive review", Foundations and Trends in Machine Learning 15, 2021 (arXiv 2008.12595).

    ELBO = sum_t E_q[ln p(x_t | z_1:T, x_1:t-1)] - E_q[KL(q(z_t | z_1:t-1, x_1:T) || p(z_t | z_1:t-1, x_1:t-1))]

with one draw of z_1:T; the divergences are those along its path. Not to be used itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.distributions import ComplexGaussian, Gaussian
from avdvae.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec

Draw = Callable[[Gaussian], Tensor]  # one value of a distribution, random or its mean


class DynamicalVAE(nn.Module):
    sees: tuple[str, ...] = ("power",)
    hears_the_past = False

    def __init__(self, dim: int):
        super().__init__()
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio"),)

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        """Latents drawn one after another, and the q of each on the way."""
        raise NotImplementedError

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        """p of each latent on the path z, here N(0, I)."""
        return {name: Gaussian.standard(*value.shape, like=value) for name, value in z.items()}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        raise NotImplementedError

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, past=batch.power if self.hears_the_past else None)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        power_BTF, context = batch.need("power", self), self.context(batch)
        draw: Draw = (lambda q: q.sample()[0]) if mode == "sample" else (lambda q: q.mean)
        z, q = self.posterior(power_BTF.expand(k, -1, -1, -1), context, draw)
        return Inferred(z, q, self.prior(z, context))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        if feedback is not None and self.hears_the_past:
            context = replace(context, past=feedback)
        return {"power": ComplexGaussian(self.log_variance(z, context))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        """That of a latent of the whole utterance is spread evenly over the frames."""
        share_BT = context.mask / context.mask.sum(1, keepdim=True)
        log_p = {name: p.log_prob(z[name]) for name, p in self.prior(z, context).items()}
        return sum((log_p[s.name] * share_BT if s.rate is None else log_p[s.name] for s in self.latents), 0 * share_BT)

    def sample_prior(self, context: Context, k: int = 1) -> Latents:
        """One frame after another, each from the prior that those before it give."""
        utterances, frames = context.mask.shape
        lengths = {spec.name: 1 if spec.rate is None else frames for spec in self.latents}
        sizes = {spec.name: (k, utterances, lengths[spec.name], spec.dim) for spec in self.latents}
        z = {name: torch.zeros(size, device=context.mask.device) for name, size in sizes.items()}
        for t in range(frames):
            for name, p in self.prior(z, context).items():
                if t < lengths[name]:
                    z[name][:, :, t] = p.sample()[0][:, :, t]
        return z

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        inferred, context = self.infer(batch), self.context(batch)
        likelihood_BT = self.decode(inferred.z, context)["power"].log_prob(batch.need("power", self)).mean(0)
        kl = {name: q.kl(inferred.p[name]).mean(0) for name, q in inferred.q.items()}
        return Elbo(
            recon={"power": (likelihood_BT * batch.mask).sum(1)},
            kl={s.name: (kl[s.name] if s.rate is None else kl[s.name] * batch.mask).sum(1) for s in self.latents},
            n=batch.mask.sum(1).float(),
        )


def along(
    told_KBTM: Float[Tensor, "K B T M"], step: Callable[[Tensor, Tensor], Gaussian], draw: Draw, dim: int
) -> tuple[Latents, Mapping[str, Gaussian]]:
    """z_t drawn from step(what is told at t, z_{t-1}), one after another from z_0 = 0.

    For `step`, draws and utterances are in one axis."""
    z_NL = torch.zeros(told_KBTM.shape[0] * told_KBTM.shape[1], dim, device=told_KBTM.device)
    path, on_the_way = [], []
    for told_NM in told_KBTM.flatten(end_dim=1).unbind(1):
        q = step(told_NM, z_NL)
        z_NL = draw(q)
        path.append(z_NL)
        on_the_way.append(q)

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, 1).unflatten(0, told_KBTM.shape[:2])

    q = Gaussian(stacked([q.mean for q in on_the_way]), stacked([q.log_var for q in on_the_way]))
    return {"z": stacked(path)}, {"z": q}
