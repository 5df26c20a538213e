"""Transfer: each utterance, the source, with one latent of another speaker's, a donor; and what then is whose.

The speaker, as voice and as face, and the mood are read by classifiers, and the opening of the mouth by a regression
from pixels; all are fitted to real recordings: those of speakers to the split that is measured, whose speakers they
must know, the others to the train split, which has other speakers. The opening in a made face is held against what
landmarks found in the film, and the cepstra of made speech, which tell of its phonemes, against those of the real.
Each source has several donors, whose mean is its row: `of_donor` says how often what was read is the donor's,
`as_donor` how closely it moves with the donor's. With no latent exchanged, `kept`, this is resynthesis: what the best
transfer could reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from avdvae.data.loader import Loader
from avdvae.data.shards import PreparedCorpus, Utterance
from avdvae.errors import UserError
from avdvae.inference.probes import Classes, Line, cepstra_of, correlation, face_of, mouth_of, voice_of
from avdvae.inference.transfer import Made, transfer
from avdvae.protocols import Batch, is_speech_prior
from avdvae.tasks.task import Measured, Part, Subject

WINDOW = 30  # frames that a reader is fitted to
KEPT = "kept"
DONORS = 3  # of each source


@dataclass(frozen=True)
class Readers:
    voice: Classes
    face: Classes | None
    mood: Classes | None
    opening: Line | None


class Transfer:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not is_speech_prior(subject.model):
            raise UserError(
                f"{type(subject.model).__name__} has no latents of power spectra to transfer: choose another task"
            )
        if len(subject.chosen.speakers) < 2:
            raise UserError(f"task transfer: {subject.corpus.root} has but one speaker here: choose a donor, too")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.shares("transfer")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        readers, measured = fit_readers(subject), Measured()
        rows = subject.chosen.utterances
        names = [KEPT, *(spec.name for spec in subject.model.latents)]
        for number, source in enumerate(subject.items(part).utterances, start=part.first):
            own = next(iter(subject.loader(subject.corpus.only([source]))))
            sums = Counter[str]()
            donors = _donors((*rows[number:], *rows[:number]), source)
            for donor in donors:
                other = next(iter(subject.loader(subject.corpus.only([donor]))))
                for name in names:
                    latents = [names[1]] if name == KEPT else [name]
                    made = transfer(subject.model, own, other, latents, share=float(name != KEPT))
                    told = {f"{name}_{what}": value for what, value in compare(made, (own, other), readers).items()}
                    sums.update({what: value for what, value in told.items() if name != KEPT or "donor" not in what})
            scores = {what: value / len(donors) for what, value in sums.items()}
            measured.rows += subject.rows(part, source.id, "clean" if "lips" in subject.model.sees else "", scores)
        return measured


def _donors(others: Sequence[Utterance], source: Utterance) -> list[Utterance]:
    """Of each of the next speakers the first utterance, in another mood where there is one."""
    others = [u for u in others if u.speaker != source.speaker]
    moved = [u for u in others if u.labels.get("emotion") != source.labels.get("emotion")]
    firsts: dict[str, Utterance] = {}
    for utterance in moved or others:
        firsts.setdefault(utterance.speaker, utterance)
    return list(firsts.values())[:DONORS]


def compare(made: Made, clips: tuple[Batch, Batch], readers: Readers) -> dict[str, float]:
    """What of the made clip is of the source, and what of the donor."""
    power_TF = made.said["power"].expected[0, 0].cpu()
    face_THW3 = made.said["face"].expected[0, 0].cpu() if "face" in made.said else None
    read = {"voice": readers.voice.name(voice_of(power_TF))}
    if readers.face and face_THW3 is not None:
        read["face"] = readers.face.name(face_of(face_THW3))
    if readers.mood:
        read["mood"] = readers.mood.name(_looks_and_sounds(power_TF, face_THW3))
    scores: dict[str, float] = {}
    for whose, clip in zip(("source", "donor"), clips, strict=True):
        labels, frames = clip.labels[0], min(len(power_TF), clip.mask.shape[1])
        for what, name in read.items():
            scores[f"{what}_of_{whose}"] = float(name == labels["emotion" if what == "mood" else "speaker"])
        assert clip.power is not None
        truth_TC = cepstra_of(clip.power[0, :frames].cpu())
        scores[f"cepstra_as_{whose}"] = correlation(cepstra_of(power_TF[:frames]), truth_TC)
        if readers.opening and face_THW3 is not None and clip.mouth is not None:
            opening_T = readers.opening(mouth_of(face_THW3[:frames]))
            truth_T = clip.mouth[0, :frames, 0].cpu()
            scores[f"opening_as_{whose}"] = correlation(opening_T[:, None], truth_T[:, None])
    return scores


@lru_cache(maxsize=1)
def fit_readers(subject: Subject) -> Readers:
    own, others = (
        [_real(*window) for window in windows(subject, corpus)]
        for corpus in (subject.corpus, PreparedCorpus(subject.corpus.root, "train", verify=False))
    )
    faces = "face" in subject.model.sees
    speakers = [window["speaker"] for window in own]
    moods = [window["mood"] for window in others]
    return Readers(
        voice=Classes.fit(torch.stack([window["voice"] for window in own]), speakers),
        face=Classes.fit(torch.stack([window["face"] for window in own]), speakers) if faces else None,
        mood=Classes.fit(torch.stack([window["both"] for window in others]), moods) if None not in moods else None,
        opening=Line.fit(
            torch.cat([window["mouth"] for window in others]), torch.cat([window["opening"] for window in others])
        )
        if faces
        else None,
    )


def windows(subject: Subject, corpus: PreparedCorpus) -> list[tuple[Batch, int, int]]:
    """Batches, an utterance of each, and how many of its frames hold data; those that are hardly begun are left out."""
    loader = Loader(
        corpus,
        subject.stft,
        WINDOW,
        batch_size=64,
        seed=0,
        shuffle=False,
        trim_db=subject.settings.trim_db,
        faces="face" in subject.model.sees,
    )
    return [
        (batch, b, frames)
        for batch in loader
        for b, frames in enumerate(batch.mask.sum(1).tolist())
        if 2 * frames > WINDOW
    ]


def _real(batch: Batch, b: int, frames: int) -> dict[str, Any]:
    assert batch.power is not None
    power_TF = batch.power[b, :frames]
    face_THW3 = None if batch.face is None else batch.face[b, :frames]
    read = {"speaker": batch.labels[b]["speaker"], "mood": batch.labels[b].get("emotion"), "voice": voice_of(power_TF)}
    read["both"] = _looks_and_sounds(power_TF, face_THW3)
    if face_THW3 is not None and batch.mouth is not None:
        opening_T = batch.mouth[b, :frames, 0]
        read |= {"face": face_of(face_THW3), "mouth": mouth_of(face_THW3), "opening": opening_T - opening_T.mean()}
    return read


def _looks_and_sounds(power_TF: Tensor, face_THW3: Tensor | None) -> Tensor:
    """All that there is to read a mood from."""
    return torch.cat([voice_of(power_TF), *([] if face_THW3 is None else [face_of(face_THW3)])])
