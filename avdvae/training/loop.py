"""One training loop for every model. The folder of a run holds

    weights.safetensors   the best weights so far
    metrics.jsonl         curves of training and validation, a record a line; parts of the bound in nats per frame
    metrics.csv           the same, a row an epoch
    tensorboard/          the same curves, with pictures and sound of one utterance
    last/state.pt         the state from which training resumes exactly

Random numbers of a step follow from the seed, the step and the process: no state of a generator is saved. A step sums
over the utterances of all processes and all accumulated batches, and divides by their number of frames.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from avdvae.data.augment import augmented
from avdvae.data.loader import Loader, seen_by
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, reading
from avdvae.files import replacing
from avdvae.latents.resynthesis import resynthesise
from avdvae.nn.former_names import name_now, with_names_now
from avdvae.nn.weights import WEIGHTS, load_weights, save_weights
from avdvae.probability.objectives import Elbo
from avdvae.progress import progress_bar
from avdvae.protocols import Autoregressive, Batch, Model, is_speech_prior, why_no_speech_prior
from avdvae.randomness import stream
from avdvae.signals.audio import Stft
from avdvae.signals.metrics import score
from avdvae.training.curves import Curves
from avdvae.training.devices import compile_model, launch
from avdvae.training.optimisers import optimisers_of, set_lr
from avdvae.training.settings import Training

_STATE = Path("last", "state.pt")
_REMEDY = (
    "the run keeps its last good state, and a new one may do better with a smaller train.lr, train.clip_norm=1 or "
    "train.precision=32-true"
)


@dataclass(frozen=True)
class Trained:
    model: nn.Module  # with the best weights, in eval mode
    best_epoch: int
    best_loss: float  # of validation, in nats per frame; with train.best_by=si_sdr, SI-SDR in dB, negative
    epochs: int
    steps: int
    seconds: float  # since the run began, without the time between interruption and resumption


def train(
    model: nn.Module,
    train: PreparedCorpus,
    valid: PreparedCorpus,
    stft: Stft,
    settings: Training,
    run: Path,
    resume: bool = False,
    progress: Callable[[float], Any] | None = None,
) -> Trained:
    """Train a `protocols.Model` in place. Every process of a distributed run calls this with the same arguments.

    On Ctrl-C the step is finished and saved, and KeyboardInterrupt raised; `resume` continues from there. `progress` is
    called with the share of the training that is done, 0 to 1.
    """
    if resume and not (run / _STATE).exists():
        raise UserError(f"{run} holds no training to resume: give the folder of one, or start anew without resume")
    if not resume and (run / _STATE).exists():
        raise UserError(f"{run} holds a training already: continue with resume={run}, or choose another folder")
    precision = torch.get_float32_matmul_precision()
    try:
        loop = Loop(model, train, valid, stft, settings, run, resume)
        with closing(loop.curves) if loop.curves else nullcontext(), _postponed_interrupt() as interrupted:
            loop.run_epochs(interrupted, progress or (lambda share: None))
            if loop.curves:
                loop.curves.complete = True
                print(f"trained    {loop.outcome()}", flush=True)
    finally:
        torch.set_float32_matmul_precision(precision)  # an evaluation that follows is exact again
    loop.fabric.barrier()  # the best weights are on the disk by now
    load_weights(model.eval(), run / WEIGHTS)
    at = loop.at
    return Trained(model, at.best_epoch, at.best_loss, at.epoch, at.step, at.seconds)


@dataclass
class _Position:
    """The position of a training."""

    steps_per_epoch: int
    epoch: int = 0  # finished ones
    step: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    stale: int = 0  # epochs of patience used up
    seconds: float = 0.0
    logged: int = 0  # bytes of metrics.jsonl
    sums: dict[str, float] = field(default_factory=dict)  # by part, over the steps since the last record


class _Step(NamedTuple):
    """The results of a step, which the device may still be computing."""

    number: int
    ids: tuple[str, ...]
    loss_B: Float[Tensor, " B"]  # of this process
    parts: tuple[str, ...]
    sums: Float[Tensor, " parts"]  # of all processes


class Loop:
    """A training: its devices, batches, optimisers and position. `train` is the way to run one."""

    def __init__(
        self,
        model: nn.Module,
        train: PreparedCorpus,
        valid: PreparedCorpus,
        stft: Stft,
        settings: Training,
        run: Path,
        resume: bool = False,
    ):
        if not isinstance(model, Model):
            raise UserError(f"{type(model).__name__} cannot be trained: give it what protocols.Model declares")
        self.model, self.valid, self.stft, self.settings, self.run = model, valid, stft, settings, run
        parts = dict(model.named_modules())
        for name in (name_now(part, model) for part in settings.freeze):
            if name not in parts:
                known = ", ".join(child for child, _ in model.named_children())
                raise UserError(f"train.freeze={name}: {type(model).__name__} has no such part; it has {known}")
            parts[name].requires_grad_(False)
        if settings.own_past is not None and not isinstance(model, Autoregressive):
            given = list(settings.own_past)
            raise UserError(f"train.own_past={given}: {type(model).__name__} is not conditioned on the past: give null")
        if settings.best_by == "si_sdr" and why_no_speech_prior(model):  # the same models resynthesise
            raise UserError(
                f"train.best_by=si_sdr: {type(model).__name__} resynthesises no speech from latents: give loss"
            )
        self.fabric = launch(settings)
        share = {"rank": self.fabric.global_rank, "world": self.fabric.world_size}
        level_db = None if settings.level_db is None else tuple(settings.level_db)
        self.loader = self._load(train, settings.frames, shuffle=True, level_db=level_db, **share)
        self.held_out = self._load(valid, settings.frames, shuffle=False, **share)
        # fabric.setup refuses models that take and give frozen dataclasses, so its strategy is asked directly.
        self.parallel: Any = self.fabric.strategy.setup_module(model.to(self.fabric.device))
        self.judged = model if settings.ema is None else deepcopy(model).eval()  # what is validated and kept
        if settings.compile:
            compile_model(model, self.fabric)
        self.parameters = list(model.parameters())
        self.optimisers = optimisers_of(self.parameters, settings)
        self.at = _Position(steps_per_epoch=-(-len(self.loader) // settings.accumulate))
        self.pending: list[_Step] = []
        if resume:
            self._restore()
        self.saved = time.monotonic()
        self.started = self.saved - self.at.seconds
        self.curves: Curves | None = None
        if self.fabric.is_global_zero:
            self.curves = Curves(run, self.at.logged, self.at.step, settings.loggers)
        if not resume:
            self._save()

    def _load(self, corpus: PreparedCorpus, frames: int | None, **how: Any) -> Loader:
        s = self.settings
        how = {"batch_size": s.batch_size, **how}
        how |= {"seed": s.seed, "workers": s.workers, "trim_db": s.trim_db, "device": self.fabric.device}
        how |= seen_by(self.model)
        if s.batch_seconds is not None:
            how |= {"batch_frames": round(s.batch_seconds * corpus.utterances[0].rate / self.stft.hop)}
        return Loader(corpus, self.stft, frames, **how)

    def run_epochs(self, interrupted: threading.Event, progress: Callable[[float], Any]) -> None:
        s, at, steps = self.settings, self.at, self.settings.epochs * self.at.steps_per_epoch
        with progress_bar(shown=self.curves is not None and sys.stdout.isatty()) as bar:
            if s.epochs == 0:
                self._end_epoch()
            task = bar.add_task(f"epoch {at.epoch + 1}", total=steps, completed=at.step)
            while at.epoch < s.epochs and (s.patience is None or at.stale < s.patience):
                self.model.train()
                batches = iter(self.loader)
                while together := list(islice(batches, s.accumulate)):
                    self.step(together)
                    bar.advance(task)
                    progress(at.step / steps)
                    if at.step % at.steps_per_epoch == 0:
                        continue  # what ends the epoch saves it
                    # Several processes must stop together; they agree on it rarely, because it makes them wait.
                    stops = (at.step % s.log_every == 0 or self.fabric.world_size == 1) and any(
                        self._gather(interrupted.is_set())
                    )
                    if stops or time.monotonic() - self.saved >= s.save_every:
                        self._save()
                    if stops:
                        raise KeyboardInterrupt
                loss = self._end_epoch()
                bar.update(task, description=f"epoch {at.epoch + 1}, valid/loss {loss:.2f}")
                if self.curves and bar.disable:
                    print(f"epoch {at.epoch} of {s.epochs}: valid/loss {loss:.2f} after {at.seconds:.0f} s", flush=True)
                if any(self._gather(interrupted.is_set())):
                    raise KeyboardInterrupt
        progress(1.0)  # after fewer epochs, too

    def step(self, batches: Sequence[Batch]) -> None:
        """One step of the optimisers, on the gradients of all batches."""
        s, at, fabric = self.settings, self.at, self.fabric
        rng = stream("step", s.seed, at.step)
        epoch = at.step / at.steps_per_epoch
        schedule = s.step_schedule(epoch, coin=rng.random())
        self._seed(int(rng.integers(2**62)))
        for optimiser in self.optimisers:
            set_lr(optimiser, s.lr_at(epoch))
            optimiser.zero_grad()
        losses, totals, parts = [], [], ()
        for number, batch in enumerate(batches, start=1):
            if s.augment and batch.lips is not None:
                batch = replace(batch, lips=augmented(batch.lips))
            waits = fabric.world_size > 1 and number < len(batches)  # gradients are exchanged once a step
            with self.parallel.no_sync() if waits else nullcontext():
                with fabric.autocast():
                    elbo = self.parallel(_unlabelled(batch), schedule)
                loss_B = elbo.loss(schedule)
                loss_B.sum().backward()
            parts, sums = _sums(elbo, loss_B)
            losses.append(loss_B.detach())
            totals.append(sums)
        sums: Any = fabric.strategy.all_reduce(torch.stack(totals).sum(0), reduce_op="sum")
        scale = fabric.world_size / sums[0]  # to the mean over frames; DDP has averaged over processes what we sum
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        if s.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, s.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
        if s.ema is not None:
            get_ema_multi_avg_fn(s.ema)([*self.judged.parameters()], [*self.model.parameters()], None)
            for mean, now in zip(self.judged.buffers(), self.model.buffers(), strict=True):
                mean.copy_(now)
        at.step += 1
        ids = tuple(name for batch in batches for name in batch.ids)
        self.pending.append(_Step(at.step, ids, torch.cat(losses), parts, sums))
        if at.step % s.log_every == 0:
            self._record_training()

    def _seed(self, seed: int) -> None:
        """As torch.manual_seed, which takes 0.3 ms without CUDA, because it records its caller."""
        torch.default_generator.manual_seed(seed + self.fabric.global_rank)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed + self.fabric.global_rank)

    def _gather(self, mine: Any) -> list[Any]:
        """The values of all processes."""
        everyone = [mine] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def _settle(self) -> _Step | None:
        """Add the pending steps to the sums, up to the first with results that are not finite, which is returned."""
        while self.pending:
            step = self.pending[0]
            values = step.sums.tolist()
            if not all(map(math.isfinite, values)):
                return step
            for part, value in zip(step.parts, values, strict=True):
                self.at.sums[part] = self.at.sums.get(part, 0.0) + value
            del self.pending[0]
        return None

    def _require_finite(self) -> None:
        if bad := self._settle():
            spoilt = [name for name, fine in zip(bad.ids, bad.loss_B.isfinite(), strict=True) if not fine]
            ids = list(dict.fromkeys(spoilt or bad.ids))  # the loss of another process may be the one
            where = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            epoch = (bad.number - 1) // self.at.steps_per_epoch + 1
            raise UserError(f"the loss is not finite at step {bad.number} of epoch {epoch}, on {where}: {_REMEDY}")

    def _record_training(self) -> None:
        self._require_finite()
        s, at = self.settings, self.at
        epoch = (at.step - 1) / at.steps_per_epoch
        if self.curves:
            schedule = s.step_schedule(epoch, coin=0.0)
            rates = {"lr": s.lr_at(epoch), "beta": schedule.beta}
            rates |= {} if s.own_past is None else {"own_past": schedule.own}
            self.curves.write("train", int(epoch) + 1, at.step, _per_frame(at.sums), rates)
        at.sums = {}

    def _end_epoch(self) -> float:
        """Validate, record and save; returns the validation loss."""
        at, epoch = self.at, self.at.epoch + 1
        self._require_finite()
        means = self._validate()
        loss = means["loss"]
        if not math.isfinite(loss):
            raise UserError(f"the validation loss is not finite after step {at.step} of epoch {epoch}: {_REMEDY}")
        lower_is_better = loss
        if self.settings.best_by == "si_sdr":
            means["si_sdr"] = self._validate_resynthesis()
            lower_is_better = -means["si_sdr"]
        if better := lower_is_better < at.best_loss:
            at.best_epoch, at.best_loss = epoch, lower_is_better
        at.epoch, at.stale = epoch, 0 if better or epoch <= self.settings.settled else at.stale + 1
        at.seconds = time.monotonic() - self.started
        if self.curves:
            self.curves.write("valid", epoch, at.step, means, {"seconds": at.seconds})
            if epoch & (epoch - 1) == 0:
                self._illustrate(self.curves)
        self._save()
        if better:
            self._save_best()
        return loss

    def outcome(self) -> str:
        """Why the training has ended, and its best epoch."""
        s, at = self.settings, self.at
        if s.epochs == 0:
            return f"no epoch, as train.epochs=0 asks; validation loss {at.best_loss:.2f}"
        how = f"{at.epoch} of {s.epochs} epochs in {at.seconds:.0f} s"
        if at.epoch < s.epochs:
            stood_still = "loss had not fallen" if s.best_by == "loss" else "SI-SDR had not risen"
            how += f": the validation {stood_still} for {at.stale} (train.patience={s.patience})"
        best = f"{at.best_loss:.2f}" if s.best_by == "loss" else f"{-at.best_loss:.2f} dB"
        return f"{how}; epoch {at.best_epoch} was the best, with {best}"

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Means per frame, with the same noise every time."""
        self.judged.eval()
        self._seed(self.settings.seed)
        schedule, rows, parts = self.settings.validation_schedule(), [], ()
        for batch in self.held_out:
            with self.fabric.autocast():
                elbo = self.judged(_unlabelled(batch), schedule)
            parts, sums = _sums(elbo, elbo.loss(schedule))
            rows.append(sums)
        mine = dict(zip(parts, torch.stack(rows).double().sum(0).tolist(), strict=True)) if rows else {}
        totals: Counter[str] = Counter()
        for sums in self._gather(mine):
            totals.update(sums)
        return _per_frame(totals)

    def _validate_resynthesis(self) -> float:
        """SI-SDR of the first utterance of each validation speaker, with the same noise every time."""
        judged: Any = self.judged
        firsts: Any = copy(self.valid)
        firsts.utterances = list({u.speaker: u for u in reversed(self.valid.utterances)}.values())
        rate, scores = firsts.utterances[0].rate, []
        self._seed(self.settings.seed)
        for batch in self._load(firsts, None, shuffle=False, batch_size=8):
            assert batch.waveform is not None and batch.lengths is not None
            again_BN = resynthesise(judged, batch, self.stft).cpu().numpy()
            for b, length in enumerate(batch.lengths.tolist()):
                clean = batch.waveform[b, :length].cpu().numpy()
                scores.append(score(clean, again_BN[b, :length], rate, ("si_sdr",))["si_sdr"])
        return self._gather(float(np.mean(scores)))[0]

    @torch.inference_mode()
    def _illustrate(self, curves: Curves) -> None:
        """The first validation utterance, of models that resynthesise speech."""
        model: Any = self.judged
        if not is_speech_prior(model):
            return
        first = copy(self.valid)
        first.utterances = first.utterances[:1]
        batch = next(iter(self._load(first, None, shuffle=False)))
        if batch.waveform is None or batch.power is None:
            return
        with self.fabric.autocast():
            z = model.infer(batch, mode="mean").z
            speech = model.decode(z, model.context(batch), feedback=batch.power).get("power")
        if speech is not None:
            again_BTF = speech.components(batch.power).mean()
            curves.illustrate(batch, again_BTF, self.stft, self.at.step, first.utterances[0].rate)

    def _save(self) -> None:
        """If something is not finite, nothing is saved, and the next check of the losses stops the run."""
        self.saved = time.monotonic()
        if self.curves is None or self._settle() or not all(p.isfinite().all() for p in self.parameters):
            return
        self.at.seconds, self.at.logged = self.saved - self.started, self.curves.flush()
        state = {
            "at": asdict(self.at),
            "model": self.model.state_dict(),
            "average": None if self.settings.ema is None else self.judged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "loader": self.loader.state_dict(),
        }
        (self.run / _STATE).parent.mkdir(exist_ok=True)
        with replacing(self.run / _STATE) as new:
            torch.save(state, new)
        self.curves.publish()

    def _save_best(self) -> None:
        """After `_save`, so that the weights on the disk are always of an epoch of the saved state."""
        if self.fabric.is_global_zero:
            save_weights(self.judged, self.run / WEIGHTS)

    def _restore(self) -> None:
        path = self.run / _STATE
        remedy = "restore it from a copy, or start the training anew in another run_dir"
        with reading(path, "state of a training", remedy):
            with zipfile.ZipFile(path) as file:  # torch.load does not verify the checksums
                if damaged := file.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            at = _Position(**state["at"])
            parts = {name: state[name] for name in ("model", "average", "optimisers", "loader")}
        had, has = (
            f"{steps} steps an epoch with{'' if average else 'out'} train.ema"
            for steps, average in ((at.steps_per_epoch, parts["average"]), (self.at.steps_per_epoch, self.settings.ema))
        )
        if had != has:
            raise UserError(f"{self.run} took {had} and would now take {has}: resume it as it began")
        try:
            self.model.load_state_dict(with_names_now(parts["model"], self.model))
        except RuntimeError as error:
            raise UserError(f"{self.run} trains another model than the one given: give its own") from error
        with reading(path, "state of this training", remedy):
            if self.settings.ema is not None:
                self.judged.load_state_dict(with_names_now(parts["average"], self.judged))
            for optimiser, known in zip(self.optimisers, parts["optimisers"], strict=True):
                optimiser.load_state_dict(known)
            self.loader.load_state_dict(parts["loader"])
        self.at = at
        if at.best_epoch == at.epoch > 0 and at.step == at.epoch * at.steps_per_epoch:
            self._save_best()  # the run may have been killed just before it did


def _unlabelled(batch: Batch) -> Batch:
    """Models take no labels, and a compiled one would be compiled anew for other labels."""
    return replace(batch, labels=())


def _sums(elbo: Elbo, loss_B: Float[Tensor, " B"]) -> tuple[tuple[str, ...], Float[Tensor, " parts"]]:
    """The parts of a loss by name, and the sum of each over the utterances; the number of frames comes first."""
    parts = {"n": elbo.n, "loss": loss_B, **elbo.parts(), **elbo.noted}
    return tuple(parts), torch.stack(list(parts.values())).detach().sum(1)


def _per_frame(sums: Mapping[str, float]) -> dict[str, float]:
    return {part: value / sums["n"] for part, value in sums.items() if part != "n"}


@contextmanager
def _postponed_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C only sets the event; a second one interrupts at once."""
    interrupted = threading.Event()

    def note(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
