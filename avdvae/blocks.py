"""Layers that no paper owns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from avdvae.distributions import Gaussian
from avdvae.errors import UserError


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers, each followed by the activation: mlp([513, 128], nn.Tanh)."""
    layers = [(nn.Linear(a, b), activation()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


class Recurrent(nn.Module):
    """A `unit` along time, forward, backward, or both beside each other, which frames that pad do not disturb."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        direction: Literal["forward", "backward", "both"] = "forward",
        unit: type[nn.LSTM] | type[nn.GRU] = nn.LSTM,
    ):
        super().__init__()
        self.forth = unit(inputs, hidden, batch_first=True) if direction != "backward" else None
        self.back = unit(inputs, hidden, batch_first=True) if direction != "forward" else None

    def forward(self, x: Float[Tensor, "*draws T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "*draws T H"]:
        flat, mask = x.flatten(end_dim=-3), mask_BT.expand(*x.shape[:-2], -1).flatten(end_dim=-2)
        told = []
        if self.forth:
            told.append(self.forth(flat)[0])
        if self.back:
            told.append(backwards(self.back(backwards(flat, mask))[0], mask))
        return torch.cat(told, -1).unflatten(0, x.shape[:-2])


def backwards(x_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T M"]:
    """From the last frame that does not pad to the first; those that pad stay where they are."""
    if mask_BT.device.type == "cpu" and mask_BT.all():  # a GPU would have to be waited for
        return x_BTM.flip(1)
    frame_T = torch.arange(x_BTM.shape[1], device=x_BTM.device)
    source_BT = torch.where(mask_BT, mask_BT.sum(1, keepdim=True) - 1 - frame_T, frame_T)
    return x_BTM.gather(1, source_BT[..., None].expand_as(x_BTM))


class CausalConv(nn.Linear):
    """y_t from x_t and x_t-d, the dilation; it also gives the inputs that its next call, on what follows, needs."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1):
        super().__init__(2 * inputs, outputs)
        self.dilation = dilation

    def forward(
        self, x_BTC: Float[Tensor, "B T C"], past_BDC: Float[Tensor, "B D C"] | None = None
    ) -> tuple[Float[Tensor, "B T M"], Float[Tensor, "B D C"]]:
        if past_BDC is None:
            past_BDC = x_BTC.new_zeros(len(x_BTC), self.dilation, x_BTC.shape[2])
        frames = x_BTC.shape[1]
        longer = torch.cat([past_BDC, x_BTC], 1)
        return super().forward(torch.cat([longer[:, :frames], x_BTC], -1)), longer[:, frames:]


class GatedLayer(nn.Module):
    """A layer of WaveNet: residual output, skip output, and what its next call needs."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.conv, self.out = CausalConv(channels, 2 * channels, dilation), nn.Linear(channels, 2 * channels)

    def forward(self, x_BTC: Float[Tensor, "B T C"], past_BDC: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        both, left_BDC = self.conv(x_BTC, past_BDC)
        content, gate = both.chunk(2, -1)
        residual, skip = self.out(torch.tanh(content) * torch.sigmoid(gate)).chunk(2, -1)
        return (x_BTC + residual) * 0.5**0.5, skip, left_BDC


def before(x: Float[Tensor, "*draws T M"]) -> Float[Tensor, "*draws T M"]:
    """x_{t-1} at t, and 0 at the start."""
    return nn.functional.pad(x[..., :-1, :], (0, 0, 1, 0))


def beside(*parts: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
    """The features of all parts in one tensor; draws that a part has once are repeated."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, -1) for part in parts], -1)


def hoisted(layer: nn.Linear | GaussianHead, early: Float[Tensor, "... M"]) -> tuple[Float[Tensor, "... N"], Tensor]:
    """What the first inputs of a layer add to its output, for all frames at once, and the weight that awaits the other
    inputs in a loop: torch.addmm(early, late, weight)."""
    bias_N, weight_MN = layer.joined() if isinstance(layer, GaussianHead) else (layer.bias, layer.weight.t())
    first, rest = weight_MN.tensor_split([early.shape[-1]])
    return early @ first + bias_N, rest


def silence(layer: nn.Module) -> None:
    """Let its output be 0 until training says otherwise."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class GaussianHead(nn.Module):
    """Mean and log-variance, each a linear map of the features."""

    def __init__(self, features: int, dim: int):
        super().__init__()
        self.mean, self.log_var = nn.Linear(features, dim), nn.Linear(features, dim)

    def forward(self, features: Float[Tensor, "... M"]) -> Gaussian:
        return Gaussian.floored(self.mean(features), self.log_var(features))

    def joined(self) -> tuple[Float[Tensor, " N"], Float[Tensor, "M N"]]:
        """Bias and weight of mean and log-variance side by side: torch.addmm(bias, features, weight)."""
        bias = torch.cat([self.mean.bias, self.log_var.bias])
        return bias, torch.cat([self.mean.weight, self.log_var.weight]).t()


class LipEncoder(nn.Module):
    """A fully connected look at each mouth crop: 67 x 67 pixels -> hidden, ReLU -> features, without activation.

    Each crop is brought to mean 0 and variance 1: skin and light tell nothing of the speech, and raw pixels, all alike
    in their large mean, would train many times slower. Dropout of hidden units helps with faces not seen in training.
    """

    def __init__(self, pixels: int = 67 * 67, hidden: int = 512, features: int = 128, dropout: float = 0.0):
        super().__init__()
        self.pixels, self.dropout = nn.Linear(pixels, hidden), nn.Dropout(dropout)
        self.features = nn.Linear(hidden, features)

    def forward(self, lips_BTHW: UInt8[Tensor, "B T H W"]) -> Float[Tensor, "B T M"]:
        height, width = lips_BTHW.shape[2:]
        if height * width != self.pixels.in_features:
            raise UserError(
                f"the crops have {height} x {width} pixels and the model takes {self.pixels.in_features} in all: "
                "prepare the corpus with the model's size="
            )
        hidden_BTM = torch.relu(self.pixels(standardised(lips_BTHW)))
        return self.features(self.dropout(hidden_BTM))


def standardised(lips_BTHW: UInt8[Tensor, "B T H W"]) -> Float[Tensor, "B T P"]:
    """The pixels of each crop, of mean 0 and variance 1."""
    pixels_BTP = lips_BTHW.flatten(2) / 255
    deviation_BT1, mean_BT1 = torch.std_mean(pixels_BTP, -1, keepdim=True)
    return (pixels_BTP - mean_BT1) / (deviation_BT1 + 1e-3)
