"""Layers that no paper owns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.probability.distributions import Gaussian


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers, each followed by the activation: mlp([513, 128], nn.Tanh)."""
    layers = [(nn.Linear(a, b), activation()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def encoder_input(power: Float[Tensor, "*draws F"], floor: float | None) -> Float[Tensor, "*draws F"]:
    """The power itself or, with a `floor`, ln(power + floor), brought about to mean 0 and variance 1."""
    return power if floor is None else ((power + floor).log() + 4) / 2.5


def check_floor(observes: str, floor: float | None) -> None:
    if floor is not None and not (observes == "power" and floor > 0):
        raise UserError(f"model.floor={floor}: give a power above 0, to models of power, or null")


@runtime_checkable
class TakesPower(Protocol):
    floor: float | None


def check_same_floor(model: TakesPower, trained: TakesPower) -> None:
    """An encoder is taken from a trained model: its input must be what it was trained on."""
    if model.floor != trained.floor:
        here, there = ("null" if m.floor is None else m.floor for m in (model, trained))
        kinds = [type(m).__name__ for m in (model, trained)]
        raise UserError(
            f"start=: {kinds[1]} was trained with model.floor={there}, and {kinds[0]} takes its encoder with "
            f"floor={here}: start from one of that floor or give the same here"
        )


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
        self.forward_rnn = unit(inputs, hidden, batch_first=True) if direction != "backward" else None
        self.backward_rnn = unit(inputs, hidden, batch_first=True) if direction != "forward" else None

    def forward(self, x: Float[Tensor, "*draws T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "*draws T H"]:
        flat, mask = x.flatten(end_dim=-3), mask_BT.expand(*x.shape[:-2], -1).flatten(end_dim=-2)
        flat = flat.transpose(0, 1).contiguous().transpose(0, 1)  # frames apart, or each unit would copy it so
        told = []
        if self.forward_rnn:
            told.append(self.forward_rnn(flat)[0])
        if self.backward_rnn:
            told.append(reverse_frames(self.backward_rnn(reverse_frames(flat, mask))[0], mask))
        return torch.cat(told, -1).unflatten(0, x.shape[:-2])


def final_states(both_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B M"]:
    """Where each direction of a Recurrent in both arrives: at the last frame that does not pad, and at the first."""
    forth_BTM, back_BTM = both_BTM.chunk(2, -1)
    last_B = mask_BT.sum(1) - 1
    return torch.cat([forth_BTM[torch.arange(len(last_B)), last_B], back_BTM[:, 0]], -1)


def reverse_frames(x_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T M"]:
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


def shifted(x: Float[Tensor, "*draws T M"]) -> Float[Tensor, "*draws T M"]:
    """x_{t-1} at t, and 0 at the start."""
    return nn.functional.pad(x[..., :-1, :], (0, 0, 1, 0))


def keep_given(given: Mapping[str, Tensor] | None, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of latents, K B T L by name, whose first frames are those that are given."""
    return {
        name: torch.cat([given[name].expand(len(z), -1, -1, -1), z[:, :, given[name].shape[2] :]], 2)
        if given and name in given
        else z
        for name, z in drawn.items()
    }


def concat_features(*parts: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
    """The features of all parts in one tensor; draws that a part has once are repeated."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, -1) for part in parts], -1)


def split_linear(
    layer: nn.Linear | GaussianHead, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... N"], Tensor]:
    """What the first inputs of a layer add to its output, for all frames at once, and the weight that awaits the other
    inputs in a loop: torch.addmm(early, late, weight)."""
    bias_N, weight_MN = layer.bias_and_weight() if isinstance(layer, GaussianHead) else (layer.bias, layer.weight.t())
    first, rest = weight_MN.tensor_split([early.shape[-1]])
    return early @ first + bias_N, rest


def split_rnn(
    layer: nn.LSTM | nn.GRU, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... N"], Callable[[Tensor, Tensor, Any], Any]]:
    """What the first inputs of a recurrent layer add to its gates, for all frames at once; and what, in a loop, makes
    of that, of the other inputs and of a state the next state: the layer's own, but for the axis of its depth."""
    to_gates, from_state, bias, state_bias = layer.all_weights[0]
    first, rest = to_gates.t().tensor_split([early.shape[-1]])
    if isinstance(layer, nn.LSTM):
        weight = torch.cat([rest, from_state.t()])

        def lstm(told_NG: Tensor, late_NM: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            h_NM, cell_NM = state
            gates_NG = torch.addmm(told_NG, torch.cat([late_NM, h_NM], -1), weight)
            let, keep, new, show = gates_NG.chunk(4, -1)
            cell_NM = torch.addcmul(torch.sigmoid(keep) * cell_NM, torch.sigmoid(let), torch.tanh(new))
            return torch.sigmoid(show) * torch.tanh(cell_NM), cell_NM

        return early @ first + (bias + state_bias), lstm

    def gru(told_NG: Tensor, late_NM: Tensor, h_NM: Tensor) -> Tensor:
        split = [2 * h_NM.shape[-1]]
        heard, new = torch.addmm(told_NG, late_NM, rest).tensor_split(split, -1)
        kept, again = torch.addmm(state_bias, h_NM, from_state.t()).tensor_split(split, -1)
        let, keep = torch.sigmoid(heard + kept).chunk(2, -1)
        return torch.lerp(torch.tanh(torch.addcmul(new, let, again)), h_NM, keep)

    return early @ first + bias, gru


def zero_init(layer: nn.Module) -> None:
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

    def bias_and_weight(self) -> tuple[Float[Tensor, " N"], Float[Tensor, "M N"]]:
        """Bias and weight of mean and log-variance side by side: torch.addmm(bias, features, weight)."""
        bias = torch.cat([self.mean.bias, self.log_var.bias])
        return bias, torch.cat([self.mean.weight, self.log_var.weight]).t()


class LipEncoder(nn.Module):
    """A fully connected look at each mouth crop: 67 x 67 pixels -> hidden, ReLU -> features, without activation.

    Each crop is brought to mean 0 and variance 1: skin and light tell nothing of the speech, and raw pixels, all alike
    in their large mean, would train many times slower. Dropout of hidden units helps with faces not seen in training.
    At learning rates that recurrent layers need, features soon grow a hundredfold, for each step moves thousands of
    weights alike, and what follows is saturated for good: there a LayerNorm is to keep them.
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


class Residual(nn.Module):
    """A small correction of a map of features."""

    def __init__(self, conv: type[nn.Conv1d | nn.Conv2d], width: int, narrow: int, activation: type[nn.Module]):
        super().__init__()
        self.correction = nn.Sequential(
            activation(), conv(width, narrow, 3, padding=1), activation(), conv(narrow, width, 1)
        )

    def forward(self, x: Float[Tensor, "N C *places"]) -> Float[Tensor, "N C *places"]:
        return x + self.correction(x)


class FaceEncoder(nn.Module):
    """From faces of 64 x 64 pixels to maps of 8 x 8 places with `dim` features each, place by place in one vector."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, width // 2, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width // 2, width, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 4, stride=2, padding=1), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1),
            *(Residual(nn.Conv2d, width, width // 4, nn.ReLU) for _ in range(2)),
            *(nn.ReLU(), nn.Conv2d(width, dim, 1)),
        )

    def forward(self, face_BTHW3: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T M"]:
        if (found := tuple(face_BTHW3.shape[2:4])) != (64, 64):
            raise UserError(
                f"faces of {found[0]} x {found[1]} pixels, not 64 x 64: prepare the corpus with lips.face=64"
            )
        map_NCHW = self.layers((face_BTHW3.flatten(end_dim=1) / 255 - 0.5).movedim(-1, 1))
        return map_NCHW.movedim(1, -1).reshape(*face_BTHW3.shape[:2], -1)


class FaceDecoder(nn.Module):
    """The way back: pixels about 0..1."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *(Residual(nn.Conv2d, width, width // 4, nn.ReLU) for _ in range(2)),
            nn.ReLU(),
            *(nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(width // 2, width // 2, 4, stride=2, padding=1), nn.ReLU()),
            nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1),
        )

    def forward(self, map_M: Float[Tensor, "*draws T M"]) -> Float[Tensor, "*draws T 64 64 3"]:
        map_NCHW = map_M.reshape(-1, 8, 8, map_M.shape[-1] // 64).movedim(-1, 1)
        return self.layers(map_NCHW).movedim(1, -1).reshape(*map_M.shape[:-1], 64, 64, 3) + 0.5
