"""Mixtures for other systems, and scores of the wavs that they make of them.

MIXTURES/settings.yaml   the corpus and the settings of evaluation from which the mixtures follow
MIXTURES/mixtures.csv    a `Mixture` a row
MIXTURES/noisy/          the mixtures, mono wavs at 16 kHz
MIXTURES/clean/          where asked for, the references of the same names, at the level of the mixtures

They are those of the task enhancement. One that would clip is divided by the smallest power of 2 that brings its peak
below 1: its `gain`, of mixture and reference alike. The metrics do not depend on the level of an estimate.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from avdvae.data.corpora import find_corpus
from avdvae.data.cutters import Cutter
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, check_settings, one_line, reading
from avdvae.evaluation.measure import ENHANCED, config_of, find_other_runs, measure_and_report, settings_of
from avdvae.evaluation.tasks.enhancement import Enhancement, Estimates, label_of, mixtures, source_of
from avdvae.evaluation.tasks.task import Evaluation, Part, Subject, file_name
from avdvae.files import new_folder
from avdvae.progress import progress_bar
from avdvae.runs import Run, create_run
from avdvae.signals.audio import LONGEST_HOP, WINDOW, Stft
from avdvae.signals.clock import RATE

MAY_CHANGE = ("metrics", "examples", "workers")  # the other settings of evaluation decide the mixtures
_NAMED = 3  # files in an error


@dataclass(frozen=True)
class Mixture:
    file: str
    item: str
    speaker: str
    noise: str
    snr: float | None
    samples: int
    gain: float  # of the file


class WavFolder(Estimates):
    """The wavs in a folder, by the names of their mixtures."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def read(self, part: Part, item: str, mixture_N: np.ndarray) -> np.ndarray:
        """A file that is shorter or longer than the mixture is padded or cut at its end."""
        samples = _read(self.folder / wav_name(part, item))[: len(mixture_N)] / np.float32(gain_of(mixture_N))
        return np.pad(samples, (0, len(mixture_N) - len(samples)))


class Mixtures(NamedTuple):
    """The mixtures of a prepared corpus by settings of evaluation."""

    prepared: Path
    settings: Evaluation

    @classmethod
    def of_run(cls, run: Run) -> Mixtures:
        """Those of the evaluation of a run."""
        return cls(find_corpus(run.config), settings_of(run.config["evaluate"]))

    @classmethod
    def in_folder(cls, folder: Path, prepared: Path | None = None) -> Mixtures:
        """Those that `write` has written; `prepared`: where the corpus is now."""
        path = folder / "settings.yaml"
        if not path.is_file():
            raise UserError(f"{folder} holds no mixtures, for it has no settings.yaml: write them with `mixtures out=`")
        with reading(path, "file of settings", "write the mixtures again"):
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
            found = cls(prepared or Path(given["prepared"]), settings_of(given["evaluate"]))
            digest = given["corpus_sha256"]
        if found._corpus_sha256() != digest:
            raise UserError(f"{found.prepared} is not the corpus that {folder} was made of: give that, or new mixtures")
        return found

    def subject(self, model: Estimates, out: Path, name: str) -> Subject:
        corpus = PreparedCorpus(self.prepared, self.settings.split, verify=False)
        settings = replace(self.settings, tasks=("enhancement",))
        return Subject(model, corpus, Stft(LONGEST_HOP), None, settings, out, name)

    def write(self, out: Path, clean: bool = False, bits: int = 16) -> int:
        """Write the mixtures, and their references if `clean`, as wavs of 16 bits, or 32 (floats); returns how many."""
        if bits not in (16, 32):
            raise UserError(f"bits={bits}: give 16, or 32 for samples that are floats")
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty: give another out=")
        subject = self.subject(WavFolder(out), out, "")
        subject.chosen.verify()
        rows: list[Mixture] = []
        with new_folder(out) as new:
            for name in ("noisy", "clean") if clean else ("noisy",):
                (new / name).mkdir()
            for row, signals in _made(subject):
                for name, signal in signals.items():
                    if name == "noisy" or clean:
                        _write(new / name / row.file, row.gain * signal, bits)
                rows.append(row)
            with (new / "mixtures.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, [field.name for field in fields(Mixture)], lineterminator="\n")
                table.writeheader()
                rows.sort(key=lambda row: (row.noise, row.snr or 0, row.item))
                table.writerows(asdict(row) for row in rows)
            noises = [str(Path(noise).resolve()) if Path(noise).is_dir() else noise for noise in self.settings.noises]
            kept: dict[str, Any] = {"prepared": str(self.prepared.resolve()), "corpus_sha256": self._corpus_sha256()}
            kept["evaluate"] = asdict(replace(self.settings, tasks=["enhancement"], noises=noises))
            (new / "settings.yaml").write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), "utf-8")
        return len(rows)

    def _corpus_sha256(self) -> str:
        corpus = PreparedCorpus(self.prepared, self.settings.split, verify=False)
        return hashlib.sha256("".join(u.id + u.sha256 for u in corpus.utterances).encode()).hexdigest()


def evaluate_folder(
    enhanced: Path,
    made_of: Mixtures,
    out: Path | None = None,
    name: str | None = None,
    compare: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Score the wavs in a folder, which another system made of the files in MIXTURES/noisy; returns the folder of the
    results, which has the files of any evaluation.

    out       None: ENHANCED/evaluations/<date-time>; the same `out` continues an interrupted evaluation
    name      of the system; None: that of the folder
    compare   runs or evaluations to compare with, paired by mixture
    changes   settings of evaluation, of MAY_CHANGE
    """
    changes = dict(changes or {})
    if wrong := sorted(changes.keys() - set(MAY_CHANGE)):
        raise UserError(
            f"evaluate.{wrong[0]} decides the mixtures, which are there already: give {', '.join(MAY_CHANGE)}, or "
            "write other mixtures"
        )
    check_settings(Evaluation, "evaluate", **changes)
    made_of = made_of._replace(settings=replace(made_of.settings, **changes))
    others = find_other_runs(compare)
    name = name or enhanced.resolve().name
    out = out or enhanced / "evaluations" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    subject = made_of.subject(WavFolder(enhanced), out, name)
    digest = check_files(subject, enhanced)
    config = {"exp": name, ENHANCED: str(enhanced.resolve()), "sha256": digest, "prepared": str(made_of.prepared)}
    config |= {"evaluate": {key: _plain(value) for key, value in asdict(subject.settings).items()}}
    begun = (out / "config.yaml").exists()
    if begun and config_of(out) != config:
        raise UserError(f"{out} holds an evaluation of other wavs or with other settings: choose another out=")
    evaluation = create_run(out, config)
    with nullcontext() if begun else evaluation.undone_unless("results.csv"):
        measure_and_report(subject, config, others)
    return out


def check_files(subject: Subject, folder: Path) -> str:
    """Refuse wavs that are missing, of another rate or length, or not of the mixtures; returns their SHA-256."""
    import soundfile

    if not folder.is_dir():
        raise UserError(f"enhanced={folder} is no folder: give the one with the enhanced wavs")
    wanted, found = _lengths(subject), {path.name for path in folder.glob("*.wav")}
    if missing := [name for name in wanted if name not in found]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(wanted)} enhanced mixtures, {_some(missing)}: enhance all files of "
            "noisy/ and keep their names"
        )
    if extra := sorted(found - wanted.keys()):
        raise UserError(
            f"{folder} has {len(extra)} wavs that are none of the mixtures, {_some(extra)}: move them elsewhere, or "
            "give the mixtures that they were made of"
        )
    digest, kinds, lengths, cut = hashlib.sha256(), list[str](), list[str](), list[int]()
    for name, samples in wanted.items():
        try:
            info = soundfile.info(folder / name)
        except soundfile.SoundFileError as error:
            raise UserError(f"{folder / name} cannot be read as sound ({one_line(error)}): write it again") from error
        digest.update((folder / name).read_bytes())
        if (info.samplerate, info.channels) != (RATE, 1):
            kinds.append(f"{name} ({info.samplerate} Hz, channels: {info.channels})")
        if (off := abs(info.frames - samples)) > WINDOW:
            lengths.append(f"{name} ({info.frames} samples, its mixture {samples})")
        elif off:
            cut.append(off)
    if kinds:
        raise UserError(f"{folder} has {len(kinds)} wavs that are not mono at {RATE} Hz, {_some(kinds)}: convert them")
    if lengths:
        raise UserError(
            f"{folder} has {len(lengths)} wavs of another length than their mixtures, {_some(lengths)}: up to {WINDOW} "
            "samples are padded or cut at the end, and more is refused"
        )
    if cut:
        print(f"note       {len(cut)} wavs are up to {max(cut)} samples shorter or longer: padded or cut", flush=True)
    return digest.hexdigest()


def wav_name(part: Part, item: str) -> str:
    return file_name(item, part.noise, "" if part.snr is None else f"{part.snr:g}dB") + ".wav"


def gain_of(mixture_N: np.ndarray) -> float:
    """The power of 2 that brings a peak of 1 or more below 1."""
    return 2.0 ** -max(0, math.frexp(float(np.abs(mixture_N).max()))[1])


def _lengths(subject: Subject) -> dict[str, int]:
    """Samples of each mixture, by the name of its file."""
    cutter = subject.loader(subject.chosen).cutter
    assert isinstance(cutter, Cutter)
    samples = dict(zip(cutter.ids, cutter.length.tolist(), strict=True))
    parts = Enhancement().parts(subject)
    named = [(wav_name(part, u.id), samples[u.id]) for part in parts for u in subject.items(part).utterances]
    if len(lengths := dict(named)) < len(named):
        raise UserError("two mixtures have one file name: ids of utterances must differ in more than / and _")
    return lengths


def _made(subject: Subject) -> Iterator[tuple[Mixture, dict[str, np.ndarray]]]:
    """The mixtures, with their signals `noisy` and `clean`."""
    speakers = {u.id: u.speaker for u in subject.chosen.utterances}
    sources = {label_of(noise): source_of(noise, subject) for noise in subject.settings.noises}
    with progress_bar() as progress:
        task = progress.add_task("mixing", total=len(_lengths(subject)))
        for part in Enhancement().parts(subject):
            for batch, _ in mixtures(subject, part, subject.items(part), sources[part.noise], ""):
                assert batch.waveform is not None and batch.mixture is not None and batch.lengths is not None
                for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                    noisy, clean = (signal[b, :n].numpy() for signal in (batch.mixture, batch.waveform))
                    about = wav_name(part, item), item, speakers[item], part.noise, part.snr
                    yield Mixture(*about, n, gain_of(noisy)), {"noisy": noisy, "clean": clean}
                    progress.advance(task)


def _write(path: Path, samples_N: np.ndarray, bits: int) -> None:
    from scipy.io import wavfile

    from avdvae.enhancement.recordings import in_16_bits

    wavfile.write(path, RATE, in_16_bits(samples_N) if bits == 16 else samples_N.astype(np.float32))


def _read(path: Path) -> np.ndarray:
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
