"""SRNN: a deterministic state that hears the past of the speech, and on top of it a chain of latents.

M. Fraccaro, S. K. Sønderby, U. Paquet, O. Winther, "Sequential neural models with stochastic layers", NeurIPS 2016
(arXiv 1605.07571); for speech, Girin et al. (see dynamical_vae.py), section 9.

    h_t = LSTM(h_t-1; x_t-1)
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t, z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (g_t, z_t-1)),  where g_t hears h_t:T and x_t:T from the end on
    ELBO: dynamical_vae.py

    x_t   speech spectrum     observed_BTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
    h_t   state               h_1BTM, or h_KBTM where each draw has a past of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.models.dynamical_vae import AutoregressiveVAE, Path, sample_path, split_net
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, mlp
from avdvae.probability.distributions import Gaussian
from avdvae.protocols import Context, Latents, Observed


class SRNN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,
        narrow: Sequence[int] = (64, 32),
        observes: Observed = "power",
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

    def update_state(
        self, heard: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        h, state = self.rnn(self.phi_x(heard).flatten(end_dim=1), state)
        return h.unflatten(0, heard.shape[:2]), state

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        h = self.states(noise, context)
        told_q, finish_q = split_net(
            self.posterior_net, self.encoder_rnn(self.encoder_features(h, observed_BTF), context.mask)
        )
        if not self.residual:
            return replace(sample_path(told_q, noise["z"], finish_q), h=h)
        told_p, finish_p = split_net(self.prior_net, h)

        def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
            told_q_NM, told_p_NM = told_NM.split([told_q.shape[-1], told_p.shape[-1]], -1)
            mean_NL = finish_p(told_p_NM, z_NL)[:, : z_NL.shape[-1]]
            return finish_q(told_q_NM, z_NL) + pad(mean_NL, (0, z_NL.shape[-1]))

        return replace(sample_path(concat_features(told_q, told_p), noise["z"], step), h=h)

    def encoder_features(self, h: Tensor, observed_BTF: Tensor) -> Float[Tensor, "K B T M"]:
        """What is heard from the end on."""
        return self.encoder_net(concat_features(h, observed_BTF[None]))

    def prior_at(self, h: Tensor, z_before_KBTL: Tensor) -> Gaussian:
        return self.prior_net(concat_features(h, z_before_KBTL))

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(h, z_KBTL))
