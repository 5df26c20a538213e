"""VAE-MM: a switch in each frame between a VAE of speech alone and a VAE conditioned on the lips.

M. Sadeghi, X. Alameda-Pineda, "Robust unsupervised audio-visual speech enhancement using a mixture of variational
autoencoders", ICASSP 2020 (arXiv 1911.03930).

    p(m_t = m) = pi_m        p(z^m_t | v_t), p(s_t | z^m_t, v_t, m_t = m): those of a trained A-VAE and a trained AV-VAE
    q(m, z | s, v) = prod_t r(m_t) q(z^m_t | s_t, v_t)
    ELBO = sum_t ln sum_m pi_m exp ELBO_m(s_t, v_t), at the best r(m_t), proportional to the terms of this sum

Each component keeps its own latent and its own posterior r(z | m), where the paper has one r(z) for both. So the model
with pi at 0 or 1 is exactly one of its components, and a component that was off for some frames can return. pi is
learned from the utterance that is enhanced.

    |s_t|^2   power spectrum         power_BTF
    v_t       mouth crop             lips_BTHW; its features: context.video_BTM
    m         component              components: sound, the A-VAE; both, the AV-VAE
    z^m       latents                z_KBTL, named sound and both
    pi        prior of the switch    context.switch_B1C
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.models.mixture_vae import MixtureVAE
from avdvae.nn.blocks import check_same_floor
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule, mixture_elbo, responsibilities
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, LatentSpec


class VAEMM(MixtureVAE):
    components = ("sound", "both")

    def __init__(
        self,
        sound: FrameVAE,
        both: FrameVAE,
        pi: float | None = None,  # prior probability of the A-VAE; null: learned from each utterance
    ):
        super().__init__()
        if pi is not None and not 0 <= pi <= 1:
            raise UserError(f"model.pi={pi}: give the probability of sound alone, from 0 to 1, or null to learn it")
        self.sound, self.both, self.pi = sound, both, pi
        self.latents = tuple(
            LatentSpec(name, vae.latents[0].dim, rate=1, modality=vae.latents[0].modality)
            for name, vae in self.vaes.items()
        )

    @property
    def vaes(self) -> dict[str, FrameVAE]:
        return {"sound": self.sound, "both": self.both}

    def start_from(self, sound: FrameVAE, both: FrameVAE) -> None:
        check_same_floor(self.sound, sound)
        check_same_floor(self.both, both)
        self.sound, self.both = sound, both

    def context(self, batch: Batch) -> Context:
        batch.need("lips", self)
        return replace(self.both.context(batch), switch=self.switch_prior(batch), learns=self.pi is None)

    def switch_prior(self, batch: Batch) -> Float[Tensor, "B S C"]:
        pi = 0.5 if self.pi is None else self.pi
        return torch.tensor([[[pi, 1 - pi]]], device=batch.mask.device).expand(len(batch.mask), -1, -1)

    def posteriors(self, batch: Batch, context: Context) -> dict[str, Gaussian]:
        batch.need("power", self)
        return {name: vae.posterior(batch, context) for name, vae in self.vaes.items()}

    def prior(self, name: str, context: Context) -> Gaussian:
        return self.vaes[name].prior(context)

    def component(self, name: str, z_KBTL: Float[Tensor, "K B T L"], context: Context) -> ComplexGaussian:
        return self.vaes[name].decode({"z": z_KBTL}, context)["power"]

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        context = self.context(batch)
        assert context.switch is not None
        terms, log_pi_B1C = [vae.terms(batch, context) for vae in self.vaes.values()], context.switch[:, :1].log()
        return mixture_elbo(self.components, terms, responsibilities(terms, log_pi_B1C), log_pi_B1C, batch.mask)
