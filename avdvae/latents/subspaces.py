"""Subspaces of pitch and formants in a latent space.

S. Sadok, S. Leglaive, L. Girin, X. Alameda-Pineda, R. Seguier, "Learning and controlling the source-filter
representation of speech with a variational autoencoder", Speech Communication 148, 2023 (arXiv 2204.07075).

Artificial vowels vary in one factor i, with the others at settings s; their posteriors are N(mu_n, diag v_n) for the
values y_n of the factor:

    S_i      mean_n[(mu_n - m_s)(mu_n - m_s)^T];    U_i: its first eigenvectors, to 90 % of the variance
    g_i(y)   piecewise linear, the least-squares fit to U_i^T (mu_n - m_s)

Differences from the paper:
- it has one setting per factor. Here there are several, and differences between settings do not count for the factor.
- it adds mean_n diag v_n to S_i. But a dimension that encodes nothing has v = 1, more than the variance that a factor
  causes in the others, and would lead U_i.
- it keeps 80 % of the variance for every factor. That leaves some of the original pitch, so that the result is
  sometimes an octave off. For F1, more than 80 % includes dimensions in which settings differ more than values of F1.

Discriminants in place of principal components, a method of this suite. Latents of vowels in many settings s, voices and
levels, at values y_j, are c_i(y_j) + e_sj with c_i their mean over s. Other factors also move z in U_i; A_i weighs
directions down in which they do:

    B_i = cov_j c_i(y_j),    W_i = mean_sj e_sj e_sj^T + rho (tr W_i / L) I
    A_i      the first eigenvectors of B_i a = lambda W_i a, with A_i^T W_i A_i = I
    read     y^ = argmin_y |A_i^T (z - c_i(y))|, the likeliest y for e ~ N(0, W_i) within these directions

    symbol   meaning                          attribute
    y_n      value of a factor in Hz          hertz_N
    z        latent, its mean                 z_TL
    m_i      mean of m_s, of c_i(y_j)         mean_L
    U_i      basis of a subspace              basis_LM
    g_i      trajectory in it                 knots_J, coordinates_JM
    c_i      mean latents along the factor    along_NL
    A_i      discriminants                    basis_LM; A_i^T (c_i - m_i): coordinates_JM
    rho                                       RIDGE
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.data.talker.vowels import GRIDS
from avdvae.errors import UserError

PUBLISHED_SHARE = 0.8  # of a factor's variance that its subspace contains
RIDGE = 0.03  # of the mean variance of other factors, added in all directions
SEGMENTS = 100  # of a trajectory; published: 20, but the trajectory of f0 winds once every 16 Hz, the width of a bin


@dataclass(frozen=True)
class Subspace:
    """The subspace of a factor, and its trajectory there; or its discriminants, for which U is A and g A^T (c - m)."""

    factor: str
    mean_L: Float[Tensor, " L"]
    basis_LM: Float[Tensor, "L M"]
    shares_L: Float[Tensor, " L"]  # of the variance, or the sum of lambda, in the first 1, 2, ... eigenvectors
    knots_J: Float[Tensor, " J"]
    coordinates_JM: Float[Tensor, "J M"]
    hertz_N: Float[Tensor, " N"]
    along_NL: Float[Tensor, "N L"]  # mean latents of these values

    @property
    def range(self) -> tuple[float, float]:
        return self.knots_J[0].item(), self.knots_J[-1].item()

    def of(self, z_TL: Float[Tensor, "*draws L"]) -> Float[Tensor, "*draws M"]:
        """U^T (z - m)"""
        return (z_TL - self.mean_L) @ self.basis_LM

    def at(self, hertz_T: Float[Tensor, " T"]) -> Float[Tensor, "T M"]:
        """g"""
        return hats(self._checked(hertz_T), self.knots_J) @ self.coordinates_JM

    def mean_at(self, hertz_T: Float[Tensor, " T"]) -> Float[Tensor, "T L"]:
        """c"""
        return hats(self._checked(hertz_T), self.hertz_N) @ self.along_NL

    def _checked(self, hertz_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        low, high = self.range
        if len(wrong := hertz_T[~((hertz_T >= low) & (hertz_T <= high))]):
            given = " to ".join(f"{value:.0f}" for value in dict.fromkeys((wrong.min().item(), wrong.max().item())))
            raise UserError(f"{self.factor} would be {given} Hz: it moves between {low:g} and {high:g} Hz")
        return hertz_T

    def translated(
        self, z_TL: Float[Tensor, "T L"], source_T: Float[Tensor, " T"], target_T: Float[Tensor, " T"]
    ) -> Float[Tensor, "T L"]:
        """z - mu(source) + mu(target) (Hsu et al., 2017), for comparison."""
        return z_TL - self.mean_at(source_T) + self.mean_at(target_T)


def hats(hertz_N: Float[Tensor, " N"], knots_J: Float[Tensor, " J"]) -> Float[Tensor, "N J"]:
    """Values of the linear B-splines: 1 at one knot, 0 at the others, linear between."""
    return (1 - (hertz_N[:, None] - knots_J).abs() / (knots_J[1] - knots_J[0])).clamp_min(0)


def fit_subspace(factor: str, mu_SNL: Float[Tensor, "S N L"], share: float) -> Subspace:
    """The subspace of mean latents along the factor's grid, in each setting."""
    hertz_N = torch.from_numpy(GRIDS[factor]).float().to(mu_SNL.device)
    centred_SNL = mu_SNL - mu_SNL.mean(1, keepdim=True)
    moments_LL = torch.einsum("snl,snm->lm", centred_SNL, centred_SNL) / centred_SNL[..., 0].numel()
    values_L, vectors_LL = torch.linalg.eigh(moments_LL)
    shares_L = values_L.flip(0).cumsum(0) / values_L.sum()
    basis_LM = vectors_LL.flip(1)[:, : int((shares_L < share).sum()) + 1]
    knots_J = torch.linspace(hertz_N[0].item(), hertz_N[-1].item(), SEGMENTS + 1, device=hertz_N.device)
    coordinates_JM = torch.linalg.lstsq(hats(hertz_N, knots_J), centred_SNL.mean(0) @ basis_LM).solution
    mean_L, along_NL = mu_SNL.mean((0, 1)), mu_SNL.mean(0)
    return Subspace(factor, mean_L, basis_LM, shares_L, knots_J, coordinates_JM, hertz_N, along_NL)


def fit_discriminants(factor: str, z_SJL: Float[Tensor, "S J L"], directions: int) -> Subspace:
    """The discriminants of latents at values along the factor's grid, equally apart, in each setting."""
    along_JL = z_SJL.mean(0)
    others_NL = (z_SJL - along_JL).flatten(end_dim=1)
    within_LL = others_NL.T @ others_NL / len(others_NL)
    within_LL += RIDGE * within_LL.diagonal().mean() * torch.eye(len(within_LL), device=z_SJL.device)
    whiten_LL = torch.linalg.inv(torch.linalg.cholesky(within_LL))
    values_L, vectors_LL = torch.linalg.eigh(whiten_LL @ torch.cov(along_JL.T, correction=0) @ whiten_LL.T)
    basis_LM = whiten_LL.T @ vectors_LL.flip(1)[:, :directions]
    low, high = GRIDS[factor][[0, -1]].tolist()
    hertz_J, mean_L = torch.linspace(low, high, len(along_JL), device=z_SJL.device), along_JL.mean(0)
    shares_L, coordinates_JM = values_L.flip(0).cumsum(0) / values_L.sum(), (along_JL - mean_L) @ basis_LM
    return Subspace(factor, mean_L, basis_LM, shares_L, hertz_J, coordinates_JM, hertz_J, along_JL)


def principal_angles(one: Subspace, other: Subspace) -> Float[Tensor, " M"]:
    """Between two subspaces, in degrees, the smallest first."""
    return torch.linalg.svdvals(one.basis_LM.T @ other.basis_LM).clamp(max=1).acos().rad2deg()


class Relation(NamedTuple):
    """Of two factors: the smallest principal angle between their subspaces in degrees, and the largest cosine between
    basis vectors; each with its 95 % bootstrap interval over settings."""

    angle: tuple[float, float, float]
    cosine: tuple[float, float, float]


def relations(encoded: Mapping[str, Float[Tensor, "S N L"]], draws: int = 50) -> dict[tuple[str, str], Relation]:
    """Of all pairs, in subspaces of the published size. Each of the `draws` resamples the settings of each factor."""
    rng = np.random.default_rng(0)

    def measure(chosen: Mapping[str, Tensor]) -> list[tuple[float, float]]:
        fitted = [fit_subspace(factor, mu_SNL, PUBLISHED_SHARE) for factor, mu_SNL in chosen.items()]
        return [
            (principal_angles(a, b)[0].item(), (a.basis_LM.T @ b.basis_LM).abs().max().item())
            for a, b in combinations(fitted, 2)
        ]

    drawn = [
        measure({factor: mu_SNL[rng.integers(len(mu_SNL), size=len(mu_SNL))] for factor, mu_SNL in encoded.items()})
        for _ in range(draws)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0).tolist()
    return {
        pair: Relation(*zip(value, below, above, strict=True))
        for pair, value, below, above in zip(combinations(encoded, 2), measure(encoded), low, high, strict=True)
    }


def nearest(
    subspace: Subspace, z_TL: Float[Tensor, "T L"], step: float = 1.0
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """The value on the trajectory, on a grid of `step` Hz, nearest to each frame; and its distance."""
    low, high = subspace.range
    grid = torch.arange(low, high + step / 2, step, device=z_TL.device)
    distance_T, index_T = torch.cdist(subspace.of(z_TL), subspace.at(grid)).min(-1)
    return grid[index_T], distance_T
