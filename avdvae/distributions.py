"""Likelihoods and latent distributions, in float32 whatever the precision around them.

Variances are parameterised by their logarithm and floored here, once. Log-densities carry every constant.
Shapes: K draws, R weighted speech variances, B utterances, T frames, F frequencies, L latent dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

VARIANCE_FLOOR = 1e-10  # far below the rounding noise of 16-bit samples


@dataclass(frozen=True)
class Gaussian:
    """Independent dimensions. `log_var` may broadcast against `mean`."""

    mean: Float[Tensor, "*draws L"]
    log_var: Float[Tensor, "*#draws L"]

    @classmethod
    def floored(cls, mean: Tensor, log_var: Tensor) -> Gaussian:
        """From the outputs of a network."""
        return cls(mean.float(), log_var.float().clamp_min(math.log(VARIANCE_FLOOR)))

    @classmethod
    def standard(cls, *shape: int, like: Tensor) -> Gaussian:
        zeros = torch.zeros(shape, device=like.device)
        return cls(zeros, zeros)

    def sample(self, k: int = 1) -> Float[Tensor, "K *draws L"]:
        """Reparameterised draws."""
        noise = torch.randn((k, *self.mean.shape), device=self.mean.device)
        return self.mean + noise * torch.exp(self.log_var / 2)

    def log_prob(self, z: Float[Tensor, "*draws L"]) -> Float[Tensor, "*_draws"]:
        """Summed over the last axis."""
        quadratic = (z - self.mean).square() * torch.exp(-self.log_var)
        return -0.5 * (quadratic + self.log_var + math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Gaussian) -> Float[Tensor, "*_draws"]:
        """KL(self || other), summed over the last axis."""
        ratio = self.log_var - other.log_var
        moved = (self.mean - other.mean).square() * torch.exp(-other.log_var)
        return 0.5 * (ratio.exp() + moved - 1 - ratio).sum(-1)


@runtime_checkable
class SpeechLikelihood(Protocol):
    """What the EM stage asks of a model's likelihood of the power spectrum."""

    def log_prob(self, power: Tensor) -> Tensor: ...

    def add_noise(self, gain: Tensor, noise: Tensor) -> SpeechLikelihood: ...

    def components(self, power: Tensor) -> tuple[Tensor, Tensor | None]:
        """The variances of speech (R B T F), gain and noise aside, that the likelihood averages over, and their weights
        (R B T 1) in the light of the power observed; None: all alike."""
        ...


@dataclass(frozen=True)
class ComplexGaussian:
    """Circular complex Gaussians of mean zero, one a time-frequency bin, told by the power |s|^2 alone.

    The variance is gain * (exp(log_var) + 1e-10) + noise, and without the two that of clean speech. Up to what depends
    on the data alone, -log_prob is the Itakura-Saito divergence from the power to the variance.
    """

    log_var: Float[Tensor, "*draws B T F"]
    gain: Float[Tensor, "B T 1"] | None = None
    noise: Float[Tensor, "B T F"] | None = None

    @cached_property
    def speech(self) -> Float[Tensor, "*draws B T F"]:
        """The variance of speech, before the floor."""
        return self.log_var.float().exp()

    def add_noise(self, gain: Float[Tensor, "B T 1"], noise: Float[Tensor, "B T F"]) -> ComplexGaussian:
        """The likelihood of sqrt(gain) * speech + Gaussian noise of this variance."""
        return ComplexGaussian(self.log_var, gain, noise)

    def log_prob(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "*draws B T"]:
        """The density of the complex spectrum, summed over the frequencies."""
        constant = self.log_var.shape[-1] * math.log(math.pi)
        if self.gain is None or self.noise is None:
            variance = self.speech + VARIANCE_FLOOR
            return -(variance.log() + power / variance).sum(-1) - constant
        heard = self.speech.detach(), self.gain, self.noise, power
        return _NoisyLogProb.apply(self.log_var, *heard) - constant  # type: ignore[operator]

    def components(self, power: Float[Tensor, "B T F"]) -> tuple[Float[Tensor, "R B T F"], None]:
        return self.speech.flatten(end_dim=-4), None


class _NoisyLogProb(torch.autograd.Function):
    """sum_f -ln v - P / v for v = g (s + 1e-10) + b, differentiable in log_var, of which s is the exponential.

    The derivative, g s / v * (P / v - 1), is written out because this is the innermost loop of the EM stage: autograd
    would make three times as many passes over the spectra.
    """

    @staticmethod
    def forward(ctx: Any, log_var: Tensor, speech: Tensor, gain: Tensor, noise: Tensor, power: Tensor) -> Tensor:
        variance = torch.addcmul(noise, gain, speech).add_(gain, alpha=VARIANCE_FLOOR)
        ratio = power / variance
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((ratio - 1).mul_(speech).mul_(gain).div_(variance))
        return -variance.log_().add_(ratio).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][..., None], None, None, None, None
