"""Train a model, evaluate it, and write the report.

python experiments/run.py exp=cvae                    any of configs/exp; the default corpus is generated
python experiments/run.py exp=vae train.lr=3e-4       any key of configs/config.yaml
python experiments/run.py exp=vae train=debug         from data to report in a minute
python experiments/run.py resume=runs/cvae/...        continues that run exactly
python experiments/run.py resume=... evaluate.snrs=[0]    with other settings of evaluation
python experiments/run.py -m exp=vae,cvae seed=0,1    a sweep
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import hydra
import torch
from defaults import register
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from avdvae.data.corpora import find_corpus
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, as_a_program, in_file, known_settings
from avdvae.evaluation.measure import (
    check_tasks,
    evaluate_run,
    find_other_runs,
    join_evaluations,
    settings_of,
    subject_of,
)
from avdvae.evaluation.results import ranking
from avdvae.protocols import Startable
from avdvae.runs import (
    MISSING,
    NO_MATTER,
    Configuration,
    Run,
    build_model,
    build_vem,
    changed,
    create_run,
    find_runs,
    open_run,
)
from avdvae.signals.metrics import FAILED, Look
from avdvae.training.curves import read_curves
from avdvae.training.loop import train
from avdvae.training.settings import Training

register()

MAIN = int(os.environ.get("RANK", 0)) == int(os.environ.get("LOCAL_RANK", 0)) == 0  # in one of all processes
MAY_CHANGE = ("train.epochs", "train.patience", *(f"train.{name}" for name in NO_MATTER), "compare")
SECTIONS_THAT_MAY = ("evaluate", "enhance")  # all their settings


def resumed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run to resume, with the changes of the command line."""
    path = Path(given["resume"])
    run, changes, wrong = open_run(path), {}, []
    config = run.config
    for word in HydraConfig.get().overrides.task:
        if (key := word.lstrip("+~").partition("=")[0]) == "resume":
            continue
        value, section, *inner = _value(given, key), *key.split(".")
        if word.startswith("~") or not (key in MAY_CHANGE or (inner and section in SECTIONS_THAT_MAY)):
            wrong += [word] * (word.startswith("~") or value != _value(config, key))
        else:
            changes = _joined(changes, reduce(lambda part, name: {name: part}, reversed(key.split(".")), value))
    if wrong:
        raise UserError(
            f"resume={path} continues that run with its settings, and {', '.join(wrong)} would change them: give "
            f"{', '.join(MAY_CHANGE)}, or settings of {' or '.join(SECTIONS_THAT_MAY)}; or start a new run, without "
            "resume="
        )
    if config.get("models") and changes:
        raise UserError(f"resume={path} compares models with the same settings: start a new comparison for others")
    epochs, planned = changes.get("train", {}).get("epochs", MISSING), config["train"]["epochs"]
    if epochs not in (MISSING, planned):
        if config["train"].get("schedule") == "cosine":
            raise UserError(
                f"train.epochs={epochs}: the learning rates of {path} are those of train.schedule=cosine over "
                f"{planned} epochs: start a new run, without resume=; only train.schedule=constant can be prolonged"
            )
        if type(epochs) is int and (done := epochs_of(run)) > epochs:
            raise UserError(f"train.epochs={epochs}: {path} has trained for {done} epochs already: give that or more")
    return changed(config, changes)


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name, MISSING) if isinstance(config, Mapping) else MISSING
    return config


def _joined(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """Both, merged at all levels; `two` takes precedence."""
    deep = {k: _joined(one[k], v) for k, v in two.items() if isinstance(v, Mapping) and isinstance(one.get(k), Mapping)}
    return {**one, **two, **deep}


def epochs_of(run: Run) -> int:
    """The number of epochs validated so far."""
    records, _ = read_curves(run.path / "metrics.jsonl")
    return max((record["epoch"] for record in records if "valid/loss" in record), default=0)


def go_on(run: Run, config: dict[str, Any]) -> Run:
    """Record the resumption and its changes; results of other settings or weights are moved aside."""
    if not MAIN:
        return Run(run.path, config)
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    run.note(resumed=[*run.noted.get("resumed", []), {"at": now, "command": shlex.join(sys.argv)}])
    if config == run.config:
        return run
    before, after = (
        [{k: v for k, v in c[part].items() if k not in NO_MATTER} for part in ("train", "enhance", "evaluate")]
        for c in (run.config, config)
    )
    if before[0] != after[0]:
        run.note(unfinished=True)
    if before != after and (run.path / "results.csv").exists():
        aside = run.path / "evaluations" / now
        aside.mkdir(parents=True)
        for name in ("config.yaml", "run.json"):
            shutil.copy(run.path / name, aside)
        for name in ("results.csv", "summary.json", "examples.json", "report.html", "audio", "figures", "videos"):
            if (run.path / name).exists():
                (run.path / name).rename(aside / name)
        print(f"set aside  earlier results, in {aside}", flush=True)
    return create_run(run.path, config)


def find_run(config: dict[str, Any]) -> Run:
    """Create the folder of a new run."""
    path = Path(config["run_dir"] or Path(config["runs"], config["exp"], datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if int(os.environ.get("LOCAL_RANK", 0)):  # of distributed training, not the process that created the run
        if not (chosen := config["run_dir"] or os.environ.get("AVDVAE_RUN")):
            raise UserError("processes started by torchrun or the like need one run: give run_dir=")
        return Run(Path(chosen), config)
    if (path / "config.yaml").exists() and config["run_dir"]:
        raise UserError(f"{path} holds a run already: continue it with resume={path}, or choose another run_dir")
    number, name = 1, path.name
    while (path / "config.yaml").exists():  # runs of a sweep may start in the same second
        number += 1
        path = path.with_name(f"{name}.{number}")
    os.environ["AVDVAE_RUN"] = str(path)  # for the processes that training starts
    return create_run(path, config)


def training_of(config: Mapping[str, Any]) -> Training:
    return known_settings(Training, "train", **config["train"], seed=config["seed"])


def check(config: dict[str, Any]) -> nn.Module:
    """Check a configuration before its run is created; return its model, untrained."""
    Configuration.check(config)
    training = training_of(config)
    if training.accelerator == "cuda" and torch.cuda.device_count() < training.devices:
        raise UserError(
            f"train.accelerator=cuda, train.devices={training.devices}: torch finds {torch.cuda.device_count()} GPUs: "
            "give train.accelerator=cpu, or fewer devices"
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


def find_start(name: str, config: dict[str, Any], splits: dict[str, PreparedCorpus]) -> Run:
    """A trained run of the experiment `name` with the settings of this command line; trained now if there is none."""
    own = (
        "exp=",
        "model",
        "start=",
        "run_dir=",
        "compare=",
        "train.devices=",
        "train.nodes=",
        "train.strategy=",
    )
    if not config["models"]:
        own += ("train.epochs=", "train.freeze=", "train.lr=")  # these are for the model that starts from this one
    overrides = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+~").startswith(own)]
    wanted: Any = OmegaConf.to_container(hydra.compose("config", [*overrides, f"exp={name}"]), resolve=True)
    if not config["models"]:
        shared = wanted["model"].keys() & config["model"].keys() - {"target"}
        wanted["model"] |= {key: config["model"][key] for key in shared}
    found = find_runs(Path(wanted["runs"]), wanted)
    if trained := [run for run in found if run.trained]:
        print(f"start      {name}, found in {trained[-1].path}", flush=True)
        return trained[-1]
    if int(os.environ.get("RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0)):
        raise UserError(f"{config['exp']} starts from a trained {name}: train exp={name} first, in one process")
    print(f"start      {name}, trained first", flush=True)
    starts = [find_start(before, wanted, splits) for before in wanted["start"]]
    run = found[-1] if found else find_run(wanted)
    train_run(run, splits, starts)
    return run


def open_start(name: str, config: dict[str, Any]) -> Run:
    """The trained run in the folder `name`, with the same sizes."""
    run = open_run(Path(name))
    if not run.trained and "imported" not in run.noted:
        raise UserError(f"start=[{name}]: the training of this run is unfinished: continue it with resume={name} first")
    for key in (run.config["model"].keys() & config["model"].keys()) - {"target"}:
        if (theirs := run.config["model"][key]) != (own := config["model"][key]):
            there, here = ("null" if value is None else value for value in (theirs, own))
            raise UserError(f"start=[{name}]: this run has model.{key}={there}, and here it is {here}: give them alike")
    return run


def check_starts(model: Any, starts: Sequence[Run]) -> None:
    """Refuse models of other kinds than those that `model`, untrained, starts from."""
    hints = get_type_hints(model.start_from)
    kinds = [kind for name, kind in hints.items() if name not in ("self", "return")]
    kinds = [type(model) if isinstance(kind, TypeVar) else kind for kind in kinds]
    given = [start.build_model() for start in starts]
    if len(given) != len(kinds) or not all(map(isinstance, given, kinds)):
        wanted, found = (", ".join(kind.__name__ for kind in these) for these in (kinds, map(type, given)))
        raise UserError(f"start=: {type(model).__name__} starts from {wanted}, and was given {found}")
    model.start_from(*given)  # which refuses weights that do not fit


def train_run(run: Run, splits: dict[str, PreparedCorpus], starts: Sequence[Run] = ()) -> None:
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
            run.note(command=shlex.join(sys.argv))
    with run.undone_unless("last/state.pt") if new else nullcontext():
        trained = train(model, splits["train"], splits["valid"], run.stft, settings, run.path, resume=run.begun)
    if MAIN:
        run.note(seconds={"train": trained.seconds}, corpus=splits["train"].utterances[0].corpus, unfinished=False)


def compare_models(run: Run, trained: dict[str, Run], prepared: Path) -> None:
    """Evaluate models on the same mixtures, each compared with those before it, in one report."""
    parts: dict[str, Path] = {}
    for name, model in trained.items():
        print(f"model      {name}, from {model.path}", flush=True)
        asked = {
            part: run.config[part] for part in ("evaluate", "enhance")
        }  # the same for all models, whatever their own runs have
        config = {**model.config, **asked, "exp": name, "start": []}
        part = open_run(run.path / name) if (run.path / name).exists() else create_run(run.path / name, config)
        if part.config != config:
            raise UserError(f"{part.path} was evaluated with other settings: give another run_dir")
        evaluate_run(Run(model.path, config), part.path, prepared, [str(path) for path in parts.values()])
        parts[name] = part.path
    summary = join_evaluations(run.path, parts)
    for task in dict.fromkeys(item["task"] for item in summary if not item["noise"]):
        print(task.replace("_", " "))
        for place, (name, measured) in enumerate(ranking(summary, task), start=1):
            means = [in_words(metric, item) for metric, item in measured.items() if metric != FAILED]
            print(f"{place:>4}. {name:<20}{'   '.join(means)}")


def in_words(metric: str, item: Mapping[str, Any]) -> str:
    """A mean and its interval."""
    look = Look.of(metric)
    mean, low, high = (f"{item[key]:.{look.digits}f}" for key in ("mean", "ci_low", "ci_high"))
    return f"{look.name} {mean} [{low}, {high}]{f' {look.unit}' if look.unit else ''}"


def run_experiment(given: dict[str, Any]) -> None:
    asked = resumed(given) if given["resume"] else given
    with in_file(Path(given["resume"], "config.yaml")) if given["resume"] else nullcontext():
        untrained = check(asked)
    if given["resume"] and "imported" in open_run(Path(given["resume"])).noted:
        raise UserError(
            f"{given['resume']} holds imported weights and no training to go on with: evaluate them with "
            f"experiments/evaluate.py run={given['resume']}, or train from them with start=[{given['resume']}]"
        )
    prepared = find_corpus(asked)
    splits = {split: PreparedCorpus(prepared, split) for split in ("train", "valid")}
    if not asked.get("models"):
        check_tasks(subject_of(Run(Path(), asked), untrained, prepared, Path()))  # before hours of training
    if not given["resume"]:
        starts = [
            open_start(name, given) if os.sep in name else find_start(name, given, splits) for name in given["start"]
        ]
        if starts:
            check_starts(untrained, starts)
    elif asked.get("start") and not open_run(Path(given["resume"])).begun:
        raise UserError(f"{given['resume']} was stopped before its training began: start a new run, in another run_dir")
    else:
        starts = []
    if asked.get("models"):
        if given["resume"]:
            run = go_on(open_run(Path(given["resume"])), asked)
            if (paths := run.noted.get("trained")) is None:
                raise UserError(f"{run.path / 'run.json'} does not list the trained models: start a new comparison")
        else:
            paths = {name: str(find_start(name, given, splits).path) for name in asked["models"]}
            run = find_run(given)
            run.note(model=", ".join(paths), trained=paths, command=shlex.join(sys.argv))
        compare_models(run, {name: open_run(Path(path)) for name, path in paths.items()}, prepared)
        print(f"report     {run.path / 'report.html'}\nrun        {run.path}")
        return
    run = go_on(open_run(Path(given["resume"])), asked) if given["resume"] else find_run(given)
    train_run(run, splits, starts)
    if MAIN:
        before = run.noted["seconds"].get("evaluate", 0.0)
        evaluate_run(run, run.path, prepared, run.config["compare"])
        run.note(seconds={"evaluate": before + run.noted["seconds"]["evaluate"]})
        print(f"report     {run.path / 'report.html'}\nrun        {run.path}")


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(config: DictConfig) -> None:
    with as_a_program(OmegaConfBaseException):
        try:
            run_experiment(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
        except KeyboardInterrupt:
            sys.exit(f"run.py: interrupted; continue with resume={config.resume or os.environ.get('AVDVAE_RUN')}")


if __name__ == "__main__":
    main()
