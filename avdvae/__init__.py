"""avdvae: audio-visual and dynamical variational autoencoders for speech.

`load` gives a trained model, which enhances, encodes, resynthesises, transfers and generates: `avdvae.trained`. The
models and their contract: read `avdvae.protocols` first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avdvae.errors import UserError

if TYPE_CHECKING:
    from avdvae.trained import TrainedModel

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"


def load(run: str | Path, device: str | None = None) -> TrainedModel:
    """The model of a run, whose folder experiments/run.py has made.

    `device` is "cpu", "cuda" or the like; None: the GPU where there is one, unless the run asked for the CPU.

    >>> import avdvae
    >>> avdvae.load("runs/cvae")
    TrainedModel(CVAE of runs/cvae, takes power and lips, latents z)
    """
    from avdvae.runs import open_run
    from avdvae.trained import TrainedModel

    return TrainedModel(open_run(Path(run)), device)
