"""Layers that no paper owns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.probability.gaussian import Gaussian


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers, each followed by the activation: mlp([513, 128], nn.Tanh)."""
    layers = [(nn.Linear(a, b), activation()) for a, b in pairwise(sizes)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def encoder_input(power: Float[Tensor, "*draws F"], floor: float | None) -> Float[Tensor, "*draws F"]:
    """The power itself or, with a `floor`, ln(power + floor), scaled to about mean 0 and variance 1."""
    return power if floor is None else ((power + floor).log() + 4) / 2.5


def check_floor(observes: str, floor: float | None) -> None:
    if floor is not None and not (observes == "power" and floor > 0):
        raise UserError(f"model.floor={floor}: give a power above 0, to models of power, or null")


@runtime_checkable
class TakesPower(Protocol):
    floor: float | None


def check_same_floor(model: TakesPower, trained: TakesPower) -> None:
    """An encoder that is copied from a trained model needs the input that it was trained on."""
    if model.floor != trained.floor:
        here, there = ("null" if m.floor is None else m.floor for m in (model, trained))
        kinds = [type(m).__name__ for m in (model, trained)]
        raise UserError(
            f"start=: {kinds[1]} was trained with model.floor={there}, and {kinds[0]} takes its encoder with "
            f"floor={here}: start from one of that floor or give the same here"
        )


class Recurrent(nn.Module):
    """A recurrent layer that runs forward, backward or in both directions; frames that pad change no other."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        direction: Literal["forward", "backward", "both"] = "forward",
        unit: type[nn.LSTM] | type[nn.GRU] = nn.LSTM,
    ):
        super().__init__()
        self.forward_rnn: Any = unit(inputs, hidden, batch_first=True) if direction != "backward" else None
        self.backward_rnn: Any = unit(inputs, hidden, batch_first=True) if direction != "forward" else None

    def forward(self, x: Float[Tensor, "*draws T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "*draws T H"]:
        flat, mask = x.flatten(end_dim=-3), mask_BT.expand(*x.shape[:-2], -1).flatten(end_dim=-2)
        flat = flat.transpose(0, 1).contiguous().transpose(0, 1)  # time first in memory, or each unit would copy it
        states = []
        if self.forward_rnn:
            states.append(self.forward_rnn(flat)[0])
        if self.backward_rnn:
            states.append(reverse_frames(self.backward_rnn(reverse_frames(flat, mask))[0], mask))
        return torch.cat(states, -1).unflatten(0, x.shape[:-2])


def run_rnn(
    rnn: nn.LSTM | nn.GRU | nn.RNN, x_KBTM: Float[Tensor, "K B T M"], state: Any = None
) -> tuple[Float[Tensor, "K B T H"], Any]:
    """h_t of each draw and utterance, and the state after the last frame."""
    h_NTM, state = rnn(x_KBTM.flatten(end_dim=1), state)
    return h_NTM.unflatten(0, x_KBTM.shape[:2]), state


def final_states(both_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B M"]:
    """Of a Recurrent in both directions: forward, at the last frame that does not pad; backward, at the first."""
    forth_BTM, back_BTM = both_BTM.chunk(2, -1)
    last_B = mask_BT.sum(1) - 1
    return torch.cat([forth_BTM[torch.arange(len(last_B)), last_B], back_BTM[:, 0]], -1)


def reverse_frames(x_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T M"]:
    """The frames that do not pad in reverse order; those that pad stay in place."""
    if mask_BT.device.type == "cpu" and mask_BT.all():  # on a GPU, the check would wait for it
        return x_BTM.flip(1)
    frame_T = torch.arange(x_BTM.shape[1], device=x_BTM.device)
    source_BT = torch.where(mask_BT, mask_BT.sum(1, keepdim=True) - 1 - frame_T, frame_T)
    return x_BTM.gather(1, source_BT[..., None].expand_as(x_BTM))


class CausalConv(nn.Linear):
    """y_t from x_t and x_t-d, d the dilation; also returns the last inputs, for a call on the frames that follow."""

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
    """A layer of WaveNet: residual output, skip output, and the last inputs, for a call on the frames that follow."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.conv, self.out = CausalConv(channels, 2 * channels, dilation), nn.Linear(channels, 2 * channels)

    def forward(self, x_BTC: Float[Tensor, "B T C"], past_BDC: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        outputs, last_BDC = self.conv(x_BTC, past_BDC)
        content, gate = outputs.chunk(2, -1)
        residual, skip = self.out(torch.tanh(content) * torch.sigmoid(gate)).chunk(2, -1)
        return (x_BTC + residual) * 0.5**0.5, skip, last_BDC


def shifted(x: Float[Tensor, "*draws T M"]) -> Float[Tensor, "*draws T M"]:
    """x_{t-1} at t, and 0 at t = 1."""
    return nn.functional.pad(x[..., :-1, :], (0, 0, 1, 0))


def keep_given(given: Mapping[str, Tensor] | None, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of latents, K B T L by name, whose first frames are replaced by those given."""
    return {
        name: torch.cat([given[name].expand(len(z), -1, -1, -1), z[:, :, given[name].shape[2] :]], 2)
        if given and name in given
        else z
        for name, z in drawn.items()
    }


def concat_features(*parts: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
    """All parts along the last axis; their other axes broadcast."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, -1) for part in parts], -1)


def split_linear(
    layer: nn.Linear | GaussianHead, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... N"], Float[Tensor, "_ N"]]:
    """W [early; late] + b in two parts: that of `early`, for all frames at once, and the weight of `late`, for a loop:
    torch.addmm(part, late, weight)."""
    bias_N, weight_MN = layer.bias_and_weight() if isinstance(layer, GaussianHead) else (layer.bias, layer.weight.t())
    early_weight, late_weight = weight_MN.tensor_split([early.shape[-1]])
    return early @ early_weight + bias_N, late_weight


def split_net(
    net: Any, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... N"], Callable[[Tensor, Tensor], Tensor]]:
    """The same of a GaussianHead or of layers that end in one; the second part is a function of one frame's part and of
    `late` that gives mean and log-variance, concatenated."""
    layers: list[Any] = [*net] if isinstance(net, nn.Sequential) else [net]
    part, late_weight = split_linear(layers[0], early)
    between = layers[1:-1]
    bias, weight = layers[-1].bias_and_weight() if layers[1:] else (None, late_weight)

    def finish(part_NM: Tensor, late_NM: Tensor) -> Tensor:
        features_NM = torch.addmm(part_NM, late_NM, late_weight)
        for layer in between:
            features_NM = layer(features_NM)
        return features_NM if bias is None else torch.addmm(bias, features_NM, weight)

    return part, finish


def split_rnn(
    rnn: nn.LSTM | nn.GRU, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... G"], Callable[[Tensor, Tensor, Any], Any]]:
    """The same of the gates of a recurrent layer; the second part is a function of one frame's part, of `late` and of a
    state that gives the next state, without the layer's axis of depth."""
    input_weight, state_weight, bias, state_bias = rnn.all_weights[0]
    early_weight, late_weight = input_weight.t().tensor_split([early.shape[-1]])
    if isinstance(rnn, nn.LSTM):
        weight = torch.cat([late_weight, state_weight.t()])

        def lstm(part_NG: Tensor, late_NM: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            h_NM, c_NM = state
            gates_NG = torch.addmm(part_NG, torch.cat([late_NM, h_NM], -1), weight)
            i, f, g, o = gates_NG.chunk(4, -1)
            c_NM = torch.addcmul(torch.sigmoid(f) * c_NM, torch.sigmoid(i), torch.tanh(g))
            return torch.sigmoid(o) * torch.tanh(c_NM), c_NM

        return early @ early_weight + (bias + state_bias), lstm

    def gru(part_NG: Tensor, late_NM: Tensor, h_NM: Tensor) -> Tensor:
        split = [2 * h_NM.shape[-1]]
        rz_input, n_input = torch.addmm(part_NG, late_NM, late_weight).tensor_split(split, -1)
        rz_state, n_state = torch.addmm(state_bias, h_NM, state_weight.t()).tensor_split(split, -1)
        r, z = torch.sigmoid(rz_input + rz_state).chunk(2, -1)
        return torch.lerp(torch.tanh(torch.addcmul(n_input, r, n_state)), h_NM, z)

    return early @ early_weight + bias, gru


def sum_over_processes(total: Tensor) -> Tensor:
    """In distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def zero_init(layer: nn.Module) -> None:
    """All parameters to 0, so that the output is 0 until training changes it."""
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
        """Those of mean and log-variance, concatenated: torch.addmm(bias, features, weight)."""
        bias = torch.cat([self.mean.bias, self.log_var.bias])
        return bias, torch.cat([self.mean.weight, self.log_var.weight]).t()


class LipEncoder(nn.Module):
    """Fully connected layers for each mouth crop: 67 x 67 pixels -> hidden, ReLU -> features, without activation.

    Each crop is normalised to mean 0 and variance 1: skin and light carry no speech, and raw pixels, with their large
    common mean, train many times slower. Dropout of hidden units helps with faces that are not in training. With the
    learning rates of recurrent layers, features soon grow a hundredfold, for each step moves thousands of weights in
    the same direction, and the layers that follow saturate: there, add a LayerNorm.

    Outside training, crops unlike those of the training set are moved towards its mean crop, for their features can be
    of any size.
    """

    def __init__(self, pixels: int = 67 * 67, hidden: int = 512, features: int = 128, dropout: float = 0.0):
        super().__init__()
        self.pixels, self.dropout = nn.Linear(pixels, hidden), nn.Dropout(dropout)
        self.features = nn.Linear(hidden, features)
        self.register_buffer("mean_crop", torch.zeros(pixels))
        self.register_buffer("crops", torch.zeros(()))  # of which it is the mean
        self.mean_crop: Tensor
        self.crops: Tensor
        self.register_load_state_dict_pre_hook(_without_mean_crop)

    def forward(self, lips_BTHW: UInt8[Tensor, "B T H W"]) -> Float[Tensor, "B T M"]:
        height, width = lips_BTHW.shape[2:]
        if height * width != self.pixels.in_features:
            raise UserError(
                f"the crops have {height} x {width} pixels and the model takes {self.pixels.in_features} in all: "
                "prepare the corpus with the model's size="
            )
        x_BTP = standardised(lips_BTHW)
        if self.training:
            self._average(x_BTP)
        else:
            x_BTP = torch.lerp(self.mean_crop, x_BTP, self._typical(x_BTP))
        hidden_BTM = torch.relu(self.pixels(x_BTP))
        return self.features(self.dropout(hidden_BTM))

    def typical(self, lips_BTHW: UInt8[Tensor, "B T H W"]) -> float | Float[Tensor, "B T 1"]:
        """The mean square distance of the crops of training from their mean, as a share of that of each crop; 1 at
        most, and in training."""
        return 1.0 if self.training else self._typical(standardised(lips_BTHW))

    def _typical(self, x_BTP: Float[Tensor, "B T P"]) -> Float[Tensor, "B T 1"]:
        squares = (x_BTP - self.mean_crop).square().mean(-1, keepdim=True)
        return ((1 - self.mean_crop.square().mean()) / squares.clamp_min(1e-6)).clamp_max(1)  # crops have variance 1

    @torch.no_grad()
    def _average(self, x_BTP: Float[Tensor, "B T P"]) -> None:
        present = sum_over_processes((x_BTP != 0).any(-1).sum())  # not blank, as without a face
        self.crops += present
        self.mean_crop += (sum_over_processes(x_BTP.sum((0, 1))) - present * self.mean_crop) / self.crops.clamp_min(1)


def _without_mean_crop(encoder: LipEncoder, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Of earlier weights: every crop is typical of a mean crop of 0."""
    for name, zeros in encoder.named_buffers():
        state.setdefault(prefix + name, zeros)


def standardised(lips_BTHW: UInt8[Tensor, "B T H W"]) -> Float[Tensor, "B T P"]:
    """The pixels of each crop, normalised to mean 0 and variance 1."""
    pixels_BTP = lips_BTHW.flatten(2) / 255
    deviation_BT1, mean_BT1 = torch.std_mean(pixels_BTP, -1, keepdim=True)
    return (pixels_BTP - mean_BT1) / (deviation_BT1 + 1e-3)


class Residual(nn.Module):
    """x plus a small correction."""

    def __init__(self, conv: type[nn.Conv1d | nn.Conv2d], width: int, narrow: int, activation: type[nn.Module]):
        super().__init__()
        self.correction = nn.Sequential(
            activation(), conv(width, narrow, 3, padding=1), activation(), conv(narrow, width, 1)
        )

    def forward(self, x: Float[Tensor, "N C *places"]) -> Float[Tensor, "N C *places"]:
        return x + self.correction(x)


class FaceEncoder(nn.Module):
    """From faces of 64 x 64 pixels to maps of 8 x 8 places with `dim` features each, flattened to one vector."""

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
    """From such maps to pixels of about 0..1."""

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
