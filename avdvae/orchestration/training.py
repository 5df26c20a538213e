"""The training of a run: checked before it is created, then begun or finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, known_settings, require
from avdvae.evaluation.measure import find_other_runs, settings_of
from avdvae.orchestration.request import MAIN
from avdvae.protocols import Startable
from avdvae.runs import Configuration, Run, build_model, build_vem
from avdvae.training.loop import Trained, train
from avdvae.training.settings import Training


def training_of(config: Mapping[str, Any]) -> Training:
    return known_settings(Training, "train", **config["train"], seed=config["seed"])


def check(config: dict[str, Any]) -> nn.Module:
    """Check a configuration before anything is prepared; return its model, untrained."""
    Configuration.check(config)
    require("lightning_fabric", "tensorboard")
    training = training_of(config)
    if training.accelerator == "cuda" and torch.cuda.device_count() < training.devices:
        raise UserError(
            f"train.accelerator=cuda, train.devices={training.devices}: torch finds {torch.cuda.device_count()} GPUs: "
            "give train.accelerator=cpu, or fewer devices"
        )
    if config.get("seeds") and not config.get("models"):
        raise UserError(
            f"seeds={config['seeds']} are of the models that are compared: give models=, or seed= of a training"
        )
    settings_of(config["evaluate"])
    build_vem(config["enhance"])
    model = build_model(config["model"])
    if config.get("start") and not isinstance(model, Startable):
        given = ",".join(config["start"])
        raise UserError(f"start=[{given}]: {type(model).__name__} has no method start_from: give start=[]")
    if config["train"].get("freeze") and not config.get("start"):
        given = ",".join(config["train"]["freeze"])
        raise UserError(f"train.freeze=[{given}] would freeze random weights, since start=[]: give train.freeze=[]")
    find_other_runs(config["compare"])
    return model


def train_run(
    run: Run,
    splits: Mapping[str, PreparedCorpus],
    starts: Sequence[Run],
    command: str,
    progress: Callable[[float], Any] | None = None,
) -> Trained:
    """Train, or finish training."""
    settings, new = training_of(run.config), not run.noted
    torch.manual_seed(run.config["seed"])
    model: Any = build_model(run.config["model"])
    if starts:
        model.start_from(*(start.load_model() for start in starts))
        model.requires_grad_(True)
        run.note(start={start.config["exp"]: str(start.path) for start in starts})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{run.config['exp']}: {parameters:,} parameters, {splits['train'].hours:.2f} hours to train on", flush=True)
    if MAIN:
        run.note(model=run.config["exp"], parameters=parameters)
        if "command" not in run.noted:
            run.note(command=command)
    with run.undone_unless("last/state.pt") if new else nullcontext():
        corpora = splits["train"], splits["valid"]
        trained = train(model, *corpora, run.stft, settings, run.path, run.begun, progress)
    if MAIN:
        run.note(seconds={"train": trained.seconds}, corpus=splits["train"].utterances[0].corpus, unfinished=False)
    return trained
