"""Tracking: scenes of several objects and their detections are tracked, and scored by CLEAR MOT and IDF1.

The metrics are those of tracking/scores.py. The methods, a row of the table each:

    NAME       MixDVAE (tracking/mixture.py), with the measured model as the prior of motion
    Kalman     the same EM with a linear Kalman filter of constant velocity, fitted to the trajectories for training
    nearest    the nearest detections (tracking/nearest.py)

An object begins with its detection in the first frame. After it, the detections of each frame are in random order: in
published experiments, detection k of every frame is of object k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch

from avdvae.data.boxes import FPS, BoxScene
from avdvae.data.shard_files import Utterance
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, require
from avdvae.evaluation.tasks.task import Measured, Part, Subject, file_name
from avdvae.pictures.stills import write_png
from avdvae.randomness import stream
from avdvae.tracking.nearest import nearest_detections
from avdvae.tracking.priors import ConstantVelocity, VAEPrior
from avdvae.tracking.scores import scores

FITTED_TO = 10  # clips for training


class Tracking:
    takes: Literal["sound", "poses", "boxes"] = "boxes"

    def check(self, subject: Subject) -> None:
        VAEPrior(subject.model)  # raises where it is none
        if lacking := [u.id for u in subject.chosen.utterances if u.labels["objects"] == u.labels["boxes"]]:
            raise UserError(f"{lacking[0]} has no detections to track: give evaluate.split=test, which has scenes")
        require("av", "cv2")  # of the films of its examples

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("tracking")

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, by_length = Measured(), dict[tuple[int, ...], list[Utterance]]()
        items, kalman = subject.items(part), fitted_kalman(subject.corpus)
        for utterance in items.utterances:
            shape = items.boxes(utterance).shape[0], utterance.labels["objects"]
            by_length.setdefault(shape, []).append(utterance)
        for utterances in by_length.values():
            scenes = [scene_of(items, utterance, subject.settings.seed) for utterance in utterances]
            methods = tracked(subject, kalman, np.stack([scene.detections for scene in scenes]))
            for b, (utterance, scene) in enumerate(zip(utterances, scenes, strict=True)):
                tracks = {name: boxes_BTN4[b] for name, boxes_BTN4 in methods.items()}
                for name, tracks_TN4 in tracks.items():
                    found = with_condition(scores(scene.truth, tracks_TN4), utterance.labels)
                    measured.rows += [replace(r, model=name) for r in subject.rows(part, utterance.id, "", found)]
                if utterance.id in subject.shown:
                    measured.examples.append(example(subject, part, utterance.id, scene, tracks))
        return measured


def scene_of(corpus: PreparedCorpus, utterance: Utterance, seed: int) -> BoxScene:
    truth_TN4, detections_TK4 = np.split(corpus.boxes(utterance), [utterance.labels["objects"]], axis=1)
    return BoxScene(truth_TN4, detections_TK4).shuffled(stream("order", seed, utterance.id))


def fitted_kalman(corpus: PreparedCorpus) -> ConstantVelocity:
    training = PreparedCorpus(corpus.root, "train", verify=False)
    fitted_to = np.concatenate([training.boxes(u) for u in training.utterances[:FITTED_TO]], 1)
    return ConstantVelocity.fitted(torch.from_numpy(fitted_to).transpose(0, 1))


def tracked(subject: Subject, kalman: ConstantVelocity, detections_BTK4: np.ndarray) -> dict[str, np.ndarray]:
    """The boxes of each method, B T N 4."""
    tracker, seen = subject.settings.tracker, torch.from_numpy(detections_BTK4)
    return {
        subject.name: tracker.track(seen, VAEPrior(subject.model)).m.numpy(),
        "Kalman": replace(tracker, finetune=False).track(seen, kalman).m.numpy(),
        "nearest": np.stack([nearest_detections(detections_TK4) for detections_TK4 in detections_BTK4]),
    }


def with_condition(found: Mapping[str, float], labels: Mapping[str, Any]) -> dict[str, float]:
    """With MOTA and IDF1 by the length of the scene, crossing or not, where that is known."""
    if "crossing" not in labels:
        return dict(found)
    condition = f"{labels['frames']}_{'crossing' if labels['crossing'] else 'apart'}"
    return {**found, **{f"{metric}_{condition}": found[metric] for metric in ("mota", "idf1")}}


def example(
    subject: Subject, part: Part, item: str, scene: BoxScene, tracks: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Write the film and three of its pictures."""
    from avdvae.pictures.films import moving_boxes
    from avdvae.signals.video import write_mp4

    key = file_name(item, part.task)
    pictures = moving_boxes({"detections": scene.detections, "true": scene.truth, **tracks})
    write_mp4(subject.out / f"videos/{key}.mp4", pictures, Fraction(FPS))
    chosen = np.linspace(0, len(pictures) - 1, 3).round().astype(int)
    write_png(subject.out / f"figures/{key}.png", np.concatenate(list(pictures[chosen])))
    found = scores(scene.truth, tracks[subject.name])
    example = {"key": key, "title": f"{item}, {part.task.replace('_', ' ')}", "audio": {}}
    return example | {"figure": f"figures/{key}.png", "video": f"videos/{key}.mp4", "scores": found}
