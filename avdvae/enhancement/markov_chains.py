"""E-steps by Markov chains: Metropolis-Hastings, Langevin dynamics and MALA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.enhancement.contract import Gradient, RandomNumbers, Start, Target, first_latents
from avdvae.errors import UserError
from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian
from avdvae.probability.spectrum import SpeechLikelihood
from avdvae.protocols import Batch, Latents, Prior

Chains = dict[str, Tensor]  # z_KBTL by name


class _Moments(NamedTuple):
    """Mean and variance of all draws so far, those of the i-th iteration with a weight of i, because the EM moves less
    and less. A mixture takes the Gaussian of these moments for the density of the draws."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    count: int  # of iterations

    @classmethod
    def of(cls, gaussians: Mapping[str, Gaussian], z: Chains) -> _Moments:
        mean = {name: gaussians[name].mean.expand_as(value[:1]) for name, value in z.items()}
        return cls(mean, {name: gaussians[name].log_var.exp().expand_as(value[:1]) for name, value in z.items()}, 1)

    def with_draws(self, z: Latents) -> _Moments:
        weight = 2 / (self.count + 2)
        mean, variance = {}, {}
        for name, z_KBTL in z.items():
            new_mean = z_KBTL.mean(0, keepdim=True)
            moved = new_mean - self.mean[name]
            within = torch.lerp(self.variance[name], (z_KBTL - new_mean).square().mean(0, keepdim=True), weight)
            mean[name] = self.mean[name] + weight * moved
            variance[name] = within + weight * (1 - weight) * moved.square()
        return _Moments(mean, variance, self.count + 1)

    @property
    def q(self) -> dict[str, Gaussian]:
        variance = {name: value.clamp_min(VARIANCE_FLOOR) for name, value in self.variance.items()}
        return {name: Gaussian(mean, variance[name].log()) for name, mean in self.mean.items()}


class _Chains(NamedTuple):
    z: Chains
    moments: _Moments


@dataclass(frozen=True)
class MetropolisHastings:
    """A random walk of each frame, as in the MCEM of the AVSE-VAE line: M. Sadeghi et al., IEEE/ACM TASLP 28, 2020.

    The walk proposes z + N(0, step^2 I) and goes on from one EM iteration to the next. Frames are accepted one by one,
    which is exact where the model has no memory from frame to frame.
    """

    draws: int = 40
    burn_in: int = 30
    final_draws: int = 100
    final_burn_in: int = 75
    step_size: float = 0.1
    begin: Start = "posterior"

    def __post_init__(self) -> None:
        for final, draws, burn_in in (("", self.draws, self.burn_in), ("final_", self.final_draws, self.final_burn_in)):
            if draws <= burn_in:
                raise UserError(
                    f"enhance.estep.{final}draws={draws}: draw more than the {final}burn_in={burn_in} that are left out"
                )

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Chains:
        z, chosen = first_latents(model, batch, self.begin)
        return _Chains(z, _Moments.of(chosen, z))

    def step(self, target: Target, state: _Chains, random: RandomNumbers) -> tuple[_Chains, SpeechLikelihood]:
        kept = self._walk(target, state.z, random, self.draws, self.burn_in)
        moments = state.moments.with_draws(kept)
        last = {name: z[-1:] for name, z in kept.items()}
        return _Chains(last, moments), target.likelihood(kept).drawn(kept, moments.q)

    def final(self, target: Target, state: _Chains, random: RandomNumbers) -> SpeechLikelihood:
        kept = self._walk(target, state.z, random, self.final_draws, self.final_burn_in)
        return target.likelihood(kept).drawn(kept, state.moments.with_draws(kept).q)

    def _walk(self, target: Target, z: Chains, random: RandomNumbers, count: int, burn_in: int) -> Chains:
        _require_frames(z, random, "metropolis_hastings")
        moves = {name: self.step_size * random.normal(value.expand(count, *value.shape)) for name, value in z.items()}
        log_joint = target.log_joint(z)
        log_uniform = random.uniform(log_joint[..., None].expand(count, *log_joint.shape, 1))[..., 0].log_()
        kept: dict[str, list[Tensor]] = {name: [] for name in z}
        for i in range(count):
            proposed = {name: value + moves[name][i] for name, value in z.items()}
            log_joint_proposed = target.log_joint(proposed)
            accepted = log_uniform[i] < log_joint_proposed - log_joint
            log_joint = torch.where(accepted, log_joint_proposed, log_joint)
            z = {name: torch.where(accepted[..., None], proposed[name], value) for name, value in z.items()}
            if i >= burn_in:
                for name, value in z.items():
                    kept[name].append(value)
        return {name: torch.cat(values) for name, values in kept.items()}


@dataclass(frozen=True)
class Langevin:
    """Several chains of Langevin dynamics, one move an EM iteration: M. Sadeghi, R. Serizel, "Fast and efficient speech
    enhancement with variational autoencoders", ICASSP 2023 (arXiv 2211.02728).

        z <- z + (step_size / 2) tamed(grad [ln p(x, z) - total_variation * sum_t |z_t - z_{t-1}|_1])
               + sqrt(step_size) N(0, I)

    A heuristic: no move is rejected, so chains are wider than the posterior where its curvature J nears 2 / step_size
    (their variance is 1 / (J - step_size J^2 / 4) up to there). Beyond, they would diverge without taming, tamed(g) =
    g / sqrt(1 + (step_size g)^2), with which they stay several times too wide. `mala` has the posterior's spread.
    """

    chains: int = 4
    step_size: float = 0.005
    spread: float = 0.1  # of the chains around their common start
    total_variation: float = 0.0
    begin: Start = "posterior"

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Chains:
        means, chosen = first_latents(model, batch, self.begin)
        z = {name: z + self.spread * random.normal(z.expand(self.chains, -1, -1, -1)) for name, z in means.items()}
        return _Chains(z, _Moments.of(chosen, z))

    def step(self, target: Target, state: _Chains, random: RandomNumbers) -> tuple[_Chains, SpeechLikelihood]:
        slopes, likelihood, _ = target.gradient(state.z)
        moments, moved = state.moments.with_draws(state.z), {}
        for name, z in state.z.items():
            slope = slopes[name]
            if self.total_variation:
                slope = slope - self.total_variation * _total_variation_slope(z, random.frames)
            tamed = slope / (1 + (self.step_size * slope).square()).sqrt()
            moved[name] = z + self.step_size / 2 * tamed + self.step_size**0.5 * random.normal(z)
        return _Chains(moved, moments), likelihood.drawn(state.z, moments.q)

    def final(self, target: Target, state: _Chains, random: RandomNumbers) -> SpeechLikelihood:
        return target.likelihood(state.z).drawn(state.z, state.moments.with_draws(state.z).q)


class _Adapted(NamedTuple):
    z: Chains
    moments: _Moments
    log_step: Tensor  # ln h, of each frame or utterance
    moves: int


@dataclass(frozen=True)
class MetropolisLangevin:
    """Langevin moves of which each is accepted or rejected, so that chains have the posterior's own spread (MALA):
    G. O. Roberts, R. L. Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
    Bernoulli 2, 1996.

        z' = z + h / 2 V grad ln p(x, z) + sqrt(h V) N(0, I)
        accepted with probability min(1, p(x, z') N(z; z', h) / (p(x, z) N(z'; z, h)))

    V is the variance of the chains so far, dimension by dimension, and the step h adapts until 57 % are accepted (G. O.
    Roberts, J. S. Rosenthal, JRSS B 60, 1998); both change less and less. By default frames are accepted one by one,
    which is exact where the model has no memory from frame to frame; `whole` accepts or rejects whole utterances, which
    is exact for any model, with shorter steps.
    """

    chains: int = 4
    moves: int = 1  # of each EM iteration
    whole: bool = False
    begin: Start = "posterior"
    ACCEPTED = 0.574

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Adapted:
        means, chosen = first_latents(model, batch, self.begin)
        if not self.whole:
            _require_frames(means, random, "mala")
        moments = _Moments.of(chosen, means)
        noise = {name: random.normal(z.expand(self.chains, -1, -1, -1)) for name, z in means.items()}
        z = {name: q.moved(noise[name]) for name, q in moments.q.items()}
        frames = 1 if self.whole else batch.mask.shape[1]
        return _Adapted(z, moments, batch.mask.new_zeros((len(batch.ids), frames), dtype=torch.float32), 0)

    def step(self, target: Target, state: _Adapted, random: RandomNumbers) -> tuple[_Adapted, SpeechLikelihood]:
        first = target.gradient(state.z)
        moments, log_step_BT = state.moments.with_draws(state.z), state.log_step
        z, slopes, log_joint = state.z, first.slopes, self._log_joint(target, first)
        for move in range(state.moves + 1, state.moves + 1 + self.moves):
            h_BT1 = log_step_BT.exp()[..., None]
            hV = {name: h_BT1 * value.clamp_min(VARIANCE_FLOOR) for name, value in moments.variance.items()}
            forward = {name: value + hV[name] / 2 * slopes[name] for name, value in z.items()}  # mean of z' given z
            proposed = {name: mean + hV[name].sqrt() * random.normal(mean) for name, mean in forward.items()}
            at_proposed = target.gradient(proposed)
            log_joint_proposed = self._log_joint(target, at_proposed)
            log_ratio = self._summed(log_joint_proposed - log_joint)  # differences first: their sums are large
            for name, value in z.items():
                backward = proposed[name] + hV[name] / 2 * at_proposed.slopes[name]  # mean of z given z'
                quadratic = (proposed[name] - forward[name]).square() - (value - backward).square()
                log_ratio = log_ratio + self._summed((quadratic / hV[name]).sum(-1) / 2)
            log_ratio = log_ratio.nan_to_num(nan=-torch.inf)
            accepted = random.uniform(log_ratio[..., None])[..., 0].log_() < log_ratio
            z = {name: torch.where(accepted[..., None], proposed[name], value) for name, value in z.items()}
            slopes = {n: torch.where(accepted[..., None], at_proposed.slopes[n], slope) for n, slope in slopes.items()}
            log_joint = torch.where(accepted, log_joint_proposed, log_joint)
            surplus_BT = log_ratio.clamp_max(0).exp().mean(0) - self.ACCEPTED
            log_step_BT = log_step_BT + max(move**-0.6, 0.05) * surplus_BT
        moved = _Adapted(z, moments, log_step_BT, state.moves + self.moves)
        return moved, first.likelihood.drawn(state.z, moments.q)

    def final(self, target: Target, state: _Adapted, random: RandomNumbers) -> SpeechLikelihood:
        return target.likelihood(state.z).drawn(state.z, state.moments.with_draws(state.z).q)

    def _log_joint(self, target: Target, at: Gradient) -> Float[Tensor, "K B T"]:
        return at.likelihood.log_potential(target.noisy_BTF) + at.log_prior

    def _summed(self, values_KBT: Float[Tensor, "K B _T"]) -> Float[Tensor, "K B _"]:
        """Over the frames that are accepted together: one, or those of an utterance."""
        return values_KBT.sum(-1, keepdim=True) if self.whole else values_KBT


def _require_frames(z: Latents, random: RandomNumbers, name: str) -> None:
    if whole := [latent for latent, value in z.items() if value.shape[-2] < max(random.frames)]:
        raise UserError(
            f"{name} moves frame by frame and {', '.join(whole)} is one latent for all frames: choose "
            "enhance.estep.name=langevin, free_gaussian or point, or mala with +enhance.estep.whole=true"
        )


def _total_variation_slope(z_KBTL: Tensor, frames: Sequence[int]) -> Tensor:
    """Derivative of sum_t |z_t - z_{t-1}|_1 within each utterance."""
    rises = torch.diff(z_KBTL, dim=2).sign()
    for b, count in enumerate(frames):
        rises[:, b, count - 1 :] = 0
    zero = torch.zeros_like(z_KBTL[:, :, :1])
    return torch.cat([zero, rises], 2) - torch.cat([rises, zero], 2)
