"""What training maximises: the evidence lower bound by its parts, and how its weights change over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The weights of one step.

    beta   weight of the KL terms
    coin   uniform in 0..1, drawn anew for each step, the same in every process: for choices that a whole batch shares
    """

    beta: float = 1.0
    coin: float = 1.0


@dataclass(frozen=True)
class Elbo:
    """The bound by its parts, in nats per utterance.

    recon  expected log-likelihoods, by modality
    kl     divergences of the posterior from the prior, by latent
    n      how many frames (or samples) of the utterance the parts sum over
    aux    what training adds to the bound for reasons of its own
    """

    recon: Mapping[str, Float[Tensor, " B"]]
    kl: Mapping[str, Float[Tensor, " B"]]
    n: Float[Tensor, " B"]
    aux: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)

    @property
    def bound(self) -> Float[Tensor, " B"]:
        """The bound itself: no weights, nothing added."""
        return self._total(self.recon) - self._total(self.kl)

    def loss(self, schedule: Schedule) -> Float[Tensor, " B"]:
        """What training minimises, in nats per utterance."""
        return schedule.beta * self._total(self.kl) - self._total(self.recon) - self._total(self.aux)

    def parts(self) -> dict[str, Float[Tensor, " B"]]:
        """Every part under a name of its own, for the training curve."""
        return {
            "bound": self.bound,
            **{f"recon_{name}": value for name, value in self.recon.items()},
            **{f"kl_{name}": value for name, value in self.kl.items()},
            **{f"aux_{name}": value for name, value in self.aux.items()},
        }

    def _total(self, parts: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        return sum(parts.values(), torch.zeros_like(self.n))
