"""WaveNet: each stack of samples from those before it, through gated convolutions of growing reach; no latents.

A. van den Oord et al., "WaveNet: a generative model for raw audio", 2016 (arXiv 1609.03499); sizes as in J. D. Havtorn
et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    p(x) = prod_t DMoL(x_t; f(x_t-R:t-1)),  R = 1 + 5 * 1023 + 1 = 5117 stacks
    y_0 = A x_t-2:t-1      y_i = (y_i-1 + U g) / sqrt(2)      g = tanh * sigmoid (W y_i-1, now and 2^i before)
    f = sum_i V g_i / sqrt(number of layers)

    x   stacks of s samples      before_BTS holds x_t-1 at t
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.waveform import CodeHead, Predictor
from avdvae.nn.blocks import CausalConv, GatedLayer


class WaveNet(Predictor):
    def __init__(
        self,
        stride: int = 64,
        channels: int = 96,
        stacks: int = 5,
        layers: int = 10,
        coding: str = "mu-law",
        scoring: str = "exact",
    ):
        super().__init__()
        self.listen_by(stride, coding, scoring)
        self.first, self.second = CausalConv(stride, channels), nn.Linear(channels, channels)
        self.layers = nn.ModuleList(GatedLayer(channels, 2**i) for _ in range(stacks) for i in range(layers))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(channels, channels * stride), nn.ReLU())
        self.head = CodeHead(channels)
        self.reach = 2 + stacks * (2**layers - 1)  # stacks that the next one depends on

    def tell(self, before_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[Float[Tensor, "B T M"], Any]:
        old = iter(state or [None] * (1 + len(self.layers)))
        y_BTC, left = self.first(before_BTS, next(old))
        y_BTC, states, skips = self.second(y_BTC), [left], 0.0
        for layer in self.layers:
            y_BTC, skip_BTC, left = layer(y_BTC, next(old))
            skips, states = skips + skip_BTC, [*states, left]
        features_BTSC = self.out(skips * len(self.layers) ** -0.5).unflatten(-1, (self.stride, -1))
        return self.head(features_BTSC).flatten(-2), states
