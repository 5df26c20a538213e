"""Sweeps by Optuna, and jobs of the launchers for clusters, which here run on this machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdvae.data.prepare import Summary, prepare
from avdvae.data.talker.corpus import Talker
from avdvae.runs import Run, open_run
from avdvae.training.curves import read_curves

PROJECT = Path(__file__).parent.parent


def sweep(prepared: Summary, runs: Path, *words: str) -> None:
    given = ["train=debug", "train.epochs=1", f"prepared={prepared.out}", f"runs={runs}", *words]
    jobs("experiments/run.py", PROJECT, *given)


def jobs(program: str, folder: Path, *words: str) -> None:
    command = [sys.executable, str(PROJECT / program), "-m", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def runs_of(exp: str, runs: Path) -> list[Run]:
    return [open_run(path.parent) for path in sorted(runs.glob(f"{exp}/*/weights.safetensors"))]


def loss(run: Run) -> float:
    return min(record["valid/loss"] for record in read_curves(run.path / "metrics.jsonl")[0] if "valid/loss" in record)


def test_optuna_gets_the_validation_losses(prepared: Summary, tmp_path: Path) -> None:
    sweep(prepared, tmp_path, "exp=vae", "sweep=lr", "hydra.sweeper.n_trials=2")
    (path,) = tmp_path.glob("sweeps/*/optimization_results.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    best, other = sorted(runs_of("vae", tmp_path), key=loss)
    assert found["best_value"] == loss(best) < loss(other)
    best_settings = {"train.lr": best.config["train"]["lr"], "model.dim": best.config["model"]["dim"]}
    assert found["best_params"] == best_settings


LAUNCHERS = pytest.mark.parametrize(("launcher", "plugin"), [("submitit_local", "submitit"), ("ray", "ray")])


@LAUNCHERS
def test_parts_of_a_corpus_are_prepared_by_jobs(launcher: str, plugin: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason="pip install 'avdvae[cluster]'")
    corpus = Talker(tmp_path / "corpora", speakers=12, utterances=6, seconds=1, films=False)
    whole = prepare(corpus, tmp_path / "whole", workers=1).out
    words = ["data=talker_sound", f"data.root={corpus.root}", "data.speakers=12", "data.utterances=6"]
    words += ["data.seconds=1", "out=parts", "workers=1", "shards=2", "shard=range(2)", f"hydra/launcher={launcher}"]
    jobs("preprocessing/lips.py", tmp_path, *words)
    for name in ("manifest.csv", "shards/00000.safetensors", "shards/00001.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()


@LAUNCHERS
def test_jobs_that_start_from_the_same_model_train_it_once(
    launcher: str, plugin: str, prepared: Summary, tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason="pip install 'avdvae[cluster]'")
    words = ("exp=cvae", "model.alpha=0.9,1", "evaluate.tasks=[]", f"hydra/launcher={launcher}")
    sweep(prepared, tmp_path, *words)
    (start,) = runs_of("vae", tmp_path)
    jobs = runs_of("cvae", tmp_path)
    assert [run.config["model"]["alpha"] for run in jobs] in ([0.9, 1], [1, 0.9])
    assert all(run.noted["start"] == {"vae": str(start.path)} for run in jobs)
