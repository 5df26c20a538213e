"""Mixtures for other systems, and scores of their wavs: equal to those of a run that was measured on the same."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_stage import make_run

from avdvae.data.prepare import Summary
from avdvae.enhancement.separation import separate
from avdvae.errors import UserError
from avdvae.evaluation.again import Rows, evaluate_again
from avdvae.evaluation.leaderboard import write_leaderboard
from avdvae.evaluation.outside import Mixtures, evaluate_folder, gain_of
from avdvae.evaluation.results import read_results
from avdvae.protocols import Batch
from avdvae.runs import build_vem, create_run, open_run

SETTINGS = {
    "split": "train",  # of several speakers, of whom babble is made
    "noises": ["White", "Babble"],
    "snrs": [-5, 12.5],
    "metrics": ["si_sdr", "estoi"],
    "examples": 1,
    "workers": 1,
}


@pytest.fixture(scope="module")
def run(prepared: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been evaluated, of a model that nobody has trained."""
    path = make_run(tmp_path_factory.mktemp("runs") / "vae", prepared.out, "VAE")
    create_run(path, {**open_run(path).config, "evaluate": SETTINGS})
    evaluate_again(open_run(path), {}, out=path.parent / "measured")
    return path


@pytest.fixture(scope="module")
def exact(run: Path) -> Path:
    """Its mixtures, without rounding."""
    Mixtures.of_run(open_run(run)).write(run.parent / "exact", clean=True, bits=32)
    return run.parent / "exact"


def manifest(mixtures: Path) -> list[dict[str, str]]:
    with (mixtures / "mixtures.csv").open() as file:
        return list(csv.DictReader(file))


def values(evaluation: Path, metric: str) -> dict[tuple, float]:
    rows = read_results(evaluation / "results.csv")
    return {(row.item, row.noise, row.snr): row.value for row in rows if row.metric == metric}


def test_the_mixtures_score_as_the_input_of_the_run_and_gain_nothing(run: Path, exact: Path, tmp_path: Path) -> None:
    out = evaluate_folder(exact / "noisy", Mixtures.in_folder(exact), tmp_path / "exact", "nothing")
    measured = run.parent / "measured"
    for metric in ("si_sdr", "estoi"):
        wanted = values(measured, f"input_{metric}")
        assert len(wanted) > 3 and values(out, metric) == values(out, f"input_{metric}") == wanted
    assert set(values(out, "si_sdr_improvement").values()) == {0.0} and not values(out, "rtf")
    assert {row.model for row in read_results(out / "results.csv")} == {"nothing"}
    (example,) = json.loads((out / "examples.json").read_text())
    assert len({(out / example["audio"][kind]).read_bytes() for kind in ("noisy", "enhanced")}) == 1, "at one level"
    page = (out / "report.html").read_text()
    assert "nothing" in page and "<audio" in page and json.loads((out / "summary.json").read_text())

    assert Mixtures.of_run(open_run(run)).write(tmp_path / "whole") == len(wanted)
    gains = [float(row["gain"]) for row in manifest(tmp_path / "whole")]
    assert min(gains) < 1 and {np.log2(gain) % 1 for gain in gains} == {0}
    for row in manifest(tmp_path / "whole"):
        noisy, rate = soundfile.read(tmp_path / "whole/noisy" / row["file"], dtype="int16")
        floats, clean = (soundfile.read(exact / kind / row["file"], dtype="float32")[0] for kind in ("noisy", "clean"))
        assert (rate, len(noisy), len(clean)) == (16_000, int(row["samples"]), len(noisy))
        assert np.abs(floats).max() < 1 and np.abs(floats - noisy / 2**15).max() <= 2**-15
        assert np.abs(clean).max() == pytest.approx(float(row["gain"]), abs=1e-6)
        snr = 10 * np.log10(np.square(clean).sum() / np.square(floats - clean).sum())
        assert snr == pytest.approx(float(row["snr"]), abs=1e-3)
    out = evaluate_folder(tmp_path / "whole/noisy", Mixtures.in_folder(tmp_path / "whole"), tmp_path / "rounded")
    for mixture, value in values(out, "si_sdr").items():
        assert value == pytest.approx(values(measured, "input_si_sdr")[mixture], abs=1e-3)
    assert (
        gain_of(np.array([0.5, -0.99])) == 1 and gain_of(np.array([1.0])) == 0.5 and gain_of(np.array([-4.1])) == 1 / 8
    )


def test_what_a_model_makes_of_the_files_scores_as_its_own_evaluation(run: Path, exact: Path, tmp_path: Path) -> None:
    opened, folder = open_run(run), tmp_path / "made by hand"
    model, vem = opened.load_speech_prior(), build_vem(opened.config["enhance"])
    folder.mkdir()
    for row in manifest(exact):
        noisy, _ = soundfile.read(exact / "noisy" / row["file"], dtype="float32")
        mixture = torch.from_numpy(noisy / np.float32(row["gain"]))[None]
        mask, lengths = torch.ones(1, opened.stft.frames(len(noisy)), dtype=torch.bool), torch.tensor([len(noisy)])
        batch = Batch(ids=(row["item"],), mask=mask, lengths=lengths, mixture=mixture)
        speech = separate(model, batch, opened.stft, vem).speech[0].numpy() * float(row["gain"])
        soundfile.write(folder / row["file"], speech, 16_000, subtype="FLOAT")
    measured = run.parent / "measured"
    out = evaluate_folder(folder, Mixtures.of_run(opened), compare=[str(measured)])
    assert out.parent == folder / "evaluations"
    for metric in ("si_sdr", "estoi", "si_sdr_improvement"):
        assert values(out, metric) == pytest.approx(values(measured, metric), abs=1e-4)
    rows = Rows.of(out)
    paired = [row for row in rows if row.compared_with]
    assert paired and all(row.compared_with == str(measured) and abs(row.mean or 0) < 1e-4 for row in paired)
    assert str(rows).splitlines()[0].split() == ["task", "metric", "noise", "SNR", "mean", "95", "%", "interval", "n",
                                                 "compared", "with"]  # fmt: skip
    assert len(str(rows).splitlines()) == len(rows) + 1 and "enhancement  SI-SDR (dB)" in str(rows)

    text = write_leaderboard([measured, out], tmp_path / "board")
    assert any("made by hand" in line for line in text) and "+0.00 [" in "".join(text).replace("-0.00", "+0.00")
    again = evaluate_again(opened, {"evaluate": {"snrs": [-5]}}, [str(out)], tmp_path / "again")
    assert any(row.compared_with == str(out) for row in Rows.of(again))


def test_files_that_are_not_the_enhanced_mixtures_are_named(exact: Path, tmp_path: Path) -> None:
    mixtures, names = Mixtures.in_folder(exact), sorted(path.name for path in (exact / "noisy").iterdir())

    def changed(change) -> Path:
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        shutil.copytree(exact / "noisy", tmp_path / "made")
        change(tmp_path / "made")
        return tmp_path / "made"

    def rewritten(name: str, rate: int = 16_000, cut: int = 0, channels: int = 1):
        def change(folder: Path) -> None:
            samples = soundfile.read(exact / "noisy" / name)[0]
            samples = samples[: len(samples) - cut] if cut > 0 else np.pad(samples, (0, -cut))
            soundfile.write(folder / name, np.stack([samples] * channels, 1), rate)

        return change

    def lost(folder: Path) -> None:
        for name in names[:5]:
            (folder / name).unlink()

    first = re.escape(names[0])
    for change, said in (
        (lost, rf"lacks 5 of {len(names)} enhanced mixtures, .*\.wav, .*\.wav, .*\.wav and 2 more: enhance all files"),
        (
            lambda folder: shutil.copy(folder / names[0], folder / "x.wav"),
            "has 1 wavs that are none of the .*, x.wav: mo",
        ),
        (
            rewritten(names[0], rate=8000),
            rf"has 1 wavs that are not mono at 16000 Hz, {first} \(8000 Hz, channels: 1\)",
        ),
        (rewritten(names[0], channels=2), rf"{first} \(16000 Hz, channels: 2\): convert them"),
        (rewritten(names[0], cut=1025), rf"has 1 wavs of another length than their mixtures, {first} \(\d+ samples, "),
        (
            rewritten(names[0], cut=-1025),
            rf"{first} .*: up to 1024 samples are padded or cut at the end, and more is re",
        ),
        (lambda folder: (folder / names[0]).write_bytes(b"RIFF"), rf"{first} cannot be read as sound"),
        (shutil.rmtree, "enhanced=.* is no folder: give the one with the enhanced wavs"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_folder(changed(change), mixtures, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"evaluate.seed decides the mixtures, which are there already: give metrics, ex"
    ):
        evaluate_folder(exact / "noisy", mixtures, tmp_path / "out", changes={"seed": 1})
    with pytest.raises(UserError, match="is not empty: give another out="):
        mixtures.write(exact)
    with pytest.raises(UserError, match="bits=24: give 16, or 32"):
        mixtures.write(tmp_path / "new", bits=24)
    with pytest.raises(UserError, match=r"holds no mixtures, for it has no settings.yaml"):
        Mixtures.in_folder(tmp_path)
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()


def test_a_few_samples_more_or_less_are_padded_or_cut_and_results_belong_to_their_wavs(
    exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixtures, folder = Mixtures.in_folder(exact), tmp_path / "cut"
    folder.mkdir()
    names = sorted(path.name for path in (exact / "noisy").iterdir())
    for number, name in enumerate(names):
        samples, rate = soundfile.read(exact / "noisy" / name, dtype="float32")
        made = samples[:-1024] if number % 2 else np.pad(samples, (0, 300))
        soundfile.write(folder / name, made, rate, subtype="FLOAT")
    out = evaluate_folder(folder, mixtures, tmp_path / "out", changes={"metrics": ["si_sdr"]})
    assert "are up to 1024 samples shorter or longer: padded or cut" in capsys.readouterr().out
    gains = [value for _, value in sorted(values(out, "si_sdr_improvement").items())]
    assert sum(gain == 0 for gain in gains) == len(gains) // 2 and {row.metric for row in Rows.of(out)} >= {"si_sdr"}
    assert evaluate_folder(folder, mixtures, out, changes={"metrics": ["si_sdr"]}) == out
    (folder / names[0]).write_bytes((exact / "noisy" / names[0]).read_bytes())
    with pytest.raises(
        UserError, match="holds an evaluation of other wavs or with other settings: choose another out="
    ):
        evaluate_folder(folder, mixtures, out, changes={"metrics": ["si_sdr"]})


def test_another_corpus_than_that_of_the_mixtures_is_refused(exact: Path, prepared: Summary, tmp_path: Path) -> None:
    moved = shutil.copytree(prepared.out, tmp_path / "moved")
    shutil.copytree(exact, tmp_path / "mixtures")
    assert Mixtures.in_folder(tmp_path / "mixtures", moved).prepared == moved
    text = (tmp_path / "mixtures/settings.yaml").read_text()
    (tmp_path / "mixtures/settings.yaml").write_text(text.replace("split: train", "split: valid"))
    with pytest.raises(UserError, match=r"moved is not the corpus that .*mixtures was made of: give that, or new"):
        Mixtures.in_folder(tmp_path / "mixtures", moved)


def test_the_commands_from_mixtures_to_a_leaderboard(run: Path, tmp_path: Path) -> None:
    commands = [
        ["mixtures", f"run={run}", "out=mixtures", "clean=true", "evaluate.snrs=[0]", "evaluate.noises=[White]"],
        ["evaluate", "mixtures=mixtures", "enhanced=mixtures/clean", "name=ideal", "out=ideal", "evaluate.examples=0"],
        ["evaluate", f"run={run}", "evaluate.snrs=[0]", "evaluate.noises=[White]", "out=vae", "compare=[ideal]"],
        ["compare", "vae", "ideal", "out=board", "metrics=[estoi]"],
    ]
    program = "import sys; from avdvae.programs.command import main\n"
    program += f"for words in {commands}:\n    sys.argv = ['avdvae', *words]\n    main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split()[1] for line in said[-3:-1]] == ["ideal", "VAE"] and said[-1].endswith("board/leaderboard.html")
    assert " 1.000 [" in said[-3] and {path.suffix for path in (tmp_path / "board").iterdir()} >= {
        ".html",
        ".csv",
        ".tex",
    }
    refused: list[tuple[list[str], str]] = [
        (["evaluate", "mixtures=mixtures"], "enhanced= is missing"),
        (["evaluate", "enhanced=ideal"], "enhanced= needs the mixtures: give either mixtures=FOLDER, or run=RUN"),
        (["compare", "vae"], "out= is missing"),
        (["mixtures", "out=x"], "run= or prepared= is missing"),
    ]
    for words, sentence in refused:
        with pytest.raises(UserError, match=re.escape(sentence)):
            _in_process(words)


def _in_process(words: list[str]) -> Any:
    """The task of a command with the settings of its configuration and of `words`."""
    from importlib import import_module

    import yaml

    from avdvae.configurations import CONFIGS

    name, *given = words
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    module = import_module(f"avdvae.programs.{name}")
    task = {"evaluate": "evaluate", "compare": "compare", "mixtures": "write_mixtures"}[name]
    return vars(module)[task](config | dict(word.split("=") for word in given if "=" in word))


def test_the_page_on_comparing_runs(prepared: Summary, tmp_path: Path) -> None:
    """Its commands and its Python, the leaderboard last, for which the others make what it compares."""
    page = (Path(__file__).parent.parent / "docs/comparing.md").read_text()
    commands = re.findall(r"^(?:\$ )?avdvae (.*)$", page, re.MULTILINE)
    fewer = [f"prepared={prepared.out}", "train.epochs=1", "evaluate.workers=1", "enhance.iterations=2"]
    commands = [words.split() + (fewer if words.startswith("train") else []) for words in commands]
    wiener, in_python = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    train, (board,), (mixtures,), (score,) = (
        [words for words in commands if words[0] == name] for name in ("train", "compare", "mixtures", "evaluate")
    )
    begin = "import sys, avdvae\nfrom avdvae.programs.command import main\ndef run(*words):\n    sys.argv[1:] = words\n"
    steps = [*(f"run(*{words})" for words in (*train, mixtures)), wiener, f"run(*{score})", f"run(*{board})", in_python]
    program = "\n".join([begin + "    main()", *steps])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "leaderboard board/leaderboard.html" in done.stdout and done.stdout.rstrip().endswith("runs/nmf")
