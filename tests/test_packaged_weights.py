"""Weights in the package: each loads by its name, enhances, and is what its card states."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import avdvae
from avdvae.errors import UserError
from avdvae.nn.weights import WEIGHTS
from avdvae.orchestration.starts import open_start
from avdvae.runs import PACKAGED, open_run, packaged_weights
from avdvae.signals.metrics import si_sdr
from avdvae.signals.video import read_mono

NAMES = packaged_weights()


def test_they_are_small_and_the_default_of_enhancing_is_one_of_them() -> None:
    assert {"vae-librispeech", "rvae-librispeech"} <= {*NAMES}
    assert sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file()) < 10e6


@pytest.mark.parametrize("name", NAMES)
def test_each_enhances_speech_in_noise(name: str, clip: Path) -> None:
    clean = read_mono(clip.with_suffix(".wav"))[0].astype(np.float32) / 2**15
    noisy = clean + np.random.default_rng(0).normal(0, clean.std(), clean.shape).astype(np.float32)
    speech = avdvae.load(name, device="cpu").enhance(noisy, 16_000, iterations=30)
    before, after = (si_sdr(clean, estimate) for estimate in (noisy, speech))
    assert after > before + 5, "untrained weights gain less"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_its_card_states(name: str) -> None:
    run = open_run(Path(name))
    card, noted = (run.path / "card.md").read_text(), json.loads((run.path / "run.json").read_text())
    assert hashlib.sha256((run.path / WEIGHTS).read_bytes()).hexdigest() in card
    assert noted["command"] in card and f"| seed | {run.config['seed']} |" in card and "CC BY 4.0" in card
    assert f"{sum(p.numel() for p in run.build_model().parameters()):,} parameters" in card
    assert not [file for file in run.path.iterdir() if file.name != WEIGHTS and '"/' in file.read_text()]
    assert not [
        value for value in (run.config["prepared"], run.config["runs"], run.config["run_dir"]) if value[0] == "/"
    ]


def test_a_file_is_enhanced_by_two_words(clip: Path, avdvae_command: Callable[..., str]) -> None:
    samples, rate = soundfile.read(clip.with_suffix(".wav"))
    soundfile.write("noisy speech 1.wav", samples[: rate // 2], rate)
    assert not avdvae_command("enhance", "noisy speech 1.wav", "out/clean.wav", "enhance.iterations=3")
    expected = avdvae.load("rvae-librispeech").enhance("noisy speech 1.wav", iterations=3)
    written, written_rate = soundfile.read("out/clean.wav")
    assert written_rate == expected.rate and abs(written - expected.samples).max() < 1e-4


def test_nothing_is_written_into_the_package(tmp_path: Path, avdvae_command: Callable[..., str]) -> None:
    assert not avdvae_command("generate", "run=vae-librispeech", "seconds=0.3")
    assert [path.parent for path in tmp_path.glob("runs/vae-librispeech/generate/*/film.mp4")]
    refused = avdvae_command("train", "resume=vae-librispeech", "data=talker_tiny")
    assert "vae-librispeech continues that run with its settings" in refused
    assert "vae-librispeech holds weights and no training" in avdvae_command("train", "resume=vae-librispeech")
    run = open_run(Path("vae-librispeech"))
    assert open_start("vae-librispeech", run.config).path == run.path
    assert repr(avdvae.load(run)).startswith("TrainedModel(VAE of vae-librispeech, takes power")


def test_an_unknown_name_gets_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"vae-libri is no run.*or packaged weights: .*vae-librispeech"):
        avdvae.load("vae-libri")
    (tmp_path / "vae-librispeech").mkdir()
    (tmp_path / "vae-librispeech" / "config.yaml").write_text("exp: mine\n")
    with pytest.raises(UserError, match=r"vae-librispeech/config\.yaml is damaged"):  # a folder of the user comes first
        avdvae.load("vae-librispeech")
