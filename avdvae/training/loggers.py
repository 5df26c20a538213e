"""Weights & Biases and MLflow, for the same scalars as TensorBoard, where train.loggers names them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from avdvae.errors import UserError, one_line

_PROJECT = "avdvae"  # of Weights & Biases, and the experiment of MLflow


@runtime_checkable
class Logger(Protocol):
    id: str  # by which a resumed training continues the same curves

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, complete: bool) -> None: ...


class WeightsAndBiases:
    def __init__(self, run: Path, known: str | None):
        import wandb

        given = os.environ.get
        try:
            self.run = wandb.init(
                project=given("WANDB_PROJECT", _PROJECT),
                name=given("WANDB_NAME", str(run)),
                dir=given("WANDB_DIR", str(run)),
                id=known,
                resume="allow" if known else None,
                config=None if known else _configuration(run),
                reinit="create_new",  # a run of the caller stays as it is
            )
        except wandb.Error as error:
            raise UserError(
                f"train.loggers=[wandb]: Weights & Biases cannot be started ({one_line(error)}): log in by "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from error
        self.id = self.run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class Mlflow:
    def __init__(self, run: Path, known: str | None):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder = run.resolve() / "mlruns"
            folder.mkdir(exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", folder.as_uri()
        self.lost, self.failure = False, MlflowException
        try:
            self.client = MlflowClient(uri)
            self.id = known or self._new(run, os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT), artifacts)
            self.client.update_run(self.id, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"train.loggers=[mlflow]: MLflow cannot log to {uri} ({one_line(error)}): check MLFLOW_TRACKING_URI "
                f"and pip install 'avdvae[mlflow]', or delete {run / 'loggers.json'} for a new run of MLflow"
            ) from error

    def _new(self, run: Path, name: str, artifacts: str | None) -> str:
        from mlflow.entities import Param

        if not self.client.get_experiment_by_name(name):
            with suppress(self.failure):  # another job of a sweep may be the one that creates it
                self.client.create_experiment(name, artifacts)
        experiment: Any = self.client.get_experiment_by_name(name)
        made = self.client.create_run(experiment.experiment_id, run_name=str(run)).info.run_id
        settings = [Param(key, value[:6000]) for key, value in _flat(_configuration(run))]
        for first in range(0, len(settings), 100):  # as many and as long as MLflow takes at a time
            self.client.log_batch(made, params=settings[first : first + 100])
        return made

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._send(lambda: self.client.log_batch(self.id, metrics))

    def close(self, complete: bool) -> None:
        self._send(lambda: self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED"))

    def _send(self, call: Callable[[], Any]) -> None:
        """A server that is lost does not end a training of hours."""
        if self.lost:
            return
        try:
            call()
        except self.failure as error:
            self.lost = True
            print(f"mlflow     cannot be reached, and the training goes on without it ({one_line(error)})", flush=True)


# By the name of the package and of the extra.
LOGGERS: dict[str, Callable[[Path, str | None], Logger]] = {"wandb": WeightsAndBiases, "mlflow": Mlflow}


def _configuration(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _flat(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value if isinstance(value, str) else json.dumps(value)
