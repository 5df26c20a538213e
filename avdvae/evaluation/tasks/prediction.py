"""Prediction: futures are drawn that continue the beginning of a motion, and compared with the true ones.

Windows of `evaluate.observe` + `evaluate.predict` seconds, one every `observe` seconds. The encoder infers latents of
the observed part, a sample for each of `evaluate.futures` futures; later latents are drawn from the prior, and the past
is then the model's own output. Scores: evaluation/futures.py; `fid`, and `accuracy`, the share of futures in which the
true movement is recognised, by evaluation/recognition.py. Values are means over the windows of a sequence; `fid`, of
all windows together, stands with the first sequence.

The true futures of an observation, for `mmade` and `mmfde`, are draws from the law of the corpus, where it has one
(data=gait_futures). Elsewhere, as published, they are those of all windows whose last observed poses are within 0.5 m.

Other rows of the table are measured on the same windows: the last pose, held; the last velocity, kept; and, where the
corpus has a law, draws from it, which no model can beat in the energy score, but by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from avdvae.data.gait_futures import GaitFutures, true_futures
from avdvae.data.poses import skeleton_of
from avdvae.data.shards import Utterance
from avdvae.errors import UserError, require
from avdvae.evaluation.futures import frechet, scores_of
from avdvae.evaluation.recognition import cut, movement_of, recognition_of, windows_of
from avdvae.evaluation.results import BASELINES
from avdvae.evaluation.tasks.task import Measured, Part, Subject, file_name
from avdvae.latents.transfer import generate
from avdvae.pictures.stills import pose_strip, write_png
from avdvae.protocols import Batch, LatentModel
from avdvae.randomness import stream

NEAR = 0.5  # metres, of all coordinates together
SHOWN = 5  # futures in a film
AT_ONCE = 16  # windows
LAST_POSE, VELOCITY, LAW = BASELINES["prediction"]


class Prediction:
    takes: Literal["sound", "poses"] = "poses"

    def check(self, subject: Subject) -> None:
        model, settings = subject.model, subject.settings
        if "pose" not in model.sees or not isinstance(model, LatentModel):
            raise UserError(f"{type(model).__name__} as configured models no poses: give model.observes=pose")
        observed, frames = _frames(subject)
        if observed < 2 or frames < 1:
            raise UserError(
                f"evaluate.observe={settings.observe:g} and predict={settings.predict:g} are {observed} and {frames} "
                f"poses of {subject.fps:g} a second: give 2 and 1 or more"
            )
        if not windows_of(subject.chosen.utterances, observed, frames):
            longest = max(utterance.seconds for utterance in subject.chosen.utterances)
            raise UserError(
                f"evaluate.observe={settings.observe:g} and predict={settings.predict:g} need longer sequences than "
                f"{longest:g} s, the longest of {subject.corpus.root}: give less, or another corpus"
            )
        require("av", "cv2")  # of the films of its examples

    def parts(self, subject: Subject) -> list[Part]:
        return [Part("prediction", size=len(subject.chosen.utterances))]  # windows near each other may be anywhere

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, (observed, frames) = Measured(), _frames(subject)
        corpus = subject.items(part)
        windows = windows_of(corpus.utterances, observed, frames)
        poses_NTD = torch.stack([cut(corpus, *window, observed + frames) for window in windows]).to(subject.device)
        observed_NTD, true_NTD = poses_NTD.split([observed, frames], 1)
        recognition = recognition_of(corpus.root, observed, frames, subject.device)
        features: dict[str, list[Tensor]] = {}
        torch.manual_seed(subject.settings.seed)
        for item, numbers in groupby(range(len(windows)), lambda n: windows[n][0]):
            here = list(numbers)
            last_W = [windows[n][1] + observed - 1 for n in here]
            names = [movement_of(item, last + 1, frames) for last in last_W]
            futures = {subject.name: _predicted(subject, observed_NTD[here], frames)}
            futures |= _baselines(observed_NTD[here], frames)
            law_WGTD = None
            if item.corpus == GaitFutures.NAME:
                futures[LAW], law_WGTD = (_from_the_law(subject, item, last_W, frames, use) for use in ("row", "truth"))
            for name, futures_WKTD in futures.items():
                each = [
                    scores_of(
                        futures_WKTD[w],
                        true_NTD[n],
                        _near(n, observed_NTD, true_NTD) if law_WGTD is None else law_WGTD[w],
                        observed_NTD[n, -1],
                    )
                    for w, n in enumerate(here)
                ]
                scores = {metric: float(np.mean([one[metric] for one in each])) for metric in each[0]}
                if recognition:
                    found = [recognition(futures_KTD) for futures_KTD in futures_WKTD]
                    features.setdefault(name, []).extend(found)
                    scores["accuracy"] = 100 * float(np.mean(list(map(recognition.share, found, names))))
                scores["windows"] = float(len(here))
                measured.rows += replace(subject, name=name).rows(part, item.id, "", scores)
            if item.id in subject.shown:
                w = len(here) // 2
                drawn_KTD = futures[subject.name][w, :SHOWN]
                after = {"true": true_NTD[here[w]]} | {f"future {k}": drawn for k, drawn in enumerate(drawn_KTD, 1)}
                whole = {name: torch.cat([observed_NTD[here[w]], after_TD]) for name, after_TD in after.items()}
                measured.examples.append(_example(subject, part, item, whole))
        if recognition and len(windows) > 1:
            true_NM = recognition(true_NTD)
            for name, found in features.items():
                fid = {"fid": frechet(torch.cat(found), true_NM)}
                measured.rows += replace(subject, name=name).rows(part, windows[0][0].id, "", fid)
        return measured


def _frames(subject: Subject) -> tuple[int, int]:
    """Of the observed part and of the future."""
    return round(subject.settings.observe * subject.fps), round(subject.settings.predict * subject.fps)


def _predicted(subject: Subject, observed_WTD: Float[Tensor, "W O D"], frames: int) -> Float[Tensor, "W K T D"]:
    """Draws of the model, without the hips, which are the origin."""
    parts, hips, futures = [], (3, 0), subject.settings.futures
    for observed_BTD in observed_WTD.split(AT_ONCE):
        (count, observed), device, ids = observed_BTD.shape[:2], observed_BTD.device, ("",) * len(observed_BTD)
        begun = Batch(ids, torch.ones(count, observed, dtype=torch.bool, device=device), pose=pad(observed_BTD, hips))
        around = Batch(ids, torch.ones(count, observed + frames, dtype=torch.bool, device=device))
        expected_KBTD = generate(subject.model, around, begun, futures, "sample").likelihoods["pose"].expected
        parts.append(expected_KBTD[:, :, observed:, 3:].transpose(0, 1))
    return torch.cat(parts)


def _baselines(observed_WTD: Float[Tensor, "W O D"], frames: int) -> dict[str, Float[Tensor, "W 1 T D"]]:
    last_W1D = observed_WTD[:, -1:]
    steps_T1 = torch.arange(1, frames + 1, device=last_W1D.device)[:, None]
    moved_WTD = last_W1D + steps_T1 * (last_W1D - observed_WTD[:, -2:-1])
    return {LAST_POSE: last_W1D.expand_as(moved_WTD)[:, None], VELOCITY: moved_WTD[:, None]}


def _from_the_law(
    subject: Subject, item: Utterance, last_W: Sequence[int], frames: int, use: str
) -> Float[Tensor, "W K T D"]:
    """Draws of the true distribution; independent ones for each use."""
    settings, poses_TJ3 = subject.settings, subject.corpus.poses(item)
    rng = stream("futures", use, settings.seed, item.id)
    futures = true_futures(poses_TJ3, item.labels, last_W, frames, settings.futures, rng)
    return torch.from_numpy(futures[..., 1:, :]).flatten(-2).to(subject.device)


def _near(n: int, observed_NTD: Float[Tensor, "N O D"], true_NTD: Float[Tensor, "N T D"]) -> Float[Tensor, "G T D"]:
    """The futures of all windows whose last observed poses are near that of window n, itself among them."""
    return true_NTD[(observed_NTD[:, -1] - observed_NTD[n, -1]).norm(dim=1) < NEAR]


def _example(
    subject: Subject, part: Part, item: Utterance, poses: Mapping[str, Float[Tensor, "T D"]]
) -> dict[str, Any]:
    """A film of figures, from the beginning of the window."""
    from avdvae.pictures.films import stick_figures
    from avdvae.signals.video import write_mp4

    figures = {name: pad(pose_TD, (3, 0)).unflatten(-1, (-1, 3)).cpu().numpy() for name, pose_TD in poses.items()}
    skeleton, key = skeleton_of(figures["true"].shape[1]), file_name(item.id, part.task)
    pictures = stick_figures(figures, skeleton.joints, skeleton.bones, side=160)
    write_mp4(subject.out / f"videos/{key}.mp4", pictures, Fraction(subject.fps))
    write_png(subject.out / f"figures/{key}.png", pose_strip(pictures, axis=0))
    title = f"{item.id}, the true future and draws after {subject.settings.observe:g} s"
    example = {"key": key, "title": title, "audio": {}, "scores": {}}
    return example | {"figure": f"figures/{key}.png", "video": f"videos/{key}.mp4"}
