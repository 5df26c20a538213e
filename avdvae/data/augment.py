"""Augmentation of mouth crops, as by other cameras, lights and heads, for training on few faces."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

GROUPS = 16  # of a batch, each changed in one way: one change an item would take longer than the training step


def augmented(lips_BTHW: UInt8[Tensor, "B T H W"]) -> UInt8[Tensor, "B T H W"]:
    """All frames of an item are changed alike, by torch's global generator."""
    from torchvision.transforms import InterpolationMode, v2

    edge = lips_BTHW.shape[-1] // 5
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Pad(edge, padding_mode="edge"),
            v2.RandomAffine((-10, 10), (0.05, 0.05), (0.8, 1.25), interpolation=InterpolationMode.BILINEAR),
            v2.CenterCrop(lips_BTHW.shape[-2:]),
            v2.ColorJitter(brightness=0.4, contrast=0.4),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 2.0))]),
            v2.RandomErasing(0.3, scale=(0.02, 0.1), value=128),
        ]
    )
    return torch.cat([change(group_BTHW[:, :, None])[:, :, 0] for group_BTHW in lips_BTHW.chunk(GROUPS)])
