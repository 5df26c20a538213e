"""Probe: labels are predicted from each latent by nearest neighbours; mel spectra are the baseline.

Posterior means are averaged over the phonemes of the split's utterances, where the corpus has their times, and over
whole utterances. Labels are predicted by k nearest neighbours after linear discriminants: latents/neighbours.py.

<label>_<latent>_k<k>   accuracy over an utterance's phonemes, or over utterances; the latent mel is the spectrogram, 80
                        logarithms every 4 ms
phoneme                 from all other phonemes
speaker                 from all other utterances
sex, tract, height_cm, emotion    from the utterances of other speakers; lengths in thirds

k is at most the mean number of points of a label: beyond it, most neighbours must have another one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from avdvae.errors import UserError
from avdvae.evaluation.results import summarise
from avdvae.evaluation.tasks.task import Measured, Part, Subject, file_name
from avdvae.latents.neighbours import neighbours_right
from avdvae.pictures.figures import probe_curves
from avdvae.protocols import LatentModel, LatentSpec
from avdvae.signals.clock import RATE

MOST = 1500  # phonemes, drawn from all
MEL_HOP = 64
DIMS = {"phoneme": 5, "sex": 1, "tract": 2, "height_cm": 2, "speaker": 5, "emotion": 5}
Frames = tuple[Float[np.ndarray, "T L"], float]  # features, and the seconds from one to the next; inf: one for all


class Probe:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not isinstance(subject.model, LatentModel):
            raise UserError(f"{type(subject.model).__name__} has no latents to probe: choose a model that has some")

    def parts(self, subject: Subject) -> list[Part]:
        return [Part("probe", size=len(subject.chosen.utterances))]

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, features = Measured(), _frames(subject)
        utterances = subject.chosen.utterances
        for label in DIMS:
            points, labels, owners, groups = _points(
                label, utterances, next(iter(features.values())), subject.settings.seed
            )
            if len(set(labels)) < 2 or len(set(groups)) < 2:
                continue
            numbers = np.unique(labels, return_inverse=True)[1], np.unique(groups, return_inverse=True)[1]
            ks = [k for k in subject.settings.neighbours if k * len(set(labels)) <= len(labels)] or [1]
            for name, frames in features.items():
                if label == "phoneme" and np.isinf(next(iter(frames.values()))[1]):
                    continue  # a static latent
                x = np.stack([_average(*frames[item], *span) for item, span in points])
                right = neighbours_right(x.astype(np.float64), *numbers, DIMS[label], ks)
                for item in dict.fromkeys(owners):
                    mine = np.array(owners) == item
                    scores = {f"{label}_{name}_k{k}": float(right[n, mine].mean()) for n, k in enumerate(ks)}
                    measured.rows += subject.rows(part, item, "", scores)
        if not measured.rows:
            raise UserError(
                f"{subject.corpus.root} has no label with two values among {len(utterances)} utterances: give more "
                "by evaluate.per_speaker=null, or prepare the corpus anew if it lacks the times of its phonemes"
            )
        figure = f"figures/{file_name(subject.name, 'probe')}.png"
        probe_curves(summarise(measured.rows), list(DIMS)).savefig(subject.out / figure, dpi=150)
        title = "labels predicted from the latents and from mel spectra"
        measured.examples.append({"key": "probe", "title": title, "audio": {}, "figure": figure, "scores": {}})
        return measured


def _frames(subject: Subject) -> Mapping[str, Mapping[str, Frames]]:
    """Features by latent and utterance. Recordings are not trimmed, so that the times of the corpus hold."""
    whole = replace(subject, settings=replace(subject.settings, trim_db=None))
    features: dict[str, dict[str, Frames]] = {"mel": {}}
    mel = _mel()
    for batch in whole.loader(subject.chosen):
        with torch.inference_mode():
            z = subject.model.infer(batch, mode="mean").z
        assert batch.waveform is not None and batch.lengths is not None
        for b, (item, samples) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
            features["mel"][item] = mel(batch.waveform[b, :samples].cpu()), MEL_HOP / RATE
            for spec in subject.model.latents:
                seconds, steps = _clock(spec, subject.stft.hop, int(batch.mask[b].sum()), samples)
                features.setdefault(spec.name, {})[item] = z[spec.name][0, b, :steps].cpu().numpy(), seconds
    return features


def _clock(spec: LatentSpec, hop: int, frames: int, samples: int) -> tuple[float, int]:
    """Seconds per step, and the steps of an utterance. At a rate of 1 a step is a frame, else so many samples."""
    if spec.rate is None:
        return np.inf, 1
    return (hop / RATE, frames) if spec.rate == 1 else (spec.rate / RATE, -(-samples // spec.rate))


def _mel() -> Callable[[torch.Tensor], Float[np.ndarray, "T 80"]]:
    from torchaudio.transforms import MelSpectrogram

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the lowest bands are narrower than a bin
        spectrogram = MelSpectrogram(RATE, n_fft=512, win_length=256, hop_length=MEL_HOP, n_mels=80)
    return lambda waveform_N: (spectrogram(waveform_N) + 1e-8).log().T.numpy()


def _points(
    label: str, utterances: Sequence[Any], frames: Mapping[str, Frames], seed: int
) -> tuple[list[tuple[str, tuple[float, float]]], list[Any], list[str], list[Any]]:
    """Points, as (utterance, (from, to) in seconds), with their labels, utterances and groups."""
    if label == "phoneme":
        found = [(u.id, phone) for u in utterances for phone in u.labels.get("phones", ())]
        chosen = sorted(np.random.default_rng(seed).permutation(len(found))[:MOST])
        spans = [(found[n][0], tuple(found[n][1])) for n in chosen]
        names = [name for _, (_, _, name) in spans]
        return [(i, (a, b)) for i, (a, b, _) in spans], names, [item for item, _ in spans], list(range(len(spans)))
    known = [u for u in utterances if label == "speaker" or u.labels.get(label) is not None]
    values: list[Any] = [u.speaker if label == "speaker" else u.labels[label] for u in known]
    if label in ("tract", "height_cm") and values:
        values = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values).tolist()
    owners = [u.id for u in known]
    return (
        [(u.id, (0.0, np.inf)) for u in known],
        values,
        owners,
        owners if label == "speaker" else [u.speaker for u in known],
    )


def _average(z_TL: Float[np.ndarray, "T L"], step: float, start: float, stop: float) -> Float[np.ndarray, " L"]:
    """Over the steps that begin within a span of seconds, or the step at its middle."""
    if np.isinf(step) or np.isinf(stop):
        return z_TL.mean(0)
    first, last = (min(int(np.ceil(edge / step)), len(z_TL)) for edge in (start, stop))
    middle = min(int((start + stop) / 2 / step), len(z_TL) - 1)
    return z_TL[first:last].mean(0) if last > first else z_TL[middle]
