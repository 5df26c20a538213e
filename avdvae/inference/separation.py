"""From noisy sound to speech: the EM stage between an STFT and its inverse.

A mixture is scaled to a peak of 1 before anything looks at it, as speech was for training, and back afterwards; so the
level of a recording does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from avdvae.audio import Stft
from avdvae.inference.vem import Vem, enhance
from avdvae.protocols import Batch, SpeechPrior

SILENCE = 1e-8  # a peak that no scaling lifts


@dataclass(frozen=True)
class Separated:
    """speech  B N  at the level of the mixture, zero where it pads
    cost       I B  of the EM, after each iteration"""

    speech: Float[Tensor, "B N"]
    cost: Float[Tensor, "I B"]


def separate(
    model: SpeechPrior, batch: Batch, stft: Stft, settings: Vem, progress: Callable[[int], None] = lambda iteration: None
) -> Separated:
    """The speech in `batch.mixture`, of whose spectrum `batch.noisy` is the power."""
    mixture_BN, noisy_BTF = batch.need("mixture", model), batch.need("noisy", model)
    peak_B = mixture_BN.abs().amax(1).clamp_min(SILENCE)
    scaled = replace(batch, noisy=noisy_BTF / peak_B[:, None, None].square())
    enhanced = enhance(model, scaled, settings, progress)
    speech_BN = mixture_BN.new_zeros(mixture_BN.shape)
    assert batch.lengths is not None
    for b, length in enumerate(batch.lengths.tolist()):  # one by one, for each is mirrored at its own end
        spectrum_1TF = stft.analyse(mixture_BN[b : b + 1, :length])
        filter_1TF = enhanced.filter[b : b + 1, : spectrum_1TF.shape[1]]
        speech_BN[b, :length] = stft.synthesise(filter_1TF * spectrum_1TF, length)[0]
    return Separated(speech_BN, enhanced.cost)
