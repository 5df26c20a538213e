"""SRNN: a deterministic state that hears the past of the speech, and on top of it a chain of latents.

M. Fraccaro, S. K. Sønderby, U. Paquet, O. Winther, "Sequential neural models with stochastic layers", NeurIPS 2016
(arXiv 1605.07571); for speech, Girin et al. (see dynamical_vae.py), section 9.

    h_t = LSTM(h_t-1; x_t-1)
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t, z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (g_t, z_t-1)),  where g_t hears h_t:T and x_t:T from the end on
    ELBO: dynamical_vae.py

    x_t   speech spectrum     power_KBTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
    h_t   state               h_BTM
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import GaussianHead, Recurrent, before, mlp
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE, along
from avdvae.protocols import Context, Latents


class SRNN(DynamicalVAE):
    hears_the_past = True

    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16):
        super().__init__(dim)
        self.listen = mlp([frequencies, 2 * hidden], nn.Tanh)
        self.remember = Recurrent(2 * hidden, hidden)
        self.hear = mlp([hidden + frequencies, 2 * hidden], nn.Tanh)
        self.hear_on = Recurrent(2 * hidden, hidden, "backward")
        self.q_head = nn.Sequential(*mlp([hidden + dim, 64, 32], nn.Tanh), GaussianHead(32, dim))
        self.p_head = nn.Sequential(*mlp([hidden + dim, 64, 32], nn.Tanh), GaussianHead(32, dim))
        self.out = nn.Sequential(*mlp([hidden + dim, 2 * hidden], nn.Tanh), nn.Linear(2 * hidden, frequencies))

    def _state(self, context: Context, like: Tensor) -> Float[Tensor, "K B T M"]:
        assert context.past is not None
        return self.remember(self.listen(before(context.past)), context.mask).expand(len(like), -1, -1, -1)

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        heard_KBTM = self.hear(torch.cat([self._state(context, power_KBTF), power_KBTF], -1))

        def step(g_NM: Tensor, z_NL: Tensor) -> Gaussian:
            return self.q_head(torch.cat([g_NM, z_NL], -1))

        return along(self.hear_on(heard_KBTM, context.mask), step, draw, self.latents[0].dim)

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.p_head(torch.cat([self._state(context, z["z"]), before(z["z"])], -1))}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.out(torch.cat([self._state(context, z["z"]), z["z"]], -1))
