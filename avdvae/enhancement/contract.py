"""What an E-step is given and what it returns. It explores the posterior of a model's latents given noisy speech.

Each is a frozen set of settings with three verbs. `start` initialises the latents from the model's posterior given a
batch, or from its prior; `step` moves them and returns the likelihood at draws of the posterior, over which the M-step
averages; `final` returns it at the draws for the Wiener filter. E-steps use the value and gradient of the target in z
alone, so they apply to every model.

    z   latents, z_KBTL by name; K chains or draws
    x   noisy speech, of which the target holds |x|^2
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.probability.gaussian import Gaussian, Slopes
from avdvae.probability.spectrum import SpeechLikelihood
from avdvae.protocols import Batch, Context, LatentPrior, Latents, Prior

Start = Literal["posterior", "prior"]


class Rounds(NamedTuple):
    """Iterations of an EM, and updates of the noise in each: `thinned` on every fourth frame, then `updates` on all."""

    iterations: int
    updates: int = 1
    thinned: int = 0


MANY = Rounds(100)


class Gradient(NamedTuple):
    """The gradient of ln p(x, z | v) in each latent, with the likelihood and prior computed on the way."""

    slopes: dict[str, Tensor]
    likelihood: SpeechLikelihood
    log_prior: Float[Tensor, "K B T"]


@runtime_checkable
class Target(Protocol):
    """ln p(x, z | v) as a function of z, up to a constant."""

    def log_joint(self, z: Latents) -> Float[Tensor, "K B T"]: ...

    def gradient(self, z: Latents) -> Gradient: ...

    def likelihood(self, z: Latents) -> SpeechLikelihood: ...

    @property
    def noisy_BTF(self) -> Tensor: ...

    @property
    def noise_BTF(self) -> Tensor: ...

    @property
    def gain_BTJ(self) -> Tensor: ...

    @property
    def context(self) -> Context: ...


@dataclass(frozen=True)
class RandomNumbers:
    """Standard normal and uniform numbers, from one generator an utterance: they do not depend on the rest of its
    batch."""

    generators: Sequence[torch.Generator]
    frames: Sequence[int]  # of each utterance

    @classmethod
    def seeded(cls, ids: Sequence[str], frames: Sequence[int], seed: int) -> RandomNumbers:
        """By the names of the utterances."""
        digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in ids]
        seeds = [int.from_bytes(digest[:8], "big", signed=True) for digest in digests]
        return cls([torch.Generator().manual_seed(number) for number in seeds], frames)

    def normal(self, like: Float[Tensor, "*lead B T D"]) -> Float[Tensor, "*lead B T D"]:
        return self._fill(torch.randn, like)

    def uniform(self, like: Float[Tensor, "*lead B T D"]) -> Float[Tensor, "*lead B T D"]:
        return self._fill(torch.rand, like)

    @contextmanager
    def of_torch(self, device: torch.device) -> Iterator[None]:
        """Within, torch's own random numbers on the device are seeded by the first utterance's generator."""
        default = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
        before = default.get_state()
        default.manual_seed(int(torch.randint(2**62, (), generator=self.generators[0])))
        try:
            yield
        finally:
            default.set_state(before)

    def _fill(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        """Numbers of the shape of `like`, zero where its frames pad."""
        if like.shape[-3:-1] == (1, self.frames[0]):  # nothing pads
            return draw(like.shape, generator=self.generators[0]).to(like.device)
        drawn = torch.zeros_like(like)
        for b, (generator, frames) in enumerate(zip(self.generators, self.frames, strict=True)):
            count = min(frames, like.shape[-2])  # a latent of the whole utterance has one
            numbers = draw((*like.shape[:-3], count, like.shape[-1]), generator=generator)
            drawn[..., b, :count, :] = numbers.to(like.device)
        return drawn


@runtime_checkable
class EStep(Protocol):
    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> Any: ...

    def step(self, target: Target, state: Any, random: RandomNumbers) -> tuple[Any, SpeechLikelihood]: ...

    def final(self, target: Target, state: Any, random: RandomNumbers) -> SpeechLikelihood: ...


@runtime_checkable
class MovingEStep(EStep, Protocol):
    """An E-step whose state can follow a sound that arrives. What is saved consists of tensors, by the name of the
    latent, with frames on the last axis but one: those of frames that stay and of new ones are joined by the caller.

    cannot_move  the name of an E-step within it whose state cannot follow a sound
    each_move    iterations of the EM in a move, by default
    entering     what is saved of a state that begins, in the newest frames, of which `batch` and the powers of `target`
                 are
    restored     the state of the frames of `batch`
    """

    @property
    def cannot_move(self) -> str | None: ...

    @property
    def each_move(self) -> int: ...

    def entering(
        self, model: Prior, batch: Batch, target: Target, random: RandomNumbers
    ) -> Mapping[str, Sequence[Tensor]]: ...

    def saved(self, state: Any) -> Mapping[str, Sequence[Tensor]]: ...

    def restored(self, saved: Mapping[str, Sequence[Tensor]], model: Prior, batch: Batch) -> Any: ...


@runtime_checkable
class Scheduled(Protocol):
    """An E-step that has other iterations by default than MANY."""

    @property
    def schedule(self) -> Rounds: ...


def draws_of(q: Mapping[str, Gaussian], count: int, random: RandomNumbers) -> Latents:
    """z of posteriors with moments of the shape B T L or 1 B T L."""
    noise = {
        name: random.normal(gaussian.mean.expand(count, *gaussian.mean.shape[-3:])) for name, gaussian in q.items()
    }
    return {name: q[name].moved(noise_KBTL) for name, noise_KBTL in noise.items()}


def with_latents(model: Prior) -> LatentPrior:
    if not isinstance(model, LatentPrior):
        raise UserError(
            f"{type(model).__name__} has no latents, which this E-step infers: give enhance.estep.name=denoising"
        )
    return model


def first_latents(model: Prior, batch: Batch, begin: Start) -> tuple[dict[str, Tensor], Mapping[str, Gaussian]]:
    """The means, K = 1, and their distributions."""
    model = with_latents(model)
    if begin not in ("posterior", "prior"):
        raise UserError(f"enhance.estep.begin={begin}: choose posterior or prior")
    inferred = model.infer(batch, mode="mean")
    chosen = inferred.q if begin == "posterior" else inferred.p
    means = {name: gaussian.mean.expand(1, *gaussian.mean.shape[-3:]).clone() for name, gaussian in chosen.items()}
    return means, chosen


def backpropagated(slopes: Slopes, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients in `inputs`, from those in tensors that were computed from them."""
    outputs, gradients = zip(*((value, slope) for value, slope in slopes if value.requires_grad), strict=True)
    return torch.autograd.grad(outputs, inputs, gradients)
