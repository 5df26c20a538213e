"""Analysis-resynthesis: what of clean speech, or of a motion, passes through a model's latents.

A draw of the latents is decoded. A model that hears the past hears what it said itself or, if so asked, the true past,
with which it hardly needs latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.protocols import Autoregressive, Batch, Context, Inferred, LatentModel, Latents
from avdvae.signals.audio import Stft


@torch.no_grad()
def resynthesise(model: LatentModel, batch: Batch, stft: Stft, true_past: bool = False) -> Float[Tensor, "B N"]:
    """The standard deviation that the model gives each bin, with the phase of the original."""
    waveform_BN = batch.need("waveform", model)
    inferred, said = _decoded(model, batch, true_past)
    likelihood = said["power"].drawn(inferred.z, inferred.q)
    power_BTF = likelihood.components(batch.need("power", model)).mean()
    speech_BN = torch.zeros_like(waveform_BN)
    assert batch.lengths is not None
    for b, length in enumerate(batch.lengths.tolist()):
        phase_1TF = stft.analyse(waveform_BN[b : b + 1, :length]).angle()
        speech_BN[b, :length] = stft.with_phase(power_BTF[b : b + 1, : phase_1TF.shape[1]], phase_1TF, length)[0]
    return speech_BN


@torch.no_grad()
def move_again(model: LatentModel, batch: Batch, true_past: bool = False) -> Float[Tensor, "B T D"]:
    """The poses that the model expects."""
    return _decoded(model, batch, true_past)[1]["pose"].expected[0]


def _decoded(model: LatentModel, batch: Batch, true_past: bool) -> tuple[Inferred, Mapping[str, Any]]:
    inferred, context = model.infer(batch), model.context(batch)
    decode = model.decode if true_past else partial(by_itself, model)
    return inferred, decode(inferred.z, context)


def by_itself(model: LatentModel, z: Latents, context: Context, heard: int = 0) -> Mapping[str, Any]:
    """What the model makes of latents; one that hears the past hears itself, after the frames that it has `heard`."""
    past = None
    if isinstance(model, Autoregressive):
        past = model.own_past(z, context, [t >= heard for t in range(context.mask.shape[1])])
    return model.decode(z, context, feedback=past)
