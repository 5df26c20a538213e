"""Enhancement as the sound arrives, by its latency, beside that of the whole utterance. The mixtures are those of
`enhancement`.

The rows of a model have its name, those of its streams also the algorithmic latency in milliseconds. Below the 64 ms of
an STFT window, a shorter synthesis window and, where it needs one, a smaller hop give the latency; above, frames of
look-ahead. With several noises, each also changes into the next in the middle of an utterance: `after_change_1` is the
SI-SDR in the first second after that, `before_change` that in the second before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from avdvae.enhancement.separation import Pictures, separate
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.errors import UserError
from avdvae.evaluation.tasks.enhancement import Enhancement, label_of, mixtures, source_of
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.protocols import Batch
from avdvae.signals.audio import WINDOW, Stft
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import FAILED, INPUT, failed, score, si_sdr

LATENCIES = (16, 64, 256)  # ms
SECONDS = 3  # that are scored after a change of noise
THEN = ", then "


def stream_of(subject: Subject, latency: int, pictures: Pictures | None = None) -> Stream:
    """With the default settings, but for the latency."""
    assert subject.vem
    samples, hop = latency * RATE // 1000, subject.stft.hop
    if samples < WINDOW:
        stft, settings = Stft(min(hop, samples // 2)), Streaming(look_ahead=0, synthesis=samples)
    else:
        stft, settings = subject.stft, Streaming(look_ahead=(samples - WINDOW) // hop)
    return Stream(subject.model, stft, subject.vem, settings, pictures=pictures, device=subject.device)


class StreamingEnhancement(Enhancement):
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if subject.vem is None:
            raise UserError("evaluate.tasks=streaming needs a model: estimates of other systems are there already")
        stream_of(subject, LATENCIES[0], None if "lips" not in subject.model.sees else _black())

    def parts(self, subject: Subject) -> list[Part]:
        labels = [label_of(noise) for noise in subject.settings.noises]
        labels += [THEN.join(pair) for pair in pairwise(labels)]
        return [p for label in labels for snr in subject.settings.snrs for p in subject.parts("streaming", label, snr)]

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured = Measured()
        for lips in subject.states:
            for batch in _mixed(subject, part, lips):
                assert batch.waveform is not None and batch.mixture is not None
                clean_N, mixture_N = (signal[0].cpu().numpy() for signal in (batch.waveform, batch.mixture))
                before = self._scores(subject, part, clean_N, mixture_N)
                before = {INPUT + metric: value for metric, value in before.items() if metric != FAILED}
                for name, speech_N, rtf in _estimates(subject, batch, mixture_N):
                    scores = self._scores(subject, part, clean_N, speech_N) | before | {"rtf": rtf}
                    rows = subject.rows(part, batch.ids[0], lips, scores)
                    measured.rows += [replace(row, model=name) for row in rows]
        return measured

    def _scores(self, subject: Subject, part: Part, clean_N: np.ndarray, speech_N: np.ndarray) -> dict[str, float]:
        scores = score(clean_N, speech_N, RATE, subject.settings.metrics) | {FAILED: float(failed(speech_N))}
        if THEN in part.noise:
            change = len(clean_N) // 2
            for second in range(-1 if change >= RATE else 0, min(SECONDS, change // RATE)):
                chosen = slice(change + second * RATE, change + (second + 1) * RATE)
                name = f"after_change_{second + 1}" if second >= 0 else "before_change"
                scores[name] = si_sdr(clean_N[chosen], speech_N[chosen])
        return scores


def _mixed(subject: Subject, part: Part, lips: str) -> Iterator[Batch]:
    """Utterances, each alone in its batch, in a noise, or in two, of which the second takes over in the middle."""
    sources = {label_of(noise): source_of(noise, subject) for noise in subject.settings.noises}
    alone, items = replace(subject, batch_size=1), subject.items(part)
    each = [mixtures(alone, part, items, sources[name], lips) for name in part.noise.split(THEN)]
    for batches in zip(*each, strict=True):
        first, last = batches[0][0], batches[-1][0]
        assert first.mixture is not None and last.mixture is not None
        half = first.mixture.shape[1] // 2
        yield replace(first, mixture=torch.cat([first.mixture[:, :half], last.mixture[:, half:]], 1))


def _estimates(subject: Subject, batch: Batch, mixture_N: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    """Of each latency, and of the whole utterance: the speech, and the seconds per second that it took."""
    assert subject.vem
    start = time.perf_counter()
    speech_N = separate(subject.model, batch, subject.stft, subject.vem).speech[0].cpu().numpy()
    yield subject.name, speech_N, (time.perf_counter() - start) * RATE / len(mixture_N)
    pictures = None
    if batch.lips is not None and batch.confidence is not None:
        crops, confidence = batch.lips[0].cpu().numpy(), (255 * batch.confidence[0]).byte().cpu().numpy()
        pictures = Pictures(crops, confidence, RATE / subject.stft.hop)
    for latency in LATENCIES:
        stream, start = stream_of(subject, latency, pictures), time.perf_counter()
        speech_N = np.concatenate([stream.push(mixture_N), stream.finish()])
        yield f"{subject.name}, {latency} ms", speech_N, (time.perf_counter() - start) * RATE / len(mixture_N)


def _black() -> Pictures:
    return Pictures(np.zeros((1, 67, 67), np.uint8), np.zeros(1, np.uint8), 1.0)
