"""WaveNet: each stack of samples given the stacks before it, through dilated gated convolutions; no latents.

A. van den Oord et al., "WaveNet: a generative model for raw audio", 2016 (arXiv 1609.03499); sizes as in J. D. Havtorn
et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    p(x) = prod_t DMoL(x_t; f(x_t-R:t-1)),  R = 1 + 5 * 1023 + 1 = 5117 stacks
    y_0 = A x_t-2:t-1      y_i = (y_i-1 + U g) / sqrt(2)      g = tanh * sigmoid (W y_i-1, now and 2^i before)
    f = sum_i V g_i / sqrt(number of layers)

    x_t    stack of s samples                  x_BTS; before_BTS holds x_t-1 at t
    A      a causal and a pointwise layer      causal_conv, conv_1x1
    y_i    residual output of layer i          y_BTM
    W      content and gate                    layers[i].conv
    U, V   residual and skip                   layers[i].out
    f      skip outputs of all layers          before decoder_net, decoder_head
    R      stacks that x_t depends on          reach
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
        stride: int = 64,  # samples of a step
        channels: int = 96,
        stacks: int = 5,
        layers: int = 10,  # of a stack
        coding: str = "mu-law",  # or linear: of samples, as inputs and in the likelihood
        scoring: str = "exact",  # or paper: as published, whose bits are not a code length
    ):
        super().__init__()
        self.set_coding(stride, coding, scoring)
        self.causal_conv, self.conv_1x1 = CausalConv(stride, channels), nn.Linear(channels, channels)
        self.layers = nn.ModuleList(GatedLayer(channels, 2**i) for _ in range(stacks) for i in range(layers))
        self.decoder_net = nn.Sequential(nn.ReLU(), nn.Linear(channels, channels * stride), nn.ReLU())
        self.decoder_head = CodeHead(channels)
        self.reach = 2 + stacks * (2**layers - 1)

    def predict(self, before_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[Float[Tensor, "B T M"], Any]:
        states = iter(state or [None] * (1 + len(self.layers)))  # of each convolution: its last inputs
        y_BTM, inputs = self.causal_conv(before_BTS, next(states))
        y_BTM, later_states, skips = self.conv_1x1(y_BTM), [inputs], 0.0
        for layer in self.layers:
            y_BTM, skip_BTM, inputs = layer(y_BTM, next(states))
            skips, later_states = skips + skip_BTM, [*later_states, inputs]
        features_BTSM = self.decoder_net(skips * len(self.layers) ** -0.5).unflatten(-1, (self.stride, -1))
        return self.decoder_head(features_BTSM).flatten(-2), later_states
