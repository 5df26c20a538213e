"""What an E-step is given and what it returns. It explores the posterior of a model's latents given noisy speech.

Each is a frozen set of settings with three verbs. `start` puts the latents where the model's encoder, of what it has
`heard`, or its prior would; `step` moves them and returns the likelihood at draws of the posterior, over which the
M-step averages; `final` returns it at those for the Wiener filter. They know the target by its value and gradient in z
alone, so any model does.

    z   latents, z_KBTL by name; K chains or draws
    x   noisy speech, of which the target holds |x|^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.probability.distributions import Gaussian, Slopes, SpeechLikelihood
from avdvae.protocols import Batch, LatentModel, Latents

Start = Literal["posterior", "prior"]


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


def first_latents(model: LatentModel, heard: Batch, start: Start) -> tuple[dict[str, Tensor], Mapping[str, Gaussian]]:
    """One copy of the means, K = 1, and the distributions that they are of."""
    if start not in ("posterior", "prior"):
        raise UserError(f"enhance.estep.begin={start}: choose posterior or prior")
    inferred = model.infer(heard, mode="mean")
    chosen = inferred.q if start == "posterior" else inferred.p
    means = {name: gaussian.mean.expand(1, *gaussian.mean.shape[-3:]).clone() for name, gaussian in chosen.items()}
    return means, chosen


def followed(slopes: Slopes, back_to: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """From the derivatives in what something is made of, those in what all of that depends on."""
    made_of, given = zip(*((value, slope) for value, slope in slopes if value.requires_grad), strict=True)
    return torch.autograd.grad(made_of, back_to, given)
