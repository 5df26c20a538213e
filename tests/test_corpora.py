"""Every corpus, as a miniature: found, checked, prepared, trained on and measured; and what is wrong with it, named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avdvae.data.check import check
from avdvae.data.clips import GENERATED, SPLITS
from avdvae.data.corpora import READERS, open_corpus
from avdvae.data.fixtures import MINIATURES, takes
from avdvae.data.prepare import prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.data.talker.corpus import Talker
from avdvae.enhancement.variational import PointEstimate
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.measure import measure
from avdvae.evaluation.report import write_report
from avdvae.evaluation.results import Result, read_results, summarise, write_summary
from avdvae.evaluation.tasks.task import Evaluation, Subject
from avdvae.models.av_vae import AVVAE
from avdvae.models.rvae import RVAE
from avdvae.models.vae import VAE
from avdvae.signals.audio import Stft
from avdvae.training.loop import train
from avdvae.training.settings import Training


@pytest.fixture(scope="module")
def roots(talker: Talker, tmp_path_factory: pytest.TempPathFactory):
    """The miniature of each corpus, made once."""
    supply, made = takes(talker.clips(workers=1)[0]), {}

    def root(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            MINIATURES[name].write(made[name], supply)
        return made[name]

    return root


def config(name: str, root: Path) -> dict[str, Any]:
    return {"reader": name, "root": str(root), **MINIATURES[name].parameters}


def test_every_reader_of_a_tree_has_a_miniature():
    assert set(MINIATURES) == set(READERS) - {*GENERATED, "folder"}


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_from_a_tree_to_a_table_of_results(name, roots, tmp_path):
    corpus = open_corpus(config(name, roots(name)))
    clips, _ = corpus.clips(workers=1)
    assert {clip.split for clip in clips} == set(SPLITS)
    assert [clip.id for clip in clips] == sorted({clip.id for clip in clips})
    speakers = {split: {clip.speaker for clip in clips if clip.split == split} for split in SPLITS}
    assert not speakers["train"] & speakers["test"]
    summary = prepare(corpus, tmp_path / "prepared", workers=2)
    assert [row.why_not for row in summary.quality if row.kept == "no" and row.frames] == []
    splits = {split: PreparedCorpus(tmp_path / "prepared", split) for split in SPLITS}
    assert sum(len(prepared.utterances) for prepared in splits.values()) == len(clips)

    torch.manual_seed(0)
    moves = splits["train"].has_poses
    still: Any = AVVAE(hidden=8, dim=4) if splits["train"].has_lips else VAE(hidden=8, dim=4)
    model: Any = RVAE(features=96, hidden=8, dim=4, observes="pose") if moves else still
    settings = Training(epochs=1, batch_size=64, frames=10 if moves else 1, accelerator="cpu")
    train(model, splits["train"], splits["valid"], Stft(533), settings, tmp_path / "run")
    evaluation = Evaluation(
        tasks=["motion" if moves else "enhancement"],
        noises=["White"],
        snrs=[0],
        lips=["clean"],
        per_speaker=1,
        metrics=["si_sdr"],
        examples=0,
        workers=1,
    )
    vem = Vem(PointEstimate(), iterations=2, rank=2)
    model.eval().requires_grad_(False)
    measure(Subject(model, splits["test"], Stft(533), vem, evaluation, tmp_path / "out", name))
    rows = read_results(tmp_path / "out" / "results.csv")
    gained = [row for row in rows if row.metric == ("mpjpe_mm" if moves else "si_sdr_improvement")]
    assert len(gained) == len(speakers["test"]) and all(np.isfinite(row.value) for row in gained)
    assert {row.corpus for row in rows} == {name}


@pytest.mark.parametrize("name", MINIATURES)
def test_three_faults_are_named_at_once(name, talker, tmp_path):
    MINIATURES[name].write(tmp_path, takes(talker.clips(workers=1)[0][:4]))
    corpus = open_corpus(config(name, tmp_path))
    whole = check(corpus, workers=2)
    lacking = sorted(tmp_path.glob(MINIATURES[name].lacking))
    left = [c for c in whole.clips if not set(c.files) & set(lacking) and c.speaker not in str(lacking[0])]
    empty, broken = (clip.audio or clip.source for clip in left[-2:])
    empty.write_bytes(b"")
    broken.write_bytes(b"RIFF no more")
    for path in lacking:
        path.unlink()
    found = check(open_corpus(config(name, tmp_path)), workers=2)
    told = "\n".join(found.report())
    assert f"{empty}: is empty" in told and f"{broken}: cannot be read" in told
    absent = [f"{part} (" for part in lacking[0].relative_to(tmp_path).parts]  # a speaker, wherever the path names one
    assert any(word in told.replace(str(empty), "") for word in (f"{lacking[0]}: is missing", *absent))
    costs = 2 if name == "librispeech" else 3  # there the file is a transcript, without which a clip keeps its sound
    assert len(found.clips) <= len(whole.clips) - costs and len(found.faults) >= 3
    assert found.extent and f"clips      {len(found.clips)} of {found.extent.clips}" in told


def test_a_missing_transcript_costs_the_words_and_not_the_sound(talker, tmp_path):
    MINIATURES["librispeech"].write(tmp_path, takes(talker.clips(workers=1)[0][:4]))
    whole, _ = open_corpus(config("librispeech", tmp_path)).clips(workers=1)
    (lost,) = tmp_path.glob(MINIATURES["librispeech"].lacking)
    lost.unlink()
    clips, (fault,) = open_corpus(config("librispeech", tmp_path)).clips(workers=1)
    assert [clip.id for clip in clips] == [clip.id for clip in whole] and all("text" in clip.labels for clip in whole)
    silent = [clip for clip in clips if "text" not in clip.labels]
    assert silent and {clip.source.parent for clip in silent} == {lost.parent}
    assert fault.path == lost and fault.reason == "is missing, and these clips are kept without words"


def test_what_is_no_corpus_is_said_in_a_sentence(tmp_path):
    for name in MINIATURES:
        with pytest.raises(UserError, match=f"has nothing of {name}: its clips are "):
            open_corpus(config(name, tmp_path)).clips(1)
        with pytest.raises(UserError, match=f"is no folder: give that of {name}"):
            open_corpus(config(name, tmp_path / "none")).clips(1)


@pytest.fixture
def measured(roots, tmp_path):
    """What the mixtures themselves are found to be, evaluated on a folder of noisy recordings of a corpus."""

    def inputs(name: str, noise: str, snrs: list[float], out: str) -> list[Result]:
        prepare(open_corpus(config(name, roots(name))), tmp_path / name, workers=1)
        torch.manual_seed(0)
        model, test = VAE(hidden=8, dim=4).eval().requires_grad_(False), PreparedCorpus(tmp_path / name, "test")
        asked: Any = {"noises": [str(roots(name) / noise)], "snrs": snrs, "trim_db": None, "per_speaker": None}
        evaluation = Evaluation(**asked, metrics=["si_sdr"], examples=1, workers=1)
        vem = Vem(PointEstimate(), iterations=1, rank=2)
        rows = measure(Subject(model, test, Stft(533), vem, evaluation, tmp_path / out, "vae"))
        write_summary(tmp_path / out / "summary.json", summarise(rows))
        assert Path(noise).name in write_report(tmp_path / out).read_text()
        return [row for row in rows if row.metric == "input_si_sdr"]

    return inputs


def test_noisy_recordings_are_measured_beside_their_labels(measured):
    """NTCD-TIMIT calls 5 dB what is -3 dB; lower levels than it has are made of the noise of its lowest."""
    rows = measured("ntcd_timit", "Noisy_TCDTIMIT/White", [5, -5, -10], "levels")
    assert len(rows) == 3 * 2 and {row.noise for row in rows} == {"White"}
    for level in (5, -5, -10):
        there = [row.value for row in rows if row.snr == level]
        assert there == pytest.approx([level - 8] * 2, abs=0.3)
    with pytest.raises(UserError, match=r"has the levels -5, 5: choose evaluate\.snrs from them, or lower ones"):
        measured("ntcd_timit", "Noisy_TCDTIMIT/White", [0], "between")


def test_noisy_recordings_may_have_a_level_each(measured):
    rows = measured("voicebank_demand", "noisy_testset_wav", [0], "once")
    assert [row.snr for row in rows] == [None, None]
    assert [row.value for row in rows] == pytest.approx([7.5, 7.5], abs=0.5)
