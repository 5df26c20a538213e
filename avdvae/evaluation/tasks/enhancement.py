"""Enhancement: the split's utterances in each noise, at each SNR, with each state of the lips.

The estimates are those of a model, or `Estimates` that another system made of the same mixtures. Both they and the
noisy input are scored. For mixtures of models, `lips_weight` is the weight of the component that is conditioned on the
lips, over frames with intact lips, and `lips_weight_hidden` over frames with corrupted lips.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from avdvae.data.conditions import Condition
from avdvae.data.mixing import NOISES, NoiseFolder
from avdvae.data.shards import PreparedCorpus
from avdvae.data.twins import NoisyTwins
from avdvae.enhancement.separation import Separated, separate
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.protocols import Batch, MixtureModel, indispensable, why_not_enhancing
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import FAILED, INPUT, failed, score

SHOWN_SNR = 0.0  # the example has the SNR nearest to this
Source = str | NoiseFolder | NoisyTwins  # of noise


class Estimates(nn.Module):
    """In place of a model: estimates that are there already."""

    sees, observes = ("power",), "power"

    def read(self, part: Part, item: str, mixture_N: np.ndarray) -> np.ndarray:
        """The speech in the mixture of an utterance, as long as that."""
        raise NotImplementedError


class Enhancement:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not isinstance(subject.model, Estimates) and (reason := why_not_enhancing(subject.model)):
            raise UserError(reason)
        if not (subject.settings.noises and subject.settings.snrs and subject.settings.lips):
            raise UserError("evaluate.noises, evaluate.snrs and evaluate.lips must not be empty: give one of each")

    def parts(self, subject: Subject) -> list[Part]:
        return [
            part
            for noise in subject.settings.noises
            for snr in _snrs(source_of(noise, subject), subject)
            for part in subject.parts("enhancement", label_of(noise), snr)
        ]

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, inputs = Measured(), {}
        items = subject.items(part)
        labels = [label_of(noise) for noise in subject.settings.noises]
        number = labels.index(part.noise)
        source = source_of(subject.settings.noises[number], subject)
        shown_snr = min(_snrs(source, subject), key=lambda snr: abs((snr or 0) - SHOWN_SNR))
        chosen = subject.chosen.utterances
        shown = chosen[number % len(chosen)].id if number < subject.settings.examples and part.snr == shown_snr else ""
        for lips in subject.states:
            for batch, corrupted_BT in mixtures(subject, part, items, source, lips):
                assert batch.waveform is not None and batch.mixture is not None and batch.lengths is not None
                clean, mixture = batch.waveform.cpu().numpy(), batch.mixture.cpu().numpy()
                separated, time_spent = None, dict[str, float]()
                if isinstance(subject.model, Estimates):
                    speech = np.zeros_like(mixture)
                    for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                        speech[b, :n] = subject.model.read(part, item, mixture[b, :n])
                else:
                    assert subject.vem
                    start = time.perf_counter()
                    separated = separate(subject.model, batch, subject.stft, subject.vem)
                    speech = separated.speech.cpu().numpy()  # waits for the device
                    time_spent["rtf"] = (time.perf_counter() - start) * RATE / int(batch.lengths.sum())
                for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                    metrics = subject.settings.metrics
                    scores = score(clean[b, :n], speech[b, :n], RATE, metrics)
                    scores[FAILED] = float(failed(speech[b, :n]))
                    if item not in inputs:  # the same in all states of the lips
                        before = score(clean[b, :n], mixture[b, :n], RATE, metrics)
                        inputs[item] = {INPUT + metric: value for metric, value in before.items()}
                    scores |= inputs[item] | time_spent
                    if separated:
                        scores |= _weights(separated, corrupted_BT, batch.mask, b)
                    if "si_sdr" in scores:
                        scores["si_sdr_improvement"] = scores["si_sdr"] - scores[f"{INPUT}si_sdr"]
                    measured.rows += subject.rows(part, item, lips, scores)
                    if item == shown:
                        signals = {"clean": clean[b, :n], "noisy": mixture[b, :n], "enhanced": speech[b, :n]}
                        panels = _panels(subject, batch, separated, corrupted_BT, b) if separated else {}
                        cost = {"cost": separated.cost[:, b].tolist()} if separated else {}
                        measured.examples.append(subject.example(part, item, lips, signals, scores, panels) | cost)
        return measured


def source_of(noise: str, subject: Subject) -> Source:
    """A noise by name, or the noises or noisy recordings of a folder."""
    if noise in NOISES:
        return noise
    return NoisyTwins.of(Path(noise), subject.chosen.utterances[0]) or NoiseFolder(Path(noise))


def label_of(noise: str) -> str:
    return noise if noise in NOISES else Path(noise).name


def _snrs(source: Source, subject: Subject) -> Sequence[float | None]:
    return [None] if isinstance(source, NoisyTwins) and not source.levels else subject.settings.snrs


def mixtures(
    subject: Subject, part: Part, items: PreparedCorpus, source: Source, lips: str
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches, and the frames B T with corrupted lips."""
    without = lips == "none" and "lips" not in indispensable(subject.model)
    corruption = None if without or lips in ("", "clean") else lips
    noisy = subject.loader(items, Condition(subject.corpus, source, part.snr, corruption, subject.settings.seed))
    if corruption is None:
        for batch in noisy:
            yield replace(batch, lips=None) if without else batch, None
    else:
        for batch, intact in zip(noisy, subject.loader(items), strict=True):
            assert batch.lips is not None and intact.lips is not None
            yield batch, (batch.lips != intact.lips).flatten(2).any(-1)


def _weights(separated: Separated, corrupted_BT: Tensor | None, mask_BT: Tensor, b: int) -> dict[str, float]:
    """Of the component that is conditioned on the lips, the last of a mixture of models."""
    if separated.switch is None:
        return {}
    weight_T, mask_T = separated.switch[b, :, -1], mask_BT[b]
    hidden_T = torch.zeros_like(mask_T) if corrupted_BT is None else corrupted_BT[b]
    frames = {"lips_weight": mask_T & ~hidden_T, "lips_weight_hidden": mask_T & hidden_T}
    return {name: weight_T[chosen].mean().item() for name, chosen in frames.items() if chosen.any()}


def _panels(
    subject: Subject, batch: Batch, separated: Separated, corrupted_BT: Tensor | None, b: int
) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """The lips and the switch of an utterance, for its picture."""
    mask_T, panels = batch.mask[b], {}
    if "lips" in subject.model.sees and batch.lips is not None and batch.confidence is not None:
        panels |= {
            "lips_THW": batch.lips[b][mask_T].cpu().numpy(),
            "confidence_T": batch.confidence[b][mask_T].cpu().numpy(),
        }
    if corrupted_BT is not None:
        panels["corrupted_T"] = corrupted_BT[b][mask_T].cpu().numpy()
    if separated.switch is not None and isinstance(subject.model, MixtureModel):
        weights_CT = separated.switch[b][mask_T].cpu().numpy().T
        panels["weights"] = dict(zip(subject.model.components, weights_CT, strict=True))
    return panels
