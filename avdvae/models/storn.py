"""STORN: independent latents, which drive a recurrent network that also hears its own past.

J. Bayer, C. Osendorfer, "Learning stochastic recurrent networks", 2014 (arXiv 1411.7610); for speech, Girin et al. (see
dynamical_vae.py), section 7.

    p(x, z) = prod_t Nc(x_t; 0, sigma(x_1:t-1, z_1:t)) N(z_t; 0, I)
    q(z | x) = prod_t N(z_t; mu, diag var (x_1:t))
    ELBO: dynamical_vae.py

    x_t   speech spectrum     power_KBTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import GaussianHead, Recurrent, before, mlp
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE
from avdvae.protocols import Context, Latents


class STORN(DynamicalVAE):
    hears_the_past = True

    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16):
        super().__init__(dim)
        self.listen = mlp([frequencies, 2 * hidden], nn.Tanh)
        self.hear = Recurrent(2 * hidden, hidden)
        self.head = nn.Sequential(*mlp([hidden, 64, 32], nn.Tanh), GaussianHead(32, dim))
        self.want = mlp([dim, 32, 64], nn.Tanh)
        self.listen_back = mlp([frequencies, 2 * hidden], nn.Tanh)
        self.speak = Recurrent(2 * hidden + 64, hidden)
        self.out = nn.Sequential(*mlp([hidden, 2 * hidden], nn.Tanh), nn.Linear(2 * hidden, frequencies))

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        q = self.head(self.hear(self.listen(power_KBTF), context.mask))
        return {"z": draw(q)}, {"z": q}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        assert context.past is not None
        past_KBTM = self.listen_back(before(context.past)).expand(len(z["z"]), -1, -1, -1)
        return self.out(self.speak(torch.cat([self.want(z["z"]), past_KBTM], -1), context.mask))
