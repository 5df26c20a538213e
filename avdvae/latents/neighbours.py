"""Prediction of labels from latents by nearest neighbours after linear discriminants, leaving one group out.

For each group of points (one phoneme, or all utterances of a speaker), discriminants and neighbours come from the other
groups. Discriminants fitted to all points, as is common, would use the labels that are predicted.

    x   N points of D features      labels, groups   N numbers      d   discriminants
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64

WIDEST = 64  # principal components, if there are more features
SHRINKAGE = 1e-2  # of the within-class scatter towards its mean variance


def neighbours_right(
    x: Float[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    groups: Int64[np.ndarray, " N"],
    dims: int,
    ks: Sequence[int],
) -> Bool[np.ndarray, "K N"]:
    """Whether the majority label of the k nearest points of other groups is a point's own, for each k; ties go to the
    nearer."""
    x = _principal((x - x.mean(0)) / (x.std(0) + 1e-9))
    right = np.zeros((len(ks), len(x)), bool)
    for group in np.unique(groups):
        held_out = groups == group
        others, known = x[~held_out], labels[~held_out]
        projection = discriminants(others, known, dims)
        points, queries = others @ projection, x[held_out] @ projection
        distances = np.square(queries[:, None] - points).sum(-1)
        nearest = known[np.argsort(distances, axis=1)[:, : max(ks)]]
        for number, k in enumerate(ks):
            votes = (nearest[:, :k, None] == nearest[:, None, :k]).sum(2) - np.arange(k)[: nearest.shape[1]] / (k + 1)
            right[number, held_out] = nearest[np.arange(len(queries)), votes.argmax(1)] == labels[held_out]
    return right


def discriminants(x: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, " N"], dims: int) -> Float[np.ndarray, "D d"]:
    """Directions of the largest between-class scatter in units of the within-class scatter: at most classes - 1, or any
    one for a single class."""
    from scipy.linalg import eigh

    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, label, x)
    means = sums / counts[:, None]
    apart = x - means[label]
    within = apart.T @ apart / len(x)
    within += (SHRINKAGE * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
    off = means - x.mean(0)
    between = (off.T * counts) @ off / len(x)
    count = max(1, min(dims, len(counts) - 1, x.shape[1]))
    return eigh(between, within, subset_by_index=[x.shape[1] - count, x.shape[1] - 1])[1][:, ::-1]


def _principal(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N d"]:
    if x.shape[1] <= WIDEST:
        return x
    return x @ np.linalg.svd(x, full_matrices=False)[2][:WIDEST].T
