"""Time every model: training steps, enhancement, generation, memory, and speed relative to plain matrix products.

avdvae bench
avdvae bench models=[rvae,dkf] device=cpu out=speed.csv
avdvae bench peer=PATH    and a checkout of a public benchmark, in turns: avdvae/others/peer.py
avdvae bench models=[cw_vae_paper] batch=4 frames=64 peer=PATH    four windows of a second
avdvae bench models=[cw_vae_paper] 'overrides=["model.layers=3"]'      any setting of the experiments
avdvae bench models=[vae] batch=256 frames=1 prepared=PATH    and the same on a prepared corpus
avdvae bench models=[vae] sources=2    the EM separates two sources, each by this model
avdvae bench models=[vae,rvae] em_batch=64    the EM enhances 64 utterances at a time, beside one
OMP_NUM_THREADS=2 avdvae bench    on two threads

The columns are defined in avdvae/others/bench.py. Values are medians, with quartiles in brackets.
"""

from __future__ import annotations

import csv
import math
import os
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, fields
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track
from torch import nn

from avdvae.configurations import choices, compose
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.contract import MovingEStep
from avdvae.enhancement.learned import Learned, LearnedPosterior
from avdvae.enhancement.sources import Sources
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError, nearest, whole_numbers
from avdvae.others.bench import (
    StreamingCost,
    Timed,
    Trainee,
    TrainingCost,
    em_real_time_factor,
    generation_rate,
    matmul_rate,
    now,
    our_trainee,
    random_batch,
    streaming_cost,
    train_in_turns,
    training_cost,
)
from avdvae.others.peer import Peer, open_peer
from avdvae.programs.program import Program
from avdvae.protocols import Autoregressive, Batch, Denoises, why_not_enhancing
from avdvae.runs import build_model, build_vem
from avdvae.signals.audio import Stft
from avdvae.signals.clock import RATE
from avdvae.training.loop import Loop
from avdvae.training.settings import Training

COSTS = [field.name for field in fields(TrainingCost)]
RATIOS = ["ratio", "ratio_low", "ratio_high"]
COLUMNS = ["model", "device", "threads", "batch", "frames", "matmul_gflops", *COSTS]
COLUMNS += ["sources", "em_rtf", "em_batch", "em_batch_rtf", "learned_rtf", "generated_per_s"]
COLUMNS += [field.name for field in fields(StreamingCost)]
COLUMNS += ["corpus_steps_per_s", *(f"corpus_{name}" for name in RATIOS)]
COLUMNS += [f"peer_{name}" for name in COSTS] + RATIOS
SHOWN = (  # printed columns: name, unit, width
    ("", "", 12),
    ("parameters", "", 11),
    ("forward", "ms", 9),
    ("backward", "ms", 9),
    ("training", "steps/s", 26),
    ("memory", "MB", 9),
    ("work", "Gflop", 8),
    ("share", "%", 7),
    ("EM", "rtf", 7),
    ("batch", "rtf", 8),
    ("learned", "rtf", 9),
    ("stream", "frames/s", 10),
    ("99 %", "ms", 7),
    ("generation", "frames/s", 12),
)
FIGURES = (  # in its last columns: name, width, digits
    ("em_rtf", 7, 2),
    ("em_batch_rtf", 8, 2),
    ("learned_rtf", 9, 3),
    ("stream_frames_per_s", 10, 0),
    ("stream_frame_p99_ms", 7, 1),
    ("generated_per_s", 12, 0),
)


def check(given: dict[str, Any]) -> torch.device:
    """Check the settings before anything is timed; return the device."""
    for name in ("models", "overrides"):
        if not isinstance(given[name], list):
            raise UserError(f"{name}={given[name]}: write {name}=[{given[name]}]")
    known = choices("exp")
    for name in given["models"]:
        if name not in known:
            raise UserError(f"models: no experiment is called {name}: {nearest(name, [*known])}")
    whole_numbers("", given, batch=1, frames=1, em_iterations=2, em_batch=1, sources=1)
    for name in ("seconds", "utterance"):
        if type(given[name]) not in (int, float) or not given[name] > 0:
            raise UserError(f"{name}={given[name]}: give a number of seconds above 0")
    Stft(given["hop"])
    if (name := given["device"]) not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds none: give device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class CorpusTrainee:
    """Steps of the training loop on a prepared corpus."""

    def __init__(self, model: nn.Module, given: dict[str, Any], device: torch.device, folder: Path, stack: ExitStack):
        train, valid = (PreparedCorpus(Path(given["prepared"]), split) for split in ("train", "valid"))
        settings = Training(
            optimiser="adam", accelerator=device.type, batch_size=given["batch"], frames=given["frames"]
        )
        self.loop, self.device = Loop(model.train(), train, valid, Stft(given["hop"]), settings, folder), device
        self.batches = chain.from_iterable(repeat(self.loop.loader))
        if self.loop.curves:
            stack.callback(self.loop.curves.close)

    def step(self) -> Float[np.ndarray, " 3"]:
        began = now(self.device)
        self.loop.step([next(self.batches)])
        return np.array([np.nan, np.nan, now(self.device) - began])


def measure(name: str, given: dict[str, Any], device: torch.device, peer: Peer | None, rate: float) -> dict[str, Any]:
    """A row of the table."""
    config = compose("config", [f"exp={name}", *given["overrides"]])
    pixels = config["lips"]["size"]
    torch.manual_seed(0)
    batch = random_batch(given["batch"], given["frames"], pixels, given["hop"], device)
    model: Any = build_model(config["model"]).to(device)
    ours, counterpart = our_trainee(model, batch), try_peer(peer, name, batch, config["model"]) if peer else None
    trainees: dict[str, Timed] = {"": ours, **({"peer": counterpart} if counterpart else {})}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        if given["prepared"]:
            trainees["corpus"] = CorpusTrainee(deepcopy(model), given, device, Path(folder), stack)
        times = dict(zip(trainees, train_in_turns([*trainees.values()], given["seconds"]), strict=True))
    row: dict[str, Any] = {"model": name, **asdict(training_cost(ours, times[""], rate))}
    ratios = {kind: np.quantile(t[:, 2] / times[""][:, 2], [0.5, 0.25, 0.75]) for kind, t in times.items()}
    if "corpus" in times:
        row["corpus_steps_per_s"] = 1 / np.median(times["corpus"][:, 2])
        row |= {f"corpus_{name}": 1 / ratio for name, ratio in zip(RATIOS, ratios["corpus"][[0, 2, 1]], strict=True)}
    if counterpart:
        cost = asdict(training_cost(counterpart, times["peer"], rate))
        row |= {f"peer_{column}": value for column, value in cost.items()}
        row |= dict(zip(RATIOS, ratios["peer"], strict=True))
    model.eval().requires_grad_(False)
    if why_not_enhancing(model):
        return row | {"em_rtf": math.nan}
    vem, stft, count = build_vem(config["enhance"]), Stft(given["hop"]), given["sources"]
    if isinstance(model, Autoregressive):
        row["generated_per_s"] = generation_rate(model, stft.frames(round(given["utterance"] * RATE)), device)
    count = 1 if isinstance(model, Denoises) else count
    priors = Sources([model] * count).eval() if count > 1 else model
    sound = (stft, given["utterance"], given["em_iterations"], pixels, device)
    row["em_rtf"] = em_real_time_factor(priors, vem, *sound)
    row["em_batch_rtf"] = em_real_time_factor(priors, vem, *sound, given["em_batch"])
    own: Any = model
    if count == 1 and isinstance(vem.estep, MovingEStep):
        row |= asdict(streaming_cost(own, vem, stft, given["utterance"], pixels, device))
    if count == 1 and "power" in model.sees:
        network = LearnedPosterior(own).eval().requires_grad_(False)  # the time does not depend on its weights
        learned = Vem(Learned(network=network), rank=vem.rank, smoothness=vem.smoothness)
        row["learned_rtf"] = em_real_time_factor(model, learned, *sound)
    return row


def try_peer(peer: Peer, name: str, batch: Batch, config: dict[str, Any]) -> Trainee | None:
    """The peer's counterpart, if it has one, after a first step: its code may fail for some shapes."""
    try:
        if (counterpart := peer.trainee(name, batch, config)) is None:
            return None
        counterpart.step()
    except Exception as error:
        frames = f"batch={len(batch.ids)} frames={batch.mask.shape[1]}"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"peer=: its code fails at {name} with {frames} ({reason}): change these or models=") from error
    return counterpart


def lines(row: dict[str, Any]) -> str:
    """The printed lines: our model, and below it the corpus and the peer."""
    figures = "".join(
        f"{value:{width}.{digits}f}" if math.isfinite(value := row.get(name, math.nan)) else " " * width
        for name, width, digits in FIGURES
    )
    printed = [f"{row['model']:12}{cost_line(row)}{figures}".rstrip()]
    if "corpus_ratio" in row:
        percent, low, high = (100 * row[f"corpus_{name}"] for name in RATIOS)
        steps = f"{row['corpus_steps_per_s']:.2f}"
        printed.append(f"{'  corpus':12}{'':29}{steps:>26}  {percent:.0f} % of this ({low:.0f} to {high:.0f})")
    if "ratio" in row:
        ratio = f"  ours {row['ratio']:.2f} times as fast ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        costs = {name: row[f"peer_{name}"] for name in COSTS}
        printed.append(f"{'  peer':12}{cost_line(costs)}{'':7}{ratio}")
    return "\n".join(printed)


def cost_line(cost: dict[str, Any]) -> str:
    steps = f"{cost['steps_per_s']:.2f} ({cost['steps_low']:.2f}-{cost['steps_high']:.2f})"
    return (
        f"{cost['parameters']:11,}{cost['forward_ms']:9.1f}{cost['backward_ms']:9.1f}{steps:>26}"
        f"{cost['step_mb']:9.1f}{cost['step_gflop']:8.2f}{100 * cost['matmul_share']:7.1f}"
    )


def bench(given: dict[str, Any]) -> None:
    device = check(given)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports a missing GPU as an error
    peer = open_peer(Path(given["peer"])) if given["peer"] else None
    out = Path(given["out"]) if given["out"] else None
    if out:
        write(out, [])
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in training
    rate, threads = matmul_rate(device), torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads of a CPU"
    several = "s" * (given["sources"] > 1)
    print(
        f"{name}, torch {torch.__version__}: {rate / 1e9:,.0f} Gflop/s in matrix products\n"
        f"training on {given['batch']} windows of {given['frames']} frames; EM on {given['utterance']} s of sound, "
        f"of {given['sources']} source{several}, one utterance and {given['em_batch']} at a time\n\n"
        + "\n".join("".join(f"{words[line]:>{words[2]}}" for words in SHOWN) for line in (0, 1)),
        flush=True,
    )
    shared = {
        "device": device.type,
        "threads": threads,
        "batch": given["batch"],
        "frames": given["frames"],
        "sources": given["sources"],
        "em_batch": given["em_batch"],
        "matmul_gflops": rate / 1e9,
    }
    rows = []
    for model in track(given["models"], "measuring", transient=True):
        rows.append(shared | measure(model, given, device, peer, rate))
        print(lines(rows[-1]), flush=True)
        if out:
            write(out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows measured so far; an interruption keeps them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise UserError(f"out={path} cannot be written ({error.strerror}): choose another") from error


main = Program("bench", bench)

if __name__ == "__main__":
    main()
