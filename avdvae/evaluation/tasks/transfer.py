"""Transfer: one latent of each utterance, the source, is replaced by that of another speaker, the donor, and the
result is compared with both.

The speaker, from voice and from face, and the emotion are classified; the opening of the mouth is regressed from
pixels. Classifiers and regression are fitted to real recordings of the train split, which has other speakers. The
speakers of the measured split are enrolled with their other clips, without the source and the donor. The opening is
correlated with that of the landmarks in the film, and the cepstra of the speech, which depend on its phonemes, with
those of the real speech.

Each source has several donors, whose mean is its row: `of_donor` is how often the predicted
class is the donor's, `as_donor` the correlation with the donor. With no latent exchanged, `kept`, this is resynthesis,
the upper bound of the transfer. `moments` is the baseline without a model: the source's spectra and face, with the
donor's mean and deviation of the logarithm of the power at each frequency, and the donor's mean face.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from avdvae.data.loader import Loader, seen_by
from avdvae.data.shard_files import Utterance
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.latents.probes import (
    Classes,
    Line,
    Speakers,
    cepstra_of,
    correlation,
    face_of,
    mouth_of,
    voice_of,
)
from avdvae.latents.transfer import Decoded, transfer
from avdvae.protocols import Batch, is_speech_prior

WINDOW = 30  # frames that a classifier is fitted to
KEPT, MOMENTS = "kept", "moments"
FAINT = 1e-4  # floor of the power in its logarithm, as in probes.loudness
DONORS = 3  # of each source


@dataclass(frozen=True)
class Predictors:
    voice: Callable[[Tensor], str]  # the speaker
    face: Callable[[Tensor], str] | None
    mood: Classes | None
    opening: Line | None


class Transfer:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if not is_speech_prior(subject.model):
            raise UserError(
                f"{type(subject.model).__name__} has no latents of power spectra to transfer: choose another task"
            )
        counts = Counter(utterance.speaker for utterance in subject.corpus.utterances)
        if single := [speaker for speaker in subject.chosen.speakers if counts[speaker] < 2]:
            raise UserError(
                f"task transfer: {', '.join(single[:5])} has one utterance in {subject.corpus.root}, and speakers are "
                "enrolled with other utterances than the source: give two or more of each speaker"
            )
        train = Counter(u.speaker for u in PreparedCorpus(subject.corpus.root, "train", verify=False).utterances)
        if (pairs := sum(count > 1 for count in train.values())) < 2:
            raise UserError(
                f"task transfer: {pairs} speakers of the train split of {subject.corpus.root} have two utterances or "
                "more, to which the classifier of speakers is fitted: give two such speakers or more"
            )
        if len(subject.chosen.speakers) < 2:
            raise UserError(f"task transfer: {subject.corpus.root} has only one speaker here: give two or more")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.parts("transfer")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, recordings = Measured(), _recordings(subject)
        rows = subject.chosen.utterances
        names = [KEPT, *(spec.name for spec in subject.model.latents)]
        for number, source in enumerate(subject.items(part).utterances, start=part.first):
            own = next(iter(subject.loader(subject.corpus.only([source]))))
            sums = Counter[str]()
            donors = _donors((*rows[number:], *rows[:number]), source)
            for donor in donors:
                other = next(iter(subject.loader(subject.corpus.only([donor]))))
                predictors = recordings.predictors((source.id, donor.id))
                for name in (*names, MOMENTS):
                    if name == MOMENTS:
                        made = exchange_moments(own, other)
                    else:
                        latents = [names[1]] if name == KEPT else [name]
                        made = _expected(transfer(subject.model, own, other, latents, share=float(name != KEPT)))
                    agreement = compare(*made, (own, other), predictors)
                    named = {f"{name}_{what}": value for what, value in agreement.items()}
                    sums.update({what: value for what, value in named.items() if name != KEPT or "donor" not in what})
            scores = {what: value / len(donors) for what, value in sums.items()}
            measured.rows += subject.rows(part, source.id, "clean" if "lips" in subject.model.sees else "", scores)
        return measured


def _donors(others: Sequence[Utterance], source: Utterance) -> list[Utterance]:
    """The first utterance of each of the next speakers, with another emotion where there is one."""
    others = [u for u in others if u.speaker != source.speaker]
    contrasting = [u for u in others if u.labels.get("emotion") != source.labels.get("emotion")]
    firsts: dict[str, Utterance] = {}
    for utterance in contrasting or others:
        firsts.setdefault(utterance.speaker, utterance)
    return list(firsts.values())[:DONORS]


def _expected(decoded: Decoded) -> tuple[Tensor, Tensor | None]:
    """Power and face of the result."""
    face = decoded.likelihoods["face"].expected[0, 0].cpu() if "face" in decoded.likelihoods else None
    return decoded.likelihoods["power"].expected[0, 0].cpu(), face


def exchange_moments(source: Batch, donor: Batch) -> tuple[Tensor, Tensor | None]:
    """The source's power and face, with the donor's moments."""
    own, other = ((clip.need("power", Transfer)[0].cpu() + FAINT).log() for clip in (source, donor))
    (own_std, own_mean), (other_std, other_mean) = (torch.std_mean(x_TF, 0) for x_TF in (own, other))
    power_TF = ((own - own_mean) / own_std.clamp_min(1e-3) * other_std + other_mean).exp()
    if source.face is None or donor.face is None:
        return power_TF, None
    faces = [clip[0].cpu() / 255 for clip in (source.face, donor.face)]
    return power_TF, (faces[0] - faces[0].mean(0) + faces[1].mean(0)).clamp(0, 1)


def compare(
    power_TF: Tensor, face_THW3: Tensor | None, clips: tuple[Batch, Batch], predictors: Predictors
) -> dict[str, float]:
    """Agreement of the result with the source and with the donor."""
    predicted = {"voice": predictors.voice(voice_of(power_TF))}
    if predictors.face and face_THW3 is not None:
        predicted["face"] = predictors.face(face_of(face_THW3))
    if predictors.mood:
        predicted["mood"] = predictors.mood.name(_voice_and_face(power_TF, face_THW3))
    scores: dict[str, float] = {}
    for whose, clip in zip(("source", "donor"), clips, strict=True):
        labels, frames = clip.labels[0], min(len(power_TF), clip.mask.shape[1])
        for what, name in predicted.items():
            scores[f"{what}_of_{whose}"] = float(name == labels["emotion" if what == "mood" else "speaker"])
        assert clip.power is not None
        truth_TC = cepstra_of(clip.power[0, :frames].cpu())
        scores[f"cepstra_as_{whose}"] = correlation(cepstra_of(power_TF[:frames]), truth_TC)
        if predictors.opening and face_THW3 is not None and clip.mouth is not None:
            opening_T = predictors.opening(mouth_of(face_THW3[:frames]))
            truth_T = clip.mouth[0, :frames, 0].cpu()
            scores[f"opening_as_{whose}"] = correlation(opening_T[:, None], truth_T[:, None])
    return scores


@dataclass(frozen=True)
class Recordings:
    """Features of the clips of the measured split, and what is fitted to those of the train split."""

    own: list[dict[str, Any]]
    speakers: dict[str, Speakers]  # by voice, and by face
    mood: Classes | None
    opening: Line | None

    def predictors(self, without: Sequence[str]) -> Predictors:
        """Speakers are enrolled with all their clips but those `without`."""
        own = [clip for clip in self.own if clip["id"] not in without]
        names = [clip["speaker"] for clip in own]
        enrolled = {
            what: fitted.enrolled(torch.stack([clip[what] for clip in own]), names)
            for what, fitted in self.speakers.items()
        }
        return Predictors(enrolled["voice"], enrolled.get("face"), self.mood, self.opening)


@lru_cache(maxsize=1)
def _recordings(subject: Subject) -> Recordings:
    train = PreparedCorpus(subject.corpus.root, "train", verify=False)
    own, whole = ([_features(*clip) for clip in windows(subject, corpus, None)] for corpus in (subject.corpus, train))
    cut = [_features(*window) for window in windows(subject, train)]
    speakers = {
        what: Speakers.fit(torch.stack([clip[what] for clip in whole]), [clip["speaker"] for clip in whole])
        for what in ("voice", "face")
        if what in own[0]
    }
    moods = [clip["mood"] for clip in cut]
    mood = Classes.fit(torch.stack([clip["both"] for clip in cut]), moods) if None not in moods else None
    opening = None
    if "face" in subject.model.sees:
        opening = Line.fit(torch.cat([clip["mouth"] for clip in cut]), torch.cat([clip["opening"] for clip in cut]))
    return Recordings(own, speakers, mood, opening)


def windows(subject: Subject, corpus: PreparedCorpus, length: int | None = WINDOW) -> list[tuple[Batch, int, int]]:
    """Batches, an utterance of each, and how many of its frames hold data; windows less than half full are left out."""
    loader = Loader(
        corpus,
        subject.stft,
        length,
        batch_size=64,
        seed=0,
        shuffle=False,
        trim_db=subject.settings.trim_db,
        **seen_by(subject.model),
    )
    return [
        (batch, b, frames)
        for batch in loader
        for b, frames in enumerate(batch.mask.sum(1).tolist())
        if 2 * frames > WINDOW
    ]


def _features(batch: Batch, b: int, frames: int) -> dict[str, Any]:
    assert batch.power is not None
    power_TF = batch.power[b, :frames]
    face_THW3 = None if batch.face is None else batch.face[b, :frames]
    features = {"id": batch.ids[b], "speaker": batch.labels[b]["speaker"], "mood": batch.labels[b].get("emotion")}
    features["voice"] = voice_of(power_TF)
    features["both"] = _voice_and_face(power_TF, face_THW3)
    if face_THW3 is not None and batch.mouth is not None:
        opening_T = batch.mouth[b, :frames, 0]
        features |= {"face": face_of(face_THW3), "mouth": mouth_of(face_THW3), "opening": opening_T - opening_T.mean()}
    return features


def _voice_and_face(power_TF: Tensor, face_THW3: Tensor | None) -> Tensor:
    """The features that emotions are classified from."""
    return torch.cat([voice_of(power_TF), *([] if face_THW3 is None else [face_of(face_THW3)])])
