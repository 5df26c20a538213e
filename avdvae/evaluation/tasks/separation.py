"""Separation: utterances of the split in mixtures with those of other speakers, or of another corpus.

Every utterance is mixed with one (of the other sex and of the same, where the corpus has the sexes) or with two of
other speakers, or, by evaluate.beside=RUN, with one of the corpus of another run, whose model is the prior of that
source: a flute, or a talker of the same corpus who is not in the picture. Mixtures last as long as their shortest
source. Talkers are within 2.5 dB of each other, sources of two runs within 10 dB. By evaluate.background=[White], noise
is added at the SNRs of evaluate.snrs. With evaluate.talkers=1, it is all that is added: enhancement, and with a run
beside, enhancement with its model as a second prior, of the voices in babble.

Models with lips are given those of each talker (lips clean), those of another (swapped) and black pictures (none).
Where all priors are alike and without lips, estimates are scored in the best order.

    metric          of the utterance itself; other_metric: the mean over the other sources
    model           NAME: mixing=sum; NAME assignment: mixing=assignment; see enhancement/sources.py
    mixture         the mixture as the estimate of each source
    NMF             a dictionary for each source, from the training split, of the sex of the talker where it is known
    binary mask     the ideal one: 1 where the source is the strongest
    ratio mask      the ideal one: the power of the source relative to the sum of the powers
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avdvae.data.conditions import Condition
from avdvae.data.corpora import find_corpus
from avdvae.data.loader import Loader, seen_by
from avdvae.data.shard_files import Utterance
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.dictionaries import dictionary_filters, learn_dictionary
from avdvae.enhancement.separation import separate
from avdvae.enhancement.sources import Assignment, Sources
from avdvae.errors import UserError
from avdvae.evaluation.tasks.task import Measured, Part, Subject
from avdvae.protocols import PICTURES, Batch, SpeechPrior, why_no_speech_prior
from avdvae.randomness import stream
from avdvae.runs import open_run
from avdvae.signals.audio import Stft
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import FAILED, INPUT, OTHER, failed, score, si_sdr

OTHER_SEX, SAME_SEX = "other sex", "same sex"
TALKERS_DB, RUNS_DB = 2.5, 10.0  # the largest difference in level
STATES = ("clean", "swapped", "none")  # of the lips
FITS = (-100.0, 100.0)  # dB, of estimates without anything of a source and without anything else
ENOUGH = 60  # utterances from which a dictionary is learned


@dataclass(frozen=True)
class Beside:
    """Another run: its model, and the corpus of the other source."""

    model: SpeechPrior
    corpus: PreparedCorpus
    name: str


@dataclass(frozen=True)
class Mixed:
    """A mixture at RATE. sources: the first is the utterance itself; clips: theirs, as the loader gives them"""

    id: str
    sources_JN: Float[np.ndarray, "J N"]
    mixture_N: Float[np.ndarray, " N"]
    clips: Sequence[Batch]
    utterances: Sequence[Utterance]


class Separation:
    takes: Literal["sound", "poses"] = "sound"

    def check(self, subject: Subject) -> None:
        if reason := why_no_speech_prior(subject.model):
            raise UserError(reason)
        priors_of(subject)
        other, kinds = beside_of(subject), kinds_of(subject)
        if other and subject.settings.talkers == 1 and PICTURES & {*other.model.sees}:
            raise UserError(
                f"evaluate.beside={subject.settings.beside}: {type(other.model).__name__} takes pictures, and "
                "evaluate.background has none: give a run of a model of sound, such as exp=vae"
            )
        for utterance in subject.chosen.utterances:
            for kind in kinds:
                partners_of(subject, utterance, kind)

    def parts(self, subject: Subject) -> list[Part]:
        s, parts = subject.settings, []
        for kind in kinds_of(subject):
            if s.talkers != 1:
                parts += subject.parts("separation", kind)
            for noise in s.background or ():
                parts += [part for snr in s.snrs for part in subject.parts("separation", f"{kind}, {noise}", snr)]
        return parts

    def measure(self, subject: Subject, part: Part) -> Measured:
        measured, kind = Measured(), part.noise.partition(", ")[0]
        utterances = subject.items(part).utterances
        for first in range(0, len(utterances), subject.batch_size):
            mixed = [mix(subject, part, kind, u) for u in utterances[first : first + subject.batch_size]]
            for lips in states_of(subject):
                for name, estimates_BJN, rtf in self._estimates(subject, mixed, lips):
                    for one, estimates_JN in zip(mixed, estimates_BJN, strict=True):
                        if exchangeable(subject, lips):
                            estimates_JN = in_the_best_order(one.sources_JN, estimates_JN)
                        scores = scores_of(subject, one, estimates_JN) | {"rtf": rtf}
                        measured.rows += [replace(row, model=name) for row in subject.rows(part, one.id, lips, scores)]
                        if name == subject.name and one.id in subject.shown and part.snr is None:
                            signals = {"clean": one.sources_JN[0], "mixture": one.mixture_N, "source": estimates_JN[0]}
                            measured.examples.append(subject.example(part, one.id, lips, signals, scores))
            for one in mixed:
                for method, estimates_JN in baselines(subject, one, noise=part.snr is not None).items():
                    rows = subject.rows(part, one.id, "", scores_of(subject, one, estimates_JN))
                    measured.rows += [replace(row, model=method) for row in rows]
        return measured

    def _estimates(
        self, subject: Subject, mixed: Sequence[Mixed], lips: str
    ) -> list[tuple[str, list[np.ndarray], float]]:
        """Of each mixing: the name in the results, the sources of each mixture, and the real-time factor."""
        model, batch = Sources(priors_of(subject)).eval(), batch_of(subject, mixed, lips)
        assert subject.vem and batch.lengths is not None
        assignment = Assignment(seed=subject.vem.seed)
        algorithms = {"sum": (subject.name, subject.vem), "assignment": (f"{subject.name} assignment", assignment)}
        found = []
        for mixing in subject.settings.mixing or algorithms:
            name, settings = algorithms[mixing]
            began = time.perf_counter()
            sources_JBN = separate(model, batch, subject.stft, settings).sources.cpu().numpy()
            rtf = (time.perf_counter() - began) * RATE / int(batch.lengths.sum())
            each = [
                sources_JBN[: len(one.sources_JN), b, : len(one.mixture_N)]  # a second prior may be of the background
                for b, one in enumerate(mixed)
            ]
            found.append((name, each, rtf))
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


def talkers_of(subject: Subject) -> int:
    return 2 if subject.settings.talkers is None else subject.settings.talkers


def kinds_of(subject: Subject) -> list[str]:
    """Of mixtures, in the column of noises."""
    count = talkers_of(subject)
    if count > 1 and (other := beside_of(subject)):
        return [other.name]
    speakers = {u.speaker: u.labels.get("sex") for u in subject.corpus.utterances}
    sexes = [*speakers.values()]
    if count == 2 and all(sexes.count(sex) > 1 for sex in ("M", "F")) and None not in sexes:
        return [OTHER_SEX, SAME_SEX]
    return [f"{count} talkers" if count > 1 else "1 talker"]


def partners_of(subject: Subject, utterance: Utterance, kind: str) -> list[Utterance]:
    """The utterances that are mixed with this one, of as many speakers."""
    rng, other = stream(utterance.id, subject.settings.seed, "partners", kind), beside_of(subject)
    wanted = talkers_of(subject) - 1
    among = other.corpus if other else subject.corpus
    known = [
        u for u in among.utterances if u.speaker != utterance.speaker and u.seconds >= subject.settings.min_seconds
    ]
    if kind in (OTHER_SEX, SAME_SEX):
        known = [u for u in known if (u.labels["sex"] == utterance.labels["sex"]) == (kind == SAME_SEX)]
    found: dict[str, Utterance] = {}
    for number in rng.permutation(len(known)).tolist():
        found.setdefault(known[number].speaker, known[number])
    if len(found) < wanted:
        raise UserError(
            f"{among.root} has {len(found)} speakers to mix with {utterance.id}, and {wanted} are needed: "
            "give fewer evaluate.talkers=, or a smaller evaluate.min_seconds="
        )
    return [*found.values()][:wanted]


def mix(subject: Subject, part: Part, kind: str, utterance: Utterance) -> Mixed:
    other = beside_of(subject)
    partners = partners_of(subject, utterance, kind)
    clips = [_clip(subject, subject.corpus, subject.model, utterance)]
    clips += [
        _clip(subject, *((other.corpus, other.model) if other else (subject.corpus, subject.model)), partner)
        for partner in partners
    ]
    waves = [clip.waveform[0].cpu().numpy() for clip in clips if clip.waveform is not None]
    samples = min(map(len, waves))
    rng, widest = stream(utterance.id, subject.settings.seed, "levels", kind), RUNS_DB if other else TALKERS_DB
    sources, power = [], float(np.square(waves[0][:samples]).mean())
    for j, wave in enumerate(waves):
        gain = 10 ** (rng.uniform(-widest, widest) / 20) if j else 1.0
        own = max(float(np.square(wave[:samples]).mean()), 1e-10)
        sources.append(wave[:samples] * np.float32(gain * (power / own) ** 0.5))
    sources_JN = np.stack(sources)
    mixture_N = sources_JN.sum(0)
    if part.snr is not None:
        condition = Condition(subject.corpus, part.noise.partition(", ")[2], part.snr, seed=subject.settings.seed)
        mixture_N = condition(utterance, 0, mixture_N, None)[0].astype(np.float32)
    return Mixed(utterance.id, sources_JN, mixture_N, clips, [utterance, *partners])


def _clip(subject: Subject, corpus: PreparedCorpus, model: Any, utterance: Utterance) -> Batch:
    """Whole, and alone in its batch."""
    s = subject.settings
    how = {**seen_by(model), "lips": corpus.has_lips and "lips" in model.sees}
    loader = Loader(corpus.only([utterance]), subject.stft, None, 1, s.seed, shuffle=False, trim_db=s.trim_db, **how)
    return next(iter(loader))


def batch_of(subject: Subject, mixed: Sequence[Mixed], lips: str) -> Batch:
    """With the pictures of each source: its own, those of the next one if they are swapped, or black ones."""
    stft = subject.stft
    frames = torch.tensor([stft.frames(len(one.mixture_N)) for one in mixed])
    pictures: dict[str, Tensor] = {}
    for name in ("lips", "confidence", "face"):
        if all(getattr(clip, name) is None for clip in mixed[0].clips):
            continue
        pictures[name] = pad_sequence(
            [_of_sources(one, name, count, lips) for one, count in zip(mixed, frames.tolist(), strict=True)],
            batch_first=True,
        )
    if lips == "none" and "lips" in Sources(priors_of(subject)).can_miss:
        pictures = {}
    return Batch(
        ids=tuple(one.id for one in mixed),
        mask=torch.arange(int(frames.max())) < frames[:, None],
        mixture=pad_sequence([torch.from_numpy(one.mixture_N) for one in mixed], batch_first=True),
        lengths=torch.tensor([len(one.mixture_N) for one in mixed]),
        lips=pictures.get("lips"),
        confidence=pictures.get("confidence"),
        face=pictures.get("face"),
    ).to(subject.device)


def _of_sources(mixed: Mixed, name: str, frames: int, lips: str) -> Tensor:
    """T J, and of pictures their pixels."""
    each = [getattr(clip, name) for clip in mixed.clips]
    like = next(values for values in each if values is not None)[0, :frames]
    of_each = [torch.zeros_like(like) if v is None or lips == "none" else v[0, :frames] for v in each]
    return torch.stack(of_each[1:] + of_each[:1] if lips == "swapped" else of_each, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Priors


def beside_of(subject: Subject) -> Beside | None:
    path = subject.settings.beside
    return None if path is None else _opened(path, subject.settings.split, subject.stft.hop, subject.device)


@lru_cache(maxsize=1)
def _opened(path: str, split: str, hop: int, device: str) -> Beside:
    run = open_run(Path(path))
    if run.stft.hop != hop:
        raise UserError(f"evaluate.beside={path} has a hop of {run.stft.hop}, and here it is {hop}: give them alike")
    corpus = PreparedCorpus(find_corpus(run.config), split, verify=False)
    return Beside(run.load_speech_prior(device), corpus, corpus.utterances[0].corpus)


def priors_of(subject: Subject) -> list[Any]:
    """Of each source."""
    priors = [subject.model, other.model] if (other := beside_of(subject)) else [subject.model] * talkers_of(subject)
    Sources(priors)  # refuses what cannot be added up
    return priors


def states_of(subject: Subject) -> Sequence[str]:
    """Of the lips."""
    if "lips" not in subject.model.sees:
        return ("",)
    two_faces = not beside_of(subject) and talkers_of(subject) > 1
    return STATES if two_faces else (STATES[0], STATES[-1])


def exchangeable(subject: Subject, lips: str) -> bool:
    """Whether all sources have the same prior, and no lips."""
    return not beside_of(subject) and lips in ("", "none")


# ---------------------------------------------------------------------------------------------------------------------
# Baselines and scores


def baselines(subject: Subject, mixed: Mixed, noise: bool) -> dict[str, Float[np.ndarray, "J N"]]:
    stft, sources_JN = subject.stft, torch.from_numpy(mixed.sources_JN)
    mixture_1N = torch.from_numpy(mixed.mixture_N)[None]
    spectrum_1TF = stft.analyse(mixture_1N)
    power_JTF, background_1TF = stft.power(sources_JN), stft.power(mixture_1N - sources_JN.sum(0))
    every = torch.cat([power_JTF, background_1TF])
    filters = {
        "binary mask": (every.argmax(0) == torch.arange(len(sources_JN))[:, None, None]).float(),
        "ratio mask": power_JTF / every.sum(0).clamp_min(1e-10),
    }
    if dictionaries := dictionaries_of(subject, mixed):
        scaled_TF = spectrum_1TF[0].abs().square() / mixture_1N.abs().max().clamp_min(1e-8).square()
        filters["NMF"] = dictionary_filters(scaled_TF, dictionaries, noise)
    found = {"mixture": np.repeat(mixed.mixture_N[None], len(sources_JN), 0)}
    for name, filter_JTF in filters.items():
        found[name] = stft.synthesise(filter_JTF * spectrum_1TF, len(mixed.mixture_N)).numpy()
    return found


def dictionaries_of(subject: Subject, mixed: Mixed) -> list[Tensor]:
    """Of each source; none where there is no training split."""
    other = beside_of(subject)
    pairs = [(other.corpus if j and other else subject.corpus, u) for j, u in enumerate(mixed.utterances)]
    found = [_dictionary(c.root, u.labels.get("sex"), subject.stft, subject.settings.seed) for c, u in pairs]
    return [] if any(one is None for one in found) else [one for one in found if one is not None]


@lru_cache(maxsize=8)
def _dictionary(root: Path, sex: str | None, stft: Stft, seed: int) -> Tensor | None:
    """From the first utterances of the training split, of speakers of this sex if it is known."""
    try:
        corpus = PreparedCorpus(root, "train", verify=False)
    except UserError:
        return None
    utterances = [u for u in corpus.utterances if sex is None or u.labels.get("sex") == sex]
    if not utterances:
        return None
    picked = stream("dictionary", seed).permutation(len(utterances))[:ENOUGH].tolist()
    loader = Loader(corpus.only([utterances[i] for i in picked]), stft, None, 1, seed, shuffle=False, lips=False)
    powers = [batch.power[0] for batch in loader if batch.power is not None]
    return learn_dictionary(torch.cat(powers)[:: max(1, sum(map(len, powers)) // 4000)], seed=seed)


def scores_of(subject: Subject, mixed: Mixed, estimates_JN: Float[np.ndarray, "J N"]) -> dict[str, float]:
    names = subject.settings.metrics
    pairs = zip(mixed.sources_JN, estimates_JN, strict=True)
    own, *others = (score(source, estimate, RATE, names) for source, estimate in pairs)
    own |= {OTHER + name: float(np.mean([one[name] for one in others])) for name in names if others}
    own[FAILED] = float(any(map(failed, estimates_JN)))
    before = score(mixed.sources_JN[0], mixed.mixture_N, RATE, names)
    own |= {INPUT + name: value for name, value in before.items()}
    if "si_sdr" in own:
        own["si_sdr_improvement"] = own["si_sdr"] - own[f"{INPUT}si_sdr"]
    return own


def in_the_best_order(
    sources_JN: Float[np.ndarray, "J N"], estimates_JN: Float[np.ndarray, "J N"]
) -> Float[np.ndarray, "J N"]:
    """By the mean SI-SDR."""

    def fit(order: Sequence[int]) -> float:
        pairs = zip(sources_JN, estimates_JN[[*order]], strict=True)
        return float(np.mean([np.clip(si_sdr(s, e), *FITS) if e.any() else FITS[0] for s, e in pairs]))

    return estimates_JN[[*max(permutations(range(len(estimates_JN))), key=fit)]]
