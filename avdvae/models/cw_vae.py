"""Clockwork VAE of waveforms: levels of latents, each slower than the one below, which it gives its context.

V. Saxena, J. Ba, D. Hafner, "Clockwork variational autoencoders", NeurIPS 2021 (arXiv 2102.09532); for speech, J. D.
Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    h_t = GRU(h_t-1; z_t-1, c_t),  z_0 = h_0 = 0                  at each level; c_t = up([z, h] of the level above)
    p(z | above) = prod_t N(z_t; mu_p, diag var_p (h_t))
    q(z | above, x) = prod_t N(z_t; mu, diag var (h_t, e_t)) N(z_t; mu_p, diag var_p), normalised
    p(x | z) = prod_n DMoL(x_n; up([z, h] of level 1))            e: convolutions of x, a ladder over the levels
    ELBO = E_q[ln p(x | z)] - sum over levels and t of KL(q || p), along one draw

e_t sees what comes, up([z, h]) at t what was: so both can be made piece by piece. Layers are normalised over channels
at each time, not over time at each channel as in the published code, where padding and the rest of the utterance would
change what a piece gives.

    z, h    level 1 has a step every s samples, level l every 8^(l-1) s     z_KBTL, and z_NTL with draws in one axis
    e, c    features at the steps of a level                                e_BTH, c_NTH
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.errors import UserError
from avdvae.models.waveform import CodeHead, Waveforms
from avdvae.nn.blocks import GaussianHead, concat_features, mlp, shifted
from avdvae.nn.sliding import Sliding, SlidingBack
from avdvae.probability.distributions import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec

SLOWER = 8  # steps of a level to one of the level above
KERNEL, BLOCKS = 5, 8
SPAN = 2**20  # numbers


class Block(nn.Module):
    """y = x at its new rate + narrow(slide(widen x)), a convolution of each channel by itself in the wide middle."""

    def __init__(self, channels: int, stride: int, rises: bool):
        super().__init__()
        wide = 4 * channels
        self.stride, self.rises = stride, rises
        self.widen, self.widened = nn.Linear(channels, wide), nn.LayerNorm(wide)
        kind = nn.ConvTranspose1d if rises else nn.Conv1d  # of which only the parameters are used
        self.slide, self.slid = kind(wide, wide, KERNEL, stride, groups=wide), nn.LayerNorm(wide)
        self.narrow = nn.Linear(wide, channels, bias=False)

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B t C"]:
        """Down, t = (T - 5) // stride + 1; up, t = T * stride. In parts, each with what else its outputs depend on."""
        parts, s = self._parts(x_BTC), self.stride
        if self.rises:
            ahead = [parts[0][:, :0], *(part[:, -(KERNEL - 1) // s :] for part in parts[:-1])]
            pieces = [
                self._moved(torch.cat(both, 1))[:, both[0].shape[1] * s :] for both in zip(ahead, parts, strict=True)
            ]
        else:
            behind = [*(part[:, : KERNEL - s] for part in parts[1:]), parts[-1][:, :0]]
            pieces = [self._moved(torch.cat(both, 1)) for both in zip(parts, behind, strict=True)]
        return torch.cat(pieces, 1)

    def _parts(self, x_BTC: Float[Tensor, "B T C"]) -> Sequence[Float[Tensor, "B _ C"]]:
        """Short enough for what is wide of them to stay in a CPU's cache from layer to layer."""
        if x_BTC.device.type != "cpu":
            return [x_BTC]
        frames, wide = x_BTC.shape[1], len(x_BTC) * self.widen.out_features * (self.stride if self.rises else 1)
        size = max(KERNEL, SPAN // wide) // self.stride * self.stride
        count = max(1, (frames - KERNEL) // size + 1)
        return x_BTC.split([size] * (count - 1) + [frames - size * (count - 1)], 1)

    def _moved(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B t C"]:
        wide_BTC = self.widened(torch.relu(self.widen(x_BTC)))
        slide = SlidingBack if self.rises else Sliding
        slid_BTC = slide.apply(wide_BTC, self.slide.weight[:, 0].t(), self.slide.bias, self.stride)
        kept_BTC = x_BTC.repeat_interleave(self.stride, 1) if self.rises else x_BTC[:, :: self.stride]
        return kept_BTC[:, : slid_BTC.shape[1]] + self.narrow(self.slid(torch.relu(slid_BTC)))


class Ladder(nn.Sequential):
    """Eight blocks that go down by a stride, the first of them by 2 each, or up, the last of them."""

    def __init__(self, channels: int, stride: int, rises: bool):
        strides = [2] * int(math.log2(stride)) + [1] * (BLOCKS - int(math.log2(stride)))
        super().__init__(*(Block(channels, s, rises) for s in (reversed(strides) if rises else strides)))
        self.stride, rates = stride, [math.prod(strides[:n]) for n in range(BLOCKS)]
        self.reach = 1 + (KERNEL - 1) * sum(rates)  # inputs that one output going down depends on


class Told(NamedTuple):
    """What one level tells on the way of its draws."""

    z: Float[Tensor, "N T L"]
    h: Float[Tensor, "N T H"]
    q: Gaussian
    p: Gaussian


class Cell(nn.Module):
    """The recursion of a level; prior and posterior, of equal widths, are computed in one product."""

    def __init__(self, hidden: int, dim: int, context: int):
        super().__init__()
        self.hidden, self.dim = hidden, dim
        self.mix = nn.Linear(dim + context, hidden)
        self.remember = nn.GRU(hidden, hidden, batch_first=True)
        self.p_head = nn.Sequential(*mlp([hidden] * 4, nn.ReLU), GaussianHead(hidden, dim))
        self.q_head = nn.Sequential(*mlp([2 * hidden, hidden, hidden, hidden], nn.ReLU), GaussianHead(hidden, dim))

    def follow(self, z_NTL: Float[Tensor, "N T L"], c_NTH: Tensor | None) -> tuple[Float[Tensor, "N T H"], Gaussian]:
        """States and priors on the way of given draws."""
        told = shifted(z_NTL) if c_NTH is None else concat_features(shifted(z_NTL), c_NTH)
        h_NTH = self.remember(torch.relu(self.mix(told)))[0]
        return h_NTH, self.p_head(h_NTH)

    def draw(
        self,
        c_NTH: Tensor | None,
        e_NTH: Float[Tensor, "N t H"],
        noise_NTL: Float[Tensor, "N T L"],
        given_NTL: Tensor | None = None,
    ) -> Told:
        """The first steps as they are given, then from the posterior where there is an e, from the prior after it."""
        steps, heard = noise_NTL.shape[1], e_NTH.shape[1]
        given = [] if given_NTL is None else given_NTL.unbind(1)
        z_weight, c_weight = self.mix.weight.t().split([self.dim, self.mix.in_features - self.dim])
        c_told = self.mix.bias if c_NTH is None else torch.addmm(self.mix.bias, c_NTH.flatten(0, 1), c_weight)
        c_told = c_told.expand(noise_NTL[..., 0].numel(), -1).unflatten(0, noise_NTL.shape[:2])
        p_layers: list[Any] = [layer for layer in self.p_head if not isinstance(layer, nn.ReLU)]
        q_layers: list[Any] = [layer for layer in self.q_head if not isinstance(layer, nn.ReLU)]
        (first_p, *later_p, head_p), (first_q, *later_q, head_q) = p_layers, q_layers
        h_weight, e_weight = first_q.weight.t().split(self.hidden)
        h_weight = torch.cat([first_p.weight.t(), h_weight], 1)
        e_told = pad(e_NTH, (0, 0, 0, steps - heard)) @ e_weight + first_q.bias
        e_told = torch.cat([first_p.bias.expand_as(e_told), e_told], -1)
        layers = [
            (torch.stack([p.bias, q.bias])[:, None], torch.stack([p.weight.t(), q.weight.t()]))
            for p, q in zip(later_p, later_q, strict=True)
        ]
        (p_bias, p_weight), (q_bias, q_weight) = head_p.bias_and_weight(), head_q.bias_and_weight()
        head_bias, head_weight = torch.stack([p_bias, q_bias])[:, None], torch.stack([p_weight, q_weight])
        gru = [getattr(self.remember, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        z_NL, h_NH = noise_NTL.new_zeros(len(noise_NTL), self.dim), noise_NTL.new_zeros(len(noise_NTL), self.hidden)
        path = []
        for t, (c_NH, e_N2H, noise_NL) in enumerate(
            zip(c_told.unbind(1), e_told.unbind(1), noise_NTL.unbind(1), strict=True)
        ):
            h_NH = torch.gru_cell(torch.relu(torch.addmm(c_NH, z_NL, z_weight)), h_NH, *gru)
            both_2NH = torch.relu(torch.addmm(e_N2H, h_NH, h_weight)).unflatten(1, (2, -1)).transpose(0, 1)
            for bias, weight in layers:
                both_2NH = torch.relu(torch.baddbmm(bias, both_2NH, weight))
            said_2NL2 = torch.baddbmm(head_bias, both_2NH, head_weight)
            p, q = (Gaussian(*side.chunk(2, -1)) for side in said_2NL2)
            z_NL = given[t] if t < len(given) else (q.times(p) if t < heard else p).moved(noise_NL)
            path.append((z_NL, h_NH, said_2NL2))
        z_NTL, h_NTH, said = (torch.stack(part, -2) for part in zip(*path, strict=True))
        p, q = (Gaussian.floored(*side.chunk(2, -1)) for side in said)
        return Told(z_NTL, h_NTH, q.times(p), p)


class Level(nn.Module):
    def __init__(self, hidden: int, dim: int, stride: int, context: int):
        super().__init__()
        self.down = Ladder(hidden, stride, rises=False)
        self.cell = Cell(hidden, dim, context)
        self.enter, self.up = nn.Linear(dim + hidden, hidden), Ladder(hidden, stride, rises=True)
        self.lookback = (self.down.reach - 1) // stride  # steps before its own that an output of `up` depends on

    def raised(self, z_NTL: Tensor, h_NTH: Tensor) -> Float[Tensor, "N t H"]:
        return self.up(torch.relu(self.enter(concat_features(z_NTL, h_NTH))))


class CWVAE(Waveforms):
    def __init__(
        self,
        stride: int = 64,
        layers: int = 2,
        channels: int = 96,
        dim: int | Sequence[int] = 96,  # of each level, or of one after another
        coding: str = "mu-law",
        scoring: str = "exact",
        piece: int = 131_072,  # samples that the layers of a high rate take at a time where nothing is trained
    ):
        super().__init__()
        self.listen_by(stride, coding, scoring)
        dims = [dim] * layers if isinstance(dim, int) else list(dim)
        if len(dims) != layers or stride & (stride - 1) or not 2 <= stride <= 2**BLOCKS:
            raise UserError(
                f"model.stride={stride}, model.layers={layers}, model.dim={dim}: the stride is a power of 2, at most "
                f"{2**BLOCKS}, and dim is a number or one for each layer"
            )
        self.rates = [stride * SLOWER**level for level in range(layers)]
        self.latents = tuple(
            LatentSpec(f"z{level}", size, rate, "audio")
            for level, (size, rate) in enumerate(zip(dims, self.rates, strict=True), start=1)
        )
        self.stem = nn.Linear(1, channels)
        self.levels = nn.ModuleList(
            Level(channels, size, SLOWER if level else stride, channels if level < layers - 1 else 0)
            for level, size in enumerate(dims)
        )
        self.out, self.head = nn.Linear(channels, channels), CodeHead(channels)
        self.piece = piece // stride  # in steps of level 1

    def _masks(self, mask_BT: Bool[Tensor, "B T"]) -> list[Bool[Tensor, "B _"]]:
        return [mask_BT[:, :: SLOWER**level] for level in range(len(self.rates))]

    def context(self, batch: Batch) -> Context:
        return Context(self.steps(batch))

    def encode(self, batch: Batch, mask_BT: Bool[Tensor, "B T"]) -> list[Float[Tensor, "B _ H"]]:
        """e of every level; what pads is 0 on the way into each."""
        waveform_BN = batch.need("waveform", self)
        assert batch.lengths is not None
        sounds_BN = torch.arange(waveform_BN.shape[1], device=waveform_BN.device) < batch.lengths[:, None]
        e_BTH, told = self.stacks(waveform_BN * sounds_BN).flatten(1)[..., None], []
        for level, mask in zip(self.levels, self._masks(mask_BT), strict=True):
            assert isinstance(level, Level)
            steps, s = mask.shape[1], level.down.stride
            wide = pad(e_BTH, (0, 0, 0, max(0, (steps - 1) * s + level.down.reach - e_BTH.shape[1])))
            pieces = []
            for first, last in self._pieces(steps, s):
                part = wide[:, first * s : (last - 1) * s + level.down.reach]
                pieces.append(level.down(torch.relu(self.stem(part)) if level is self.levels[0] else part))
            e_BTH = torch.cat(pieces, 1) * mask[..., None]
            told.append(e_BTH)
        return told

    def _pieces(self, steps: int, stride: int) -> Iterator[tuple[int, int]]:
        """(from, to), in steps of a level whose inputs are `stride` times as many."""
        size = steps if self.training else max(1, self.piece * self.stride // stride)
        return ((first, min(first + size, steps)) for first in range(0, steps, size))

    def _descend(self, masks: Sequence[Tensor], tell: Any) -> dict[str, Told]:
        """What every level tells, from the top down; `tell(level, name, c)` gives that of one."""
        told: dict[str, Told] = {}
        c_NTH = None
        for number in reversed(range(len(masks))):
            level, name = self.levels[number], self.latents[number].name
            assert isinstance(level, Level)
            told[name] = tell(level, name, c_NTH)
            if number:
                c_NTH = level.raised(told[name].z, told[name].h)[:, : masks[number - 1].shape[1]]
        return told

    def _likelihood(self, told: Told, k: int) -> Any:
        """Of samples, from level 1, piece by piece: a few steps before each are taken along, and left out again."""
        level, outputs = self.levels[0], []
        assert isinstance(level, Level)
        for first, last in self._pieces(told.z.shape[1], self.stride):
            along = min(first, level.lookback)
            part = slice(first - along, last)
            raised = level.raised(told.z[:, part], told.h[:, part])[:, along * self.stride :]
            outputs.append(self.head(torch.relu(self.out(raised))))
        return self.likelihood(torch.cat(outputs, 1).unflatten(0, (k, -1)))

    def _draw(
        self, mask_BT: Tensor, es: Sequence[Tensor], k: int, draw: Any, given: Latents | None = None
    ) -> dict[str, Told]:
        masks = self._masks(mask_BT)
        spare = {spec.name: (mask, e) for spec, mask, e in zip(self.latents, masks, es, strict=True)}
        noise = {
            s.name: draw((k * len(mask_BT), spare[s.name][0].shape[1], s.dim), device=mask_BT.device)
            for s in self.latents
        }
        known = {name: z.expand(k, -1, -1, -1).flatten(0, 1) for name, z in (given or {}).items()}
        return self._descend(
            masks,
            lambda level, name, c: level.cell.draw(c, spare[name][1].repeat(k, 1, 1), noise[name], known.get(name)),
        )

    def _follow(self, z: Latents, mask_BT: Tensor) -> dict[str, Told]:
        def tell(level: Level, name: str, c_NTH: Tensor | None) -> Told:
            z_NTL = z[name].flatten(0, 1)
            h_NTH, p = level.cell.follow(z_NTL, c_NTH)
            return Told(z_NTL, h_NTH, p, p)

        return self._descend(self._masks(mask_BT), tell)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        mask_BT = self.steps(batch)
        told = self._draw(mask_BT, self.encode(batch, mask_BT), k, torch.randn if mode == "sample" else torch.zeros)
        return Inferred(
            {name: level.z.unflatten(0, (k, -1)) for name, level in told.items()},
            {name: _with_draws(level.q, k) for name, level in told.items()},
            {name: _with_draws(level.p, k) for name, level in told.items()},
        )

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return {"waveform": self._likelihood(self._follow(z, context.mask)["z1"], len(z["z1"]))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        """At the steps of level 1, over which those of the others are spread evenly."""
        total, told = torch.zeros_like(z["z1"][..., 0]), self._follow(z, context.mask)
        for level, spec in enumerate(self.latents):
            name, steps = spec.name, SLOWER**level
            log_p = told[name].p.log_prob(told[name].z).unflatten(0, z[name].shape[:2])
            held_BT = pad(context.mask, (0, -context.mask.shape[1] % steps)).unflatten(1, (-1, steps))
            first_BT = torch.arange(steps, device=held_BT.device).expand_as(held_BT) == 0
            held_BT = torch.where(held_BT.any(-1, keepdim=True), held_BT, first_BT)
            share = held_BT / held_BT.sum(-1, keepdim=True)
            total = total + (log_p[..., None] * share).flatten(-2)[..., : total.shape[-1]]
        return total

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        nothing = [context.mask.new_zeros((len(context.mask), 0, self.out.in_features), dtype=torch.float32)] * len(
            self.rates
        )
        told = self._draw(context.mask, nothing, k, torch.randn, given)
        return {name: level.z.unflatten(0, (k, -1)) for name, level in told.items()}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        mask_BT = self.steps(batch)
        told = self._draw(mask_BT, self.encode(batch, mask_BT), 1, torch.randn)
        masks = {spec.name: mask for spec, mask in zip(self.latents, self._masks(mask_BT), strict=True)}
        share = {spec.name: rate / self.stride for spec, rate in zip(self.latents, self.rates, strict=True)}
        q, p = ({name: _with_draws(getattr(level, side), 1) for name, level in told.items()} for side in "qp")
        return self.bound(self._likelihood(told["z1"], 1), batch, schedule, q, p, masks, share)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """What may follow sound, or silence where there is none. Steps that see what comes are inferred as if silence
        did, so that those that see little else are left to the prior."""
        total = waveform_BN.shape[1] + samples
        mask_BT = torch.ones(len(waveform_BN), -(-total // self.stride), dtype=torch.bool, device=waveform_BN.device)
        lengths = torch.full((len(waveform_BN),), waveform_BN.shape[1], device=waveform_BN.device)
        batch = Batch(("",) * len(waveform_BN), mask_BT, waveform=waveform_BN, lengths=lengths)
        heard = self.encode(batch, self.steps(batch)) if waveform_BN.shape[1] else None
        es = [
            mask_BT.new_zeros((len(mask_BT), 0, self.out.in_features), dtype=torch.float32)
            if heard is None
            else heard[level][:, : waveform_BN.shape[1] // rate]
            for level, rate in enumerate(self.rates)
        ]
        told = self._draw(mask_BT, es, 1, torch.randn)
        return self._likelihood(told["z1"], 1).sample()[0, :, waveform_BN.shape[1] : total]


def _with_draws(gaussian: Gaussian, k: int) -> Gaussian:
    return Gaussian(gaussian.mean.unflatten(0, (k, -1)), gaussian.log_var.unflatten(0, (k, -1)))
