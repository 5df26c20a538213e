"""f0: the pitch of Talker's voices, estimated from the latents of a model, by Praat and by WORLD, clean and in noise.

    gross_error     percent of the frames, voiced in truth and estimate, in which f0 is off by more than 20 %
    voicing_error   percent of the frames that are voiced in either truth or estimate alone
    fine_error      mean of |f0 - truth| / truth in percent, over the other frames voiced in both

Frames whose pitch lies outside the range of the model's artificial vowels, 100 to 300 Hz, are left out for all. The
truth is stored beside Talker's clips.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from avdvae.data.conditions import Condition
from avdvae.errors import UserError
from avdvae.evaluation.tasks.control import controller_of
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.evaluation.tasks.truth import truth_of
from avdvae.protocols import is_speech_prior
from avdvae.signals.clock import RATE
from avdvae.signals.phonetics import pitch_praat, pitch_world

CLEAN = "clean"
GROSS = 0.2


class F0:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not is_speech_prior(subject.model):
            raise UserError(
                f"{type(subject.model).__name__} has no latents of power to estimate f0 from: choose another task"
            )
        truth_of(subject, subject.chosen.utterances[0].id)  # raises where there is none

    def parts(self, subject: Subject) -> list[Part]:
        s = subject.settings
        noisy = [part for noise in s.noises for snr in s.snrs for part in subject.parts("f0", noise, snr)]
        return subject.parts("f0", CLEAN) + noisy

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, controller = Measured(), controller_of(subject)
        low, high = controller.space().subspaces["f0"].range
        for utterance in subject.items(part).utterances:
            wave_N = subject.corpus.audio(utterance) / np.float32(32768)
            if part.noise != CLEAN:
                condition = Condition(subject.corpus, part.noise, part.snr, seed=subject.settings.seed)
                wave_N = condition(utterance, 0, wave_N, None)[0].astype(np.float32)
            latent_T = controller.pitch(controller.encode(torch.from_numpy(wave_N))).cpu().numpy()
            times_T = np.arange(len(latent_T)) * subject.stft.hop / RATE
            truth = truth_of(subject, utterance.id)
            steps = np.rint(times_T / truth["step"]).astype(int).clip(max=len(truth["f0"]) - 1)
            truth_T = np.array(truth["f0"])[steps]
            counts_T = (truth_T == 0) | (truth_T >= low) & (truth_T <= high)
            for name, pitch_T in (
                (subject.name, latent_T),
                ("Praat", pitch_praat(wave_N, times_T)),
                ("WORLD", pitch_world(wave_N, times_T)),
            ):
                scores = errors(truth_T[counts_T], pitch_T[counts_T])
                rows = subject.rows(part, utterance.id, "", scores)
                measured.rows += [replace(row, model=name) for row in rows]
        return measured


def errors(truth_T: Float[np.ndarray, " T"], estimate_T: Float[np.ndarray, " T"]) -> dict[str, float]:
    both = (truth_T > 0) & (estimate_T > 0)
    off = np.abs(estimate_T[both] / truth_T[both] - 1)
    scores = {"voicing_error": 100 * float(np.mean((truth_T > 0) != (estimate_T > 0)))}
    if both.any():
        scores["gross_error"] = 100 * float(np.mean(off > GROSS))
    if (fine := off[off <= GROSS]).size:
        scores["fine_error"] = 100 * float(fine.mean())
    return scores
