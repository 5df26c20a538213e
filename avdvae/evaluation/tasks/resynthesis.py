"""Resynthesis: clean utterances are encoded and decoded.

Autoregressive models are conditioned on their own past. With `true_past` they are given the true one (teacher forcing):
the latents then need to contain less, so these figures are not comparable with others.
"""

from __future__ import annotations

from typing import Literal

import torch

from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.latents.resynthesis import resynthesise
from avdvae.protocols import Autoregressive, why_no_speech_prior
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import FAILED, failed, score


class Resynthesis:
    takes: Literal["sound", "poses"] = "sound"

    def __init__(self, true_past: bool):
        self.true_past = true_past

    def check(self, subject: Subject) -> None:
        if reason := why_no_speech_prior(subject.model):
            raise UserError(f"task resynthesis: {reason}")

    def parts(self, subject: Subject) -> list[Part]:
        if self.true_past and not isinstance(subject.model, Autoregressive):
            return []
        return subject.parts("resynthesis_true_past" if self.true_past else "resynthesis")

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, lips = Measured(), "clean" if "lips" in subject.model.sees else ""
        torch.manual_seed(subject.settings.seed)
        for batch in subject.loader(subject.items(part)):
            speech = resynthesise(subject.model, batch, subject.stft, self.true_past).cpu().numpy()
            assert batch.waveform is not None and batch.lengths is not None
            clean = batch.waveform.cpu().numpy()
            for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                scores = score(clean[b, :n], speech[b, :n], RATE, (*subject.settings.metrics, "rmse"))
                scores[FAILED] = float(failed(speech[b, :n]))
                measured.rows += subject.rows(part, item, lips, scores)
                if item in subject.shown:
                    signals = {"clean": clean[b, :n], "resynthesised": speech[b, :n]}
                    measured.examples.append(subject.example(part, item, lips, signals, scores))
        return measured
