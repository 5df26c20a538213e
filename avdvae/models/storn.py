"""STORN: independent latents that drive a recurrent network, which also takes the past of the speech.

J. Bayer, C. Osendorfer, "Learning stochastic recurrent networks", 2014 (arXiv 1411.7610); for speech, Girin et al. (see
dynamical_vae.py), section 7.

    h_t = LSTM(h_t-1; x_t-1, z_t)
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t)) N(z_t; 0, I)
    q(z | x) = prod_t N(z_t; mu, diag var (x_1:t))
    ELBO: dynamical_vae.py

    x_t      speech spectrum             observed_BTF holds |x_t|^2; context.past that of x_t-1, shifted to t
    z_t      latent                      z_KBTL
    g_t      features of x_1:t           encoder_rnn of phi_x, g_1BTM
    h_t      state                       decoder_rnn of phi_z, phi_past; h_KBTM
    q(z_t)   posterior                   posterior_net of g_t
    sigma    variances of x_t            decoder_net of h_t gives their logarithms
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import AutoregressiveVAE, Path, Recursion, each_frame, stack_frames
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, mlp, run_rnn
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed


class STORN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,  # of phi_x, phi_past and decoder_net
        narrow: Sequence[int] = (64, 32),  # of posterior_net; reversed, of phi_z
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.encoder_rnn = Recurrent(wide, hidden)
        self.posterior_net = nn.Sequential(*mlp([hidden, *narrow], nn.Tanh), GaussianHead(narrow[-1], dim))
        self.phi_z = mlp([dim, *reversed(narrow)], nn.Tanh)
        self.phi_past = mlp([features, wide], nn.Tanh)
        self.decoder_rnn = nn.LSTM(wide + narrow[0], hidden, batch_first=True)
        self.decoder_net = nn.Sequential(*mlp([hidden, wide], nn.Tanh), nn.Linear(wide, features))

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        g_1BTM = self.encoder_rnn(self.phi_x(observed_BTF[None]), context.mask)
        z, state, frames = torch.zeros_like(noise["z"][:, :, :1]), None, []
        for g, x_before, epsilon in each_frame(g_1BTM, self.x_before(context), noise["z"]):
            p = Gaussian.standard(*z.shape, like=z)  # p(z_t)
            q = self.posterior_net(g)  # q(z_t | x_1:t)
            z_before, z = z, q.moved(epsilon)
            h, state = self.update_state(x_before, z_before, z, state)
            frames.append((z, q, p, self.decoder_net(h)))  # p(x_t | x_1:t-1, z_1:t)
        return stack_frames(frames)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        q = self.posterior_net(self.encoder_rnn(self.phi_x(observed_BTF[None]), context.mask))
        return Path({"z": q.moved(noise["z"])}, {"z": q})

    def update_state(
        self, x_before: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        return run_rnn(self.decoder_rnn, concat_features(self.phi_z(z_KBTL), self.phi_past(x_before)), state)

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(h)
