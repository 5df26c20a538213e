"""Latents that change hands: some of a clip's exchanged for another's, walked from one to the other, or drawn anew.

Every model that declares latents will do, for nothing is asked of it but the verbs of LatentModel, and `own_past` of
one that hears the past: it hears itself. What a model is conditioned on, as the lips, is the source's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.latents.resynthesis import by_itself
from avdvae.protocols import Batch, LatentModel, Latents, LatentSpec


@dataclass(frozen=True)
class Made:
    """What a model made of latents.

    z      the latents, by name
    said   a likelihood for each modality, whose `expected` is what one sees and hears
    mask   B T: true where a frame holds data
    """

    z: Latents
    said: Mapping[str, Any]
    mask: Bool[Tensor, "B T"]


def has_latents(model: nn.Module) -> LatentModel:
    if not isinstance(model, LatentModel):
        raise UserError(f"{type(model).__name__} has no latents to show: give a run of a model that has, such as a VAE")
    return model


def find_latents(model: LatentModel, names: Sequence[str]) -> list[LatentSpec]:
    """The model's latents of these names."""
    own = {spec.name: spec for spec in model.latents}
    if not names or (unknown := set(names) - set(own)):
        given = (
            f"{type(model).__name__} has no latent called {', '.join(sorted(unknown))}" if names else "none is named"
        )
        raise UserError(f"latents=[{','.join(names)}]: {given}: choose from {', '.join(own)}")
    return [own[name] for name in names]


@torch.no_grad()
def transfer(
    model: LatentModel,
    source: Batch,
    target: Batch,
    latents: Sequence[str],
    share: float = 1.0,
    mode: Literal["mean", "sample"] = "mean",
) -> Made:
    """The source with the named latents of the target; with a share below 1, on the straight line from its own to them.

    A latent of a whole utterance serves all frames of the source. Where one that moves is taken, too, both clips are
    cut to the frames of the shorter before anything is inferred.
    """
    moving = any(spec.rate is not None for spec in find_latents(model, latents))
    frames = [batch.mask.shape[1] for batch in (source, target)]
    if moving and frames[0] != frames[1]:
        source, target = source.first(min(frames)), target.first(min(frames))
    own, others = model.infer(source, 1, mode).z, model.infer(target, 1, mode).z
    z = {name: torch.lerp(value, others[name], share) if name in latents else value for name, value in own.items()}
    mask = source.mask & target.mask if moving else source.mask
    return Made(z, by_itself(model, z, model.context(replace(source, mask=mask))), mask)


@torch.no_grad()
def generate(
    model: LatentModel, around: Batch, begun: Batch | None = None, k: int = 1, mode: Literal["mean", "sample"] = "mean"
) -> Made:
    """K draws that go on where `begun` ends, or begin where there is none.

    `around` has the frames of the whole, and what the model is conditioned on. Latents of `begun`, of which every frame
    holds data, are inferred from it alone; those of a whole utterance are kept, and the prior gives what follows.
    """
    context, given, heard = model.context(around), None, 0
    if begun is not None:
        heard = begun.mask.shape[1]
        if heard > around.mask.shape[1] or not begun.mask.all():
            raise UserError(f"{heard} frames of analysis do not fit into {around.mask.shape[1]}: give fewer, or more")
        given = model.infer(begun, 1, mode).z
        context = replace(context, past=model.context(begun).past)
    z = model.sample_prior(context, k, given)
    return Made(z, by_itself(model, z, context, heard), around.mask)
