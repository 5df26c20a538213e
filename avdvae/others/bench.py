"""Speed of training, enhancement and generation on this machine, and its ratio to the speed of plain matrix products.

step     forward, backward and Adam on a batch that is on the device, synchronised after each of the three
corpus   a step of the training loop, with all that belongs to it, on batches from a prepared corpus
turns    models that are compared train in turns, a round each, so that other load affects all alike. A time is the
         median over the rounds, a ratio the median of the ratios within a round
memory   peak bytes of tensors in a step, without the weights and Adam's state, from CUDA's allocator or, on a CPU, the
         profiler
frames   generated a second, of one utterance, by models whose past is then their own output
batch    utterances that the EM enhances at a time
stream   an utterance that arrives frame by frame, with the default settings: from the time when its block is full,
         frames a second, and the time that a frame takes, which is exceeded by 1 % of the frames
work     floating-point operations of the matrix products in a step, those of recurrent layers included
share    work per second, relative to the fastest of some large matrix products at the same precision
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from avdvae.enhancement.separation import Pictures, PicturesOfSources, separate_long
from avdvae.enhancement.sources import Sources
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.enhancement.vem import Vem
from avdvae.probability.objectives import Schedule
from avdvae.probability.pcm import CODES
from avdvae.protocols import Autoregressive, Batch, Context, Prior, SpeechPrior
from avdvae.signals.audio import Stft
from avdvae.signals.clock import RATE

ROUNDS = 7
FPS = 30.0  # of the pictures beside an utterance


@runtime_checkable
class Timed(Protocol):
    def step(self) -> Float[np.ndarray, " 3"]:
        """Seconds of the forward pass, of the backward pass, and of the whole step; NaN where they are not known."""
        ...


class Trainee:
    """A model, its loss on one batch, and Adam as its own code uses it: `fused` in ours."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], fused: bool = False):
        self.model, self.loss = model.train(), loss
        self.optimiser = torch.optim.Adam(model.parameters(), fused=fused)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.device = next(model.parameters()).device

    def step(self) -> Float[np.ndarray, " 3"]:
        began = now(self.device)
        self.optimiser.zero_grad()
        loss = self.loss()
        forward = now(self.device)
        loss.backward()
        backward = now(self.device)
        self.optimiser.step()
        return np.array([forward - began, backward - forward, now(self.device) - began])


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def our_trainee(model: nn.Module, batch: Batch) -> Trainee:
    """All layers are trained, also those that an experiment freezes."""
    schedule = Schedule()

    def loss() -> Tensor:
        elbo = model(batch, schedule)
        return elbo.loss(schedule).sum() / elbo.n.sum()

    return Trainee(model, loss, fused=True)


def random_batch(utterances: int, frames: int, pixels: int, hop: int, device: torch.device) -> Batch:
    """Random spectra, mouth crops and sound."""
    return Batch(
        ids=tuple(map(str, range(utterances))),
        mask=torch.ones(utterances, frames, dtype=torch.bool),
        power=torch.rand(utterances, frames, 513),
        spectrum=torch.randn(utterances, frames, 513, dtype=torch.complex64),
        lips=torch.randint(0, 256, (utterances, frames, pixels, pixels), dtype=torch.uint8),
        confidence=torch.ones(utterances, frames),
        waveform=torch.randint(-3000, 3000, (utterances, frames * hop)) / CODES,
        lengths=torch.full((utterances,), frames * hop),
    ).to(device)


def train_in_turns(trainees: Sequence[Timed], seconds: float) -> list[Float[np.ndarray, "rounds 3"]]:
    """The mean times of a step in each round; each trainee runs for about `seconds`."""
    for trainee in trainees:
        trainee.step()
    steps = [max(1, int(seconds / ROUNDS / trainee.step()[2])) for trainee in trainees]
    rounds = [
        [np.mean([t.step() for _ in range(count)], axis=0) for t, count in zip(trainees, steps, strict=True)]
        for _ in range(ROUNDS)
    ]
    return [np.stack(times) for times in zip(*rounds, strict=True)]


def step_memory(trainee: Trainee) -> int:
    trainee.optimiser.zero_grad()
    if trainee.device.type == "cuda":
        held = torch.cuda.memory_allocated(trainee.device)
        torch.cuda.reset_peak_memory_stats(trainee.device)
        trainee.step()
        return torch.cuda.max_memory_allocated(trainee.device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        trainee.step()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(change["args"]["Bytes"] for change in changes))


def step_flops(trainee: Trainee) -> int:
    # The counter misses the products of fused recurrent layers. Convolutions stay fused: unfused depthwise ones take
    # minutes.
    hidden = any(isinstance(module, nn.LSTM) for module in trainee.model.modules())
    plain = torch.backends.mkldnn.flags(enabled=not hidden), torch.backends.cudnn.flags(enabled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing TF32 on a CPU
        with plain[0], plain[1], FlopCounterMode(display=False) as counter:
            trainee.loss().backward()
    return counter.get_total_flops()


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of the fastest of some square products."""
    best = 0.0
    for size in (512, 1024, 2048, 4096, 8192):
        a, b = torch.rand(2, size, size, device=device)
        for _ in range(ROUNDS):
            began = now(device)
            torch.mm(a, b)
            seconds = now(device) - began
            best = max(best, 2 * size**3 / seconds)
        if seconds > 0.1:
            break
    return best


def em_real_time_factor(
    model: Prior,
    settings: Vem,
    stft: Stft,
    seconds: float,
    iterations: int,
    pixels: int,
    device: torch.device,
    utterances: int = 1,
) -> float:
    """Seconds per second of sound, of so many utterances at a time. Only `iterations` are run; the others are taken to
    last as long as their median. The time does not depend on the content, so sound and pictures are noise."""
    of_all = settings.schedule.iterations
    few = replace(settings, iterations=min(iterations, of_all))
    length = round(seconds * RATE)
    sound_N = torch.randn(utterances * length, device=device)
    pictures = random_pictures(utterances * seconds, pixels) if "lips" in model.sees else None
    if isinstance(model, Sources):
        pictures = PicturesOfSources([pictures] * len(model.priors))

    def enhance(how: Vem, progress: Callable[[float], None] = lambda share: None) -> None:
        separate_long(model, sound_N, stft, how, pictures, length, 0, utterances, progress)

    enhance(replace(settings, iterations=1))
    began = now(device)
    ends: list[float] = []
    enhance(few, lambda part: ends.append(now(device)))
    total, each = now(device) - began, median(np.diff(ends))
    return (total + (of_all / min(iterations, of_all) - 1) * len(ends) * each) / (utterances * seconds)


def random_pictures(seconds: float, pixels: int) -> Pictures:
    shots = round(seconds * FPS)
    crops = np.random.default_rng(0).integers(0, 256, (shots, pixels, pixels), dtype=np.uint8)
    return Pictures(crops, np.full(shots, 255, np.uint8), FPS)


@dataclass(frozen=True)
class StreamingCost:
    """`stream_latency_ms` is algorithmic: without the time to compute."""

    stream_latency_ms: float
    stream_frames_per_s: float
    stream_frame_ms: float
    stream_frame_p99_ms: float


def streaming_cost(
    model: SpeechPrior, settings: Vem, stft: Stft, seconds: float, pixels: int, device: torch.device
) -> StreamingCost:
    """Of noise, in which an utterance of so many seconds follows those of the first block."""
    pictures = random_pictures(seconds, pixels) if "lips" in model.sees else None
    stream = Stream(model, stft, settings, Streaming(), pictures=pictures, device=str(device))
    noise, spent = np.random.default_rng(0), []
    for number in range(stream.most + stft.frames(round(seconds * RATE))):
        hop_N = noise.standard_normal(stft.hop, np.float32)
        began = now(device)
        stream.push(hop_N)
        if number >= stream.most:
            spent.append(1000 * (now(device) - began))
    worst = float(np.quantile(spent, 0.99))
    return StreamingCost(stream.latency, 1000 / float(np.mean(spent)), median(spent), worst)


def generation_rate(model: Autoregressive, frames: int, device: torch.device) -> float:
    """Frames a second of an utterance that is drawn from the prior."""
    context, seconds = Context(torch.ones(1, frames, dtype=torch.bool, device=device)), []
    for _ in range(3):
        began = now(device)
        model.sample_prior(context)
        seconds.append(now(device) - began)
    return frames / median(seconds)


@dataclass(frozen=True)
class TrainingCost:
    """`steps_low` and `steps_high` are quartiles over the rounds."""

    parameters: int
    forward_ms: float
    backward_ms: float
    steps_per_s: float
    steps_low: float
    steps_high: float
    step_mb: float
    step_gflop: float
    matmul_share: float


def training_cost(trainee: Trainee, times: Float[np.ndarray, "rounds 3"], rate: float) -> TrainingCost:
    forward, backward, step = np.median(times, axis=0)
    slow, fast = np.quantile(times[:, 2], [0.75, 0.25])
    flops = step_flops(trainee)
    return TrainingCost(
        parameters=trainee.parameters,
        forward_ms=1e3 * forward,
        backward_ms=1e3 * backward,
        steps_per_s=1 / step,
        steps_low=1 / slow,
        steps_high=1 / fast,
        step_mb=step_memory(trainee) / 1e6,
        step_gflop=flops / 1e9,
        matmul_share=flops / step / rate,
    )
