"""A run from weights published by others."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from avdvae.configurations import compose
from avdvae.errors import UserError
from avdvae.nn.weights import WEIGHTS, save_weights
from avdvae.others.published_weights import read_published_weights
from avdvae.runs import build_model, create_run


def import_weights(source: Path, path: Path, corpus: str | None = None) -> None:
    """Create the run `path`; nothing is left behind on an error. `corpus`: that of its evaluations, of configs/data."""
    if path.exists():
        raise UserError(f"{path} holds a run already, or other files: choose another run_dir")
    published = read_published_weights(source)
    words = [f"exp={published.experiment}", *([f"data={corpus}"] if corpus else [])]
    config = compose("config", words) | {
        "run_dir": str(path),
        "hop": published.hop,
    }
    config["model"] |= published.arguments
    model = build_model(config["model"])
    published.fill(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".import_", dir=path.parent) as folder:
        run = create_run(Path(folder, path.name), config)
        save_weights(model, run.path / WEIGHTS)
        run.note(model=config["exp"], parameters=parameters, imported=str(published.file), command=shlex.join(sys.argv))
        run.path.rename(path)
    print(f"{config['exp']}: {parameters:,} parameters from {published.file}\nrun        {path}")
