"""Likelihoods of poses, boxes and faces, and the choice of a likelihood by modality."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor

from avdvae.probability.gaussian import Gaussian
from avdvae.probability.spectrum import ComplexGaussian


@dataclass(frozen=True)
class Joints:
    """Positions of joints in metres, each with an isotropic Laplace-like density of its distance from the expected one:

        p(x) = exp(-|x - m| / b) / (8 pi b^3)        b = 1 cm

    Maximising it minimises the mean distance, MPJPE. Published code takes the MPJPE of a frame in mm as reconstruction
    loss: b = J mm for J joints. Here it is J / 10 times as large, 3.2 at 32 joints, as if beta were 0.31 there.
    train.beta = J / 10 gives the published weighting: all gradients are then J / 10 times the published ones, and Adam
    is invariant to a common factor.
    """

    expected: Float[Tensor, "*draws B T D"]
    SPREAD = 0.01

    def log_prob(self, pose: Float[Tensor, "B T D"]) -> Float[Tensor, "*draws B T"]:
        constant = pose.shape[-1] // 3 * math.log(8 * math.pi * self.SPREAD**3)
        return -self.distances(pose).sum(-1) / self.SPREAD - constant

    def distances(self, pose: Float[Tensor, "B T D"]) -> Float[Tensor, "*draws B T J"]:
        """Of each joint from its expected position."""
        return (pose - self.expected.float()).unflatten(-1, (-1, 3)).norm(dim=-1)


@dataclass(frozen=True)
class Trajectory:
    """Coordinates of a box, independent Gaussians whose means and log-variances the model predicts."""

    density: Gaussian

    @property
    def expected(self) -> Float[Tensor, "*draws B T D"]:
        return self.density.mean

    def log_prob(self, boxes: Float[Tensor, "B T D"]) -> Float[Tensor, "*draws B T"]:
        return self.density.log_prob(boxes)


@dataclass(frozen=True)
class Picture:
    """RGB pixels in 0..1, each a Gaussian of its expected value and deviation 0.1."""

    expected: Float[Tensor, "*draws B T H W 3"]
    SPREAD = 0.1

    def log_prob(self, face: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "*draws B T"]:
        off = (face / 255 - self.expected.float()).flatten(-3) / self.SPREAD
        return -0.5 * off.square().sum(-1) - off.shape[-1] * math.log(self.SPREAD * math.sqrt(2 * math.pi))


def likelihood_of(modality: str, output: Float[Tensor, "*draws B T D"]) -> ComplexGaussian | Joints | Trajectory:
    """From the output of a network; of boxes, means and then log-variances."""
    if modality == "boxes":
        return Trajectory(Gaussian.floored(*output.chunk(2, -1)))
    return ComplexGaussian(output) if modality == "power" else Joints(output)
