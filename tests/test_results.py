import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from avdvae.errors import UserError
from avdvae.evaluation.results import Result, compare, read_results, summarise, write_results, write_summary

NOISES = ("Babble", "Cafe", "Car", "LR", "Street", "White")
RNG = np.random.default_rng(0)


def _row(
    item: str, value: float, metric: str = "si_sdr", noise: str = "Car", snr: float | None = 0, **others
) -> Result:
    texts = {"run": "r1", "model": "cvae", "task": "enhance", "corpus": "talker", "split": "test", "lips": ""}
    texts |= {"speaker": item.split("/")[0]} | others
    return Result(item=item, noise=noise, snr=snr, metric=metric, value=value, **texts)


def _pick(items: list[dict[str, Any]], **wanted) -> dict[str, Any]:
    (found,) = [item for item in items if wanted.items() <= item.items()]
    return found


def test_results_survive_the_file(tmp_path: Path) -> None:
    rows = [
        _row("s1/a, b", 1 / 3, snr=-2.5, lips="occluded"),
        _row("ü", -math.inf, noise="", snr=None),
        _row("x", 4, snr=-5),
    ]
    write_results(tmp_path / "results.csv", rows)
    assert read_results(tmp_path / "results.csv") == rows
    header, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "run,model,task,corpus,split,item,speaker,noise,snr,lips,metric,value"
    (tmp_path / "results.csv").write_text(header.replace("noise,snr", "snr,noise") + "\n")
    with pytest.raises(
        UserError, match=r"has the columns run, .*snr, noise.* instead of .*: delete it and evaluate the run again"
    ):
        read_results(tmp_path / "results.csv")


@pytest.mark.parametrize("utterances", [1, 3])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7])  # within a speaker
def test_intervals_of_eight_speakers_hold_the_truth_as_often_as_they_claim(utterances, correlation) -> None:
    voices = math.sqrt(correlation) * RNG.normal(size=(2000, 8, 1))
    values = 3 + 2 * (voices + math.sqrt(1 - correlation) * RNG.normal(size=(2000, 8, utterances)))
    items = summarise(
        [
            _row(f"s{s}/u{u}", value, metric=f"m{trial}")
            for trial, speakers in enumerate(values.tolist())
            for s, speaker in enumerate(speakers)
            for u, value in enumerate(speaker)
        ]
    )
    assert [item["mean"] for item in items] == pytest.approx(values.mean((1, 2)).tolist())
    assert {(item["n"], item["speakers"]) for item in items} == {(8 * utterances, 8)}
    assert 0.93 < np.mean([item["ci_low"] < 3 < item["ci_high"] for item in items]) < 0.97


def test_an_interval_is_students_between_speakers_and_of_one_speaker_between_utterances() -> None:
    values = RNG.normal(size=6).tolist()
    alone = summarise([_row(f"s/{i}", value) for i, value in enumerate(values)])[0]
    each = summarise([_row(f"{i}/u", value) for i, value in enumerate(values)])[0]
    wanted = scipy.stats.t.interval(0.95, 5, np.mean(values), scipy.stats.sem(values))
    for found, speakers in ((alone, 1), (each, 6)):
        assert [found[k] for k in ("ci_low", "ci_high")] == pytest.approx(wanted) and found["speakers"] == speakers
    repeated = summarise([_row(f"{i}/{u}", value) for i, value in enumerate(values) for u in range(5)])[0]
    assert (repeated["ci_low"], repeated["n"]) == (pytest.approx(wanted[0]), 30)  # said five times, known once


def test_speakers_of_few_utterances_count_by_them() -> None:
    rows = [_row("a/1", 1), _row("b/1", 4), _row("b/2", 6)]
    (found,) = summarise(rows)
    assert found["mean"] == pytest.approx(11 / 3)  # the mean over utterances
    u = np.array([1 - 11 / 3, 10 - 22 / 3])
    half = scipy.stats.t.ppf(0.975, 1) * math.sqrt(2 * (u @ u)) / 3
    assert found["ci_high"] - found["mean"] == pytest.approx(half)


def test_utterances_count_by_the_noises_that_they_were_measured_in() -> None:
    rows = [_row("a", 1), _row("a", 3, noise="White"), _row("b", 8)]
    assert _pick(summarise(rows), noise="all")["mean"] == pytest.approx(4)


def test_one_utterance_under_six_noises_is_one_draw() -> None:
    values = RNG.normal(size=40).tolist()
    items = summarise([_row(f"u{i}", v, noise=noise) for noise in NOISES for i, v in enumerate(values)])
    assert [item["noise"] for item in items] == [*NOISES, "all"]
    for item in items:
        assert item["ci_low"] < item["mean"] < item["ci_high"] and item["n"] == 40
        assert [item[k] for k in ("mean", "ci_low", "ci_high")] == pytest.approx(
            [items[0][k] for k in ("mean", "ci_low", "ci_high")]
        )


def test_values_that_are_missing_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [_row(item, value) for item, value in (("a", 1), ("b", 3), ("c", math.nan), ("d", -math.inf))]
    rows += [_row("c", 8, noise="White"), _row("a", math.nan, "stoi"), _row("a", 1, snr=None, noise="")]
    items = summarise(rows)
    car = _pick(items, noise="Car", metric="si_sdr")
    assert (car["mean"], car["n"], car["ci_high"]) == (2, 2, pytest.approx(2 + scipy.stats.t.ppf(0.975, 1)))
    pooled = _pick(items, noise="all")
    assert (pooled["mean"], pooled["n"]) == (4, 3)
    write_summary(tmp_path / "summary.json", items)
    written = json.loads((tmp_path / "summary.json").read_text())
    keys = {"model": "cvae", "task": "enhance", "lips": ""}
    nothing = {"ci_low": None, "ci_high": None}
    assert _pick(written, metric="stoi") == keys | nothing | {
        "noise": "Car",
        "snr": 0,
        "metric": "stoi",
        "mean": None,
        "n": 0,
        "speakers": 0,
    }
    assert _pick(written, noise="") == keys | nothing | {
        "noise": "",
        "snr": None,
        "metric": "si_sdr",
        "mean": 1,
        "n": 1,
        "speakers": 1,
    }


def test_runs_are_compared_pair_by_pair() -> None:
    ease = dict(zip("abcdefgh", RNG.normal(0, 50, 8).tolist(), strict=True))  # far larger than what is to be found
    gains = {"Car": 1.0, "White": 3.0, "Babble": -1.0}
    mine = [
        _row(i, ease[i] + gain, noise=n, lips=lips)
        for i in ease
        for n, gain in gains.items()
        for lips in ("", "occluded")
    ]
    derived = ("input_si_sdr", "si_sdr_improvement")
    mine += [
        _row(i, 0.5, metric, noise=n, lips=lips)
        for i in ease
        for n in gains
        for metric in derived
        for lips in ("", "occluded")
    ]
    mine += [_row("only mine", 1e6), _row("a", 1e6, snr=5), _row("a", 1e6, "stoi")]
    theirs = [_row(i, ease[i], noise=n, run="r0", model="vae") for n in gains for i in reversed(ease)]
    theirs += [_row(i, 0.5 + 1e-4, "input_si_sdr", noise=n, run="r0", model="vae") for i in ease for n in gains]
    theirs += [_row("only theirs", -1e6, run="r0", model="vae")]
    theirs += [_row("a", -1e6, "si_sdr_improvement", run="r0", model="vae")]
    items = compare(mine, theirs)
    for lips in ("", "occluded"):
        for noise, gain in (gains | {"stationary": 2.0, "all": 1.0}).items():
            found = _pick(items, lips=lips, noise=noise)
            assert [found[k] for k in ("mean", "ci_low", "ci_high")] == pytest.approx([gain] * 3), noise
            assert (found["n"], found["model"], found["compared_with"], found["snr"]) == (8, "cvae", "r0", 0)
    assert len(items) == 2 * 5

    same_lips = [_row(i, ease[i] + 7, lips="occluded", run="r0", model="vae") for i in ease]
    same_lips += [_row(i, 0.5, "input_si_sdr", lips="occluded", run="r0", model="vae") for i in ease]
    assert _pick(compare(mine, theirs + same_lips), lips="occluded", noise="Car")["mean"] == pytest.approx(-6)
    clean = [_row(i, ease[i] + 7, lips="clean", run="r0") for i in ease]
    clean += [_row(i, 0.5, "input_si_sdr", lips="clean", run="r0") for i in ease]
    of_sound = [row for row in mine if row.lips == ""]
    assert _pick(compare(of_sound, clean), lips="", noise="Car")["mean"] == pytest.approx(-6)
    with pytest.raises(UserError, match="r1 and r0 have no task, item, noise, SNR and metric in common"):
        compare(mine, [_row("elsewhere", 0, run="r0")])
    with pytest.raises(UserError, match="r1 and an empty run"):
        compare(mine, [])


def test_methods_are_compared_with_the_same_method_of_the_other_model() -> None:
    def run(name: str, **values: float) -> list[Result]:
        models = {"own": name, "other": f"{name} assignment", "alike": "NMF"}
        where: dict[str, Any] = {"task": "separation", "noise": "", "snr": None, "run": name}
        return [_row("a", value, model=models[kind], **where) for kind, value in values.items()]

    found = compare(run("vae", own=5, other=3, alike=1), run("srnn_gm", other=2, alike=1, own=1))
    assert {item["model"]: item["mean"] for item in found} == {"vae": 4, "vae assignment": 1, "NMF": 0}


def test_runs_that_were_given_other_mixtures_are_not_compared() -> None:
    def run(name: str, heard: float, *metrics: str) -> list[Result]:
        return [_row("a", heard if m.startswith("input_") else 5, m, run=name, snr=-5) for m in metrics]

    mine, alike = (run(name, -4.98, "si_sdr", "input_si_sdr") for name in ("r1", "r0"))
    (found,) = compare(mine, alike)
    assert found["mean"] == 0
    with pytest.raises(UserError, match=r"r1 and r0 differ in the mixture a, Car at -5 dB: its input_si_sdr is -4.98"):
        compare(mine, run("r0", -4.9, "si_sdr", "input_si_sdr"))
    with pytest.raises(UserError, match=r"no input_ metric in common for a, Car at -5 dB.* the same evaluate.metrics"):
        compare(mine, run("r0", -4.98, "si_sdr", "input_estoi"))
    clean = [replace(row, noise="", snr=None, task="resynthesis") for row in run("r1", 0, "si_sdr")]
    assert compare(clean, clean)[0]["mean"] == 0  # of clean speech there is no mixture to differ


def test_a_cut_or_changed_table_is_never_read_as_another(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [_row(f"ü{n}", 1 / (3 + n), snr=-2.5) for n in range(6)]
    write_results(path, rows)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if whole[:length].endswith(b"\n"):  # whole lines are whole lines
            assert read_results(path) == rows[: whole[:length].count(b"\n") - 1]
        else:
            with pytest.raises(UserError, match=r"results.csv .*: delete it and evaluate the run again"):
                read_results(path)
    for damaged in (whole.replace("ü".encode(), b"\xff"), whole + b"a,b\n", whole[::-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"results.csv .*: delete it and evaluate the run again"):
            read_results(path)
