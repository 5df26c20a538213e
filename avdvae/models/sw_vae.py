"""Sw-VAE: VAE-MM whose switch is a Markov chain.

M. Sadeghi, X. Alameda-Pineda, "Switching variational auto-encoders for noise-agnostic audio-visual speech enhancement",
ICASSP 2021 (arXiv 2102.04144).

    p(m_1) = lambda        p(m_t = j | m_{t-1} = i) = tau_ij        z and s given m: as in VAE-MM
    q(m, z | s, v) = r(m_1 .. m_T) prod_t q(z^m_t | s_t, v_t)        r by forward-backward
    ELBO = ln sum_{m_1 .. m_T} p(m_1 .. m_T) prod_t exp ELBO_m_t(s_t, v_t)

lambda and tau are learned from the utterance that is enhanced. Corrupted lips last for several frames, and the chain
models it. Training is that of VAE-MM, frame by frame.

    lambda, tau   prior of the switch    context.switch_BSC: lambda above the rows of tau

The other symbols are those of vae_mm.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae_mm import VAEMM
from avdvae.probability.mixture import MarkovMixture
from avdvae.protocols import Batch, Context


class SwVAE(VAEMM):
    likelihood = MarkovMixture

    def __init__(
        self,
        sound: FrameVAE,
        both: FrameVAE,
        stay: float = 0.9,  # initial probability that the switch keeps its component
        learn: bool = True,  # the switch's prior, from each utterance
    ):
        super().__init__(sound, both)
        if not 0 < stay < 1:
            raise UserError(f"model.stay={stay}: give the probability that the switch stays, between 0 and 1")
        self.stay, self.learn = stay, learn

    def context(self, batch: Batch) -> Context:
        return replace(super().context(batch), learns=self.learn)

    def switch_prior(self, batch: Batch) -> Float[Tensor, "B S C"]:
        rows = [[0.5, 0.5], [self.stay, 1 - self.stay], [1 - self.stay, self.stay]]
        return torch.tensor([rows], device=batch.mask.device).expand(len(batch.mask), -1, -1)
