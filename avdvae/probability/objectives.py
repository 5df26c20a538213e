"""What training maximises: the evidence lower bound by its parts, and the weights of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.probability.gaussian import Gaussian


@dataclass(frozen=True)
class Schedule:
    """The weights of one step.

    beta   weight of the KL terms
    coin   uniform in 0..1, drawn for each step, the same in every process: for random choices for a whole batch
    own    probability that a frame's past is the model's own output (scheduled sampling)
    free   free bits, in nats for each step of a latent: a KL below it is not reduced further
    epoch  number of completed epochs
    """

    beta: float = 1.0
    own: float = 0.0
    free: float = 0.0
    coin: float = 1.0
    epoch: int = 0


@dataclass(frozen=True)
class Elbo:
    """The bound by its parts, in nats per utterance.

    recon  expected log-likelihoods, by modality
    kl     divergences of the posterior from the prior, by latent; that of a switch between components is "switch"
    n      number of frames (or samples) that the parts sum over
    aux    auxiliary terms of the training objective, added to the bound
    noted  logged, not part of the loss: multiplied by n, because curves are means over frames
    """

    recon: Mapping[str, Float[Tensor, " B"]]
    kl: Mapping[str, Float[Tensor, " B"]]
    n: Float[Tensor, " B"]
    aux: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)
    noted: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)

    @property
    def bound(self) -> Float[Tensor, " B"]:
        """The bound itself, without weights and auxiliary terms."""
        return self._total(self.recon) - self._total(self.kl)

    def loss(self, schedule: Schedule) -> Float[Tensor, " B"]:
        """The training loss, in nats per utterance."""
        return schedule.beta * self._total(self.kl) - self._total(self.recon) - self._total(self.aux)

    def shared_with(self, alone_B: Float[Tensor, " B"], alpha: float, schedule: Schedule) -> Elbo:
        """The loss becomes alpha * loss - (1 - alpha) * `alone_B`, the log-likelihood given the lips alone."""
        return replace(self, aux={**self.aux, "from_lips": (1 - alpha) * (alone_B + self.loss(schedule))})

    def parts(self) -> dict[str, Float[Tensor, " B"]]:
        """Every part by its name, for the training curve."""
        return {
            "bound": self.bound,
            **{f"recon_{name}": value for name, value in self.recon.items()},
            **{f"kl_{name}": value for name, value in self.kl.items()},
            **{f"aux_{name}": value for name, value in self.aux.items()},
        }

    def _total(self, parts: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        return sum(parts.values(), torch.zeros_like(self.n))


def divergence(
    q: Gaussian, p: Gaussian, mask: Bool[Tensor, "B T"], schedule: Schedule, share: float = 1.0
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """KL(q || p) of a latent of each utterance, and the free-bits correction, for `Elbo.aux`: the KL floored per
    dimension, at its part of `schedule.free`, which `share` scales."""
    kl_BTL = q.divergences(p).mean(0)
    floored_BTL = kl_BTL.clamp_min(share * schedule.free / kl_BTL.shape[-1])
    floored_B, kl_B = ((value.sum(-1) * mask).sum(1) for value in (floored_BTL, kl_BTL))
    return kl_B, schedule.beta * (kl_B - floored_B)


# The two terms of the bound of each component of a mixture, E[ln p(s | z)] and KL(q(z) || p(z)), frame by frame.
Terms = Sequence[tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]]


@torch.no_grad()
def responsibilities(terms: Terms, log_pi: Float[Tensor, "... C"]) -> Float[Tensor, "B T C"]:
    """r(m_t) that maximises the bound of the mixture."""
    return (torch.stack([recon_BT - kl_BT for recon_BT, kl_BT in terms], -1) + log_pi).softmax(-1)


def mixture_elbo(
    latents: Sequence[str],
    terms: Terms,
    r_BTC: Float[Tensor, "B T C"],
    log_pi: Float[Tensor, "... C"],
    mask: Bool[Tensor, "B T"],
) -> Elbo:
    """sum_m r_m (ln pi_m - ln r_m + ELBO_m) by its parts; `latents` names that of each component.

    At the optimal r this is ln sum_m pi_m exp ELBO_m, in value and in gradient, though r is held fixed.
    """
    weight_CBT = (r_BTC * mask[..., None]).movedim(-1, 0)
    n_B = mask.sum(1).float()
    recon_B, kl = torch.zeros_like(n_B), {latent: torch.zeros_like(n_B) for latent in latents}
    for latent, weight_BT, (recon_BT, kl_BT) in zip(latents, weight_CBT, terms, strict=True):
        recon_B = recon_B + (weight_BT * recon_BT).sum(1)
        kl[latent] = kl[latent] + (weight_BT * kl_BT).sum(1)
    kl_BTC = torch.xlogy(r_BTC, r_BTC) - torch.where(r_BTC > 0, r_BTC * log_pi, 0)
    kl["switch"] = (kl_BTC.sum(-1) * mask).sum(1)
    return Elbo(recon={"power": recon_B}, kl=kl, n=n_B)
