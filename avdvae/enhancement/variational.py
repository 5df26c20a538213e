"""E-steps by gradient ascent: the most probable latents, or the Gaussian or the encoder with the best bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avdvae.enhancement.contract import (
    RandomNumbers,
    Start,
    Target,
    backpropagated,
    draws_of,
    first_latents,
    with_latents,
)
from avdvae.errors import UserError
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.mixture import Mixture
from avdvae.probability.spectrum import SpeechLikelihood
from avdvae.protocols import Batch, Prior


def _adam(tensors: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(tensors, lr, maximize=True, fused=True)


class _Point(NamedTuple):
    z: dict[str, Tensor]
    adam: torch.optim.Adam


@dataclass(frozen=True)
class PointEstimate:
    """The most probable z, by gradient ascent that goes on from one EM iteration to the next (PEEM)."""

    steps: int = 10
    lr: float = 0.01
    begin: Start = "posterior"

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Point:
        z, _ = first_latents(model, batch, self.begin)
        if isinstance(with_latents(model).decode(z, model.context(batch))["power"], Mixture):
            raise UserError(
                f"{type(model).__name__} weights its components by the variances of their posteriors, and a point has "
                "none: choose enhance.estep.name=free_gaussian, langevin, mala or metropolis_hastings"
            )
        return _Point(z, _adam(z.values(), self.lr))

    def step(self, target: Target, state: _Point, random: RandomNumbers) -> tuple[_Point, SpeechLikelihood]:
        for _ in range(self.steps):
            slopes, _, _ = target.gradient(state.z)
            for name, slope in slopes.items():
                state.z[name].grad = slope
            state.adam.step()
        return state, target.likelihood(state.z)

    def final(self, target: Target, state: _Point, random: RandomNumbers) -> SpeechLikelihood:
        return target.likelihood(state.z)


class FrameAdam:
    """Adam by ascent, with an age for each frame: frames may join that are new (D. P. Kingma, J. Ba, ICLR 2015)."""

    def __init__(self, tensors: Sequence[Tensor], lr: float, moments: Sequence[Tensor] = ()):
        """`moments`: for each tensor the first, the second, and the ages of its frames."""
        self.tensors, self.lr = [*tensors], lr
        self.moments = [*moments] or [
            start
            for z in tensors
            for start in (*torch.zeros(2, *z.shape, device=z.device), torch.zeros_like(z[..., :1]))
        ]

    def step(self) -> None:
        for number, tensor in enumerate(self.tensors):
            first, second, age = self.moments[3 * number : 3 * number + 3]
            slope = tensor.grad
            assert slope is not None
            age += 1
            first.lerp_(slope, 0.1)
            second.mul_(0.999).addcmul_(slope, slope, value=0.001)
            of_first, of_second = (-torch.expm1(age * math.log(decay)) for decay in (0.9, 0.999))  # 1 - decay^age
            deviation = (second / of_second).sqrt_().add_(1e-8).mul_(of_first)
            tensor.addcdiv_(first, deviation, value=self.lr)


class _Free(NamedTuple):
    mean: dict[str, Tensor]
    log_var: dict[str, Tensor]
    adam: FrameAdam

    @property
    def q(self) -> dict[str, Gaussian]:
        return {name: Gaussian(mean, self.log_var[name]) for name, mean in self.mean.items()}


@dataclass(frozen=True)
class FreeGaussian:
    """q(z_t) = N(m_t, diag s_t^2), free in every frame, by stochastic gradients of its bound, reparameterised.

    grad_m = E[grad_z ln p(x, z)]        grad_{ln s^2} = E[grad_z ln p(x, z) (z - m)] / 2 + 1 / 2, from the entropy
    """

    steps: int = 1
    lr: float = 0.05
    draws: int = 1
    final_draws: int = 10
    begin: Start = "posterior"

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Free:
        mean, chosen = first_latents(model, batch, self.begin)
        log_var = {name: chosen[name].log_var.expand_as(z).clone() for name, z in mean.items()}
        return self._free(mean, log_var)

    def _free(self, mean: dict[str, Tensor], log_var: dict[str, Tensor], moments: Sequence[Tensor] = ()) -> _Free:
        return _Free(mean, log_var, FrameAdam([*mean.values(), *log_var.values()], self.lr, moments))

    @property
    def cannot_move(self) -> None:
        return None

    @property
    def each_move(self) -> int:
        return 2

    def entering(self, model: Prior, batch: Batch, target: Target, random: RandomNumbers) -> dict[str, list[Tensor]]:
        return self.saved(self.start(model, batch, random))

    def saved(self, state: _Free) -> dict[str, list[Tensor]]:
        """In the order of the means, the log-variances, and the moments of each of these; by the name of the latent."""
        by_name = {}
        for number, name in enumerate(state.mean):
            moments = [state.adam.moments[3 * n : 3 * n + 3] for n in (number, number + len(state.mean))]
            by_name[name] = [state.mean[name], state.log_var[name], *moments[0], *moments[1]]
        return by_name

    def restored(self, saved: Mapping[str, Sequence[Tensor]], model: Prior, batch: Batch) -> _Free:
        mean, log_var = ({name: values[n] for name, values in saved.items()} for n in (0, 1))
        moments = [value for first in (2, 5) for values in saved.values() for value in values[first : first + 3]]
        return self._free(mean, log_var, moments)

    def step(self, target: Target, state: _Free, random: RandomNumbers) -> tuple[_Free, SpeechLikelihood]:
        for _ in range(self.steps):
            z = draws_of(state.q, self.draws, random)
            slopes, likelihood, _ = target.gradient(z)
            likelihood = likelihood.drawn(z, state.q)
            for name, slope in slopes.items():
                mean, log_var = state.mean[name], state.log_var[name]
                log_var.grad = 0.5 * (slope * (z[name] - mean)).mean(0, keepdim=True) + 0.5
                mean.grad = slope.mean(0, keepdim=True)
            state.adam.step()
        return state, likelihood

    def final(self, target: Target, state: _Free, random: RandomNumbers) -> SpeechLikelihood:
        z = draws_of(state.q, self.final_draws, random)
        return target.likelihood(z).drawn(z, state.q)


class _Tuned(NamedTuple):
    model: Any
    batch: Batch
    weights: list[nn.Parameter]
    adam: torch.optim.Adam


@dataclass(frozen=True)
class FineTunedEncoder:
    """q is the output of the encoder, which is fine-tuned on every utterance. The VEM of S. Leglaive et al., ICASSP
    2020 (arXiv 1910.10942), and X. Bie et al., IEEE/ACM TASLP 30, 2022 (arXiv 2106.12271).

    Only layers that belong to inference alone are trained: not those that the decoder or the prior share.
    """

    steps: int = 1
    lr: float = 1e-3
    draws: int = 1
    final_draws: int = 1

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Tuned:
        if len(batch.ids) > 1:
            raise UserError(
                f"enhance.estep.name=encoder adapts the encoder to one utterance and was given {len(batch.ids)}: give "
                "enhance.batch_size=1"
            )
        copy: Any = deepcopy(with_latents(model))
        copy.requires_grad_(True)
        with torch.enable_grad(), random.of_torch(batch.mask.device):
            z, context = copy.infer(batch).z, copy.context(batch)
            given = {name: value.detach() for name, value in z.items()}
            log_potential = copy.decode(given, context)["power"].log_potential(batch.need("power", copy))
            generative = _parameters_of(log_potential.sum() + copy.log_prior(given, context).sum(), copy)
            inference = _parameters_of(sum(value.sum() for value in z.values()), copy)
        copy.requires_grad_(False)
        weights = [weight.requires_grad_() for weight in copy.parameters() if weight in inference - generative]
        if not weights:
            raise UserError(
                f"enhance.estep.name=encoder: {type(model).__name__} has no layers for inference alone: choose another"
            )
        return _Tuned(copy, batch, weights, _adam(weights, self.lr))

    def step(self, target: Target, state: _Tuned, random: RandomNumbers) -> tuple[_Tuned, SpeechLikelihood]:
        for _ in range(self.steps):
            with torch.enable_grad(), random.of_torch(state.batch.mask.device):
                inferred = state.model.infer(state.batch, self.draws)
                likelihood = target.likelihood(inferred.z)
            slopes = likelihood.slopes(target.noisy_BTF, state.batch.mask / self.draws)
            for name, q in inferred.q.items():
                slopes += q.minus_kl_slopes(inferred.p[name])
            for weight, slope in zip(state.weights, backpropagated(slopes, state.weights), strict=True):
                weight.grad = slope
            state.adam.step()
        return state, self._draw(target, state, random, self.draws)

    def final(self, target: Target, state: _Tuned, random: RandomNumbers) -> SpeechLikelihood:
        return self._draw(target, state, random, self.final_draws)

    def _draw(self, target: Target, state: _Tuned, random: RandomNumbers, count: int) -> SpeechLikelihood:
        """The likelihood at new draws from the encoder as it is now."""
        with random.of_torch(state.batch.mask.device):
            inferred = state.model.infer(state.batch, count)
        return target.likelihood(inferred.z).drawn(inferred.z, inferred.q)


def _parameters_of(value: Any, model: Any) -> set[Tensor]:
    """The parameters on which a value depends."""
    if not value.requires_grad:
        return set()
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return {parameter for parameter, slope in zip(parameters, slopes, strict=True) if slope is not None}
