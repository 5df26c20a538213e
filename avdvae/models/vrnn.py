"""VRNN: everything depends on all of the past, of the speech and of the latents, through one recurrent state.

J. Chung et al., "A recurrent latent variable model for sequential data", NeurIPS 2015 (arXiv 1506.02216); for speech,
Girin et al. (see dynamical_vae.py), section 8.

    h_t = LSTM(h_t-1; x_t-1, z_t-1),  h_1 = 0
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t))
    q(z | x) = prod_t N(z_t; mu, diag var (h_t, x_t))
    ELBO: dynamical_vae.py

    x_t   speech spectrum     observed_BTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
    h_t   state               h_KBTM
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.models.dynamical_vae import AutoregressiveVAE, Path, sample_path, split_net
from avdvae.nn.blocks import GaussianHead, concat_features, mlp, shifted, split_rnn
from avdvae.probability.distributions import Gaussian
from avdvae.protocols import Context, Latents, Observed


class VRNN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,
        narrow: Sequence[int] = (32, 64),
        observes: Observed = "power",
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.phi_z = mlp([dim, *narrow], nn.Tanh)
        self.rnn = nn.LSTM(wide + narrow[-1], hidden, batch_first=True)
        self.posterior_net = GaussianHead(wide + hidden, dim)
        self.prior_net = GaussianHead(hidden, dim)
        self.decoder_net = nn.Linear(hidden + narrow[-1], features)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        assert context.past is not None
        now_BTM, finish = split_net(self.posterior_net, self.phi_x(observed_BTF))
        past_BTG, remember = split_rnn(self.rnn, self.phi_x(self.network_input(shifted(context.past))))
        nothing_NM = noise["z"].new_zeros(len(noise["z"]) * len(now_BTM), self.rnn.hidden_size)
        first, state, states = self._state(nothing_NM), None, []

        def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
            nonlocal state
            told_now_NM, told_past_NG = told_NM.split([now_BTM.shape[-1], past_BTG.shape[-1]], -1)
            state = first if state is None else remember(told_past_NG, self.phi_z(z_NL), state)
            h_NM = state[0] if isinstance(state, tuple) else state
            states.append(h_NM)
            q_N2L = finish(told_now_NM, h_NM)
            return q_N2L + pad(self.prior_net(h_NM).mean, (0, q_N2L.shape[-1] // 2)) if self.residual else q_N2L

        path = sample_path(torch.cat([now_BTM, past_BTG], -1)[None], noise["z"], step)
        return replace(path, h=torch.stack(states, 1).unflatten(0, noise["z"].shape[:2]))

    def _remembered(self, heard_NTM: Tensor, state: Any) -> tuple[Float[Tensor, "N T M"], Any]:
        if state is not None:
            return self.rnn(heard_NTM, state)
        nothing_1NM = heard_NTM.new_zeros(1, len(heard_NTM), self.rnn.hidden_size)
        state = self._state(nothing_1NM)
        if heard_NTM.shape[1] == 1:
            return nothing_1NM.movedim(0, 1), state
        h_NTM, state = self.rnn(heard_NTM[:, 1:], state)
        return pad(h_NTM, (0, 0, 1, 0)), state

    def _state(self, nothing: Tensor) -> Any:
        """Before anything was heard."""
        return (nothing, nothing) if isinstance(self.rnn, nn.LSTM) else nothing

    def update_state(
        self, heard: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        told_KBTM = concat_features(self.phi_x(heard), self.phi_z(z_before_KBTL))
        h, state = self._remembered(told_KBTM.flatten(end_dim=1), state)
        return h.unflatten(0, told_KBTM.shape[:2]), state

    def prior_at(self, h: Tensor, z_before_KBTL: Tensor) -> Gaussian:
        return self.prior_net(h)

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(h, self.phi_z(z_KBTL)))
