"""Priors of motion: a dynamical VAE of boxes, and a linear Kalman filter of constant velocity."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.dynamical_vae import AutoregressiveVAE
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Schedule
from avdvae.probability.observed import Trajectory
from avdvae.protocols import Batch
from avdvae.tracking.mixture import FIRST_VARIANCE, Estimate, Evidence

LR, BETA = 1e-3, 0.5  # of fine-tuning, as in training


class VAEPrior:
    """A trained dynamical VAE of boxes, of which a copy is fine-tuned."""

    def __init__(self, model: nn.Module):
        if not isinstance(model, AutoregressiveVAE) or model.observes != "boxes":
            raise UserError(f"{type(model).__name__} is no autoregressive model of boxes: give a run of exp=tracking")
        self.model = deepcopy(model).cpu().eval().requires_grad_(False)
        self.adam: torch.optim.Adam | None = None

    def filtered(
        self, evidence: Evidence, first_BN4: Float[Tensor, "B N 4"], estimate: Estimate, random: torch.Generator
    ) -> Estimate:
        """Scenes and objects share the batch axis. The noise of the latents is the same in all scenes, so that the
        result of a scene does not depend on the others."""
        model, (scenes, frames, objects, _) = self.model, estimate.m.shape
        batch, noise = _as_batch(estimate.m), dict[str, Tensor]()
        for spec in model.latents:
            size = objects, 1 if spec.rate is None else frames, spec.dim
            noise[spec.name] = torch.randn(size, generator=random).repeat(scenes, 1, 1)[None]
        context = model.context(batch)
        z = model.posterior(model.network_input(model.observed(batch)), context, noise).z  # E-Z
        precision, weighted = (_side_by_side(part)[None] for part in evidence)
        first, moments = Gaussian(first_BN4.reshape(1, -1, 1, 4), torch.full((4,), FIRST_VARIANCE).log()), []

        def follow(t: int, likelihood: Trajectory) -> Float[Tensor, "1 BN 1 4"]:
            p = likelihood.density if t else first
            V = 1 / (precision[:, :, t : t + 1] + (-p.log_var).exp())
            m = V * (weighted[:, :, t : t + 1] + p.mean * (-p.log_var).exp())
            moments.append((m, V))
            return m

        model.walk(z, context, follow)
        m, V = (torch.cat(part, 2)[0].unflatten(0, (scenes, objects)) for part in zip(*moments, strict=True))
        return Estimate(m.transpose(1, 2), V.transpose(1, 2))

    def learn(self, estimate: Estimate) -> None:
        if self.adam is None:
            self.adam = torch.optim.Adam(self.model.requires_grad_(True).parameters(), LR)
        schedule = Schedule(beta=BETA)
        elbo = self.model(_as_batch(estimate.m), schedule)
        self.adam.zero_grad()
        (elbo.loss(schedule).sum() / elbo.n.sum()).backward()
        self.adam.step()


def _side_by_side(values_BTN4: Float[Tensor, "B T N 4"]) -> Float[Tensor, "BN T 4"]:
    return values_BTN4.transpose(1, 2).flatten(end_dim=1)


def _as_batch(boxes_BTN4: Float[Tensor, "B T N 4"]) -> Batch:
    boxes_RT4 = _side_by_side(boxes_BTN4)
    mask_RT = torch.ones(boxes_RT4.shape[:2], dtype=torch.bool)
    return Batch(ids=tuple(map(str, range(len(boxes_RT4)))), mask=mask_RT, boxes=boxes_RT4)


@dataclass(frozen=True)
class ConstantVelocity:
    """A linear Kalman filter of each coordinate, whose velocity drifts:

    s_t = s_t-1 + u_t-1 + (1/2) a_t     u_t = u_t-1 + a_t     a_t ~ N(0, acceleration)     u_1 ~ N(0, velocity)
    """

    velocity: Float[Tensor, " 4"] = field(default_factory=lambda: torch.full((4,), 0.002**2))
    acceleration: Float[Tensor, " 4"] = field(default_factory=lambda: torch.full((4,), 0.0003**2))

    @classmethod
    def fitted(cls, boxes_NT4: Float[Tensor, "N T 4"]) -> ConstantVelocity:
        """The mean squares of first and second differences of trajectories."""
        steps_NT4 = boxes_NT4.diff(dim=1)
        return cls(steps_NT4.square().mean((0, 1)), steps_NT4.diff(dim=1).square().mean((0, 1)))

    def filtered(
        self, evidence: Evidence, first_BN4: Float[Tensor, "B N 4"], estimate: Estimate, random: torch.Generator
    ) -> Estimate:
        s, u = first_BN4, torch.zeros_like(first_BN4)
        ss, su, uu = torch.full_like(s, FIRST_VARIANCE), torch.zeros_like(s), self.velocity.expand_as(s)  # covariances
        moments = []
        for t, (precision, weighted) in enumerate(zip(*(part.unbind(1) for part in evidence), strict=True)):
            if t:
                s = s + u
                ss, su, uu = (
                    ss + 2 * su + uu + self.acceleration / 4,
                    su + uu + self.acceleration / 2,
                    uu + self.acceleration,
                )
            gain, surprise = 1 / (1 + ss * precision), weighted - precision * s
            s, u = s + gain * ss * surprise, u + gain * su * surprise
            ss, su, uu = gain * ss, gain * su, uu - gain * su.square() * precision
            moments.append((s, ss))
        return Estimate(*(torch.stack(part, 1) for part in zip(*moments, strict=True)))

    def learn(self, estimate: Estimate) -> None:
        raise UserError("a Kalman filter has no networks to fine-tune: give finetune=false")
