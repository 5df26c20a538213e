"""Train a model, evaluate it, and write the report.

avdvae train exp=cvae                    any experiment; the default corpus is generated
avdvae train exp=vae train.lr=3e-4       any setting
avdvae train exp=vae train=debug         from data to report in a minute
avdvae train resume=runs/cvae/...        continues that run exactly
avdvae train resume=... evaluate.snrs=[0]    with other settings of evaluation
avdvae train -m exp=vae,cvae seed=0,1    a sweep
avdvae train exp=claims claims.only=[dvae_beats_vae]    the claims of the field: `avdvae claims --help`
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig

from avdvae.orchestration.experiment import run_experiment
from avdvae.orchestration.request import Request
from avdvae.programs import claims
from avdvae.programs.program import Program


def train(config: dict[str, Any]) -> float | None:
    """The validation loss, for the sweepers of Hydra."""
    words = [*HydraConfig.get().overrides.task]
    try:
        return run_experiment(Request(config, words, shlex.join(["avdvae", "train", *words]))).best_loss
    except KeyboardInterrupt as stop:
        resume = config["resume"] or os.environ.get("AVDVAE_RUN")
        raise KeyboardInterrupt(f"interrupted; continue with resume={resume}") from stop


program = Program("config", train, complete=True)


def main(name: str | None = None) -> None:
    """exp=claims is no experiment but many, for which there is another program."""
    if "exp=claims" not in sys.argv[1:]:
        program(name)
        return
    sys.argv[1:] = [given.removeprefix("claims.") for given in sys.argv[1:] if given != "exp=claims"]
    claims.main(name)


if __name__ == "__main__":
    main()
