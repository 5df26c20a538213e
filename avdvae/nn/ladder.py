"""Ladders of depthwise separable convolutions, which lower or raise the rate of a sequence; channels last.

    y = x at its new rate + project(norm(relu(depthwise(norm(relu(expand(x)))))))

The norms are over channels at each time, so that an output depends on few inputs and a sequence may be taken in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.nn.sliding import Sliding, SlidingBack

KERNEL, BLOCKS = 5, 8
SPAN = 2**20  # numbers of the expanded channels that a CPU computes at a time


class Block(nn.Module):
    def __init__(self, channels: int, stride: int, rises: bool):
        super().__init__()
        wide = 4 * channels
        self.stride, self.rises = stride, rises
        self.expand, self.expand_norm = nn.Linear(channels, wide), nn.LayerNorm(wide)
        kind = nn.ConvTranspose1d if rises else nn.Conv1d  # of which only the parameters are used
        self.depthwise, self.depthwise_norm = kind(wide, wide, KERNEL, stride, groups=wide), nn.LayerNorm(wide)
        self.project = nn.Linear(wide, channels, bias=False)

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Float[Tensor, "B t M"]:
        """Down, t = (T - 5) // stride + 1; up, t = T * stride. In parts, each with what else its outputs depend on."""
        parts, s = self._parts(x_BTM), self.stride
        if self.rises:
            earlier = [parts[0][:, :0], *(part[:, -(KERNEL - 1) // s :] for part in parts[:-1])]
            pieces = [
                self._whole(torch.cat(both, 1))[:, both[0].shape[1] * s :] for both in zip(earlier, parts, strict=True)
            ]
        else:
            later = [*(part[:, : KERNEL - s] for part in parts[1:]), parts[-1][:, :0]]
            pieces = [self._whole(torch.cat(both, 1)) for both in zip(parts, later, strict=True)]
        return torch.cat(pieces, 1)

    def _parts(self, x_BTM: Float[Tensor, "B T M"]) -> Sequence[Float[Tensor, "B _ M"]]:
        """Short enough for their expanded channels to stay in a CPU's cache from layer to layer."""
        if x_BTM.device.type != "cpu":
            return [x_BTM]
        frames, wide = x_BTM.shape[1], len(x_BTM) * self.expand.out_features * (self.stride if self.rises else 1)
        size = max(KERNEL, SPAN // wide) // self.stride * self.stride
        count = max(1, (frames - KERNEL) // size + 1)
        return x_BTM.split([size] * (count - 1) + [frames - size * (count - 1)], 1)

    def _whole(self, x_BTM: Float[Tensor, "B T M"]) -> Float[Tensor, "B t M"]:
        wide_BTM = self.expand_norm(torch.relu(self.expand(x_BTM)))
        slide = SlidingBack if self.rises else Sliding
        slid_BTM = slide.apply(wide_BTM, self.depthwise.weight[:, 0].t(), self.depthwise.bias, self.stride)
        kept_BTM = x_BTM.repeat_interleave(self.stride, 1) if self.rises else x_BTM[:, :: self.stride]
        return kept_BTM[:, : slid_BTM.shape[1]] + self.project(self.depthwise_norm(torch.relu(slid_BTM)))


class Ladder(nn.Sequential):
    """Eight blocks: down by a power of two, the first blocks by 2 each; or up by it, the last blocks by 2 each."""

    def __init__(self, channels: int, stride: int, rises: bool):
        strides = [2] * int(math.log2(stride)) + [1] * (BLOCKS - int(math.log2(stride)))
        super().__init__(*(Block(channels, s, rises) for s in (reversed(strides) if rises else strides)))
        self.stride, rates = stride, [math.prod(strides[:n]) for n in range(BLOCKS)]
        self.reach = 1 + (KERNEL - 1) * sum(rates)  # inputs that one output of a ladder down depends on
