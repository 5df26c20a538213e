"""LSTM: each stack of samples from all those before it, through one recurrent state; no latents.

The baseline of J. D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv
2202.12707).

    h_t = LSTM(h_t-1; phi(x_t-1)),  x_0 = 0        p(x) = prod_t DMoL(x_t; f(h_t))

    x   stacks of s samples      before_BTS holds x_t-1 at t
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
        stride: int = 64,
        hidden: int = 256,
        layers: int = 1,
        coding: str = "mu-law",
        scoring: str = "exact",
    ):
        super().__init__()
        self.listen_by(stride, coding, scoring)
        self.listen = mlp([stride, hidden, hidden, hidden], nn.ReLU)
        self.remember = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.out = nn.Sequential(*mlp([hidden, hidden, hidden], nn.ReLU), CodeHead(hidden, stride))

    def tell(self, before_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[Float[Tensor, "B T M"], Any]:
        h_BTM, state = self.remember(self.listen(before_BTS), state)
        return self.out(h_BTM), state
