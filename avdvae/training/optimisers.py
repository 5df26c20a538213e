"""Muon for the matrices of a model, Adam for its other parameters; or Adam for all.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Muon changes a matrix by the same
amount in all its directions. Adam first learns those with the largest gradients: the mean and the envelope of spectra
long before their harmonics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Muon

from avdvae.training.settings import Training

MUON_LR = 5  # in torch's Muon, times the root mean square of the change in a step


def optimisers_of(parameters: Sequence[nn.Parameter], settings: Training) -> list[torch.optim.Optimizer]:
    matrices = [p for p in parameters if p.ndim == 2 and settings.optimiser == "muon"]
    others = [p for p in parameters if p.ndim != 2 or settings.optimiser == "adam"]
    muon = [Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")] if matrices else []
    return [*muon, *([torch.optim.Adam(others, fused=True)] if others else [])]


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    optimiser.param_groups[0]["lr"] = lr * (MUON_LR if isinstance(optimiser, Muon) else 1)
