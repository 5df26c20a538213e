"""VRNN: everything depends on all of the past, of the speech and of the latents, through one recurrent state.

J. Chung et al., "A recurrent latent variable model for sequential data", NeurIPS 2015 (arXiv 1506.02216); for speech,
Girin et al. (see dynamical_vae.py), section 8.

    h_t = LSTM(h_t-1; x_t-1, z_t-1)
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t))
    q(z | x) = prod_t N(z_t; mu, diag var (h_t, x_t))
    ELBO: dynamical_vae.py

    x_t   speech spectrum     power_KBTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
    h_t   state               h_KBTM
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import GaussianHead, before, mlp
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE, along
from avdvae.protocols import Context, Latents


class VRNN(DynamicalVAE):
    hears_the_past = True

    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16):
        super().__init__(dim)
        self.listen = mlp([frequencies, 2 * hidden], nn.Tanh)
        self.want = mlp([dim, 32, 64], nn.Tanh)
        self.remember = nn.LSTM(2 * hidden + 64, hidden, batch_first=True)
        self.q_head = GaussianHead(3 * hidden, dim)
        self.p_head = GaussianHead(hidden, dim)
        self.out = nn.Linear(hidden + 64, frequencies)

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        assert context.past is not None
        now_KBTM = self.listen(power_KBTF)
        past_KBTM = self.listen(before(context.past)).expand_as(now_KBTM)
        state = None

        def step(told_NM: Tensor, z_NL: Tensor) -> Gaussian:
            nonlocal state
            now_NM, past_NM = told_NM.chunk(2, -1)
            h_N1M, state = self.remember(torch.cat([past_NM, self.want(z_NL)], -1)[:, None], state)
            return self.q_head(torch.cat([now_NM, h_N1M[:, 0]], -1))

        return along(torch.cat([now_KBTM, past_KBTM], -1), step, draw, self.latents[0].dim)

    def _state(self, z: Latents, context: Context) -> Float[Tensor, "K B T M"]:
        assert context.past is not None
        z_KBTL = z["z"]
        past_KBTM = self.listen(before(context.past)).expand(len(z_KBTL), -1, -1, -1)
        heard = torch.cat([past_KBTM, self.want(before(z_KBTL))], -1)
        return self.remember(heard.flatten(end_dim=1))[0].unflatten(0, z_KBTL.shape[:2])

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.p_head(self._state(z, context))}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.out(torch.cat([self._state(z, context), self.want(z["z"])], -1))
