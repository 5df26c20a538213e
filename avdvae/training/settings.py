"""The settings of a training, checked, and the schedule of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from avdvae.errors import UserError
from avdvae.probability.objectives import Schedule
from avdvae.training.loggers import LOGGERS


@dataclass(frozen=True)
class Training:
    epochs: int = 60  # 0: the model is kept as it is
    patience: int | None = 30  # epochs without a better validation loss, counted after the warm-up; None: never stop
    frames: int | None = 1  # of a window; None: whole utterances
    batch_size: int = 256  # items, of all processes together
    batch_seconds: float | None = None  # of whole utterances, padding included, in place of batch_size
    accumulate: int = 1  # batches a step
    lr: float = 1e-3  # root mean square of a step's change where optimiser is muon
    optimiser: str = "muon"  # for matrices, with adam for all else; or adam
    schedule: str = "cosine"  # of lr, down to 0 over all epochs; or constant
    beta: float = 1.0  # weight of the KL terms
    warmup_epochs: int = 0  # in which beta rises from 0
    free_nats: float | None = None  # of KL that cost nothing, of each step of a latent
    free_until: Sequence[int] | None = None  # (from, to): epochs over which they go to 0; None: never
    own_past: Sequence[int] | None = (
        None  # (from, to): epochs of scheduled sampling, from the true past to the model's own
    )
    clip_norm: float | None = None  # length of the longest gradient
    ema: float | None = None  # decay of an average of the weights, which is then validated and kept in their place
    precision: str = "32-true"  # or bf16-mixed
    compile: bool = False
    accelerator: str = "auto"  # or cpu, cuda
    devices: int = 1  # of each node
    nodes: int = 1
    strategy: str = "auto"  # or ddp, which auto is where there are several processes
    workers: int = 0  # processes that load
    freeze: Sequence[str] = ()  # parts of the model that are not trained
    level_db: Sequence[float] | None = None  # (low, high): the range of random levels to train at
    augment: bool = False  # mouth crops, by data/augment.py
    trim_db: float | None = 30.0
    best_by: str = "loss"  # criterion of the weights that are kept, in validation; or si_sdr, of resynthesis
    log_every: int = 20  # steps
    save_every: float = 60.0  # seconds; the end of an epoch saves too
    loggers: Sequence[str] = ()  # wandb, mlflow, beside metrics.jsonl, metrics.csv and TensorBoard
    seed: int = 0

    def __post_init__(self) -> None:
        def whole(value: Any, least: int) -> bool:
            return type(value) is int and value >= least

        def real(value: Any) -> bool:
            return type(value) in (int, float) and math.isfinite(value)

        def is_range(value: Any, fits: Callable[[Any], bool] = real) -> bool:
            return isinstance(value, Sequence) and len(value) == 2 and all(map(fits, value)) and value[0] <= value[1]

        rules = (
            ("batch_size accumulate devices nodes log_every", "1, 2, 3, ...", lambda v: whole(v, 1)),
            ("epochs warmup_epochs workers seed", "0, 1, 2, ...", lambda v: whole(v, 0)),
            ("patience frames", "1, 2, 3, ... or null", lambda v: v is None or whole(v, 1)),
            ("lr", "a number above 0", lambda v: real(v) and v > 0),
            ("beta save_every", "0 or a number above", lambda v: real(v) and v >= 0),
            (
                "clip_norm trim_db batch_seconds free_nats",
                "a number above 0, or null",
                lambda v: v is None or (real(v) and v > 0),
            ),
            ("ema", "a number between 0 and 1, or null", lambda v: v is None or (real(v) and 0 < v < 1)),
            ("level_db", "a range such as [-20, 0], or null", lambda v: v is None or is_range(v)),
            (
                "own_past free_until",
                "two epochs such as [10, 30], or null",
                lambda v: v is None or is_range(v, lambda e: whole(e, 0)),
            ),
            ("optimiser", "muon or adam", ("muon", "adam").__contains__),
            ("best_by", "loss or si_sdr", ("loss", "si_sdr").__contains__),
            ("schedule", "constant or cosine", ("constant", "cosine").__contains__),
            ("precision", "32-true or bf16-mixed", ("32-true", "bf16-mixed").__contains__),
            ("accelerator", "auto, cpu or cuda", ("auto", "cpu", "cuda").__contains__),
            ("strategy", "auto or ddp", ("auto", "ddp").__contains__),
            ("compile augment", "true or false", lambda v: type(v) is bool),
            ("loggers", f"[] or a list of {', '.join(LOGGERS)}", lambda v: set(v) <= LOGGERS.keys()),
        )
        checks = ((name, allowed, fits) for names, allowed, fits in rules for name in names.split())
        if wrong := [
            f"train.{n}={getattr(self, n)!r} (give {a})" for n, a, fits in checks if not fits(getattr(self, n))
        ]:
            raise UserError(f"training cannot start with {', '.join(wrong)}")
        if self.batch_seconds is not None and self.frames is not None:
            raise UserError(
                f"train.batch_seconds={self.batch_seconds} is for whole utterances and train.frames={self.frames} cuts "
                "windows: give train.frames=null, or train.batch_seconds=null"
            )

        for name in self.loggers:
            found = find_spec(name)
            if found is None or found.origin is None:  # a folder of this name is no package
                raise UserError(f"train.loggers=[{name}]: {name} is not installed: pip install 'avdvae[{name}]'")

    def step_schedule(self, epoch: float, coin: float) -> Schedule:
        """Of the step after `epoch` epochs, which need not be a whole number."""
        beta = self.beta * (min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)
        free = (self.free_nats or 0.0) * (1 - _passed(self.free_until, epoch))
        return Schedule(beta, own=_passed(self.own_past, epoch), free=free, coin=coin, epoch=int(epoch))

    def validation_schedule(self) -> Schedule:
        """Of the last epochs: with the full beta, and without free bits."""
        return Schedule(self.beta, own=0.0 if self.own_past is None else 1.0)

    def lr_at(self, epoch: float) -> float:
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    @property
    def settled(self) -> int:
        """The epoch from which on the validation loss is that of the final schedule."""
        return max(self.warmup_epochs, *(self.own_past or (0,)))


def _passed(epochs: Sequence[int] | None, epoch: float) -> float:
    """The fraction of the epochs from the first to the second that have passed."""
    if epochs is None:
        return 0.0
    first, last = epochs
    return float(epoch >= last) if first == last else min(max((epoch - first) / (last - first), 0.0), 1.0)
