"""Likelihood: bits per sample of the split's utterances, beside those of simple codes.

bits_per_frame     minus the bound, with one draw (the exact likelihood of models without latents); a frame is a sample
importance_bits    minus the importance-weighted bound with `evaluate.importance` draws, unless that is null
bits_in_pieces     minus the bound of pieces of `evaluate.pieces` samples, each as an utterance of its own, unless that
                   is null: what a model loses or gains by the context of whole utterances
dmol_bits          by one mixture of two logistics, fitted to the same utterances
flac_bits          of the stream of a FLAC file, headers excluded
uniform_bits       16

Each is a ratio of totals: bits of all utterances over samples of all. Examples: an utterance; its resynthesis; its
first half, a second at most, and samples generated after it; samples generated from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.latents.likelihood import bits_in_pieces, bound_bits, fitted_dmol, flac_bits, importance_bits
from avdvae.probability.pcm import CODES
from avdvae.protocols import Batch, LatentModel, WaveformModel
from avdvae.signals.clock import RATE


class Likelihood:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        model, draws = subject.model, subject.settings.importance
        if not isinstance(model, WaveformModel):
            raise UserError(
                f"{type(model).__name__} gives densities, not probabilities of 16-bit samples, so it has no bits per "
                "sample: choose exp=byte_lm, wavenet, lstm, vrnn_wave, srnn_wave, stcn or cw_vae"
            )
        if draws is not None and (draws < 1 or not isinstance(model, LatentModel)):
            raise UserError(
                f"evaluate.importance={draws}: give 1, 2, 3, ... draws of latents, or null, as for a "
                f"{type(model).__name__} without any"
            )

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("likelihood")

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, model = Measured(), subject.model
        torch.manual_seed(subject.settings.seed)
        bits_of_code = fitted_dmol(
            [_codes(batch, b) for batch in subject.loader(subject.chosen) for b in range(len(batch.ids))]
        )
        for batch in subject.loader(subject.items(part)):
            bits = {"bits_per_frame": bound_bits(model, batch)}
            if subject.settings.importance is not None:
                bits["importance_bits"] = importance_bits(model, batch, subject.settings.importance)
            if subject.settings.pieces is not None:
                bits["bits_in_pieces"] = bits_in_pieces(model, batch, subject.settings.pieces)
            for b, item in enumerate(batch.ids):
                codes = _codes(batch, b)
                totals = {name: float(bits_B[b]) for name, bits_B in bits.items()}
                totals["dmol_bits"] = float(bits_of_code[codes.astype(np.int32) + CODES].sum())
                totals["flac_bits"] = float(flac_bits(codes, RATE))
                totals["uniform_bits"] = 16.0 * len(codes)
                scores = {name: total / len(codes) for name, total in totals.items()}
                measured.rows += subject.rows(part, item, "", scores | {"samples": float(len(codes))})
                if item in subject.shown:
                    signals = _sounds(model, batch, b)
                    measured.examples.append(subject.example(part, item, "", signals, scores))
        return measured


def _codes(batch: Batch, b: int) -> np.ndarray:
    assert batch.waveform is not None and batch.lengths is not None
    return (batch.waveform[b, : int(batch.lengths[b])] * CODES).round().to(torch.int16).cpu().numpy()


@torch.no_grad()
def _sounds(model: WaveformModel, batch: Batch, b: int) -> Mapping[str, np.ndarray]:
    assert batch.waveform is not None and batch.lengths is not None
    clean_1N = batch.waveform[b : b + 1, : int(batch.lengths[b])]
    alone = Batch(batch.ids[b : b + 1], batch.mask[b : b + 1], waveform=clean_1N, lengths=batch.lengths[b : b + 1])
    second = min(RATE, clean_1N.shape[1] // 2) // model.stride * model.stride
    sounds: dict[str, Tensor] = {"clean": clean_1N[0]}
    if isinstance(model, LatentModel):
        resynthesis = model.decode(model.infer(alone, mode="mean").z, model.context(alone))["waveform"]
        sounds["resynthesis"] = resynthesis.mode[0, 0, : clean_1N.shape[1]]
    generated_1N = model.generate(clean_1N[:, :second], second)
    sounds["generated after half"] = torch.cat([clean_1N[0, :second], generated_1N[0]])
    sounds["generated from nothing"] = model.generate(clean_1N[:, :0], second)[0]
    return {name: sound_N.cpu().numpy() for name, sound_N in sounds.items()}
