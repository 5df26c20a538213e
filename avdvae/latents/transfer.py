"""Transfer of latents from one clip to another, interpolation between two clips, and generation from the prior.

It works for every LatentModel. Autoregressive models are free-running: their past is their own output. The conditions
of a model, such as the lips, are those of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from avdvae.errors import UserError
from avdvae.latents.resynthesis import decode_free_running
from avdvae.protocols import Batch, LatentModel, Latents, LatentSpec


@dataclass(frozen=True)
class Decoded:
    """Latents and what they decode to.

    z             the latents, by name
    likelihoods   one for each modality, whose `expected` is rendered
    mask          B T: true where a frame holds data
    """

    z: Latents
    likelihoods: Mapping[str, Any]
    mask: Bool[Tensor, "B T"]


def require_latents(model: object) -> LatentModel:
    if not isinstance(model, LatentModel):
        raise UserError(f"{type(model).__name__} has no latents: give a run of a model that has some, such as a VAE")
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
) -> Decoded:
    """The source with the named latents of the target; with a share below 1, interpolated linearly from its own.

    A static latent is used for all frames of the source. If a dynamic one is taken, both clips are cut to the length of
    the shorter before inference.
    """
    dynamic = any(spec.rate is not None for spec in find_latents(model, latents))
    frames = [batch.mask.shape[1] for batch in (source, target)]
    if dynamic and frames[0] != frames[1]:
        source, target = source.first(min(frames)), target.first(min(frames))
    own, others = model.infer(source, 1, mode).z, model.infer(target, 1, mode).z
    z = {name: torch.lerp(value, others[name], share) if name in latents else value for name, value in own.items()}
    mask = source.mask & target.mask if dynamic else source.mask
    return Decoded(z, decode_free_running(model, z, model.context(replace(source, mask=mask))), mask)


@torch.no_grad()
def generate(
    model: LatentModel, around: Batch, begun: Batch | None = None, k: int = 1, mode: Literal["mean", "sample"] = "mean"
) -> Decoded:
    """K draws of a continuation of `begun` or, without it, of a whole sequence.

    `around` has all frames and the conditions of the model. Latents of `begun`, which has no padding, are inferred from
    it alone, their means or a sample for each draw; static ones are kept, and dynamic ones of later frames are drawn
    from the prior.
    """
    context, given, observed = model.context(around), None, 0
    if begun is not None:
        observed = begun.mask.shape[1]
        if observed > around.mask.shape[1] or not begun.mask.all():
            raise UserError(f"{observed} frames of analysis do not fit into {around.mask.shape[1]}: give fewer")
        given = model.infer(begun, k if mode == "sample" else 1, mode).z
        context = replace(context, past=model.context(begun).past)
    z = model.sample_prior(context, k, given)
    return Decoded(z, decode_free_running(model, z, context, observed), around.mask)
