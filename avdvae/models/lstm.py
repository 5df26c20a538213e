"""LSTM: each stack of samples given all stacks before it, through one recurrent state; no latents.

The baseline of J. D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv
2202.12707).

    h_t = LSTM(h_t-1; phi(x_t-1)),  x_0 = 0        p(x) = prod_t DMoL(x_t; f(h_t))

    x_t   stack of s samples       x_BTS; before_BTS holds x_t-1 at t
    phi   features of a stack      phi_x
    h_t   state                    rnn; h_BTM
    f     decoder                  decoder_net
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.waveform import CodeHead, Predictor
from avdvae.nn.blocks import mlp


class LSTM(Predictor):
    def __init__(
        self,
        stride: int = 64,  # samples of a step
        hidden: int = 256,
        layers: int = 1,
        coding: str = "mu-law",  # or linear: of samples, as inputs and in the likelihood
        scoring: str = "exact",  # or paper: as published, whose bits are not a code length
    ):
        super().__init__()
        self.set_coding(stride, coding, scoring)
        self.phi_x = mlp([stride, hidden, hidden, hidden], nn.ReLU)
        self.rnn = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.decoder_net = nn.Sequential(*mlp([hidden, hidden, hidden], nn.ReLU), CodeHead(hidden, stride))

    def predict(self, before_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[Float[Tensor, "B T M"], Any]:
        h_BTM, state = self.rnn(self.phi_x(before_BTS), state)
        return self.decoder_net(h_BTM), state
