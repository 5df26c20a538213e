"""The trained runs that a training starts from: given as folders, or found by the settings that decide their weights,
and trained first where there is none. Of several processes that need the same one, a single one trains it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from avdvae.configurations import compose
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.files import locked
from avdvae.orchestration.request import Request, new_run
from avdvae.orchestration.training import train_run
from avdvae.runs import LEARNED, Run, deciding_settings, find_runs, open_run, packaged_weights

# Words of a request that are for its own model, not for those that it starts from.
OWN = ("exp=", "model", "start=", "run_dir=", "compare=", "train.devices=", "train.nodes=", "train.strategy=")
OWN_OF_A_TRAINING = ("train.epochs=", "train.freeze=", "train.lr=")


def of_learned_estep(request: Request) -> dict[str, Any]:
    """That of exp=learned_estep, with the model and the spectra of the run that it is for, in the folder of which it is
    trained, and by default with its corpus; any other as it is."""
    config = request.config
    if config["exp"] != LEARNED:
        return config
    if len(config["start"]) != 1 or not (os.sep in config["start"][0] or config["start"][0] in packaged_weights()):
        given = ",".join(config["start"])
        raise UserError(
            f"exp=learned_estep start=[{given}]: give the run that it is for, by its folder or by the name of packaged "
            "weights, as start=[vae-librispeech]"
        )
    run = open_run(Path(config["start"][0]))
    own_corpus = any(word.startswith(("data=", "data.", "prepared=")) for word in request.words)
    names = ("hop", "floor", "lips") if own_corpus else ("hop", "floor", "lips", "data", "prepared")
    model = {name: value for name, value in config["model"].items() if name in ("target", "width", "tune")}
    return {
        **config,
        **{name: run.config[name] for name in names if name in run.config},
        "model": {**model, "prior": run.config["model"]},
        "run_dir": config["run_dir"] or str(run.results / LEARNED),
    }


def find_starts(request: Request, splits: Mapping[str, PreparedCorpus]) -> list[Run]:
    """The runs that `start` lists, by folder, or by the name of packaged weights or of an experiment."""
    config = request.config
    return [
        open_start(name, config) if os.sep in name or name in packaged_weights() else find_start(name, request, splits)
        for name in config["start"]
    ]


def find_start(name: str, request: Request, splits: Mapping[str, PreparedCorpus]) -> Run:
    """A trained run of the experiment `name` with the settings of this request; trained now if there is none."""
    return find_training(start_request(name, request), splits)


def start_request(name: str, request: Request, changes: Sequence[str] = ()) -> Request:
    """That of a training of the experiment `name` with the settings of `request`, except for `changes`."""
    config, own = request.config, OWN if request.config["models"] else OWN + OWN_OF_A_TRAINING
    own += ("seeds=", *(f"{change.partition('=')[0]}=" for change in changes))
    words = [word for word in request.words if not word.lstrip("+~").startswith(own)] + [f"exp={name}", *changes]
    wanted = compose("config", words)
    wanted["data"] = config["data"]  # of which `splits` are, whatever the other experiment is trained on by itself
    if not config["models"]:
        shared = wanted["model"].keys() & config["model"].keys() - {"target"}
        wanted["model"] |= {key: config["model"][key] for key in shared}
    return Request(wanted, words, request.command)


def find_training(request: Request, splits: Mapping[str, PreparedCorpus]) -> Run:
    """A trained run with the settings of this request; trained now if there is none."""
    wanted, name = request.config, request.config["exp"]
    if trained := _trained(name, find_runs(Path(wanted["runs"]), wanted)):
        return trained
    if int(os.environ.get("RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0)):
        raise UserError(f"there is no trained {name} to start from: train exp={name} first, in one process")
    deciding = hashlib.sha256(json.dumps(deciding_settings(wanted), sort_keys=True).encode()).hexdigest()[:16]
    with locked(Path(wanted["runs"], ".locks", f"{name}-{deciding}"), f"trains {name}"):
        found = find_runs(Path(wanted["runs"]), wanted)
        if trained := _trained(name, found):
            return trained
        print(f"start      {name}, trained first", flush=True)
        starts = [find_start(before, request, splits) for before in wanted["start"]]
        run = found[-1] if found else new_run(wanted)
        train_run(run, splits, starts, request.command)
        return run


def _trained(name: str, found: Sequence[Run]) -> Run | None:
    if not (trained := [run for run in found if run.trained]):
        return None
    print(f"start      {name}, found in {trained[-1].path}", flush=True)
    return trained[-1]


def open_start(name: str, config: Mapping[str, Any]) -> Run:
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
