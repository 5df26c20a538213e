"""Sources by NMF with a dictionary for each, the classical baseline of separation.

C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the Itakura-Saito divergence", Neural
Computation 21(3), 2009: multiplicative updates of P ~ H D^T.

    D   dictionaries, learned from clean sources      dictionary_FK
    H   activations                                   h_TK
    P   power                                         power_TF
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.enhancement.noise import EPSILON

FREE = 8  # atoms for what no dictionary contains


def learn_dictionary(
    power_TF: Float[Tensor, "T F"], atoms: int = 32, updates: int = 100, seed: int = 0
) -> Float[Tensor, "F K"]:
    """Its columns add up to 1."""
    random = torch.Generator().manual_seed(seed)
    dictionary_FK = torch.rand(power_TF.shape[1], atoms, generator=random) + EPSILON
    h_TK = torch.rand(len(power_TF), atoms, generator=random) + EPSILON
    for _ in range(updates):
        h_TK, dictionary_FK = _updated(power_TF, h_TK, dictionary_FK)
        size_K = dictionary_FK.sum(0)
        h_TK, dictionary_FK = h_TK * size_K, dictionary_FK / size_K
    return dictionary_FK


def dictionary_filters(
    noisy_TF: Float[Tensor, "T F"],
    dictionaries: Sequence[Float[Tensor, "F K"]],
    noise: bool = False,
    updates: int = 100,
    seed: int = 0,
) -> Float[Tensor, "J T F"]:
    """The Wiener filters of sources with these dictionaries; `noise`: with free atoms for what is none of them."""
    random = torch.Generator().manual_seed(seed)
    free_FK = torch.rand(noisy_TF.shape[1], FREE if noise else 0, generator=random) + EPSILON
    sizes = [dictionary_FK.shape[1] for dictionary_FK in dictionaries]
    every_FK, known = torch.cat([*dictionaries, free_FK], 1), sum(sizes)
    h_TK = torch.rand(len(noisy_TF), every_FK.shape[1], generator=random) + EPSILON
    for _ in range(updates):
        h_TK, updated_FK = _updated(noisy_TF, h_TK, every_FK)
        every_FK[:, known:] = updated_FK[:, known:]
    parts = zip(h_TK[:, :known].split(sizes, 1), dictionaries, strict=True)
    return torch.stack([part_TK @ dictionary_FK.mT for part_TK, dictionary_FK in parts]) / (
        h_TK @ every_FK.mT + EPSILON
    )


def _updated(power_TF: Tensor, h_TK: Tensor, dictionary_FK: Tensor) -> tuple[Tensor, Tensor]:
    """H, then D."""
    for _ in range(2):  # the second time with the factors exchanged
        precision_TF = (h_TK @ dictionary_FK.mT + EPSILON).reciprocal()
        above_TK, below_TK = (power_TF * precision_TF.square()) @ dictionary_FK, precision_TF @ dictionary_FK
        h_TK = (h_TK * (above_TK / below_TK.clamp_min(EPSILON)).sqrt()).clamp_min(EPSILON)
        power_TF, h_TK, dictionary_FK = power_TF.mT, dictionary_FK, h_TK
    return h_TK, dictionary_FK
