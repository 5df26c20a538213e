"""Control: pitch or a formant moved to targets in whole utterances, in all frames that Praat finds voiced.

Analysed before and after, in percent, over the steady vowels of the utterance (f0, f1, ...) and over all its voiced
frames (f0_in_speech, ...):

    the factor that is moved     |y~ - y| / y from its target y
    the other factors            the same from their values before
    voiced                       frames that are still voiced
    nisqa                        naturalness by NISQA, where the extra `naturalness` and its weights are installed

Frames whose factor lies outside the grid of the artificial vowels, by Praat or in truth, are left out for all methods:
no mean latent exists for them.

The methods, a row of the table each:

    NAME                   latents/control.py, on the latents of the measured model
    NAME discriminants     the same, by its method=discriminants
    NAME translated        z - mu(y_source) + mu(y_target), the mean latents of artificial vowels (W.-N. Hsu, Y. Zhang,
                           J. Glass, "Learning latent representations for speech generation and transformation",
                           Interspeech 2017); y_source is given, as estimated by Praat, which also measures the result
    NAME translated_true   y_source is the truth, which exists for Talker
    WORLD, TD-PSOLA        of f0 alone: vocoders, without a model

Pitch is estimated by Praat's autocorrelation and, as f0_world, by WORLD's Harvest, formants by Praat's Burg method, on
recordings and on Talker alike. A vowel is a tenth of a second in which they hardly move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from avdvae.data.shard_files import Utterance
from avdvae.data.talker.vowels import FACTORS, GRIDS
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.evaluation.tasks.truth import find_truth, truth_of
from avdvae.latents.control import LEVEL, METHODS, Controller, encode_factors
from avdvae.latents.subspace_figures import factor_relations, latent_trajectories, variance_curves
from avdvae.latents.subspaces import relations
from avdvae.protocols import is_speech_prior
from avdvae.signals.audio import trim_silence
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import INPUT, naturalness
from avdvae.signals.phonetics import formants, move_by_psola, move_by_world, pitch_praat, pitch_world

TARGETS = {"f0": (130, 180, 240), "f1": (350, 600), "f2": (1300, 1900), "f3": (2350, 2750)}  # Hz
APART = 250  # Hz at least between a formant that moves and its neighbours
STEP = 0.01  # seconds from one step of the analysis to the next
STEADY, WAVER = 10, 0.08  # steps of a vowel, and the largest relative change of pitch and formants within it
SHOWN = (110, 140, 180, 220, 280)  # pitches of the sentence in the report

Analysis = dict[str, Float[np.ndarray, " T"]]


def analyse(wave_N: Float[np.ndarray, " N"]) -> Analysis:
    """All factors every STEP; nan where there is no estimate."""
    times_T = np.arange(STEP, len(wave_N) / RATE - STEP, STEP)
    pitches = {"f0": pitch_praat(wave_N, times_T), "f0_world": pitch_world(wave_N, times_T)}
    voiced = {name: np.where(hertz > 0, hertz, np.nan) for name, hertz in pitches.items()}
    return voiced | dict(zip(("f1", "f2", "f3"), formants(wave_N, times_T), strict=True))


def steady(analysis: Analysis) -> Bool[np.ndarray, " T"]:
    """Where pitch and the lower formants hardly move: in vowels."""
    found = np.zeros(len(analysis["f0"]), bool)
    for start in range(len(found) - STEADY + 1):
        here = np.array([analysis[name][start : start + STEADY] for name in ("f0", "f1", "f2")])
        found[start : start + STEADY] |= bool((np.ptp(here, 1) <= WAVER * here.mean(1)).all())
    return found


class Control:
    takes: Literal["sound", "poses"] = "sound"

    def __init__(self, factor: str):
        self.factor = factor

    def check(self, subject: Subject) -> None:
        if not is_speech_prior(subject.model):
            raise UserError(f"{type(subject.model).__name__} has no latents of power to move: choose another task")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts(f"control_{self.factor}")

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, controller = Measured(), controller_of(subject)
        if self.factor == "f0" and part.first == 0:
            draw_latents(subject, controller)
        items = subject.items(part)
        utterances = {utterance.id: utterance for utterance in items.utterances}
        for batch in subject.loader(items):
            waves_BN, lengths_B = batch.need("waveform", subject.model).cpu().numpy(), batch.need("lengths", self)
            for item, padded_N, length in zip(batch.ids, waves_BN, lengths_B.tolist(), strict=True):
                wave_N, scores = padded_N[:length], dict[str, list[Mapping[str, float]]]()
                before, natural = analyse(wave_N), naturalness(wave_N, RATE)
                sources = {"translated": before[self.factor]}
                if find_truth(subject, item) is not None:
                    sources["translated_true"] = self._truth(subject, utterances[item], len(before["f0"]))
                for target in TARGETS[self.factor]:
                    moves_T = self._moves(before, target)
                    for source_T in sources.values():
                        moves_T &= self._on_grid(source_T)
                    if not moves_T.any():
                        continue
                    for method, after_N in self._changed(subject, wave_N, sources, moves_T, target):
                        found = self._score(before, analyse(after_N), moves_T, target)
                        found |= {INPUT + "nisqa": natural, "nisqa": naturalness(after_N, RATE)}
                        scores.setdefault(method, []).append(found)
                for method, each in scores.items():
                    means = {name: _mean([found[name] for found in each]) for name in each[0]}
                    rows = subject.rows(part, item, "", {k: v for k, v in means.items() if np.isfinite(v)})
                    measured.rows += [replace(row, model=method) for row in rows]
                if item in subject.shown and self.factor == "f0":
                    measured.examples.append(self._example(subject, part, item, controller, wave_N))
        return measured

    def _moves(self, before: Analysis, target: float) -> Bool[np.ndarray, " T"]:
        """Voiced steps in which the factor lies within its grid and the formants stay apart."""
        moves_T = (before["f0"] > 0) & self._on_grid(before[self.factor])
        number = FACTORS.index(self.factor)
        for neighbour, sign in ((number - 1, 1), (number + 1, -1)) if number else ():
            if 1 <= neighbour < len(FACTORS):
                moves_T &= sign * (target - before[FACTORS[neighbour]]) >= APART
        return moves_T

    def _on_grid(self, hertz_T: Float[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        return (hertz_T >= GRIDS[self.factor][0]) & (hertz_T <= GRIDS[self.factor][-1])

    def _truth(self, subject: Subject, utterance: Utterance, count: int) -> Float[np.ndarray, " T"]:
        """The true factor at the steps of the analysis of the trimmed sound."""
        truth, trim_db = truth_of(subject, utterance.id), subject.settings.trim_db
        start = 0 if trim_db is None else trim_silence(subject.corpus.audio(utterance), trim_db)[0]
        seconds_T = start / RATE + STEP * np.arange(1, count + 1)
        values = np.column_stack([truth["f0"], truth["formants"]])[:, FACTORS.index(self.factor)]
        return values[np.rint(seconds_T / truth["step"]).astype(int).clip(max=len(values) - 1)]

    def _changed(
        self,
        subject: Subject,
        wave_N: np.ndarray,
        sources: Mapping[str, Float[np.ndarray, " T"]],
        moves_T: Bool[np.ndarray, " T"],
        target: float,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The sound of each method."""
        controller, name = controller_of(subject), subject.name
        encoded = controller.encode(torch.from_numpy(wave_N))
        frames = np.arange(len(encoded.z)) * controller.stft.hop / RATE
        steps = np.rint(frames / STEP - 1).astype(int).clip(0, len(moves_T) - 1)
        target_T = torch.full((len(steps),), float(target)).where(torch.from_numpy(moves_T[steps]), torch.nan)
        moved = {
            name: controller.move(encoded, {self.factor: target_T}),
            f"{name} discriminants": controller_of(subject, "discriminants").move(encoded, {self.factor: target_T}),
        }
        for source, source_T in sources.items():
            hertz_T = torch.from_numpy(source_T[steps]).float()
            moved[f"{name} {source}"] = controller.translate(encoded, self.factor, hertz_T, target_T)
        for method, z_TL in moved.items():
            yield method, controller.synthesise(z_TL, encoded, griffin_lim=self.factor == "f0").cpu().numpy()
        if self.factor == "f0":
            contour_N = np.full(len(wave_N), float(target))
            yield "WORLD", move_by_world(wave_N, contour_N)
            yield "TD-PSOLA", move_by_psola(wave_N, contour_N)

    def _score(
        self, before: Analysis, after: Analysis, moves_T: Bool[np.ndarray, " T"], target: float
    ) -> dict[str, float]:
        scores = {}
        for where, here_T in (("", moves_T & steady(before)), ("_in_speech", moves_T)):
            for factor, was_T in sorted(before.items(), key=lambda item: not item[0].startswith(self.factor)):
                aim_T = np.full_like(was_T, target) if factor.startswith(self.factor) else was_T
                scores[f"{factor}{where}"] = 100 * _mean(np.abs(after[factor] / aim_T - 1)[here_T])
            scores[f"voiced{where}"] = 100 * _mean((after["f0"] > 0)[here_T])
        return scores

    def _example(self, subject: Subject, part: Part, item: str, controller: Controller, wave_N: np.ndarray) -> dict:
        encoded = controller.encode(torch.from_numpy(wave_N))
        voiced_T = controller.pitch(encoded) > 0
        signals = {"before": wave_N}
        for name, hertz in {**{f"{hertz} Hz": float(hertz) for hertz in SHOWN}, "whispered": 0.0}.items():
            target_T = torch.full((len(voiced_T),), hertz).where(voiced_T, torch.nan)
            signals[name] = controller.synthesise(controller.move(encoded, {"f0": target_T}), encoded).cpu().numpy()
        return subject.example(part, item, "", signals, {})


@lru_cache(maxsize=len(METHODS))
def controller_of(subject: Subject, method: str = METHODS[0]) -> Controller:
    return Controller.of(subject.model, subject.stft, method=method)


def draw_latents(subject: Subject, controller: Controller) -> None:
    """Pictures of the subspaces of the factors, for the report."""
    related = relations(encode_factors(subject.model, subject.stft, [LEVEL])[0])
    for (one, other), relation in related.items():
        angle, cosine = ("{:.2f} [{:.2f}, {:.2f}]".format(*interval) for interval in relation)
        print(f"{one} and {other}: smallest angle {angle} degrees, largest cosine {cosine}", flush=True)
    folder = subject.out / "figures"
    latent_trajectories(controller.space().subspaces).savefig(folder / "trajectories_of_factors.png", dpi=150)
    variance_curves(controller.space().subspaces).savefig(folder / "variance_by_dimensions.png", dpi=150)
    factor_relations(related).savefig(folder / "angles_between_factors.png", dpi=150)


def _mean(values: np.ndarray | list[float]) -> float:
    """The mean of the finite values."""
    finite = np.asarray(values, float)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
