"""Scores of sampled futures of a motion.

Futures are poses in metres, without the hips, which are the origin: y_k of K predicted ones, y the true one.

    ade            min_k mean_t |y_k,t - y_t|                  best of K, average over frames
    fde            min_k |y_k,T - y_T|                         best of K, last frame
    mmade, mmfde   means of ade and fde over G true futures    of one observation
    apd            mean over k < l of |y_k - y_l|              of whole futures, T x D numbers; 0 if K = 1
    energy_score   mean_k |y_k - y| - apd / 2                  of whole futures
    bone_error_mm  mean difference of bones from their lengths in the last observed pose
    fid            |m - m'|^2 + tr(S + S' - 2 (S S')^1/2)      of means and covariances of features

|.| is the Euclidean norm of all coordinates together, not a mean over joints. The first five are those of DLow (Y. Yuan
and K. Kitani, ECCV 2020). They take the best of K or reward spread alone. The energy score (T. Gneiting and A. Raftery,
JASA 102, 2007) is proper: in expectation the true distribution has the lowest, for every K > 1, since pairs k = l are
left out; that of a single future is its distance from the truth.

Letters: K predicted futures, G true ones, T frames, D coordinates, M features, N futures of all windows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from avdvae.data.poses import skeleton_of


def scores_of(
    predicted_KTD: Float[Tensor, "K T D"],
    true_TD: Float[Tensor, "T D"],
    alternatives_GTD: Float[Tensor, "G T D"],
    last_D: Float[Tensor, " D"],
) -> dict[str, float]:
    """Of one window: all but fid. `alternatives_GTD`: the G true futures; `last_D`: the last observed pose."""
    ade, fde = best_of(predicted_KTD, true_TD[None])
    mmade, mmfde = best_of(predicted_KTD, alternatives_GTD)
    apd = diversity(predicted_KTD)
    off = (predicted_KTD - true_TD).flatten(1).norm(dim=1).mean().item()
    off_bones = bone_lengths(predicted_KTD) - bone_lengths(last_D)
    return {
        "energy_score": off - apd / 2,
        "ade": ade,
        "fde": fde,
        "mmade": mmade,
        "mmfde": mmfde,
        "apd": apd,
        "bone_error_mm": 1000 * off_bones.abs().mean().item(),
    }


def best_of(predicted_KTD: Float[Tensor, "K T D"], true_GTD: Float[Tensor, "G T D"]) -> tuple[float, float]:
    """Average and final distance of the best of K, averaged over G."""
    distances_TKG = torch.cdist(
        predicted_KTD.transpose(0, 1), true_GTD.transpose(0, 1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances_TKG.mean(0).amin(0).mean().item(), distances_TKG[-1].amin(0).mean().item()


def diversity(predicted_KTD: Float[Tensor, "K T D"]) -> float:
    return torch.pdist(predicted_KTD.flatten(1)).mean().item() if len(predicted_KTD) > 1 else 0.0


def bone_lengths(poses: Float[Tensor, "*poses D"]) -> Float[Tensor, "*poses bones"]:
    """In metres."""
    joints = pad(poses, (3, 0)).unflatten(-1, (-1, 3))  # with the hips
    parents, children = (list(ends) for ends in zip(*skeleton_of(joints.shape[-2]).bones, strict=True))
    return (joints[..., children, :] - joints[..., parents, :]).norm(dim=-1)


def frechet(one_NM: Float[Tensor, "_ M"], two_NM: Float[Tensor, "_ M"]) -> float:
    """The Frechet distance between Gaussians of these features."""
    one, two = one_NM.double(), two_NM.double()
    values, vectors = torch.linalg.eigh(one.T.cov())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # S^1/2 S' S^1/2 is symmetric and has the eigenvalues of S S'.
    trace = torch.linalg.eigvalsh(root @ two.T.cov() @ root).clamp_min(0).sqrt().sum()
    means = (one.mean(0) - two.mean(0)).square().sum()
    return (means + one.T.cov().trace() + two.T.cov().trace() - 2 * trace).item()
