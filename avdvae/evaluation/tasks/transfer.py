"""Transfer: each utterance, the source, with one latent of another speaker's, a donor; and what then is whose.

The speaker, as voice and as face, and the mood are read by classifiers, and the opening of the mouth by a regression
from pixels; all are fitted to real recordings of the train split, which has other speakers. Those of the split that is
measured are enrolled by their other clips, not by the source and the donor themselves. The opening in a made face is
held against what landmarks found in the film, and the cepstra of made speech, which depend on its phonemes, against
those of the real.
Each source has several donors, whose mean is its row: `of_donor` says how often what was read is the donor's,
`as_donor` how closely it moves with the donor's. With no latent exchanged, `kept`, this is resynthesis: what the best
transfer could reach. `moments` is the baseline without a model: the source's own spectra and face, with the donor's
mean and deviation of the logarithm of the power at each frequency, and the donor's mean face.
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
from avdvae.latents.transfer import Made, transfer
from avdvae.protocols import Batch, is_speech_prior

WINDOW = 30  # frames that a reader is fitted to
KEPT, MOMENTS = "kept", "moments"
FAINT = 1e-4  # power below which the logarithm hardly falls, as in probes.loudness
DONORS = 3  # of each source


@dataclass(frozen=True)
class Readers:
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
                f"task transfer: {', '.join(single[:5])} has one utterance in {subject.corpus.root}, and readers of "
                "speakers are enrolled by others than the one that is judged: give two or more of each speaker"
            )
        train = Counter(u.speaker for u in PreparedCorpus(subject.corpus.root, "train", verify=False).utterances)
        if (pairs := sum(count > 1 for count in train.values())) < 2:
            raise UserError(
                f"task transfer: {pairs} speakers of the train split of {subject.corpus.root} have two utterances or "
                "more, and what tells speakers apart is learned from those: give two speakers or more"
            )
        if len(subject.chosen.speakers) < 2:
            raise UserError(f"task transfer: {subject.corpus.root} has but one speaker here: choose a donor, too")

    def parts(self, subject: Subject) -> list[Part]:
        return subject.shares("transfer")

    @torch.no_grad()
    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, real = Measured(), _recordings(subject)
        rows = subject.chosen.utterances
        names = [KEPT, *(spec.name for spec in subject.model.latents)]
        for number, source in enumerate(subject.items(part).utterances, start=part.first):
            own = next(iter(subject.loader(subject.corpus.only([source]))))
            sums = Counter[str]()
            donors = _donors((*rows[number:], *rows[:number]), source)
            for donor in donors:
                other = next(iter(subject.loader(subject.corpus.only([donor]))))
                readers = real.readers((source.id, donor.id))
                for name in (*names, MOMENTS):
                    if name == MOMENTS:
                        made = exchange_moments(own, other)
                    else:
                        latents = [names[1]] if name == KEPT else [name]
                        made = _expected(transfer(subject.model, own, other, latents, share=float(name != KEPT)))
                    told = {f"{name}_{what}": value for what, value in compare(*made, (own, other), readers).items()}
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


def _expected(made: Made) -> tuple[Tensor, Tensor | None]:
    """Power and face."""
    face = made.said["face"].expected[0, 0].cpu() if "face" in made.said else None
    return made.said["power"].expected[0, 0].cpu(), face


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
    power_TF: Tensor, face_THW3: Tensor | None, clips: tuple[Batch, Batch], readers: Readers
) -> dict[str, float]:
    """What of the made clip is of the source, and what of the donor."""
    read = {"voice": readers.voice(voice_of(power_TF))}
    if readers.face and face_THW3 is not None:
        read["face"] = readers.face(face_of(face_THW3))
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


@dataclass(frozen=True)
class Recordings:
    """Features of the clips of the split that is measured, and what is fitted to those of the train split."""

    own: list[dict[str, Any]]
    speakers: dict[str, Speakers]  # by voice, and by face
    mood: Classes | None
    opening: Line | None

    def readers(self, without: Sequence[str]) -> Readers:
        """Speakers are enrolled by all their clips but those `without` which they are to be judged."""
        own = [clip for clip in self.own if clip["id"] not in without]
        names = [clip["speaker"] for clip in own]
        enrolled = {
            what: fitted.enrolled(torch.stack([clip[what] for clip in own]), names)
            for what, fitted in self.speakers.items()
        }
        return Readers(enrolled["voice"], enrolled.get("face"), self.mood, self.opening)


@lru_cache(maxsize=1)
def _recordings(subject: Subject) -> Recordings:
    train = PreparedCorpus(subject.corpus.root, "train", verify=False)
    own, whole = ([_real(*clip) for clip in windows(subject, corpus, None)] for corpus in (subject.corpus, train))
    cut = [_real(*window) for window in windows(subject, train)]
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
    """Batches, an utterance of each, and how many of its frames hold data; those that are hardly begun are left out."""
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


def _real(batch: Batch, b: int, frames: int) -> dict[str, Any]:
    assert batch.power is not None
    power_TF = batch.power[b, :frames]
    face_THW3 = None if batch.face is None else batch.face[b, :frames]
    read = {"id": batch.ids[b], "speaker": batch.labels[b]["speaker"], "mood": batch.labels[b].get("emotion")}
    read["voice"] = voice_of(power_TF)
    read["both"] = _looks_and_sounds(power_TF, face_THW3)
    if face_THW3 is not None and batch.mouth is not None:
        opening_T = batch.mouth[b, :frames, 0]
        read |= {"face": face_of(face_THW3), "mouth": mouth_of(face_THW3), "opening": opening_T - opening_T.mean()}
    return read


def _looks_and_sounds(power_TF: Tensor, face_THW3: Tensor | None) -> Tensor:
    """All that there is to read a mood from."""
    return torch.cat([voice_of(power_TF), *([] if face_THW3 is None else [face_of(face_THW3)])])
