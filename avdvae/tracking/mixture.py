"""MixDVAE: many objects, each with a prior of its motion, and detections that are assigned to them.

X. Lin, L. Girin, X. Alameda-Pineda, "Mixture of dynamical variational autoencoders for multi-source trajectory modeling
and separation", Transactions on Machine Learning Research 2023 (arXiv 2312.04167).

    p(w_tk = n) = 1 / N     p(o_tk | w_tk = n, s_tn) = N(o_tk; s_tn, Phi_tk)     p(s_n, z_n): a dynamical VAE
    q(s, z, w | o) = prod_tk q(w_tk | o) prod_n q(s_n | o) q(z_n | s_n)

    E-W   eta_tkn = softmax_n -1/2 [(o - m)' (c Phi)^-1 (o - m) + tr((c Phi)^-1 V)]
    E-Z   z_n ~ q(z_n | m_n), by the encoder of the VAE
    E-S   mu_t, v_t: moments of p(s_t | z_1:t, m_1:t-1), frame after frame, from the decoder of the VAE
          V_tn = (sum_k eta_tkn Phi_tk^-1 + 1 / v_t)^-1        m_tn = V_tn (sum_k eta_tkn Phi_tk^-1 o_tk + mu_t / v_t)
    M     rho^2 = mean over t, k and coordinates of sum_n eta_tkn [(o - m)^2 + V] / size_tk^2, at least FLOOR^2

    o_tk      detection k, of K, or nan     boxes_BTK4
    s_tn      place of object n, of N       m_BTN4, V_BTN4 of its Gaussian q(s_tn | o); all covariances are diagonal
    eta_tkn   q(w_tk = n | o)               eta_BTKN; 0 for missing detections
    Phi_tk    rho^2 size_tk^2               noise_BTK4; size: width, height, width, height of the detection

E-S is a filter: it leaves out what later frames and ln q(z | s) contain about s_t, so that the bound need not rise from
one iteration to the next. E-W and M do not lower the bound given the rest.

Different from the published code: Phi has the size of each detection, in place of that of its column in the first
frame; the first input of the VAE is 0, as in its training; and M, which is never called there, is an option. The
published c (`assignment_scale`) is 1 / 0.008, and is not in the paper: in E-W, the deviation of detections is eleven
times that of E-S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.errors import UserError
from avdvae.randomness import seeded

FLOOR = 0.005  # of rho
FIRST_VARIANCE = 1e-5  # of the place in the first frame, around the detection that an object begins with


class Estimate(NamedTuple):
    """q(s | o)"""

    m: Float[Tensor, "B T N 4"]
    V: Float[Tensor, "B T N 4"]


class Evidence(NamedTuple):
    """The detections assigned to an object as one Gaussian of its place; precision 0: there are none.

    precision   sum_k eta_tkn / Phi_tk
    weighted    sum_k eta_tkn o_tk / Phi_tk
    """

    precision: Float[Tensor, "B T N 4"]
    weighted: Float[Tensor, "B T N 4"]


@runtime_checkable
class MotionPrior(Protocol):
    """The prior of the motion of each object."""

    def filtered(
        self, evidence: Evidence, first_BN4: Float[Tensor, "B N 4"], estimate: Estimate, random: torch.Generator
    ) -> Estimate:
        """E-S, after an E-Z where there are latents, given the last estimate."""
        ...

    def learn(self, estimate: Estimate) -> None:
        """Fine-tune the prior on an estimate."""
        ...


class Tracked(NamedTuple):
    """boxes and their variances of each object, the last assignments, and rho of each scene"""

    m: Float[Tensor, "B T N 4"]
    V: Float[Tensor, "B T N 4"]
    eta: Float[Tensor, "B T K N"]
    rho: Float[Tensor, " B"]


@dataclass(frozen=True)
class Tracker:
    """The settings of the EM.

    start              cascade: from constant places, one in each piece of `piece` frames; they come from an EM of
                       `start_iterations` in the piece before, as published. found: from what these EMs found
    assignment_scale   c: by how much Phi is larger in E-W than in E-S
    noise              rho, the deviation of detections in sizes of their box
    learn_noise        whether there is an M-step
    finetune           whether the prior is trained further on the estimates, by a step of Adam in each iteration
    """

    iterations: int = 70
    start: str = "cascade"
    piece: int = 30
    start_iterations: int = 20
    assignment_scale: float = 125.0
    noise: float = 0.04
    learn_noise: bool = False
    finetune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low in (
            ("iterations", self.iterations, 1),
            ("piece", self.piece, 2),
            ("start_iterations", self.start_iterations, 1),
            ("assignment_scale", self.assignment_scale, 1),
            ("noise", self.noise, FLOOR),
            ("seed", self.seed, 0),
        ):
            if value < low:
                raise UserError(f"{name}={value} of the tracker: give {low} or more")
        if self.start not in ("cascade", "found"):
            raise UserError(f"start={self.start} of the tracker: choose from cascade, found")

    @torch.no_grad()
    def track(self, detections_BTK4: Float[Tensor, "B T K 4"], prior: MotionPrior) -> Tracked:
        """Scenes of equally many frames and objects, which are those detected in the first frame, in their order."""
        first_BN4, size_BTK4 = first_boxes(detections_BTK4), sizes(detections_BTK4)
        random = torch.Generator().manual_seed(self.seed)
        pieces, begin_BN4 = list[Estimate](), first_BN4
        for part in torch.arange(detections_BTK4.shape[1]).split(self.piece):
            constant = self._constant(begin_BN4, len(part))
            scene = detections_BTK4[:, part], size_BTK4[:, part]
            found, _, _ = self._em(*scene, begin_BN4, constant, prior, self.start_iterations, random)
            pieces.append(found if self.start == "found" else constant)
            begin_BN4 = found.m[:, -1]
        start = Estimate(*(torch.cat(parts, 1) for parts in zip(*pieces, strict=True)))
        scene = detections_BTK4, size_BTK4
        with seeded(self.seed):
            found, eta_BTKN, rho_B = self._em(*scene, first_BN4, start, prior, self.iterations, random, self.finetune)
        return Tracked(found.m, found.V, eta_BTKN, rho_B)

    def _constant(self, place_BN4: Float[Tensor, "B N 4"], frames: int) -> Estimate:
        m_BTN4 = place_BN4[:, None].expand(-1, frames, -1, -1)
        return Estimate(m_BTN4, (self.noise * sizes(m_BTN4)).square())

    def _em(
        self,
        detections_BTK4: Float[Tensor, "B T K 4"],
        size_BTK4: Float[Tensor, "B T K 4"],
        first_BN4: Float[Tensor, "B N 4"],
        estimate: Estimate,
        prior: MotionPrior,
        iterations: int,
        random: torch.Generator,
        finetune: bool = False,
    ) -> tuple[Estimate, Float[Tensor, "B T K N"], Float[Tensor, " B"]]:
        rho_B = torch.full((len(detections_BTK4),), self.noise)
        eta_BTKN = torch.zeros(())
        for _ in range(iterations):
            noise_BTK4 = (rho_B[:, None, None, None] * size_BTK4).square()
            eta_BTKN = assignments(detections_BTK4, estimate, self.assignment_scale * noise_BTK4)
            evidence = evidence_of(detections_BTK4, eta_BTKN, noise_BTK4)
            estimate = prior.filtered(evidence, first_BN4, estimate, random)
            if self.learn_noise:
                rho_B = learned_noise(detections_BTK4, eta_BTKN, estimate, size_BTK4)
            if finetune:
                with torch.enable_grad():
                    prior.learn(estimate)
        return estimate, eta_BTKN, rho_B


# ---------------------------------------------------------------------------------------------------------------------
# The steps


def detected(detections_BTK4: Float[Tensor, "B T K 4"]) -> Bool[Tensor, "B T K"]:
    return detections_BTK4.isfinite().all(-1)


def first_boxes(detections_BTK4: Float[Tensor, "B T K 4"]) -> Float[Tensor, "B N 4"]:
    """Those detected in the first frame, equally many in all scenes."""
    here_BK = detected(detections_BTK4[:, :1])[:, 0]
    counts = here_BK.sum(1).unique().tolist()
    if len(counts) > 1 or not counts[0]:
        raise UserError(
            f"the first frames of the scenes have {' and '.join(map(str, counts))} detections: an object begins with a "
            "detection there, so begin where all are detected, and track scenes of other numbers of objects apart"
        )
    return detections_BTK4[:, 0][here_BK].unflatten(0, (len(here_BK), counts[0]))


def sizes(boxes: Float[Tensor, "*some 4"]) -> Float[Tensor, "*some 4"]:
    """(width, height, width, height) of each box."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x2 - x1, y1 - y2, x2 - x1, y1 - y2], -1)


def deviations(detections_BTK4: Float[Tensor, "B T K 4"], estimate: Estimate) -> Float[Tensor, "B T K N 4"]:
    """E_q (o_tk - s_tn)^2"""
    return (detections_BTK4[:, :, :, None] - estimate.m[:, :, None]).square() + estimate.V[:, :, None]


def log_densities(
    detections_BTK4: Float[Tensor, "B T K 4"], estimate: Estimate, noise_BTK4: Float[Tensor, "B T K 4"]
) -> Float[Tensor, "B T K N"]:
    """E_q ln N(o_tk; s_tn, Phi_tk); nan where a detection is missing."""
    each_BTKN4 = (
        deviations(detections_BTK4, estimate) / noise_BTK4[:, :, :, None]
        + (2 * torch.pi * noise_BTK4).log()[:, :, :, None]
    )
    return -0.5 * each_BTKN4.sum(-1)


def assignments(
    detections_BTK4: Float[Tensor, "B T K 4"], estimate: Estimate, noise_BTK4: Float[Tensor, "B T K 4"]
) -> Float[Tensor, "B T K N"]:
    """E-W: eta, 0 where a detection is missing."""
    eta_BTKN = log_densities(detections_BTK4, estimate, noise_BTK4).softmax(-1)
    return torch.where(detected(detections_BTK4)[..., None], eta_BTKN, 0)


def evidence_of(
    detections_BTK4: Float[Tensor, "B T K 4"], eta_BTKN: Float[Tensor, "B T K N"], noise_BTK4: Tensor
) -> Evidence:
    here_BTK1 = detected(detections_BTK4)[..., None]
    precision_BTK4 = torch.where(here_BTK1, 1 / noise_BTK4, 0)
    weighted_BTK4 = torch.where(here_BTK1, detections_BTK4 / noise_BTK4, 0)
    eta_BTNK = eta_BTKN.transpose(-1, -2)
    return Evidence(eta_BTNK @ precision_BTK4, eta_BTNK @ weighted_BTK4)


def learned_noise(
    detections_BTK4: Float[Tensor, "B T K 4"],
    eta_BTKN: Float[Tensor, "B T K N"],
    estimate: Estimate,
    size_BTK4: Float[Tensor, "B T K 4"],
) -> Float[Tensor, " B"]:
    """M: rho, one of each scene."""
    share_BTKN4 = eta_BTKN[..., None] * deviations(detections_BTK4, estimate) / size_BTK4[:, :, :, None].square()
    total_B, count_B = share_BTKN4.nansum((1, 2, 3, 4)), 4 * eta_BTKN.sum((1, 2, 3))
    return (total_B / count_B).sqrt().clamp_min(FLOOR)


def bound_of_assignments(
    detections_BTK4: Float[Tensor, "B T K 4"],
    eta_BTKN: Float[Tensor, "B T K N"],
    estimate: Estimate,
    noise_BTK4: Float[Tensor, "B T K 4"],
) -> Float[Tensor, " B"]:
    """The terms of the bound in which eta and Phi are: sum_tkn eta [E_q ln N(o; s, Phi) - ln N - ln eta]."""
    log_p_BTKN = log_densities(detections_BTK4, estimate, noise_BTK4) - torch.tensor(eta_BTKN.shape[-1]).log()
    return (eta_BTKN * log_p_BTKN - torch.xlogy(eta_BTKN, eta_BTKN)).nansum((1, 2, 3))
