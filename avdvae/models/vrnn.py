"""VRNN: everything depends on all of the past, of the speech and of the latents, through one recurrent state.

J. Chung et al., "A recurrent latent variable model for sequential data", NeurIPS 2015 (arXiv 1506.02216); for speech,
Girin et al. (see dynamical_vae.py), section 8.

    h_t = LSTM(h_t-1; x_t-1, z_t-1),  h_1 = 0
    p(x, z) = prod_t Nc(x_t; 0, sigma(h_t, z_t)) N(z_t; mu, diag var (h_t))
    q(z | x) = prod_t N(z_t; mu, diag var (h_t, x_t))
    ELBO: dynamical_vae.py

    x_t      speech spectrum             observed_BTF holds |x_t|^2; context.past that of x_t-1, shifted to t
    z_t      latent                      z_KBTL
    h_t      state                       rnn of phi_x, phi_z; h_KBTM
    p(z_t)   prior                       prior_net of h_t
    q(z_t)   posterior                   posterior_net of phi_x, h_t
    sigma    variances of x_t            decoder_net of h_t, phi_z gives their logarithms
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
from avdvae.nn.blocks import GaussianHead, concat_features, mlp, run_rnn, split_net, split_rnn
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed


class VRNN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,  # of phi_x
        narrow: Sequence[int] = (32, 64),  # of phi_z
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.phi_z = mlp([dim, *narrow], nn.Tanh)
        self.rnn = nn.LSTM(wide + narrow[-1], hidden, batch_first=True)
        self.posterior_net = GaussianHead(wide + hidden, dim)
        self.prior_net = GaussianHead(hidden, dim)
        self.decoder_net = nn.Linear(hidden + narrow[-1], features)

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        z, state, frames = torch.zeros_like(noise["z"][:, :, :1]), None, []
        for x, x_before, epsilon in each_frame(observed_BTF[None], self.x_before(context), noise["z"]):
            h, state = self.update_state(x_before, z, z, state)  # from x_1:t-1 and z_1:t-1
            p = self.prior_net(h)  # p(z_t | h_t)
            q = self.posterior_net(concat_features(self.phi_x(x), h))  # q(z_t | h_t, x_t)
            q = Gaussian(p.mean + q.mean, q.log_var) if self.residual else q
            z = q.moved(epsilon)
            frames.append((z, q, p, self.decoder_net(concat_features(h, self.phi_z(z)))))  # p(x_t | h_t, z_t)
        return stack_frames(frames)

    def update_state(
        self, x_before: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        inputs, h = concat_features(self.phi_x(x_before), self.phi_z(z_before_KBTL)), []
        if state is None:  # h_1 = 0, whatever x_0 and z_0
            zeros = inputs.new_zeros(*inputs.shape[:2], 1, self.rnn.hidden_size)
            inputs, h, state = inputs[:, :, 1:], [zeros], self._state(zeros.flatten(end_dim=1).transpose(0, 1))
        if inputs.shape[2]:
            after, state = run_rnn(self.rnn, inputs, state)
            h.append(after)
        return torch.cat(h, 2), state

    def _state(self, h: Tensor) -> Any:
        """Of `rnn` at the start, where h is 0."""
        return (h, h) if isinstance(self.rnn, nn.LSTM) else h

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        """`recursion`, with what does not depend on z computed for all frames at once."""
        x_part, finish = split_net(self.posterior_net, self.phi_x(observed_BTF)[None])
        gates, next_state = split_rnn(self.rnn, self.phi_x(self.x_before(context)))
        zeros_NM = noise["z"].new_zeros(noise["z"].shape[:2].numel(), self.rnn.hidden_size)
        state, states = None, []

        def step(parts_NM: Tensor, z_before_NL: Tensor) -> Tensor:
            nonlocal state
            x_part_NM, gates_NG = parts_NM.split([x_part.shape[-1], gates.shape[-1]], -1)
            state = self._state(zeros_NM) if state is None else next_state(gates_NG, self.phi_z(z_before_NL), state)
            h_NM = state[0] if isinstance(state, tuple) else state
            states.append(h_NM)
            q_N2L = finish(x_part_NM, h_NM)
            return q_N2L + pad(self.prior_net(h_NM).mean, (0, q_N2L.shape[-1] // 2)) if self.residual else q_N2L

        path = sample_path(concat_features(x_part, gates), noise["z"], step)
        return replace(path, h=torch.stack(states, 1).unflatten(0, noise["z"].shape[:2]))

    def prior_at(self, h: Tensor, z_before_KBTL: Tensor) -> Gaussian:
        return self.prior_net(h)

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(h, self.phi_z(z_KBTL)))
