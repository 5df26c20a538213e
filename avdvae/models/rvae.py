"""RVAE: independent latents, from all of which, or from those so far, a recurrent network makes the speech.

S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "A recurrent variational autoencoder for speech enhancement",
ICASSP 2020 (arXiv 1910.10942).

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_1:t)) N(z_t; 0, I)        causal;    sigma(z_1:T) otherwise
    q(z | x) = prod_t N(z_t; mu, diag var (z_1:t-1, x_t:T))       causal;    (z_1:t-1, x_1:T) otherwise
    ELBO: dynamical_vae.py

Causal is how the sound is made; to infer its latents takes the future in both.

    x_t   speech spectrum                power_KBTF holds |x_t|^2
    z_t   latent                         z_KBTL
    g_t   what is heard of x at t        g_KBTM
    h_t   what is kept of z_1:t-1        h_NM, draws and utterances in one axis
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import GaussianHead, Recurrent
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE, along
from avdvae.protocols import Context, Latents


class RVAE(DynamicalVAE):
    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16, causal: bool = True):
        super().__init__(dim)
        sides = 1 if causal else 2
        self.hear = Recurrent(frequencies, hidden, "backward" if causal else "both")
        self.remember = nn.LSTMCell(dim, hidden)
        self.head = GaussianHead((sides + 1) * hidden, dim)
        self.speak = Recurrent(dim, hidden, "forward" if causal else "both")
        self.out = nn.Linear(sides * hidden, frequencies)

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        g_KBTM, state = self.hear(power_KBTF, context.mask), None

        def step(g_NM: Tensor, z_NL: Tensor) -> Gaussian:
            nonlocal state
            state = self.remember(z_NL, state)
            return self.head(torch.cat([g_NM, state[0]], -1))

        return along(g_KBTM, step, draw, self.latents[0].dim)

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.out(self.speak(z["z"], context.mask))
