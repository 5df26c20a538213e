"""Analysis-resynthesis: what of clean speech passes through a model's latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.audio import Stft
from avdvae.protocols import Autoregressive, Batch, SpeechPrior


@torch.no_grad()
def resynthesise(model: SpeechPrior, batch: Batch, stft: Stft, true_past: bool = False) -> Float[Tensor, "B N"]:
    """A draw of the latents, decoded: the standard deviation it gives each bin, with the phase of the original.

    A model that hears the past hears what it said itself or, if so asked, the `true_past`, which needs no latents."""
    waveform_BN = batch.need("waveform", model)
    z, context = model.infer(batch).z, model.context(batch)
    past = model.own_past(z, context) if isinstance(model, Autoregressive) and not true_past else None
    likelihood = model.decode(z, context, feedback=past)["power"]
    magnitude_BTF = likelihood.components(batch.need("power", model)).mean().sqrt()
    speech_BN = torch.zeros_like(waveform_BN)
    assert batch.lengths is not None
    for b, length in enumerate(batch.lengths.tolist()):
        spectrum_1TF = stft.analyse(waveform_BN[b : b + 1, :length])
        decoded_1TF = torch.polar(magnitude_BTF[b : b + 1, : spectrum_1TF.shape[1]], spectrum_1TF.angle())
        speech_BN[b, :length] = stft.synthesise(decoded_1TF, length)[0]
    return speech_BN
