"""Emotion: the mood of speakers never heard before, told from a latent of the whole utterance by a classifier that was
shown few labels.

The labels are those of a share of the train split's utterances, 1, 5, 10 or 100 %, drawn anew five times; windows of a
second are classified, and the verdicts of an utterance added up. Beside the latent stand the features that it was made
of, `raw`: loudness in bands and coarse pixels, summarised over the window.
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

SHARES = (1, 5, 10, 100)  # per cent
DRAWS = 5


class EmotionOfFew:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        model = subject.model
        if not isinstance(model, LatentModel) or all(spec.rate is not None for spec in model.latents):
            raise UserError(
                f"task emotion: {type(model).__name__} has no latent of a whole utterance: give a model as exp=mdvae"
            )
        if any("emotion" not in utterance.labels for utterance in subject.corpus.utterances):
            raise UserError(f"task emotion: {subject.corpus.root} does not tell emotions: give a corpus as data=talker")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.shares("emotion")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        (known, moods, whose), (asked, truth, of) = (
            features(subject, corpus)
            for corpus in (PreparedCorpus(subject.corpus.root, "train", verify=False), subject.items(part))
        )
        scores: dict[str, dict[str, float]] = {item: {} for item in of}
        names, rng = np.array(sorted(set(whose))), np.random.default_rng(subject.settings.seed)
        for percent in SHARES:
            hits = {(item, kind): 0 for item in scores for kind in known}
            for _ in range(DRAWS):
                taken = set(rng.permutation(names)[: max(2, round(len(names) * percent / 100))])
                chosen = [n for n, item in enumerate(whose) if item in taken]
                for kind, x_NM in known.items():
                    classes = Classes.fit(x_NM[chosen], [moods[n] for n in chosen])
                    told_NC = classes.log_probs(asked[kind])
                    for item in scores:
                        mine = [n for n, other in enumerate(of) if other == item]
                        verdict = classes.names[int(told_NC[mine].sum(0).argmax())]
                        hits[item, kind] += verdict == truth[mine[0]]
            for (item, kind), count in hits.items():
                scores[item][f"accuracy_{kind}_{percent}"] = count / DRAWS
        measured = Measured()
        for item, values in scores.items():
            measured.rows += subject.rows(part, item, "", values)
        return measured


def features(subject: Subject, corpus: PreparedCorpus) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Latents and raw features of windows, N M each by name; the mood of each, and the utterance that it is of."""
    lasting = [spec.name for spec in subject.model.latents if spec.rate is None]
    found, moods, whose = dict[str, list[Tensor]](), [], []
    inferred, last = {}, None
    for batch, b, frames in windows(subject, corpus):
        if batch is not last:
            inferred, last = subject.model.infer(batch.to(subject.device), mode="mean").z, batch
        for name in lasting:
            found.setdefault(name, []).append(inferred[name][0, b, 0].cpu())
        assert batch.power is not None
        raw = [voice_of(batch.power[b, :frames])]
        if batch.face is not None:
            raw.append(face_of(batch.face[b, :frames]))
        found.setdefault("raw", []).append(torch.cat(raw))
        moods.append(batch.labels[b]["emotion"])
        whose.append(batch.ids[b])
    return {name: torch.stack(rows) for name, rows in found.items()}, moods, whose
