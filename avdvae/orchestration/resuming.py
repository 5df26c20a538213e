"""Going on with a run: what of its settings may change, and what becomes of its earlier results."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.orchestration.request import MAIN, Request
from avdvae.runs import MISSING, NO_MATTER, Run, changed, create_run, open_run
from avdvae.training.curves import read_curves

MAY_CHANGE = ("train.epochs", "train.patience", *(f"train.{name}" for name in NO_MATTER), "compare")
SECTIONS_THAT_MAY = ("evaluate", "enhance")  # all their settings
RESULTS = ("results.csv", "summary.json", "examples.json", "report.html", "audio", "figures", "videos")


def resumed(request: Request) -> dict[str, Any]:
    """The configuration of the run to resume, with the changes that are asked for."""
    given, path = request.config, Path(request.config["resume"])
    run, changes, wrong = open_run(path), {}, []
    config = run.config
    for word in request.words:
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


def go_on(run: Run, config: dict[str, Any], command: str) -> Run:
    """Record the resumption and its changes; results of other settings or weights are moved aside."""
    if not MAIN:
        return Run(run.path, config)
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    run.note(resumed=[*run.noted.get("resumed", []), {"at": now, "command": command}])
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
        for name in RESULTS:
            if (run.path / name).exists():
                (run.path / name).rename(aside / name)
        print(f"set aside  earlier results, in {aside}", flush=True)
    return create_run(run.path, config)
