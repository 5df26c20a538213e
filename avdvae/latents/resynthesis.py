"""Analysis-resynthesis: clean speech, or a motion, is encoded, and a draw of the latents decoded.

The past of an autoregressive model is its own output (free-running) or, if `true_past`, the observed one, with which it
hardly needs latents.
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
    """The square root of the decoded power, with the phase of the original."""
    waveform_BN = batch.need("waveform", model)
    inferred, likelihoods = _decoded(model, batch, true_past)
    likelihood = likelihoods["power"].drawn(inferred.z, inferred.q)
    power_BTF = likelihood.components(batch.need("power", model)).mean()
    speech_BN = torch.zeros_like(waveform_BN)
    assert batch.lengths is not None
    for b, length in enumerate(batch.lengths.tolist()):
        phase_1TF = stft.analyse(waveform_BN[b : b + 1, :length]).angle()
        speech_BN[b, :length] = stft.with_phase(power_BTF[b : b + 1, : phase_1TF.shape[1]], phase_1TF, length)[0]
    return speech_BN


@torch.no_grad()
def reconstruct_poses(model: LatentModel, batch: Batch, true_past: bool = False) -> Float[Tensor, "B T D"]:
    """The expected poses."""
    return _decoded(model, batch, true_past)[1]["pose"].expected[0]


def _decoded(model: LatentModel, batch: Batch, true_past: bool) -> tuple[Inferred, Mapping[str, Any]]:
    inferred, context = model.infer(batch), model.context(batch)
    decode = model.decode if true_past else partial(decode_free_running, model)
    return inferred, decode(inferred.z, context)


def decode_free_running(model: LatentModel, z: Latents, context: Context, observed: int = 0) -> Mapping[str, Any]:
    """The likelihoods; the past of an autoregressive model is its own output after the first `observed` frames."""
    past = None
    if isinstance(model, Autoregressive):
        past = model.own_past(z, context, [t >= observed for t in range(context.mask.shape[1])])
    return model.decode(z, context, feedback=past)
