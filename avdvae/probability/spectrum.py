"""Likelihoods of power spectra: complex Gaussians, and what the EM stage requires of them and of mixtures.

Suffix R: weighted variances of speech, of all draws and components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian, Slopes

PRIOR_FRAMES = 0.1


@dataclass(frozen=True)
class Switch:
    """Posterior of the component of each frame, for C of them. PRIOR_FRAMES are the pseudo-counts of its prior.

    frames   r(m_t)            B T C
    pairs    r(m_{t-1}, m_t)   B T-1 C C, of a Markov chain
    """

    frames: Float[Tensor, "B T C"]
    mask: Bool[Tensor, "B T"]
    pairs: Float[Tensor, "B T-1 C C"] | None = None

    def learned(self) -> Float[Tensor, "B S C"]:
        """pi, or lambda above the rows of tau, re-estimated from the utterance."""
        if self.pairs is None:
            counts_BSC = (self.frames * self.mask[..., None]).sum(1, keepdim=True)
        else:
            transitions_BCC = (self.pairs * self.mask[:, 1:, None, None]).sum(1)
            counts_BSC = torch.cat([self.frames[:, :1], transitions_BCC], 1)
        counts_BSC = counts_BSC + PRIOR_FRAMES  # a weight of exactly 0 would stay 0
        return counts_BSC / counts_BSC.sum(-1, keepdim=True)


class Components(NamedTuple):
    """The weighted speech variances that a likelihood averages over, given the observed power.

    speech     R B T F   variances of speech, without gain and noise
    precision  R B T F   inverse variances with gain and noise
    weight     R B T 1   None: uniform
    switch               posterior of the components of a mixture; None: there is only one component
    others     R B T F   variances of the other sources of a mixture of several, one by one
    """

    speech: Float[Tensor, "R B T F"]
    precision: Float[Tensor, "R B T F"]
    weight: Float[Tensor, "R B T 1"] | None = None
    switch: Switch | None = None
    others: tuple[Float[Tensor, "R B T F"], ...] = ()

    @property
    def sources(self) -> tuple[Float[Tensor, "R B T F"], ...]:
        return (self.speech, *self.others)

    def thinned(self, step: int) -> Components:
        """Those of every so-manyth frame."""

        def some(values: Tensor) -> Tensor:
            return values[..., ::step, :].contiguous()

        weight = None if self.weight is None else some(self.weight)
        return Components(some(self.speech), some(self.precision), weight, None, tuple(map(some, self.others)))

    def mean(self) -> Float[Tensor, "B T F"]:
        return self.speech.mean(0) if self.weight is None else (self.weight * self.speech).sum(0)


@runtime_checkable
class SpeechLikelihood(Protocol):
    """What the EM stage requires of a model's likelihood of the power spectrum."""

    def log_potential(self, power: Tensor) -> Tensor:
        """The term of the E-step's log-density of the latents that depends on the power, K B T, up to a constant.

        ln p(power | z) of a single component; of a mixture, the sum over its components."""
        ...

    def slopes(self, power: Tensor, weight: Tensor) -> Slopes:
        """Gradients of the sum of log_potential over draws and frames, weighted by `weight`, B T."""
        ...

    def add_noise(self, gain: Tensor, noise: Tensor) -> SpeechLikelihood: ...

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> SpeechLikelihood:
        """With the posterior q that z was drawn from; mixtures weigh components by it."""
        ...

    def components(self, power: Tensor) -> Components: ...


@dataclass(frozen=True)
class ComplexGaussian:
    """Circular complex Gaussians of mean zero, one a time-frequency bin, whose density depends on |s|^2 alone.

    The variance is gain * (exp(log_var) + 1e-10) + noise; without gain and noise, that of clean speech. Up to a term
    of the data alone, -log_prob is the Itakura-Saito divergence from the power to the variance.
    """

    log_var: Float[Tensor, "*draws B T F"]
    gain: Float[Tensor, "B T 1"] | None = None
    noise: Float[Tensor, "B T F"] | None = None

    @property
    def speech(self) -> Float[Tensor, "*draws B T F"]:
        """The variance of speech, before the floor. Computed once, but not by cached_property, whose lock torch.compile
        cannot trace."""
        if "_speech" not in self.__dict__:
            self.__dict__["_speech"] = self.log_var.float().exp()
        return self.__dict__["_speech"]

    @property
    def precision(self) -> Float[Tensor, "*draws B T F"]:
        """The inverse of the variance, computed once, without gradients."""
        if "_precision" not in self.__dict__:
            self.__dict__["_precision"] = _variance(self.speech.detach(), self.gain, self.noise).reciprocal_()
        return self.__dict__["_precision"]

    @property
    def expected(self) -> Float[Tensor, "*draws B T F"]:
        """The mean of the power of clean speech."""
        return self.speech

    def add_noise(self, gain: Float[Tensor, "B T 1"], noise: Float[Tensor, "B T F"]) -> ComplexGaussian:
        """The likelihood of sqrt(gain) * speech + Gaussian noise of this variance."""
        return replace(self, gain=gain, noise=noise)

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> ComplexGaussian:
        return self

    def log_prob(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "*draws B T"]:
        """The log-density of the complex spectrum, summed over the frequencies."""
        log_prob = _LogProb.apply(self.log_var, self.speech.detach(), self.gain, self.noise, power)
        return log_prob - self.log_var.shape[-1] * math.log(math.pi)  # type: ignore[operator]

    log_potential = log_prob

    @torch.no_grad()
    def slopes(self, power: Float[Tensor, "B T F"], weight: Float[Tensor, "B T"]) -> Slopes:
        scale_BT1 = weight[..., None] if self.gain is None else weight[..., None] * self.gain
        slope = (power * self.precision).sub_(1).mul_(self.speech).mul_(self.precision)
        return [(self.log_var, slope.mul_(scale_BT1))]

    def components(self, power: Float[Tensor, "B T F"]) -> Components:
        return Components(self.speech.flatten(end_dim=-4), self.precision.flatten(end_dim=-4))


@dataclass(frozen=True)
class SourceSum:
    """The sum of independent sources, each with a gain, and of noise: Nc(0, sum_j g_j S_j + V).

    Without noise, the gains are 1.
    """

    sources: tuple[ComplexGaussian, ...]
    gain: Float[Tensor, "B T J"] | None = None
    noise: Float[Tensor, "B T F"] | None = None

    def add_noise(self, gain: Float[Tensor, "B T J"], noise: Float[Tensor, "B T F"]) -> SourceSum:
        return replace(self, gain=gain, noise=noise)

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> SourceSum:
        return self

    @property
    def variance(self) -> Float[Tensor, "*draws B T F"]:
        if self.gain is None or self.noise is None:
            return torch.stack([source.speech + VARIANCE_FLOOR for source in self.sources]).sum(0)
        variance = self.noise + VARIANCE_FLOOR * self.gain.sum(-1, keepdim=True)
        for gain, source in zip(self.gain.split(1, -1), self.sources, strict=True):
            variance = torch.addcmul(variance, gain, source.speech)
        return variance

    @property
    def precision(self) -> Float[Tensor, "*draws B T F"]:
        """The inverse of the variance, computed once, without gradients."""
        if "_precision" not in self.__dict__:
            with torch.no_grad():
                self.__dict__["_precision"] = self.variance.reciprocal_()
        return self.__dict__["_precision"]

    def log_potential(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "*draws B T"]:
        variance = self.variance
        return -(power / variance + variance.log() + math.log(math.pi)).sum(-1)

    @torch.no_grad()
    def slopes(self, power: Float[Tensor, "B T F"], weight: Float[Tensor, "B T"]) -> Slopes:
        slope = (power * self.precision).sub_(1).mul_(self.precision)
        scales = [weight[..., None]] * len(self.sources)
        if self.gain is not None:
            scales = (weight[..., None] * self.gain).split(1, -1)
        return [
            (source.log_var, slope.mul(source.speech).mul_(scale_BT1))
            for scale_BT1, source in zip(scales, self.sources, strict=True)
        ]

    def components(self, power: Float[Tensor, "B T F"]) -> Components:
        first, *others = (source.speech.flatten(end_dim=-4) for source in self.sources)
        return Components(first, self.precision.flatten(end_dim=-4), others=tuple(others))


def _variance(speech: Tensor, gain: Tensor | None, noise: Tensor | None) -> Tensor:
    if gain is None or noise is None:
        return speech + VARIANCE_FLOOR
    return torch.addcmul(noise, gain, speech).add_(gain, alpha=VARIANCE_FLOOR)


class _LogProb(torch.autograd.Function):
    """sum_f -ln v - P / v for v = g (s + 1e-10) + b, differentiable in log_var, of which s is the exponential.

    The derivative, g s / v * (P / v - 1), is written out because this is the innermost loop of training and of the EM
    stage: autograd would make three times as many passes over the spectra.
    """

    @staticmethod
    def forward(
        ctx: Any, log_var: Tensor, speech: Tensor, gain: Tensor | None, noise: Tensor | None, power: Tensor
    ) -> Tensor:
        variance = _variance(speech, gain, noise)
        ratio = power / variance
        total = ratio.sum(-1)
        if ctx.needs_input_grad[0]:  # in place throughout: allocation costs more than arithmetic
            ctx.save_for_backward(ratio.sub_(1).mul_(speech).div_(variance), gain)
        return -total.add_(variance.log_().sum(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, gain = ctx.saved_tensors
        scale = grads[0][..., None]
        return slope * (scale if gain is None else scale * gain), None, None, None, None
