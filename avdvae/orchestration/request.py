"""What somebody asks for: a configuration, and the words from which it was composed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.runs import Run, create_run

MAIN = int(os.environ.get("RANK", 0)) == int(os.environ.get("LOCAL_RANK", 0)) == 0  # in one of all processes


@dataclass(frozen=True)
class Request:
    """`words` are settings, as exp=vae train.lr=3e-4; `command` is noted in the run."""

    config: dict[str, Any]
    words: Sequence[str]
    command: str


def new_run(config: dict[str, Any]) -> Run:
    """Create the folder of a new run."""
    if int(os.environ.get("LOCAL_RANK", 0)):  # of distributed training, not the process that created the run
        if not (chosen := config["run_dir"] or os.environ.get("AVDVAE_RUN")):
            raise UserError("processes started by torchrun or the like need one run: give run_dir=")
        return Run(Path(chosen), config)
    path = Path(config["run_dir"] or Path(config["runs"], config["exp"], datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if config["run_dir"] and (path / "config.yaml").exists():
        raise UserError(f"{path} holds a run already: continue it with resume={path}, or choose another run_dir")
    number, name = 1, path.name
    while not config["run_dir"]:  # runs of a sweep may start in the same second
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            path = path.with_name(f"{name}.{number}")
    os.environ["AVDVAE_RUN"] = str(path)  # for the processes that training starts
    return create_run(path, config)
