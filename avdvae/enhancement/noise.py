"""The NMF model of the noise in a mixture, with the updates of an M-step, and its first estimate.

Majorise-minimise: with V = H W^T, S_rj the variances of source j in the draws, weighted by w_r, and X_r = V + sum_j g_j
S_rj, each factor is multiplied by the square root of (sum_r w_r P / X_r^2) / (sum_r w_r / X_r), contracted with what
the factor multiplies. In enhancement the speech is the only source.

    cost = sum_f sum_r w_r (ln X_r + P / X_r) + smoothness * sum_k [H_t / H_t-1 - ln(H_t / H_t-1) - 1]  of a frame t

which no update raises. The second term, of C. Fevotte, "Majorization-minimization algorithm for smooth Itakura-Saito
nonnegative matrix factorization", ICASSP 2011, is a chain that each activation follows: without it, some dozens of
frames let many components fit speech as noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.enhancement.contract import RandomNumbers
from avdvae.probability.spectrum import Components

EPSILON = 1e-10
THINNED = 4  # of so many frames one


@dataclass(frozen=True)
class Past:
    """Of frames before those of a mixture, in a sound that arrives: the statistics of W, and the last H.

    W = sqrt(above / below), of the sums over all frames: A. Lefevre, F. Bach, C. Fevotte, "Online algorithms for
    nonnegative matrix factorization with the Itakura-Saito divergence", WASPAA 2011.
    """

    above_BFK: Float[Tensor, "B F K"]  # W^2 sum_t H P / X^2
    below_BFK: Float[Tensor, "B F K"]  # sum_t H / X
    H_B1K: Float[Tensor, "B 1 K"]

    def scaled(self, factor: float) -> Past:
        """Of a mixture whose power is multiplied by `factor`."""
        return replace(self, above_BFK=self.above_BFK * factor, below_BFK=self.below_BFK / factor)


@dataclass
class Noise:
    """Gains of the sources and noise of a mixture, and their updates. Frames that pad are those where H is zero.

    past           of a sound that arrives: frames that no update changes
    variance_BTF   V, in memory that every update uses again
    """

    W_BFK: Float[Tensor, "B F K"]
    H_BTK: Float[Tensor, "B T K"]
    gain_BTJ: Float[Tensor, "B T J"]
    smoothness: float = 0.0
    past: Past | None = None

    @classmethod
    def drawn(
        cls, noisy_BTF: Tensor, rank: int, random: RandomNumbers, smoothness: float = 0.0, sources: int = 1
    ) -> Noise:
        """W and H uniform in 0..1; each source has an equal share in a gain of 1."""
        frequencies = noisy_BTF.shape[2]
        W = [torch.rand((frequencies, rank), generator=g, device=g.device) for g in random.generators]
        frames = torch.tensor(random.frames, device=noisy_BTF.device)
        present_BT = torch.arange(noisy_BTF.shape[1], device=noisy_BTF.device) < frames[:, None]
        H_BTK = random.uniform(noisy_BTF[..., :1].expand(-1, -1, rank)).clamp_min(EPSILON) * present_BT[..., None]
        gain_BTJ = noisy_BTF.new_full((*noisy_BTF.shape[:2], sources), 1 / sources)
        return cls(torch.stack(W).to(noisy_BTF.device).clamp_min(EPSILON), H_BTK, gain_BTJ, smoothness)

    def at_level(self, level_B1F: Float[Tensor, "B 1 F"]) -> Noise:
        """Drawn noise times a level, so that V is this level on average."""
        return replace(self, W_BFK=self.W_BFK * level_B1F.mT * (4 / self.W_BFK.shape[2]))

    def __post_init__(self) -> None:
        # A zero within a chain would spread along it.
        self._least_BT1 = EPSILON * (self.H_BTK > 0).any(-1, keepdim=True)
        self.H_BTK = self.H_BTK.maximum(self._least_BT1)
        self.variance_BTF = self.H_BTK.new_empty(0)
        self._room: tuple[Tensor, Tensor] | None = None
        self._mix()

    def _mix(self) -> None:
        torch.bmm(self.H_BTK, self.W_BFK.mT, out=self.variance_BTF)
        self.variance_BTF += EPSILON  # no division by 0 in digital silence

    def update(self, noisy_BTF: Tensor, likely: Components, times: int = 1, thinned: int = 0) -> Float[Tensor, "B T"]:
        """One M-step, and the cost before it: so many updates on thinned frames, then so many on all. Where H is zero,
        as in frames that pad, it stays zero, and the frame does not contribute to W."""
        speech_RBTF, precision_RBTF, weight_RBT1, *_ = likely
        if self._room is None or self._room[0].shape != speech_RBTF.shape:
            self._room = torch.empty_like(speech_RBTF), torch.empty_like(speech_RBTF)
        one, two = self._room  # allocating them anew would take longer than the arithmetic

        ratio_RBTF = torch.mul(noisy_BTF, precision_RBTF, out=one)
        cost_BT = self._cost(ratio_RBTF, torch.log(precision_RBTF, out=two), weight_RBT1)
        if thinned:
            self._approach(noisy_BTF, likely, thinned)
        for number in range(times):
            if number or thinned:
                precision_RBTF = self.mixture(*likely.sources, out=two).reciprocal_()
                ratio_RBTF = torch.mul(noisy_BTF, precision_RBTF, out=one)
            self._update(noisy_BTF, likely, ratio_RBTF, precision_RBTF)
        return cost_BT

    def _approach(self, noisy_BTF: Tensor, likely: Components, times: int) -> None:
        """W and H by updates on one of THINNED frames, whose activation the frames after it get, too: what changes
        slowly needs no more, and an update takes a quarter of the time."""
        H_BTK, gain_BTJ = (values[:, ::THINNED].contiguous() for values in (self.H_BTK, self.gain_BTJ))
        few = Noise(self.W_BFK, H_BTK, gain_BTJ, self.smoothness / THINNED)
        few.update(noisy_BTF[:, ::THINNED].contiguous(), likely.thinned(THINNED), times)
        held_BTK = few.H_BTK.repeat_interleave(THINNED, 1)[:, : self.H_BTK.shape[1]]
        self.W_BFK, self.H_BTK = few.W_BFK, torch.where(self._least_BT1 > 0, held_BTK, 0.0)
        self._mix()

    def _update(self, noisy_BTF: Tensor, likely: Components, ratio_RBTF: Tensor, precision_RBTF: Tensor) -> None:
        """Of W, H and the gains, in the room of `update`."""
        assert self._room is not None
        (one, two), weight_RBT1 = self._room, likely.weight
        above, below = _slopes(ratio_RBTF, precision_RBTF, weight_RBT1)
        self._update_spectra((self.H_BTK.mT @ above).mT, (self.H_BTK.mT @ below).mT)

        self._mix()
        precision_RBTF = self.mixture(*likely.sources, out=two).reciprocal_()
        above, below = _slopes(torch.mul(noisy_BTF, precision_RBTF, out=one), precision_RBTF, weight_RBT1)
        self._update_activations(above @ self.W_BFK, below @ self.W_BFK)

        self._mix()
        variance_RBTF, above, below = self.mixture(*likely.sources, out=two), [], []
        for source_RBTF in likely.sources:
            share_RBTF = torch.div(source_RBTF, variance_RBTF, out=one)
            below.append(weighted_mean(share_RBTF.sum(-1, keepdim=True), weight_RBT1))
            fit_RBT1 = share_RBTF.div_(variance_RBTF).mul_(noisy_BTF).sum(-1, keepdim=True)
            above.append(weighted_mean(fit_RBT1, weight_RBT1))
        self.gain_BTJ = _scaled(self.gain_BTJ, torch.cat(above, -1), torch.cat(below, -1)).clamp_min_(EPSILON)

    def _update_spectra(self, above_BFK: Tensor, below_BFK: Tensor) -> None:
        if self.past is None:
            self.W_BFK = _scaled(self.W_BFK, above_BFK, below_BFK).clamp_min_(EPSILON)
            return
        above_BFK = torch.addcmul(self.past.above_BFK, self.W_BFK.square(), above_BFK)
        self.W_BFK = (above_BFK / (self.past.below_BFK + below_BFK).clamp_min(EPSILON)).sqrt_().clamp_min_(EPSILON)

    def _update_activations(self, above_BTK: Tensor, below_BTK: Tensor) -> None:
        """With the chain, the even frames and then the odd ones, given the new even ones. At the ends of a chain, the
        majoriser takes the frame's own H for the missing neighbour."""
        if not self.smoothness:
            self.H_BTK = _scaled(self.H_BTK, above_BTK, below_BTK).maximum(self._least_BT1)
            return
        above_BTK = self.H_BTK.square().mul_(above_BTK)
        chain = torch.cat([self._H_before, self.H_BTK, self.H_BTK[:, -1:]], 1)
        for first in (0, 1):
            before, own, after = chain[:, first:-2:2], chain[:, first + 1 : -1 : 2], chain[:, first + 2 :: 2]
            after = torch.where(after > 0, after, own)
            above = torch.add(above_BTK[:, first::2], after, alpha=self.smoothness)
            own.copy_(above.div_(below_BTK[:, first::2] + self.smoothness / before).sqrt_())
        self.H_BTK = chain[:, 1:-1].maximum(self._least_BT1)

    @property
    def _H_before(self) -> Float[Tensor, "B 1 K"]:
        return self.H_BTK[:, :1] if self.past is None else self.past.H_B1K

    def left(
        self, count: int, noisy_BTF: Tensor, precision_RBTF: Tensor, weight_RBT1: Tensor | None, forgetting: float
    ) -> Past:
        """The past after the first `count` frames have left, which is forgotten by a factor a frame."""
        precision_RBTF = precision_RBTF[..., :count, :]
        weight_RBT1 = None if weight_RBT1 is None else weight_RBT1[..., :count, :]
        ratio_RBTF = noisy_BTF[:, :count] * precision_RBTF
        above, below = _slopes(ratio_RBTF, precision_RBTF, weight_RBT1)
        ages_T1 = torch.arange(count - 1, -1, -1, device=noisy_BTF.device)[:, None]
        H_BKT = (self.H_BTK[:, :count] * forgetting**ages_T1).mT
        above_BFK, below_BFK = self.W_BFK.square() * (H_BKT @ above).mT, (H_BKT @ below).mT
        if self.past:
            above_BFK = above_BFK.add_(self.past.above_BFK, alpha=forgetting**count)
            below_BFK = below_BFK.add_(self.past.below_BFK, alpha=forgetting**count)
        return Past(above_BFK, below_BFK, self.H_BTK[:, count - 1 : count])

    def mixture(self, *sources_RBTF: Tensor, out: Tensor | None = None) -> Float[Tensor, "R B T F"]:
        """X, the variances of the mixture."""
        mixed = self.variance_BTF
        for gain_BT1, source_RBTF in zip(self.gain_BTJ.split(1, -1), sources_RBTF, strict=True):
            mixed = torch.addcmul(mixed, gain_BT1, source_RBTF, out=out)
        return mixed

    def wiener(self, likely: Components, source: int) -> Float[Tensor, "B T F"]:
        """The filter of a source, sum_r w_r g_j S_rj / X_r."""
        gain_BT1, source_RBTF = self.gain_BTJ[..., source, None], likely.sources[source]
        filter_BTF = weighted_mean(gain_BT1 * source_RBTF / self.mixture(*likely.sources), likely.weight)
        return filter_BTF.clamp_max(1)  # weights add up to 1 but for rounding

    def power(self, likely: Components, noisy_BTF: Tensor, source: int) -> Float[Tensor, "B T F"]:
        """The present estimate of a source's power, without its gain."""
        filtered_BTF = self.wiener(likely, source).square().mul_(noisy_BTF)
        return filtered_BTF.div_(self.gain_BTJ[..., source, None])

    def _cost(self, ratio_RBTF: Tensor, log_precision_RBTF: Tensor, weight_RBT1: Tensor | None) -> Tensor:
        fit_RBT1 = ratio_RBTF.sum(-1, keepdim=True) - log_precision_RBTF.sum(-1, keepdim=True)
        cost_BT = weighted_mean(fit_RBT1, weight_RBT1)[..., 0]
        if self.smoothness:
            rise_BTK = self.H_BTK / torch.cat([self._H_before, self.H_BTK[:, :-1]], 1)
            chain_BTK = torch.where(self.H_BTK > 0, rise_BTK - rise_BTK.log() - 1, 0)
            cost_BT = cost_BT + self.smoothness * chain_BTK.sum(-1)
        return cost_BT


def _slopes(ratio_RBTF: Tensor, precision_RBTF: Tensor, weight_RBT1: Tensor | None) -> tuple[Tensor, Tensor]:
    """sum_r w_r P / X_r^2 and sum_r w_r / X_r; their difference is the gradient of -cost in V. Overwrites P / X."""
    return weighted_mean(ratio_RBTF.mul_(precision_RBTF), weight_RBT1), weighted_mean(precision_RBTF, weight_RBT1)


def weighted_mean(values: Float[Tensor, "R B T D"], weight_RBT1: Tensor | None) -> Float[Tensor, "B T D"]:
    if weight_RBT1 is not None:
        return (weight_RBT1 * values).sum(0)
    return values[0] if len(values) == 1 else values.mean(0)


def _scaled(factor: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return factor * (above / below.clamp_min(EPSILON)).sqrt_()


def subtraction(noisy_BTF: Float[Tensor, "B T F"], noise_BSF: Float[Tensor, "B S F"]) -> Float[Tensor, "B T F"]:
    """The filter that takes twice the noise off the mixture."""
    return (1 - 2 * noise_BSF / noisy_BTF.clamp_min(EPSILON)).clamp_min(0.01)


class StationaryNoise(NamedTuple):
    """By spectral subtraction: the mean power that goes with the median power of each frequency, and the filter that
    takes twice as much off the mixture."""

    level_B1F: Float[Tensor, "B 1 F"]
    filter_BTF: Float[Tensor, "B T F"]

    @classmethod
    def of(cls, noisy_BTF: Float[Tensor, "B T F"], mask_BT: Bool[Tensor, "B T"]) -> StationaryNoise:
        present_BTF = noisy_BTF.masked_fill(~mask_BT[..., None], float("nan"))
        level_B1F = (present_BTF.nanmedian(1, keepdim=True).values / math.log(2)).clamp_min(EPSILON)
        return cls(level_B1F, subtraction(noisy_BTF, level_B1F))

    def scaled(self, factor_B: Float[Tensor, " B"]) -> StationaryNoise:
        """That of a mixture whose power is multiplied by `factor_B`."""
        return self._replace(level_B1F=self.level_B1F * factor_B[:, None, None])
