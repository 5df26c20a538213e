"""Parts measured side by side, in any order, by any process, are those that one process would have measured."""

import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from avdvae.data.prepare import Summary
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.measure import Unmeasured, measure, settings_of
from avdvae.evaluation.results import Result, read_results, write_results
from avdvae.evaluation.tasks.task import Evaluation, Part, Subject
from avdvae.models.cvae import CVAE
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.models.vqvae import SoundVQ
from avdvae.runs import Configuration, build_model, build_vem
from avdvae.signals.audio import Stft

RVAE_CONFIG = {"target": "avdvae.models.rvae.RVAE"}


@pytest.fixture
def subject(prepared: Summary, tmp_path: Path) -> Subject:
    torch.manual_seed(0)
    sound, both = VAE(hidden=8, dim=4), CVAE(hidden=8, dim=4)
    model = VAEMM(sound, both).eval().requires_grad_(False)
    settings = Evaluation(
        tasks=["enhancement", "resynthesis"], noises=["White"], snrs=[-5, 5], metrics=["si_sdr"], examples=1, workers=1
    )
    corpus = PreparedCorpus(prepared.out, "test", verify=False)
    vem = Vem(FreeGaussian(final_draws=2), iterations=3, rank=2)
    return Subject(model, corpus, Stft(533), vem, settings, tmp_path, "vae_mm", part_size=1)


def heard(rows: list[Result]) -> list[tuple[Any, ...]]:
    """What does not depend on the machine or the folder."""
    return [(row.task, row.item, row.snr, row.lips, row.metric, row.value) for row in rows if row.metric != "rtf"]


def test_processes_and_interruptions_change_nothing(subject: Subject, tmp_path: Path) -> None:
    whole = measure(subject)
    assert {(row.task, row.snr, row.lips) for row in whole} == {
        *(("enhancement", snr, lips) for snr in (-5, 5) for lips in ("clean", "occluded")),
        ("resynthesis", None, "clean"),
    }
    weights = {(row.lips, row.metric) for row in whole if row.metric.startswith("lips_weight") and 0 <= row.value <= 1}
    assert weights == {("clean", "lips_weight"), ("occluded", "lips_weight"), ("occluded", "lips_weight_hidden")}
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert [len(example["audio"]) for example in examples] == [3, 3, 2] and len(list(tmp_path.glob("audio/*.wav"))) == 8

    several = replace(subject, settings=replace(subject.settings, workers=2), out=tmp_path / "several")
    assert heard(measure(several)) == heard(whole)
    left = [row for row in whole if (row.snr, row.item) != (5, whole[0].item)]  # as if it had stopped before that
    write_results(tmp_path / "results.csv", left)
    again = measure(subject)
    assert heard(again) == heard(whole) == heard(read_results(tmp_path / "results.csv"))
    kept = [row for row in again if row.metric == "rtf" and row in left]
    assert len(kept) == sum(row.metric == "rtf" for row in left)  # measured once


def test_a_task_that_a_model_or_a_corpus_is_not_made_for_is_refused(subject: Subject) -> None:
    with pytest.raises(UserError, match=r"no task is called singing: choose from enhancement, "):
        settings_of({"tasks": ["singing"]})
    motion = replace(subject, settings=replace(subject.settings, tasks=["motion"]))
    with pytest.raises(UserError, match=r"tasks=motion: .* holds sound, so choose from enhancement, streaming"):
        measure(motion)
    with pytest.raises(UserError, match="SoundVQ cannot enhance, for it has no latents to infer"):
        measure(replace(subject, model=SoundVQ()))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("said", "made"),
    [
        ("evaluate.snrs=loud: give a list in brackets, each item a number", lambda: settings_of({"snrs": "loud"})),
        ("evaluate.snrs=['0']: give a list", lambda: settings_of({"snrs": ["0"]})),
        ("evaluate.tasks=f0: give a list in brackets, each item a word", lambda: settings_of({"tasks": "f0"})),
        ("evaluate.workers=2.5: give a whole number, or null", lambda: settings_of({"workers": 2.5})),
        ("evaluate.per_speaker=0: give 1 or more", lambda: settings_of({"per_speaker": 0})),
        ("evaluate.trim_db=-3: give a number above 0, or null", lambda: settings_of({"trim_db": -3})),
        ("evaluate.neighbours=[]: give numbers of 1 or more", lambda: settings_of({"neighbours": []})),
        ("lips cannot be dark: choose from clean, occluded", lambda: settings_of({"lips": ["dark"]})),
        ("evaluate.noises: Whit is no folder of recordings", lambda: settings_of({"noises": ["White", "Whit"]})),
        ("no metric is called loudness: choose from si_sdr", lambda: settings_of({"metrics": ["loudness"]})),
        ("enhance.batch_size=0", lambda: build_vem({"estep": {"name": "point"}, "batch_size": 0})),
        ("compare=runs/a: give a list", lambda: Configuration.check({"compare": "runs/a"})),
        ("lips=67: give its settings", lambda: Configuration.check({"lips": 67})),
        ("RVAE cannot be built with hidden=0: hidden_size must be", lambda: build_model(RVAE_CONFIG | {"hidden": 0})),
        (
            "VAE with hidden=0 has layers without units",
            lambda: build_model({"target": "avdvae.models.vae.VAE", "hidden": 0}),
        ),
        ("RVAE cannot be built with dim=wide: ", lambda: build_model(RVAE_CONFIG | {"dim": "wide"})),
    ],
)
def test_settings_are_refused_before_anything_is_done(said, made):
    with pytest.raises(UserError, match=re.escape(said)):
        made()


def test_settings_that_fit_are_taken():
    given = {"noises": ["White", str(Path(__file__).parent)], "snrs": [-5, 0.5], "workers": None, "trim_db": 30}
    assert {name: getattr(settings_of(given), name) for name in given} == given


class Deadly(Subject):
    """Kills the process that measures its first utterance in noise."""

    def loader(self, items, condition=None):
        if condition and items.utterances[0].id == self.chosen.utterances[0].id and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loader(items, condition)


def test_a_part_whose_process_is_killed_is_named_and_the_others_are_measured(subject: Subject, tmp_path: Path) -> None:
    settings = replace(subject.settings, workers=2, snrs=[5])
    fields: dict[str, Any] = {name: getattr(subject, name) for name in subject.__dataclass_fields__}
    deadly = Deadly(**{**fields, "settings": settings})
    first, *others = [utterance.id for utterance in deadly.chosen.utterances]
    with pytest.raises(Unmeasured, match=f"1 of .* parts could not be measured.*enhancement White 5 dB of {first} to"):
        measure(deadly)
    rows = read_results(tmp_path / "results.csv")
    assert {row.item for row in rows if row.task == "enhancement"} == set(others)
    assert {row.item for row in rows if row.task == "resynthesis"} == {first, *others}
    assert {row.item for row in measure(replace(subject, settings=replace(settings, workers=1)))} == {first, *others}


def test_results_of_something_else_or_damaged_examples_are_named(subject: Subject, tmp_path: Path) -> None:
    (row,) = subject.rows(Part("enhancement", "Car", 5), subject.chosen.utterances[0].id, "", {"si_sdr": 1.0})
    write_results(tmp_path / "results.csv", [replace(row, item="nobody")])
    with pytest.raises(UserError, match=r"results.csv has enhancement Car 5.0 nobody, which this evaluation does not"):
        measure(subject)
    (tmp_path / "results.csv").unlink()
    for content in ("[1, 2]", '{"title": 3}', "[{", '[{"title": "a", "audio": []}]'):
        (tmp_path / "examples.json").write_text(content)
        with pytest.raises(UserError, match=r"examples.json is cut off, damaged or no list of examples \(.*\): delete"):
            measure(subject)
