"""E-steps: ways to explore the posterior of a model's latents given noisy speech.

Each is a frozen set of settings with three verbs. `start` puts the latents where the model's encoder, of what it has
`heard`, or its prior would; `step` moves them and returns the likelihood at draws of the posterior, over which the
M-step averages; `final` returns it at those for the Wiener filter. They know the target by its value and gradient in z
alone, so any model does.

    z   latents, z_KBTL by name; K chains or draws
    x   noisy speech, of which the target holds |x|^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError, known_settings
from avdvae.probability.distributions import VARIANCE_FLOOR, Gaussian, Mixture, Slopes, SpeechLikelihood
from avdvae.protocols import Batch, LatentModel, Latents

Start = Literal["posterior", "prior"]
Chains = dict[str, Tensor]  # z_KBTL by name, to be moved


class Climb(NamedTuple):
    """The gradient of ln p(x, z | v) in each latent, and what was computed on the way to it."""

    slopes: dict[str, Tensor]
    likelihood: SpeechLikelihood
    log_prior: Float[Tensor, "K B T"]


@runtime_checkable
class Target(Protocol):
    """ln p(x, z | v) as a function of z, up to a constant."""

    def log_joint(self, z: Latents) -> Float[Tensor, "K B T"]: ...

    def gradient(self, z: Latents) -> Climb: ...

    def likelihood(self, z: Latents) -> SpeechLikelihood: ...

    @property
    def noisy_BTF(self) -> Tensor: ...


@dataclass(frozen=True)
class Draws:
    """Standard normal and uniform numbers, from one generator an utterance: what an utterance gets does not depend on
    those that share its batch."""

    generators: Sequence[torch.Generator]
    frames: Sequence[int]  # of each utterance

    def normal(self, like: Float[Tensor, "*lead B T D"]) -> Float[Tensor, "*lead B T D"]:
        return self._fill(torch.randn, like)

    def uniform(self, like: Float[Tensor, "*lead B T D"]) -> Float[Tensor, "*lead B T D"]:
        return self._fill(torch.rand, like)

    @contextmanager
    def of_torch(self, device: torch.device) -> Iterator[None]:
        """Within, torch's own random numbers there follow from the first utterance's generator."""
        own = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
        before = own.get_state()
        own.manual_seed(int(torch.randint(2**62, (), generator=self.generators[0])))
        try:
            yield
        finally:
            own.set_state(before)

    def _fill(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        """Numbers of the shape of `like`, zero where its frames pad."""
        if like.shape[-3:-1] == (1, self.frames[0]):  # nothing pads
            return draw(like.shape, generator=self.generators[0]).to(like.device)
        drawn = torch.zeros_like(like)
        for b, (generator, frames) in enumerate(zip(self.generators, self.frames, strict=True)):
            count = min(frames, like.shape[-2])  # a latent of the whole utterance has but one
            numbers = draw((*like.shape[:-3], count, like.shape[-1]), generator=generator)
            drawn[..., b, :count, :] = numbers.to(like.device)
        return drawn


@runtime_checkable
class EStep(Protocol):
    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> Any: ...

    def step(self, target: Target, state: Any, draws: Draws) -> tuple[Any, SpeechLikelihood]: ...

    def final(self, target: Target, state: Any, draws: Draws) -> SpeechLikelihood: ...


def _begin(model: LatentModel, heard: Batch, start: Start) -> tuple[dict[str, Tensor], Mapping[str, Gaussian]]:
    """One copy of the means, K = 1, and the distributions that they are of."""
    if start not in ("posterior", "prior"):
        raise UserError(f"enhance.estep.begin={start}: choose posterior or prior")
    inferred = model.infer(heard, mode="mean")
    chosen = inferred.q if start == "posterior" else inferred.p
    means = {name: gaussian.mean.expand(1, *gaussian.mean.shape[-3:]).clone() for name, gaussian in chosen.items()}
    return means, chosen


class _Moments(NamedTuple):
    """Mean and variance of all draws so far, those of the i-th iteration with a weight of i, for the EM moves less and
    less. A mixture takes the Gaussian of these moments for the density of the draws."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    count: int  # of iterations

    @classmethod
    def of(cls, gaussians: Mapping[str, Gaussian], z: Chains) -> _Moments:
        mean = {name: gaussians[name].mean.expand_as(value[:1]) for name, value in z.items()}
        return cls(mean, {name: gaussians[name].log_var.exp().expand_as(value[:1]) for name, value in z.items()}, 1)

    def with_draws(self, z: Latents) -> _Moments:
        share = 2 / (self.count + 2)
        mean, variance = {}, {}
        for name, drawn in z.items():
            here = drawn.mean(0, keepdim=True)
            moved = here - self.mean[name]
            within = torch.lerp(self.variance[name], (drawn - here).square().mean(0, keepdim=True), share)
            mean[name] = self.mean[name] + share * moved
            variance[name] = within + share * (1 - share) * moved.square()
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
    """A random walk of each frame, as in the MCEM of the AVSE-VAE line: Sadeghi et al., IEEE/ACM TASLP 28, 2020.

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
        for draws, burn_in in (("draws", "burn_in"), ("final_draws", "final_burn_in")):
            if getattr(self, draws) <= getattr(self, burn_in):
                raise UserError(
                    f"enhance.estep.{draws}={getattr(self, draws)}: draw more than the "
                    f"{burn_in}={getattr(self, burn_in)} that are thrown away"
                )

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Chains:
        z, chosen = _begin(model, heard, self.begin)
        return _Chains(z, _Moments.of(chosen, z))

    def step(self, target: Target, state: _Chains, draws: Draws) -> tuple[_Chains, SpeechLikelihood]:
        kept = self._walk(target, state.z, draws, self.draws, self.burn_in)
        moments = state.moments.with_draws(kept)
        last = {name: z[-1:] for name, z in kept.items()}
        return _Chains(last, moments), target.likelihood(kept).drawn(kept, moments.q)

    def final(self, target: Target, state: _Chains, draws: Draws) -> SpeechLikelihood:
        kept = self._walk(target, state.z, draws, self.final_draws, self.final_burn_in)
        return target.likelihood(kept).drawn(kept, state.moments.with_draws(kept).q)

    def _walk(self, target: Target, z: Chains, draws: Draws, count: int, burn_in: int) -> Chains:
        _require_frames(z, draws, "metropolis_hastings")
        moves = {name: self.step_size * draws.normal(value.expand(count, *value.shape)) for name, value in z.items()}
        here = target.log_joint(z)
        log_uniform = draws.uniform(here[..., None].expand(count, *here.shape, 1))[..., 0].log_()
        kept: dict[str, list[Tensor]] = {name: [] for name in z}
        for i in range(count):
            proposed = {name: value + moves[name][i] for name, value in z.items()}
            there = target.log_joint(proposed)
            accepted = log_uniform[i] < there - here
            here = torch.where(accepted, there, here)
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
    (their variance is 1 / (J - step_size J^2 / 4) up to there). Beyond, they would run away but for taming, tamed(g) =
    g / sqrt(1 + (step_size g)^2), and stay several times too wide. `mala` has the posterior's spread.
    """

    chains: int = 4
    step_size: float = 0.005
    spread: float = 0.1  # of the chains around their common start
    total_variation: float = 0.0
    begin: Start = "posterior"

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Chains:
        means, chosen = _begin(model, heard, self.begin)
        z = {name: z + self.spread * draws.normal(z.expand(self.chains, -1, -1, -1)) for name, z in means.items()}
        return _Chains(z, _Moments.of(chosen, z))

    def step(self, target: Target, state: _Chains, draws: Draws) -> tuple[_Chains, SpeechLikelihood]:
        slopes, likelihood, _ = target.gradient(state.z)
        moments, moved = state.moments.with_draws(state.z), {}
        for name, z in state.z.items():
            slope = slopes[name]
            if self.total_variation:
                slope = slope - self.total_variation * _total_variation_slope(z, draws.frames)
            tamed = slope / (1 + (self.step_size * slope).square()).sqrt()
            moved[name] = z + self.step_size / 2 * tamed + self.step_size**0.5 * draws.normal(z)
        return _Chains(moved, moments), likelihood.drawn(state.z, moments.q)

    def final(self, target: Target, state: _Chains, draws: Draws) -> SpeechLikelihood:
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

    V is the variance of the chains so far, dimension by dimension, and the step h moves to where 57 % are accepted (G.
    O. Roberts, J. S. Rosenthal, JRSS B 60, 1998); both change less and less. By default frames are accepted one by one,
    which is exact where the model has no memory from frame to frame; `whole` accepts or rejects whole utterances, which
    is exact for any model, with shorter steps.
    """

    chains: int = 4
    moves: int = 1  # of each EM iteration
    whole: bool = False
    begin: Start = "posterior"
    ACCEPTED = 0.574

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Adapted:
        means, chosen = _begin(model, heard, self.begin)
        if not self.whole:
            _require_frames(means, draws, "mala")
        moments = _Moments.of(chosen, means)
        noise = {name: draws.normal(z.expand(self.chains, -1, -1, -1)) for name, z in means.items()}
        z = {name: q.moved(noise[name]) for name, q in moments.q.items()}
        frames = 1 if self.whole else heard.mask.shape[1]
        return _Adapted(z, moments, heard.mask.new_zeros((len(heard.ids), frames), dtype=torch.float32), 0)

    def step(self, target: Target, state: _Adapted, draws: Draws) -> tuple[_Adapted, SpeechLikelihood]:
        first = target.gradient(state.z)
        moments, log_step_BT = state.moments.with_draws(state.z), state.log_step
        z, slopes, log_joint = state.z, first.slopes, self._log_joint(target, first)
        for move in range(state.moves + 1, state.moves + 1 + self.moves):
            h_BT1 = log_step_BT.exp()[..., None]
            width = {name: h_BT1 * value.clamp_min(VARIANCE_FLOOR) for name, value in moments.variance.items()}
            ahead = {name: value + width[name] / 2 * slopes[name] for name, value in z.items()}
            new = {name: mean + width[name].sqrt() * draws.normal(mean) for name, mean in ahead.items()}
            there = target.gradient(new)
            log_joint_there = self._log_joint(target, there)
            ratio = self._judged(log_joint_there - log_joint)  # differences first: their sums are large
            for name, value in z.items():
                behind = new[name] + width[name] / 2 * there.slopes[name]
                off = (new[name] - ahead[name]).square() - (value - behind).square()
                ratio = ratio + self._judged((off / width[name]).sum(-1) / 2)
            ratio = ratio.nan_to_num(nan=-torch.inf)
            accepted = draws.uniform(ratio[..., None])[..., 0].log_() < ratio
            z = {name: torch.where(accepted[..., None], new[name], value) for name, value in z.items()}
            slopes = {n: torch.where(accepted[..., None], there.slopes[n], slope) for n, slope in slopes.items()}
            log_joint = torch.where(accepted, log_joint_there, log_joint)
            surplus_BT = ratio.clamp_max(0).exp().mean(0) - self.ACCEPTED
            log_step_BT = log_step_BT + max(move**-0.6, 0.05) * surplus_BT
        moved = _Adapted(z, moments, log_step_BT, state.moves + self.moves)
        return moved, first.likelihood.drawn(state.z, moments.q)

    def final(self, target: Target, state: _Adapted, draws: Draws) -> SpeechLikelihood:
        return target.likelihood(state.z).drawn(state.z, state.moments.with_draws(state.z).q)

    def _log_joint(self, target: Target, at: Climb) -> Float[Tensor, "K B T"]:
        return at.likelihood.log_prob(target.noisy_BTF) + at.log_prior

    def _judged(self, values_KBT: Float[Tensor, "K B _T"]) -> Float[Tensor, "K B _"]:
        """What is accepted together: a frame, or an utterance."""
        return values_KBT.sum(-1, keepdim=True) if self.whole else values_KBT


def _require_frames(z: Latents, draws: Draws, name: str) -> None:
    if whole := [latent for latent, value in z.items() if value.shape[-2] < max(draws.frames)]:
        raise UserError(
            f"{name} moves frame by frame and {', '.join(whole)} is one for all of them: choose "
            "enhance.estep.name=langevin, free_gaussian or point, or mala with +enhance.estep.whole=true"
        )


def _total_variation_slope(z_KBTL: Tensor, frames: Sequence[int]) -> Tensor:
    """Derivative of sum_t |z_t - z_{t-1}|_1 within each utterance."""
    rises = torch.diff(z_KBTL, dim=2).sign()
    for b, count in enumerate(frames):
        rises[:, b, count - 1 :] = 0
    nothing = torch.zeros_like(z_KBTL[:, :, :1])
    return torch.cat([nothing, rises], 2) - torch.cat([rises, nothing], 2)


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

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Point:
        z, _ = _begin(model, heard, self.begin)
        if isinstance(model.decode(z, model.context(heard))["power"], Mixture):
            raise UserError(
                f"{type(model).__name__} weighs its components by how wide their posteriors are, and a point has no "
                "width: choose enhance.estep.name=free_gaussian, langevin, mala or metropolis_hastings"
            )
        return _Point(z, _adam(z.values(), self.lr))

    def step(self, target: Target, state: _Point, draws: Draws) -> tuple[_Point, SpeechLikelihood]:
        for _ in range(self.steps):
            slopes, _, _ = target.gradient(state.z)
            for name, slope in slopes.items():
                state.z[name].grad = slope
            state.adam.step()
        return state, target.likelihood(state.z)

    def final(self, target: Target, state: _Point, draws: Draws) -> SpeechLikelihood:
        return target.likelihood(state.z)


class _Free(NamedTuple):
    mean: dict[str, Tensor]
    log_var: dict[str, Tensor]
    adam: torch.optim.Adam

    def sample(self, count: int, draws: Draws) -> Latents:
        return {
            name: mean + torch.exp(self.log_var[name] / 2) * draws.normal(mean.expand(count, -1, -1, -1))
            for name, mean in self.mean.items()
        }

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

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Free:
        mean, chosen = _begin(model, heard, self.begin)
        log_var = {name: chosen[name].log_var.expand_as(z).clone() for name, z in mean.items()}
        return _Free(mean, log_var, _adam([*mean.values(), *log_var.values()], self.lr))

    def step(self, target: Target, state: _Free, draws: Draws) -> tuple[_Free, SpeechLikelihood]:
        for _ in range(self.steps):
            z = state.sample(self.draws, draws)
            slopes, likelihood, _ = target.gradient(z)
            likelihood = likelihood.drawn(z, state.q)
            for name, slope in slopes.items():
                mean, log_var = state.mean[name], state.log_var[name]
                log_var.grad = 0.5 * (slope * (z[name] - mean)).mean(0, keepdim=True) + 0.5
                mean.grad = slope.mean(0, keepdim=True)
            state.adam.step()
        return state, likelihood

    def final(self, target: Target, state: _Free, draws: Draws) -> SpeechLikelihood:
        z = state.sample(self.final_draws, draws)
        return target.likelihood(z).drawn(z, state.q)


class _Tuned(NamedTuple):
    model: Any
    heard: Batch
    weights: list[nn.Parameter]
    adam: torch.optim.Adam


@dataclass(frozen=True)
class FineTunedEncoder:
    """q stays what the encoder makes of the sound; the encoder learns it anew for every utterance. The VEM of S.
    Leglaive et al., ICASSP 2020 (arXiv 1910.10942), and X. Bie et al., IEEE/ACM TASLP 30, 2022 (arXiv 2106.12271).

    What it learns is what inference has for itself: not the layers that the decoder or the prior use too.
    """

    steps: int = 1
    lr: float = 1e-3
    draws: int = 1
    final_draws: int = 1

    def start(self, model: LatentModel, heard: Batch, draws: Draws) -> _Tuned:
        if len(heard.ids) > 1:
            raise UserError(
                f"enhance.estep.name=encoder adapts the encoder to one utterance and was given {len(heard.ids)}: give "
                "enhance.batch_size=1"
            )
        own: Any = deepcopy(model)
        own.requires_grad_(True)
        with torch.enable_grad(), draws.of_torch(heard.mask.device):
            z, context = own.infer(heard).z, own.context(heard)
            found = {name: value.detach() for name, value in z.items()}
            likely = own.decode(found, context)["power"].log_prob(heard.need("power", own))
            generates = _depends(likely.sum() + own.log_prior(found, context).sum(), own)
            infers = _depends(sum(value.sum() for value in z.values()), own)
        own.requires_grad_(False)
        tuned = [parameter.requires_grad_() for parameter in own.parameters() if parameter in infers - generates]
        if not tuned:
            raise UserError(
                f"enhance.estep.name=encoder: {type(model).__name__} has no layers for inference alone: choose another"
            )
        return _Tuned(own, heard, tuned, _adam(tuned, self.lr))

    def step(self, target: Target, state: _Tuned, draws: Draws) -> tuple[_Tuned, SpeechLikelihood]:
        for _ in range(self.steps):
            with torch.enable_grad(), draws.of_torch(state.heard.mask.device):
                inferred = state.model.infer(state.heard, self.draws)
                likelihood = target.likelihood(inferred.z)
            slopes = likelihood.slopes(target.noisy_BTF, state.heard.mask / self.draws)
            for name, q in inferred.q.items():
                slopes += q.nearness(inferred.p[name])
            for weight, slope in zip(state.weights, followed(slopes, state.weights), strict=True):
                weight.grad = slope
            state.adam.step()
        return state, self._draw(target, state, draws, self.draws)

    def final(self, target: Target, state: _Tuned, draws: Draws) -> SpeechLikelihood:
        return self._draw(target, state, draws, self.final_draws)

    def _draw(self, target: Target, state: _Tuned, draws: Draws, count: int) -> SpeechLikelihood:
        """Anew, from what the encoder has become."""
        with draws.of_torch(state.heard.mask.device):
            inferred = state.model.infer(state.heard, count)
        return target.likelihood(inferred.z).drawn(inferred.z, inferred.q)


def followed(slopes: Slopes, back_to: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """From the derivatives in what something is made of, those in what all of that depends on."""
    made_of, given = zip(*((value, slope) for value, slope in slopes if value.requires_grad), strict=True)
    return torch.autograd.grad(made_of, back_to, given)


def _depends(value: Any, model: Any) -> set[Tensor]:
    """The parameters on which a value depends."""
    if not value.requires_grad:
        return set()
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return {parameter for parameter, slope in zip(parameters, slopes, strict=True) if slope is not None}


ESTEPS: dict[str, type] = {
    "metropolis_hastings": MetropolisHastings,
    "langevin": Langevin,
    "mala": MetropolisLangevin,
    "point": PointEstimate,
    "free_gaussian": FreeGaussian,
    "encoder": FineTunedEncoder,
}


def build_estep(name: str, **settings: Any) -> EStep:
    if name not in ESTEPS:
        raise UserError(f"no E-step is called {name}: choose from {', '.join(ESTEPS)}")
    return known_settings(ESTEPS[name], "enhance.estep", **settings)
