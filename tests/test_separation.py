"""Separation as a user has it: the program, the task and its baselines, and the corpus of flutes."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_enhance import OVERRIDES, make_run

from avdvae.data.flute import Flute, Note, additive, melody_of, pitches
from avdvae.data.prepare import Summary, prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.dictionaries import dictionary_filters, learn_dictionary
from avdvae.enhancement.sources import Assignment
from avdvae.enhancement.variational import PointEstimate
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.measure import measure
from avdvae.evaluation.results import BASELINES, Result, compare
from avdvae.evaluation.tasks import separation
from avdvae.evaluation.tasks.separation import batch_of, in_the_best_order, mix
from avdvae.evaluation.tasks.task import Evaluation, Part, Subject
from avdvae.models.cvae import CVAE
from avdvae.models.vae import VAE
from avdvae.programs import program
from avdvae.programs.separate import main, separate
from avdvae.signals.audio import Stft
from avdvae.signals.metrics import Look

ASSIGNMENT = {"iterations": 2, "noise": 0.03, "learn_noise": True, "finetune": False, "seed": 0}


def asked(runs: list[Path], source: Path, output: Path, videos: Any = None, mixing: str = "sum") -> dict[str, Any]:
    given = {"runs": [str(run) for run in runs], "input": source, "output": output, "videos": videos, "mixing": mixing}
    return given | {"enhance": OVERRIDES, "assignment": ASSIGNMENT}


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    louder = np.linspace(0, 1, 9000)[:, None] ** 4  # which no stationary noise is
    soundfile.write(tmp_path / "mix.wav", 0.2 * louder * rng.standard_normal((9000, 2)), 44_100)
    return tmp_path / "mix.wav"


@pytest.mark.parametrize("mixing", ["sum", "assignment"])
def test_each_source_is_written_like_the_input(mixing, mixture, clip, tmp_path, capsys) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("CVAE", "VAE")]
    separate(asked(runs, mixture, tmp_path / "out", [str(clip), None], mixing))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.wav", "2.wav"]
    one, two = (soundfile.read(tmp_path / "out" / f"{n}.wav")[0] for n in (1, 2))
    given, rate = soundfile.read(mixture)
    assert one.shape == two.shape == given.shape and soundfile.info(tmp_path / "out/1.wav").samplerate == rate
    assert 0 < np.square(one).sum() < np.square(given).sum() and np.abs(one - two).max() > 1e-3
    assert "real-time factor" in capsys.readouterr().out


def test_what_cannot_be_separated_is_refused_and_nothing_is_written(mixture, clip, tmp_path, monkeypatch) -> None:
    vae, cvae = (make_run(tmp_path / name, name) for name in ("VAE", "CVAE"))
    other = make_run(tmp_path / "other", "VAE")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("hop: 256", "hop: 533"))
    out = tmp_path / "out"
    for given, complaint in (
        (asked([], mixture, out), r"^runs= missing: give runs=\[A,B\] input=FILE output=FOLDER"),
        (asked([vae, cvae], mixture, out), "CVAE is conditioned on pictures: give the video of its source"),
        (asked([vae, cvae], mixture, out, [str(clip)]), r"videos=.*: give one for each of the 2 runs, or null"),
        (asked([vae, vae], mixture, out, mixing="max"), "mixing=max: choose sum or assignment"),
        (asked([vae, other], mixture, out), r"different STFT hops \(256, 533\)"),
        (asked([vae, vae], tmp_path / "no.wav", out), "input: .*no.wav is no file"),
        (asked([vae, vae], mixture, mixture), "is a file: give a folder"),
        (asked([vae, vae], mixture, out) | {"runs": "A"}, r"runs=A: write runs=\[A\]"),
    ):
        with pytest.raises(UserError, match=complaint):
            separate(given)
    monkeypatch.setattr(program, "prepare_process", lambda: None)
    monkeypatch.setattr(sys, "argv", ["separate.py", "input=x.wav"])
    with pytest.raises(SystemExit, match=r"^separate.py: runs=, output= missing: give runs=\[A,B\] input=FILE"):
        main()
    assert not out.exists()


# The task


def subject_of(prepared: Summary, out: Path, model: Any, **settings: Any) -> Subject:
    corpus = PreparedCorpus(prepared.out, "train", verify=False)
    given = {"split": "train", "tasks": ["separation"], "metrics": ["si_sdr"], "examples": 1, "workers": 1}
    evaluation = Evaluation(**{**given, **settings})
    vem = Vem(PointEstimate(steps=1), iterations=2, rank=2)
    return Subject(model.eval().requires_grad_(False), corpus, Stft(533), vem, evaluation, out, "m", batch_size=3)


def cvae() -> Any:
    torch.manual_seed(0)
    return CVAE(hidden=8, dim=4)


def values(rows: list[Result], model: str, metric: str, lips: str = "") -> np.ndarray:
    return np.array([r.value for r in rows if (r.model, r.metric, r.lips) == (model, metric, lips)])


def test_two_talkers_are_measured_by_sex_with_own_exchanged_and_no_lips_beside_ideal_masks(
    prepared, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(separation, "Assignment", partial(Assignment, iterations=2))
    monkeypatch.setattr(separation, "ENOUGH", 2)
    subject = subject_of(prepared, tmp_path, cvae(), examples=0)
    rows = measure(subject)
    assert {row.noise for row in rows} == {"other sex", "same sex"} and {row.snr for row in rows} == {None}
    assert {(row.model, row.lips) for row in rows} == {(name, "") for name in BASELINES["separation"]} | {
        (name, lips) for name in ("m", "m assignment") for lips in ("clean", "swapped", "none")
    }
    before, *ideal = (values(rows, name, "si_sdr").mean() for name in ("mixture", "binary mask", "ratio mask"))
    assert abs(before) < 3 and min(ideal) > before + 5
    assert values(rows, "NMF", "si_sdr").mean() > before - 1
    assert len(values(rows, "m", "other_si_sdr", "swapped")) == 8  # an utterance of each of four speakers, two kinds
    np.testing.assert_allclose(values(rows, "mixture", "si_sdr"), values(rows, "m", "input_si_sdr", "clean"))
    assert rows[0].model == "m" and Look.of("other_si_sdr") == Look("SI-SDR, others", "dB", 1)
    assert not compare(rows, rows)[0]["mean"], "a method is compared with itself"


def test_mixtures_have_the_parts_the_level_and_the_lips_that_they_say(prepared, tmp_path) -> None:
    subject = subject_of(prepared, tmp_path, cvae())
    first, second, *_ = subject.chosen.utterances
    for kind, same in (("other sex", False), ("same sex", True)):
        mixed = [mix(subject, Part("separation", kind), kind, utterance) for utterance in (first, second)]
        for one in mixed:
            own, other = one.utterances
            assert own.speaker != other.speaker and (own.labels["sex"] == other.labels["sex"]) == same
            power = np.square(one.sources_JN).mean(1)
            assert abs(10 * np.log10(power[1] / power[0])) <= 2.5
            np.testing.assert_array_equal(one.sources_JN.sum(0), one.mixture_N)
    again = mix(subject, Part("separation", kind), kind, second)
    np.testing.assert_array_equal(again.mixture_N, mixed[1].mixture_N)
    own, swapped, none = (batch_of(subject, mixed, lips) for lips in ("clean", "swapped", "none"))
    assert own.lips is not None and swapped.lips is not None and none.lips is not None
    assert torch.equal(own.lips.flip(2), swapped.lips) and not torch.equal(own.lips, swapped.lips)
    assert not none.lips.any() and own.lips[0, :, 0].float().std() > 5
    noisy = mix(subject, Part("separation", f"{kind}, White", 0.0), kind, second)
    noise = noisy.mixture_N - noisy.sources_JN.sum(0)
    assert abs(10 * np.log10(np.square(noise).mean() / np.square(noisy.sources_JN.sum(0)).mean())) < 3


def test_three_talkers_in_noise_by_a_model_of_sound(prepared, tmp_path) -> None:
    torch.manual_seed(0)
    how: dict[str, Any] = {"talkers": 3, "background": ["White"], "snrs": [0], "mixing": ["sum"], "speakers": None}
    subject = subject_of(prepared, tmp_path, VAE(hidden=8, dim=4), **how)
    rows = measure(subject)
    assert {(row.noise, row.snr) for row in rows} == {("3 talkers", None), ("3 talkers, White", 0.0)}
    assert {row.model for row in rows} == {"m", "mixture", "NMF", "binary mask", "ratio mask"}
    assert np.isfinite(values(rows, "m", "si_sdr")).all()
    assert (tmp_path / "examples.json").exists() and len(list((tmp_path / "audio").glob("*.source.wav"))) == 1


def test_a_run_beside_gives_the_other_source_and_its_prior_or_that_of_the_background(prepared, tmp_path) -> None:
    vae, seeing = (make_run(tmp_path / name, name) for name in ("VAE", "CVAE"))
    for run in (vae, seeing):
        config = (run / "config.yaml").read_text().replace("hop: 256", "hop: 533")
        (run / "config.yaml").write_text(f"{config}prepared: {prepared.out}\n")
    speakers = [PreparedCorpus(prepared.out, "train", verify=False).utterances[0].speaker]
    how: dict[str, Any] = {"beside": str(vae), "mixing": ["sum"], "speakers": speakers, "examples": 0}
    rows = measure(subject_of(prepared, tmp_path / "pair", cvae(), **how))
    assert {(row.noise, row.lips) for row in rows if row.model == "m"} == {("talker", "clean"), ("talker", "none")}
    assert np.isfinite(values(rows, "m", "other_si_sdr", "clean")).all()

    how |= {"talkers": 1, "background": ["Babble"], "snrs": [0]}
    alone = measure(subject_of(prepared, tmp_path / "alone", cvae(), **(how | {"beside": None})))
    two = measure(subject_of(prepared, tmp_path / "two", cvae(), **how))
    for rows in (alone, two):
        assert {(row.noise, row.snr) for row in rows} == {("1 talker, Babble", 0)}
        assert not [row for row in rows if row.metric.startswith("other_")]
    found = [item for item in compare(two, alone) if item["lips"] == "clean" and item["metric"] == "si_sdr"]
    assert [item["model"] for item in found] == ["m"] and found[0]["mean"] != 0
    with pytest.raises(UserError, match=r"CVAE takes pictures, and evaluate.background has none"):
        measure(subject_of(prepared, tmp_path / "no", cvae(), **(how | {"beside": str(seeing)})))


def test_estimates_are_taken_in_the_best_order() -> None:
    sources = np.random.default_rng(0).standard_normal((3, 1000))
    for order in ([0, 1, 2], [2, 0, 1]):
        found = in_the_best_order(sources, 0.5 * sources[order])
        np.testing.assert_array_equal(found, 0.5 * sources)


def test_settings_of_the_task_are_refused_in_a_sentence(prepared, tmp_path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"talkers": 4}, "evaluate.talkers=4: give 1, 2 or 3"),
        ({"mixing": ["max"]}, "evaluate.mixing: max: choose from sum, assignment"),
        ({"background": ["Rain"]}, "evaluate.background: no noise is called Rain"),
        ({"talkers": 3, "beside": "runs/flute"}, "give 1 or 2 talkers"),
        ({"talkers": 1}, "evaluate.talkers=1 needs a noise"),
    ]
    for wrong, complaint in refused:
        with pytest.raises(UserError, match=complaint):
            Evaluation(**wrong)
    one = subject_of(prepared, tmp_path, cvae(), talkers=3, min_seconds=60)
    with pytest.raises(UserError, match="leave no utterance"):
        measure(one)


def test_dictionaries_separate_sources_that_share_no_frequency() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.zeros(2, 60, 20)
    one[:, :10], two[:, 10:] = (torch.rand(60, 10, generator=generator) for _ in range(2))
    dictionaries = [learn_dictionary(power, atoms=4, updates=60) for power in (one, two)]
    torch.testing.assert_close(dictionaries[0].sum(0), torch.ones(4))
    filters = dictionary_filters(one + two, dictionaries, updates=60)
    assert filters[0, :, :10].min() > 0.95 and filters[0, :, 10:].max() < 0.05 and (filters.sum(0) <= 1 + 1e-5).all()


# Flutes


def test_flutes_are_the_same_again_and_become_a_prepared_corpus(tmp_path: Path) -> None:
    corpora = [Flute(tmp_path / name, players=3, melodies=1, seconds=1.0) for name in ("a", "b")]
    clips, again = (corpus.clips(workers=1)[0] for corpus in corpora)
    assert [clip.split for clip in clips] == ["train", "valid", "test"] and corpora[0].key == corpora[1].key
    assert [c.source.read_bytes() for c in clips] == [c.source.read_bytes() for c in again]
    assert len({c.source.read_bytes() for c in clips}) == 3
    prepared = PreparedCorpus(prepare(corpora[0], tmp_path / "prepared", workers=1).out)
    assert len(prepared.utterances) == 3 and not prepared.has_lips and 0.7 < prepared.utterances[0].seconds < 1.3
    assert Flute(tmp_path, seed=1).key != Flute(tmp_path).key
    refused: list[tuple[dict[str, Any], str]] = [
        ({"players": 2}, "players=2: at least 3"),
        ({"soundfont": "no.sf2"}, "is no file"),
    ]
    for wrong, complaint in refused:
        with pytest.raises(UserError, match=complaint):
            Flute(tmp_path, **wrong)


def test_a_flute_sounds_at_the_pitch_of_its_notes(tmp_path: Path) -> None:
    player = Flute(tmp_path).player(1)._replace(vibrato=0.0, breath=0.0)
    notes = [Note(69, 0, 50), Note(81, 50, 100)]
    pitch = pitches(player, notes, np.random.default_rng(0))
    assert pitch[40] == pytest.approx(69) and pitch[51] < 76 and pitch[99] == pytest.approx(81, abs=1e-3)
    sound = additive(player, notes, np.random.default_rng(0))
    for start, hertz in ((3000, 440), (11_000, 880)):
        spectrum = np.abs(np.fft.rfft(sound[start : start + 4000] * np.hanning(4000)))
        assert abs(np.argmax(spectrum) * 4 - hertz) <= 4
    melody = melody_of(player, 30.0, np.random.default_rng(0))
    assert len({note.pitch for note in melody}) > 4 and all(10 <= n.stop - n.start <= 120 for n in melody[:-1])
    assert {(note.pitch - player.lowest) % 12 for note in melody} <= {0, 2, 4, 7, 9}
