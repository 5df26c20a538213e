"""Train a model, evaluate it, and write the report.

avdvae train exp=cvae                    any experiment; the default corpus is generated
avdvae train exp=vae train.lr=3e-4       any setting
avdvae train exp=vae train=debug         from data to report in a minute
avdvae train resume=runs/cvae/...        continues that run exactly
avdvae train resume=... evaluate.snrs=[0]    with other settings of evaluation
avdvae train -m exp=vae,cvae seed=0,1    a sweep
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from hydra.core.hydra_config import HydraConfig

from avdvae.orchestration.experiment import run_experiment
from avdvae.orchestration.request import Request
from avdvae.programs.program import Program


def train(config: dict[str, Any]) -> float | None:
    """The validation loss, for the sweepers of Hydra."""
    words = [*HydraConfig.get().overrides.task]
    try:
        return run_experiment(Request(config, words, shlex.join(["avdvae", "train", *words]))).best_loss
    except KeyboardInterrupt as stop:
        resume = config["resume"] or os.environ.get("AVDVAE_RUN")
        raise KeyboardInterrupt(f"interrupted; continue with resume={resume}") from stop


main = Program("config", train, complete=True)

if __name__ == "__main__":
    main()
