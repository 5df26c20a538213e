"""VAE-MM: a switch, frame by frame, between a VAE that looks at the lips and one that does not.

M. Sadeghi, X. Alameda-Pineda, "Robust unsupervised audio-visual speech enhancement using a mixture of variational
autoencoders", ICASSP 2020 (arXiv 1911.03930).

    p(m_t = m) = pi_m        p(z^m_t | v_t), p(s_t | z^m_t, v_t, m_t = m): those of a trained A-VAE and a trained AV-VAE
    q(m, z | s, v) = prod_t r(m_t) q(z^m_t | s_t, v_t)
    ELBO = sum_t ln sum_m pi_m exp ELBO_m(s_t, v_t), at the best r(m_t), which is in proportion to the terms of this sum

Each component keeps its own latent and explores its own posterior, r(z | m), where the paper has one r(z) for both;
then the model with pi at 0 or 1 is one of its parts exactly, and a component that is off for a while finds its way
back. pi is learned from the utterance that is enhanced.

    s_t   speech spectrum          power_BTF holds |s_t|^2
    v_t   mouth crop               lips_BTHW; its features: context.video_BTM
    z^m   latents                  z_KBTL, named sound and both
    pi    prior of the switch      context.switch_B1M
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.nn.blocks import check_same_floor, keep_given
from avdvae.probability.distributions import Mixture
from avdvae.probability.objectives import Elbo, Schedule, mixture_elbo, responsibilities
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed


class VAEMM(nn.Module):
    observes: Observed = "power"
    sees: tuple[str, ...] = ("power", "lips")
    components = ("sound", "both")
    likelihood = Mixture

    def __init__(self, sound: FrameVAE, both: FrameVAE, pi: float | None = None):
        super().__init__()
        if pi is not None and not 0 <= pi <= 1:
            raise UserError(f"model.pi={pi}: give the share of frames of sound alone, from 0 to 1, or null to learn it")
        self.parts = nn.ModuleDict({"sound": sound, "both": both})
        self.latents = tuple(
            LatentSpec(name, part.latents[0].dim, rate=1, modality=part.latents[0].modality)
            for name, part in self._parts.items()
        )
        self.pi = pi

    @property
    def _parts(self) -> dict[str, FrameVAE]:
        return dict(self.parts.items())  # type: ignore[arg-type]

    def start_from(self, sound: FrameVAE, both: FrameVAE) -> None:
        check_same_floor(self.parts["sound"], sound)
        check_same_floor(self.parts["both"], both)
        self.parts = nn.ModuleDict({"sound": sound, "both": both})

    def context(self, batch: Batch) -> Context:
        batch.need("lips", self)
        video = self._parts["both"].video(batch)
        return Context(batch.mask, video, self.switch(batch), learns=self.pi is None)

    def switch(self, batch: Batch) -> Float[Tensor, "B S M"]:
        pi = 0.5 if self.pi is None else self.pi
        return torch.tensor([[[pi, 1 - pi]]], device=batch.mask.device).expand(len(batch.mask), -1, -1)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        for modality in self.sees:
            batch.need(modality, self)
        inferred = {name: part.infer(batch, k, mode) for name, part in self._parts.items()}
        z, q, p = ({name: getattr(i, kind)["z"] for name, i in inferred.items()} for kind in "zqp")
        return Inferred(z, q, p)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Mixture]:
        parts = tuple(part.decode({"z": z[name]}, context)["power"] for name, part in self._parts.items())
        assert context.switch is not None
        return {"power": self.likelihood(parts, self._log_priors(z, context), context.switch, context.mask)}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        return self._log_priors(z, context).sum(0)

    def _log_priors(self, z: Latents, context: Context) -> Float[Tensor, "M K B T"]:
        return torch.stack([part.log_prior({"z": z[name]}, context) for name, part in self._parts.items()])

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        drawn = {name: part.sample_prior(context, k)["z"] for name, part in self._parts.items()}
        return keep_given(given, drawn)

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        context = self.context(batch)
        assert context.switch is not None
        terms, log_pi_B1M = [part.terms(batch, context) for part in self._parts.values()], context.switch[:, :1].log()
        return mixture_elbo(list(self._parts), terms, responsibilities(terms, log_pi_B1M), log_pi_B1M, batch.mask)
