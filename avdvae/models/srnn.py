"""SRNN: a deterministic state from the past of the speech, and a chain of latents given that state.

M. Fraccaro, S. K. Sønderby, U. Paquet, O. Winther, "Sequential neural models with stochastic layers", NeurIPS 2016
(arXiv 1605.07571); for speech, Girin et al. (see dynamical_vae.py), section 9.

    h_t = LSTM(h_t-1; x_t-1)
    g_t = LSTM(g_t+1; h_t, x_t)
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t, z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (g_t, z_t-1))
    ELBO: dynamical_vae.py

    x_t      speech spectrum             observed_BTF holds |x_t|^2; context.past that of x_t-1, shifted to t
    z_t      latent                      z_KBTL
    h_t      state                       rnn of phi_x; h_1BTM, or h_KBTM where each draw has its own past
    g_t      features of h_t:T, x_t:T    encoder_rnn of encoder_net, g_1BTM
    p(z_t)   prior                       prior_net of h_t, z_t-1
    q(z_t)   posterior                   posterior_net of g_t, z_t-1
    sigma    variances of x_t            decoder_net of h_t, z_t gives their logarithms

BoxSRNN is the smaller one that MixDVAE tracks boxes with: X. Lin, L. Girin, X. Alameda-Pineda, "Mixture of dynamical
variational autoencoders for multi-source trajectory modeling and separation", Transactions on Machine Learning Research
2023 (arXiv 2312.04167). g_t is [h_t, x_t], without recurrence, and p(x_t) = N(x_t; mu, diag var (h_t, z_t)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.models.dynamical_vae import AutoregressiveVAE, Path, Recursion, each_frame, sample_path, stack_frames
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, mlp, run_rnn, split_net
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed


class SRNN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,  # of phi_x, encoder_net and decoder_net
        narrow: Sequence[int] = (64, 32),  # of posterior_net and prior_net
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.rnn = nn.LSTM(wide, hidden, batch_first=True)
        self.encoder_net = mlp([hidden + features, wide], nn.Tanh)
        self.encoder_rnn = Recurrent(wide, hidden, "backward")
        self.posterior_net = nn.Sequential(*mlp([hidden + dim, *narrow], nn.Tanh), GaussianHead(narrow[-1], dim))
        self.prior_net = nn.Sequential(*mlp([hidden + dim, *narrow], nn.Tanh), GaussianHead(narrow[-1], dim))
        self.decoder_net = nn.Sequential(*mlp([hidden + dim, wide], nn.Tanh), nn.Linear(wide, features))

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        h_1BTM = self.states(noise, context)  # of x_1:t-1
        g_1BTM = self.encoder_states(h_1BTM, observed_BTF, context)
        z, frames = torch.zeros_like(noise["z"][:, :, :1]), []
        for h, g, epsilon in each_frame(h_1BTM, g_1BTM, noise["z"]):
            p = self.prior_net(concat_features(h, z))  # p(z_t | h_t, z_t-1)
            q = self.posterior_net(concat_features(g, z))  # q(z_t | g_t, z_t-1)
            q = Gaussian(p.mean + q.mean, q.log_var) if self.residual else q
            z = q.moved(epsilon)
            frames.append((z, q, p, self.decoder_net(concat_features(h, z))))  # p(x_t | h_t, z_t)
        return stack_frames(frames)

    def update_state(
        self, x_before: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        return run_rnn(self.rnn, self.phi_x(x_before), state)

    def encoder_states(self, h: Tensor, observed_BTF: Tensor, context: Context) -> Float[Tensor, "#K B T M"]:
        return self.encoder_rnn(self.encoder_features(h, observed_BTF), context.mask)

    def encoder_features(self, h: Tensor, observed_BTF: Tensor) -> Float[Tensor, "#K B T M"]:
        return self.encoder_net(concat_features(h, observed_BTF[None]))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        """`recursion`, with what does not depend on z computed for all frames at once."""
        h = self.states(noise, context)
        g_part, finish_q = split_net(self.posterior_net, self.encoder_states(h, observed_BTF, context))
        if not self.residual:
            return replace(sample_path(g_part, noise["z"], finish_q), h=h)
        h_part, finish_p = split_net(self.prior_net, h)

        def step(parts_NM: Tensor, z_before_NL: Tensor) -> Tensor:
            g_part_NM, h_part_NM = parts_NM.split([g_part.shape[-1], h_part.shape[-1]], -1)
            mean_NL = finish_p(h_part_NM, z_before_NL)[:, : z_before_NL.shape[-1]]
            return finish_q(g_part_NM, z_before_NL) + pad(mean_NL, (0, z_before_NL.shape[-1]))

        return replace(sample_path(concat_features(g_part, h_part), noise["z"], step), h=h)

    def prior_at(self, h: Tensor, z_before_KBTL: Tensor) -> Gaussian:
        return self.prior_net(concat_features(h, z_before_KBTL))

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(h, z_KBTL))


class BoxSRNN(SRNN):
    """The posterior is causal: x_t is a box, and g_t does not depend on later ones."""

    def __init__(
        self,
        hidden: int = 8,
        dim: int = 4,
        wide: int = 4,  # of phi_x
        posterior: Sequence[int] = (16, 8),  # of posterior_net
        prior: Sequence[int] = (8, 8),  # of prior_net
        decoder: int = 16,  # of decoder_net
    ):
        AutoregressiveVAE.__init__(self, features=4, dim=dim, observes="boxes")
        self.phi_x = mlp([4, wide], nn.Tanh)
        self.rnn = nn.LSTM(wide, hidden, batch_first=True)
        self.posterior_net = nn.Sequential(
            *mlp([hidden + 4 + dim, *posterior], nn.Tanh), GaussianHead(posterior[-1], dim)
        )
        self.prior_net = nn.Sequential(*mlp([hidden + dim, *prior], nn.Tanh), GaussianHead(prior[-1], dim))
        self.decoder_net = nn.Sequential(*mlp([hidden + dim, decoder], nn.Tanh), nn.Linear(decoder, 2 * 4))

    def fed_back(self, output: Float[Tensor, "K B 1 _"]) -> Float[Tensor, "K B 1 F"]:
        """A draw, as published."""
        return self.likelihood(output).density.sample()[0]

    def encoder_states(self, h: Tensor, observed_BTF: Tensor, context: Context) -> Float[Tensor, "#K B T M"]:
        return concat_features(h, observed_BTF[None])
