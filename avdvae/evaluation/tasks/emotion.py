"""Emotion: classified from a latent of the whole utterance, for speakers outside the train split, with few labels.

The classifier is fitted to the labels of 1, 5, 10 or 100 % of the train split's utterances, drawn anew five times. It
classifies windows of a second, and its log-probabilities are summed over an utterance. The baseline, `raw`, are
features of the input: loudness in bands and coarse pixels, summarised over the window.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.evaluation.tasks.transfer import windows
from avdvae.latents.probes import Classes, face_of, voice_of
from avdvae.protocols import LatentModel

PERCENT = (1, 5, 10, 100)  # of the labels
REPEATS = 5


class EmotionOfFew:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        model = subject.model
        if not isinstance(model, LatentModel) or all(spec.rate is not None for spec in model.latents):
            raise UserError(
                f"task emotion: {type(model).__name__} has no latent of a whole utterance: give a model as exp=mdvae"
            )
        if any("emotion" not in utterance.labels for utterance in subject.corpus.utterances):
            raise UserError(f"task emotion: {subject.corpus.root} has no labels of emotions: give data=talker")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("emotion")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        (known_x, known_moods, known_items), (x, truth, items) = (
            features(subject, corpus)
            for corpus in (PreparedCorpus(subject.corpus.root, "train", verify=False), subject.items(part))
        )
        scores: dict[str, dict[str, float]] = {item: {} for item in items}
        names, rng = np.array(sorted(set(known_items))), np.random.default_rng(subject.settings.seed)
        for percent in PERCENT:
            hits = {(item, kind): 0 for item in scores for kind in known_x}
            for _ in range(REPEATS):
                taken = set(rng.permutation(names)[: max(2, round(len(names) * percent / 100))])
                chosen = [n for n, item in enumerate(known_items) if item in taken]
                for kind, x_NM in known_x.items():
                    classes = Classes.fit(x_NM[chosen], [known_moods[n] for n in chosen])
                    log_p_NC = classes.log_probs(x[kind])
                    for item in scores:
                        mine = [n for n, other in enumerate(items) if other == item]
                        predicted = classes.names[int(log_p_NC[mine].sum(0).argmax())]
                        hits[item, kind] += predicted == truth[mine[0]]
            for (item, kind), count in hits.items():
                scores[item][f"accuracy_{kind}_{percent}"] = count / REPEATS
        measured = Measured()
        for item, values in scores.items():
            measured.rows += subject.rows(part, item, "", values)
        return measured


def features(subject: Subject, corpus: PreparedCorpus) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Latents and raw features of windows, N M each by name; the emotion and the utterance of each window."""
    static = [spec.name for spec in subject.model.latents if spec.rate is None]
    found, moods, items = dict[str, list[Tensor]](), [], []
    inferred, last = {}, None
    for batch, b, frames in windows(subject, corpus):
        if batch is not last:
            inferred, last = subject.model.infer(batch.to(subject.device), mode="mean").z, batch
        for name in static:
            found.setdefault(name, []).append(inferred[name][0, b, 0].cpu())
        assert batch.power is not None
        raw = [voice_of(batch.power[b, :frames])]
        if batch.face is not None:
            raw.append(face_of(batch.face[b, :frames]))
        found.setdefault("raw", []).append(torch.cat(raw))
        moods.append(batch.labels[b]["emotion"])
        items.append(batch.ids[b])
    return {name: torch.stack(rows) for name, rows in found.items()}, moods, items
