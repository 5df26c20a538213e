"""Analysis-resynthesis: what of clean speech passes through a model's latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.audio import Stft
from avdvae.protocols import Batch, SpeechPrior


@torch.no_grad()
def resynthesise(model: SpeechPrior, batch: Batch, stft: Stft) -> Float[Tensor, "B N"]:
    """A draw of the latents, decoded: the standard deviation it gives each bin, with the phase of the original."""
    waveform_BN = batch.need("waveform", model)
    likelihood = model.decode(model.infer(batch).z, model.context(batch))["power"]
    magnitude_BTF = likelihood.components(batch.need("power", model)).mean().sqrt()
    speech_BN = torch.zeros_like(waveform_BN)
    assert batch.lengths is not None
    for b, length in enumerate(batch.lengths.tolist()):
        spectrum_1TF = stft.analyse(waveform_BN[b : b + 1, :length])
        decoded_1TF = torch.polar(magnitude_BTF[b : b + 1, : spectrum_1TF.shape[1]], spectrum_1TF.angle())
        speech_BN[b, :length] = stft.synthesise(decoded_1TF, length)[0]
    return speech_BN
