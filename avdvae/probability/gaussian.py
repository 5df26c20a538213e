"""Diagonal Gaussians of latents, in float32 whatever the precision around them.

Variances are parameterised by their logarithm and floored here, once. Log-densities carry every constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

VARIANCE_FLOOR = 1e-10  # far below the rounding noise of 16-bit samples

# (tensor, gradient) pairs of a scalar that is itself never computed
Slopes = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gaussian:
    """Independent dimensions. `log_var` may broadcast against `mean`."""

    mean: Float[Tensor, "*draws L"]
    log_var: Float[Tensor, "*#draws #L"]

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
        return self.moved(torch.randn((k, *self.mean.shape), device=self.mean.device))

    def draw(self, k: int, mode: Literal["sample", "mean"]) -> Float[Tensor, "K *draws L"]:
        """K samples, or K times the mean."""
        return self.sample(k) if mode == "sample" else self.mean.expand(k, *self.mean.shape)

    def moved(self, noise: Float[Tensor, "*some L"]) -> Float[Tensor, "*some L"]:
        """mean + deviation * noise, for standard normal noise."""
        return torch.addcmul(self.mean, noise, torch.exp(self.log_var / 2))

    def log_prob(self, z: Float[Tensor, "*draws L"]) -> Float[Tensor, "*_draws"]:
        """Summed over the last axis."""
        quadratic = (z - self.mean).square() * torch.exp(-self.log_var)
        return -0.5 * (quadratic + self.log_var + math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Gaussian) -> Float[Tensor, "*_draws"]:
        """KL(self || other), summed over the last axis."""
        return self.divergences(other).sum(-1)

    def divergences(self, other: Gaussian) -> Float[Tensor, "*_draws L"]:
        """KL(self || other) of each dimension."""
        ratio = self.log_var - other.log_var
        moved = (self.mean - other.mean).square() * torch.exp(-other.log_var)
        return 0.5 * (ratio.exp() + moved - 1 - ratio)

    def minus_kl_slopes(self, other: Gaussian) -> Slopes:
        """Gradients of -KL(self || other), averaged over draws and summed over the other axes."""
        difference = other.mean - self.mean
        per_draw = 1 / difference.shape[:-3].numel()
        pull = difference * torch.exp(-other.log_var).mul_(per_draw)
        widen = (1 - torch.exp(self.log_var - other.log_var)).mul_(per_draw / 2)
        slopes = [(self.mean, pull), (self.log_var, widen)]
        if other.mean.requires_grad or other.log_var.requires_grad:
            slopes += [(other.mean, -pull), (other.log_var, difference * pull / 2 - widen)]
        return [(value, slope.sum_to_size(value.shape)) for value, slope in slopes]

    def power(self, exponent: float | Tensor) -> Gaussian:
        """The density to a power, normalised: below 1 it is wider."""
        return Gaussian(self.mean, self.log_var - torch.as_tensor(exponent).log())

    def times(self, other: Gaussian) -> Gaussian:
        """The normalised product of the densities: precisions add up."""
        log_var = -torch.logaddexp(-self.log_var, -other.log_var)
        mean = self.mean * torch.exp(log_var - self.log_var) + other.mean * torch.exp(log_var - other.log_var)
        return Gaussian(mean, log_var)
