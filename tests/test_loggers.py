"""The curves of a training beside metrics.jsonl: metrics.csv, and W&B and MLflow, offline; how a training ends."""

import csv
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_training import Recorded, Scripted, fit, records, saved

from avdvae.errors import UserError
from avdvae.training.settings import Training

CONFIG = {"exp": "vae", "train": {"lr": 1e-3, "freeze": []}}
SETTINGS: dict[str, Any] = {"epochs": 3, "log_every": 2, "batch_size": 5}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def new_run(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return path


def by_key(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key in row.keys() - {"epoch", "step", "seconds"}:  # the seconds of an epoch that came twice differ
            curves.setdefault(key, []).append((row["step"], row[key]))
    return curves


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_has_a_row_an_epoch(prepared, tmp_path):
    trained = fit("vae", prepared.out, tmp_path, **SETTINGS)
    whole, rows = (tmp_path / "metrics.csv").read_text(), table(tmp_path)
    assert list(rows[0])[:3] == ["epoch", "step", "seconds"] and len(rows) == 3
    for row, valid in zip(rows, (row for row in records(tmp_path) if "valid/loss" in row), strict=True):
        assert {key: float(row[key]) for key in valid} == valid
        parts = [r["train/kl_z"] for r in records(tmp_path) if "lr" in r and r["epoch"] == valid["epoch"]]
        assert len(parts) > 1 and float(row["train/kl_z"]) == pytest.approx(sum(parts) / len(parts))
    (tmp_path / "metrics.csv").write_text("damaged")
    assert fit("vae", prepared.out, tmp_path, resume=True, **SETTINGS).steps == trained.steps
    assert (tmp_path / "metrics.csv").read_text() == whole


def wandb_history(file: Path) -> tuple[dict[str, list[tuple[int, float]]], Any]:
    """The scalars in a file of an offline run, and its record of the run."""
    from wandb.sdk.internal.datastore import DataStore

    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    store, curves, about = DataStore(), {}, None
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = messages.Record.FromString(data)
        about = record.run if record.HasField("run") else about
        for item in record.history.item:
            if not (name := item.key or "/".join(item.nested_key)).startswith("_"):
                curves.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    store.close()
    return curves, about


def mlflow_history(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    return {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics.keys() - {"seconds"}
    }


def in_mlflow(run: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlruns' / 'mlflow.db'}")
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, found


def test_loggers_get_the_curves_of_a_killed_and_resumed_training_once(prepared, tmp_path):
    def die(elbo: Any) -> None:
        raise RuntimeError("killed")

    run, loggers = new_run(tmp_path / "run"), ["wandb", "mlflow"]
    steps = fit("vae", prepared.out, tmp_path / "other", **SETTINGS).steps // 3
    with pytest.raises(RuntimeError, match="killed"):
        fit(Recorded(steps + 6, die), prepared.out, run, **SETTINGS, loggers=loggers)
    assert records(run)[-1]["step"] > saved(run)["at"]["step"] == steps, "some of the curves come again"
    client, found = in_mlflow(run)
    assert found.info.status == "KILLED"
    fit("vae", prepared.out, run, resume=True, **SETTINGS, loggers=loggers)
    expected = by_key(records(run))

    client, found = in_mlflow(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", str(run))
    assert (found.data.params["train.lr"], found.data.params["train.freeze"]) == ("0.001", "[]")
    history = mlflow_history(client, found)
    assert history == expected

    before, after = (wandb_history(file) for file in sorted(run.glob("wandb/offline-run-*/*.wandb")))
    assert before[1].run_id == after[1].run_id and before[1].display_name == str(run)
    assert {i.key: json.loads(i.value_json) for i in before[1].config.update if i.key in CONFIG} == CONFIG
    assert {key: before[0].get(key, []) + after[0].get(key, []) for key in after[0].keys() - {"seconds"}} == expected
    assert max(step for step, _ in before[0]["lr"]) <= steps


def test_a_logger_that_is_added_gets_the_whole_curves(prepared, tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # neither is imported where it is not asked for
    run = new_run(tmp_path / "run")
    fit("vae", prepared.out, run, **{**SETTINGS, "epochs": 1})
    with pytest.raises(UserError, match=r"train.loggers=\[wandb\]: wandb is not .*: pip install 'avdvae\[wandb\]'"):
        fit("vae", prepared.out, run, resume=True, **SETTINGS, loggers=["wandb"])
    monkeypatch.undo()
    fit("vae", prepared.out, run, resume=True, **SETTINGS, loggers=["mlflow"])
    assert mlflow_history(*in_mlflow(run)) == by_key(records(run))


def test_an_unknown_logger_is_refused():
    with pytest.raises(UserError, match=r"train.loggers=\['comet'\] \(give \[\] or a list of wandb, mlflow\)"):
        Training(loggers=["comet"])


def test_other_people_of_a_group_may_read_all_files_of_a_run(prepared, tmp_path):
    before = os.umask(0o027)
    try:
        fit("vae", prepared.out, tmp_path / "run", **SETTINGS)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path): oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("run/**/*")}
    assert modes == {path: "0o750" if (tmp_path / path).is_dir() else "0o640" for path in modes} and len(modes) >= 6


@pytest.mark.parametrize(
    ("losses", "settings", "line"),
    [
        (
            (3, 1, 2, 1, 5),
            {"epochs": 9, "patience": 2},
            "4 of 9 epochs in 0 s: the validation loss had not fallen for "
            "2 (train.patience=2); epoch 2 was the best, with 1.00",
        ),
        ((3, 1, 2), {"epochs": 3, "patience": 1}, "3 of 3 epochs in 0 s; epoch 2 was the best, with 1.00"),
        ((3,), {"epochs": 0}, "no epoch, as train.epochs=0 asks; validation loss 3.00"),
    ],
)
def test_the_end_of_a_training_is_explained(losses, settings, line, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("avdvae.training.loop.time.monotonic", lambda: 0.0)
    fit(Scripted(*losses), prepared.out, tmp_path, **settings)
    assert capsys.readouterr().out.splitlines()[-1] == f"trained    {line}"
