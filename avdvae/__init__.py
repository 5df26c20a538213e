"""avdvae: audio-visual and dynamical variational autoencoders for speech.

`train` makes a run, `evaluate` measures it again, `load` gives its model, which enhances, encodes, resynthesises,
transfers and generates: `avdvae.trained`. The models and their contract: read `avdvae.protocols` first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdvae.errors import UserError, naming_extras

if TYPE_CHECKING:
    from avdvae.evaluation.again import Rows
    from avdvae.runs import Run
    from avdvae.trained import TrainedModel

__all__ = ["UserError", "__version__", "evaluate", "load", "train"]
__version__ = "0.2.0"


@naming_extras()
def load(run: str | Path | Run, device: str | None = None) -> TrainedModel:
    """The model of a run, of the folder of one, or of packaged weights, of which `avdvae list weights` has the names.

    `device` is "cpu", "cuda" or the like; None: the GPU where there is one, unless the run asked for the CPU.

    >>> import avdvae
    >>> avdvae.load("runs/cvae")
    TrainedModel(CVAE of runs/cvae, takes power and lips, latents z)
    >>> avdvae.load("vae-librispeech")
    TrainedModel(VAE of vae-librispeech, takes power, latents z)
    """
    from avdvae.runs import open_run
    from avdvae.trained import TrainedModel

    return TrainedModel(open_run(Path(run)) if isinstance(run, str | Path) else run, device)


@naming_extras()
def train(
    exp: str = "vae",
    corpus: str | Path | None = None,
    run_dir: str | Path | None = None,
    progress: Callable[[float], Any] | None = None,
    **settings: Any,
) -> Run:
    """Train a model, evaluate it, and write the report, as the command `avdvae train` with the same settings.

    `exp`: an experiment; `avdvae list experiments` shows all. `corpus`: a folder of films or sounds, a prepared corpus,
    or a name of `avdvae list data`; None: that of the experiment, generated where it is Talker. `settings` are those of
    `avdvae train --help`: of its section `train` by name, others with theirs. `progress` is called with the share of
    the training that is done, 0 to 1.

    >>> run = avdvae.train("vae", corpus="my_corpus", run_dir="runs/mine", train="debug", epochs=2,
    ...                    model={"hidden": 64}, evaluate={"noises": ["White"], "snrs": [0]})
    vae: 72,513 parameters, ... hours to train on
    ...
    run        runs/mine
    >>> avdvae.load(run)
    TrainedModel(VAE of runs/mine, takes power, latents z)
    """
    from avdvae.orchestration.experiment import run_experiment
    from avdvae.orchestration.keywords import request_of

    return run_experiment(request_of(exp, corpus, run_dir, settings), progress).run


@naming_extras()
def evaluate(
    run: str | Path | Run,
    tasks: Sequence[str] | None = None,
    compare: Sequence[str | Path] = (),
    out: str | Path | None = None,
    prepared: str | Path | None = None,
    enhance: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Rows:
    """Measure a run's model, as the command `avdvae evaluate` with the same settings: means with 95 % intervals, as
    rows that print as a table; `.folder` has the report and the value of each utterance.

    `compare`: runs or evaluations on the same mixtures, to which the mean differences are rows, too. `out`: folder of
    the results; None: a new one in the run's. `prepared`: another corpus. What is not given in `settings`, of the
    section `evaluate`, and in `enhance` is as in the run.

    >>> rows = avdvae.evaluate("runs/vae", noises=["White", "Car"], snrs=[0], metrics=["si_sdr"], workers=1)
    evaluating ...
    >>> print(rows)
    task         metric ...  noise  SNR  mean ...
    enhancement  SI-SDR (dB) ...  White  0 ...
    ...
    >>> {(row.noise, row.snr) for row in rows} == {("White", 0), ("Car", 0), ("all", 0)}
    True
    """
    from avdvae.evaluation.again import Rows, evaluate_again
    from avdvae.runs import open_run

    asked = {"evaluate": settings if tasks is None else {"tasks": [*tasks], **settings}, "enhance": enhance or {}}
    asked |= {} if prepared is None else {"prepared": str(prepared)}
    opened = open_run(Path(run)) if isinstance(run, str | Path) else run
    return Rows.of(evaluate_again(opened, asked, [str(other) for other in compare], Path(out) if out else None))
