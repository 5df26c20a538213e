"""What training maximises: the evidence lower bound by its parts, and how its weights change over the epochs."""

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
    coin   uniform in 0..1, drawn anew for each step, the same in every process: for choices that a whole batch shares
    own    share of the frames in which a model that hears the past is given what it said itself
    free   nats of KL that cost no more than none would, of each step of a latent: free nats
    epoch  how many have gone before
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
    n      how many frames (or samples) of the utterance the parts sum over
    aux    what training adds to the bound for reasons of its own
    noted  what is worth a curve and no part of the loss: times n, for curves are means over the frames
    """

    recon: Mapping[str, Float[Tensor, " B"]]
    kl: Mapping[str, Float[Tensor, " B"]]
    n: Float[Tensor, " B"]
    aux: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)
    noted: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)

    @property
    def bound(self) -> Float[Tensor, " B"]:
        """The bound itself: no weights, nothing added."""
        return self._total(self.recon) - self._total(self.kl)

    def loss(self, schedule: Schedule) -> Float[Tensor, " B"]:
        """What training minimises, in nats per utterance."""
        return schedule.beta * self._total(self.kl) - self._total(self.recon) - self._total(self.aux)

    def shared_with(self, alone_B: Float[Tensor, " B"], alpha: float, schedule: Schedule) -> Elbo:
        """Training on alpha times this loss, and for the rest on what the lips `alone` explain."""
        return replace(self, aux={**self.aux, "from_lips": (1 - alpha) * (alone_B + self.loss(schedule))})

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


def divergence(
    q: Gaussian, p: Gaussian, mask: Bool[Tensor, "B T"], schedule: Schedule, share: float = 1.0
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """KL(q || p) of a latent of each utterance, and what makes its free nats free, for `Elbo.aux`: each dimension is
    charged its part of them at least, so that below it nothing pulls it down. `share` scales them."""
    kl_BTL = q.divergences(p).mean(0)
    least_BTL = kl_BTL.clamp_min(share * schedule.free / kl_BTL.shape[-1])
    charged_B, kl_B = ((value.sum(-1) * mask).sum(1) for value in (least_BTL, kl_BTL))
    return kl_B, schedule.beta * (kl_B - charged_B)


# The two terms of the bound of each component of a mixture, E[ln p(s | z)] and KL(q(z) || p(z)), frame by frame.
Terms = Sequence[tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]]


@torch.no_grad()
def responsibilities(terms: Terms, log_pi: Float[Tensor, "... M"]) -> Float[Tensor, "B T M"]:
    """r(m_t) that makes the bound of the mixture the highest."""
    return (torch.stack([recon_BT - kl_BT for recon_BT, kl_BT in terms], -1) + log_pi).softmax(-1)


def mixture_elbo(
    latents: Sequence[str],
    terms: Terms,
    r_BTM: Float[Tensor, "B T M"],
    log_pi: Float[Tensor, "... M"],
    mask: Bool[Tensor, "B T"],
) -> Elbo:
    """sum_m r_m (ln pi_m - ln r_m + ELBO_m) by its parts; `latents` names that of each component.

    At the best r this is ln sum_m pi_m exp ELBO_m, in value and in gradient, though r is held fixed.
    """
    share_MBT = (r_BTM * mask[..., None]).movedim(-1, 0)
    n_B = mask.sum(1).float()
    recon_B, kl = torch.zeros_like(n_B), {latent: torch.zeros_like(n_B) for latent in latents}
    for latent, share_BT, (recon_BT, kl_BT) in zip(latents, share_MBT, terms, strict=True):
        recon_B = recon_B + (share_BT * recon_BT).sum(1)
        kl[latent] = kl[latent] + (share_BT * kl_BT).sum(1)
    surprise_BTM = torch.xlogy(r_BTM, r_BTM) - torch.where(r_BTM > 0, r_BTM * log_pi, 0)
    kl["switch"] = (surprise_BTM.sum(-1) * mask).sum(1)
    return Elbo(recon={"power": recon_B}, kl=kl, n=n_B)
