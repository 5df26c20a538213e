"""What a GPU computes, and how fast, in one table in less than ten minutes; with few packages, and no Hydra.

python experiments/gpu_check.py out=gpu.csv peer=PATH    beside a checkout of a public benchmark: avdvae/others/peer.py
python experiments/gpu_check.py models=rvae,cw_vae       of these models alone
python experiments/gpu_check.py device=cpu               tiny sizes, to try it

equality      of the CPU and the device, by the same draws: relative differences of the loss and the gradient of a
              training step, and the mean difference of the Wiener filter after some iterations of the EM
enhancement   seconds per second of sound, 64 utterances at a time and one; ratio: of their throughputs
training      steps a second on random batches, in the sizes of papers; ratio: to the peer

Rows are written as they are measured; after limit=540 seconds, no other is begun. The status is 1 where results differ.
"""

from __future__ import annotations

import csv
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from avdvae.enhancement.learned import Learned, LearnedPosterior
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance, recurrent_layers_training
from avdvae.entry_points import find_class
from avdvae.errors import UserError
from avdvae.others.bench import em_real_time_factor, our_trainee, random_batch, train_in_turns
from avdvae.others.peer import open_peer
from avdvae.probability.objectives import Schedule
from avdvae.protocols import Batch
from avdvae.runs import build_model
from avdvae.signals.audio import Stft

HOP, PIXELS = 256, 67
TOLERANCES = {"loss": 1e-5, "gradient": 1e-3, "EM": 1e-3}
COLUMNS = ["measured", "model", "device", "value", "low", "high", "unit", "limit", "within"]
COLUMNS += ["beside", "ratio", "ratio_low", "ratio_high"]


def model_of(target: str, **settings: Any) -> dict[str, Any]:
    """The configuration of a model, whose other settings are the defaults of its constructor."""
    parameters = inspect.signature(find_class("models", target := f"avdvae.models.{target}")).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {"target": target} | defaults | settings


FRAMES, SEQUENCES, WAVEFORMS = (256, 1), (32, 50), (4, 64)  # windows, and frames of each
FLOOR, LOW = {"floor": 1.0}, {"floor": 0.03}
COMPONENTS = {
    "sound": model_of("vae.VAE", **FLOOR),
    "both": model_of("cvae.CVAE", alpha=1.0, freeze_sound=0.0, **FLOOR),
}
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {  # those of configs/exp, and the sizes of a batch
    "nmf": (model_of("nmf.NMF"), FRAMES),
    "vae": (model_of("vae.VAE", **FLOOR), FRAMES),
    "v_vae": (model_of("v_vae.VVAE"), FRAMES),
    "av_vae": (model_of("av_vae.AVVAE", **FLOOR), FRAMES),
    "cvae": (model_of("cvae.CVAE", freeze_sound=0.0, **FLOOR), FRAMES),
    "vae_mm": (model_of("vae_mm.VAEMM", **COMPONENTS), FRAMES),
    "sw_vae": (model_of("sw_vae.SwVAE", **COMPONENTS), FRAMES),
    "min_vae": (model_of("min_vae.MINVAE", **FLOOR), FRAMES),
    "mvae": (model_of("mvae.MVAE", **FLOOR), FRAMES),
    "sf_vae": (model_of("vae.VAE", hidden=[256, 64], dim=16, floor=1e-3), FRAMES),
    "vae_sequences": (model_of("vae.VAE", dim=16, **LOW), SEQUENCES),
    "dkf": (model_of("dkf.DKF", **LOW), SEQUENCES),
    "storn": (model_of("storn.STORN", **LOW), SEQUENCES),
    "vrnn": (model_of("vrnn.VRNN", **LOW), SEQUENCES),
    "srnn": (model_of("srnn.SRNN", **LOW), SEQUENCES),
    "rvae": (model_of("rvae.RVAE", causal=False, **LOW), SEQUENCES),
    "rvae_causal": (model_of("rvae.RVAE", **LOW), SEQUENCES),
    "dsae": (model_of("dsae.DSAE", **LOW), SEQUENCES),
    "av_dkf": (model_of("av_dkf.AVDKF", **LOW), SEQUENCES),
    "av_rvae": (model_of("av_rvae.AVRVAE", **LOW), SEQUENCES),
    "denoiser": (model_of("denoiser.Denoiser"), (12, 96)),
    "denoiser_large": (
        model_of("denoiser.Denoiser", channels=304, dilations=[1, 2, 4, 8, 16, 8, 4, 1]),
        (64, 192),
    ),
    "av_denoiser": (model_of("denoiser.Denoiser", lips=True), (12, 96)),
    "hit_dvae_paper": (model_of("hit_dvae.HiTDVAE", **LOW), (128, 100)),
    "light_dvae_paper": (model_of("hit_dvae.HiTDVAE", light=True, **LOW), (128, 100)),
    "lstm_paper": (model_of("lstm.LSTM"), WAVEFORMS),
    "wavenet_paper": (model_of("wavenet.WaveNet"), WAVEFORMS),
    "vrnn_wave_paper": (model_of("vrnn_wave.VRNNWave"), WAVEFORMS),
    "srnn_wave_paper": (model_of("srnn_wave.SRNNWave"), WAVEFORMS),
    "cw_vae_paper": (model_of("cw_vae.CWVAE"), WAVEFORMS),
    "stcn_paper": (model_of("stcn.STCN", dims=[256, 128, 64, 32, 16]), WAVEFORMS),
}
ENHANCED = ("vae", "rvae")


@contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """Within, torch's random numbers are the same for each device."""

    def moved(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *sizes, device=None, **options: draw(*sizes, **options).to(device)

    def like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, **options: draw(tensor.shape, dtype=tensor.dtype, **options).to(tensor.device)

    randn, rand = torch.randn, torch.rand
    with (
        patch("torch.randn", moved(randn)),
        patch("torch.rand", moved(rand)),
        patch("torch.randn_like", like(randn)),
        patch("torch.rand_like", like(rand)),
    ):
        yield


@contextmanager
def float32() -> Iterator[None]:
    """Within, no products in TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def training_step(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The loss and its gradient, on the CPU, without dropout."""
    schedule = Schedule()
    torch.manual_seed(1)
    with drawn_on_the_cpu(), recurrent_layers_training(model):
        elbo = model(batch, schedule)
        loss = elbo.loss(schedule).sum() / elbo.n.sum()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    gradient = torch.cat([slope.flatten() for slope in slopes if slope is not None])
    return {"loss": loss.detach().cpu()[None], "gradient": gradient.cpu()}


def difference(one: Tensor, other: Tensor) -> float:
    """Relative; not a number where a value is none."""
    return ((one - other).norm() / one.norm()).item()


class Check:
    def __init__(self, device: torch.device, tiny: bool, seconds: float, limit: float, out: Path):
        self.device, self.tiny, self.seconds, self.out = device, tiny, seconds, out
        self.ends, self.rows = time.monotonic() + limit, list[dict[str, Any]]()

    def add(self, measured: str, model: str, value: float, unit: str, **more: Any) -> None:
        """A row, written at once."""
        row = {"measured": measured, "model": model, "device": self.name, "value": value, "unit": unit}
        self.rows.append(row | more)
        print(f"{measured:27}{model:18}{value:12.4g} {unit}", *(f"{k}={v:.4g}" for k, v in more.items()), flush=True)
        with self.out.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(self.rows)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends

    def build(self, name: str) -> nn.Module:
        """On the CPU, with the same weights each time."""
        torch.manual_seed(0)
        return build_model(MODELS[name][0])

    def equality(self, name: str) -> None:
        model: Any = self.build(name).eval()
        batch = random_batch(2, 20, PIXELS, HOP, torch.device("cpu"))
        other, moved = deepcopy(model).to(self.device), batch.to(self.device)
        with float32():
            here, there = training_step(model, batch), training_step(other, moved)
            for what, value in here.items():
                self.compare(what, name, difference(value, there[what]))
            if name in ENHANCED:
                few = Vem(FreeGaussian(), iterations=10)
                noisy, moved_noisy = (Batch(b.ids, b.mask, noisy=b.power) for b in (batch, moved))
                filters = enhance(model.requires_grad_(False), noisy, few).filter
                theirs = enhance(other.requires_grad_(False), moved_noisy, few).filter
                self.compare("EM", name, (filters - theirs.cpu()).abs().mean().item())

    def compare(self, what: str, name: str, value: float) -> None:
        limit = TOLERANCES[what]
        self.add(f"equality, {what}", name, value, "", limit=limit, within=int(value <= limit))

    def enhancement(self, name: str) -> None:
        model: Any = self.build(name).to(self.device).eval().requires_grad_(False)
        network = LearnedPosterior(model).to(self.device).eval().requires_grad_(False)
        utterances, seconds, iterations = (4, 0.5, 2) if self.tiny else (64, 4.8, 20)
        for estep in (FreeGaussian(), Learned(network=network)):
            sound = (model, Vem(estep), Stft(HOP), seconds, iterations, PIXELS, self.device)
            alone = em_real_time_factor(*sound)
            together = em_real_time_factor(*sound, utterances)
            what, unit = f"enhancement, {type(estep).__name__}", f"s/s, {utterances} at a time"
            self.add(what, name, together, unit, beside=alone, ratio=alone / together)

    def training(self, name: str, peer: Any) -> None:
        settings, sizes = MODELS[name]
        batch = random_batch(*((2, 30) if self.tiny else sizes), PIXELS, HOP, self.device)
        trainees = {"": our_trainee(self.build(name).to(self.device), batch)}
        try:
            if peer and (counterpart := peer.trainee(name, batch, settings)):
                counterpart.step()
                trainees["peer"] = counterpart
        except Exception as error:  # its code may fail for some shapes, and the others are to be measured
            print(f"note       the code of peer= fails at {name}: {type(error).__name__}: {error}", flush=True)
        times = [each[:, 2] for each in train_in_turns([*trainees.values()], self.seconds)]
        quartiles = [0.5, 0.25, 0.75]
        step, fast, slow = np.quantile(times[0], quartiles)
        more = {"low": 1 / slow, "high": 1 / fast}
        if len(times) > 1:
            ratio, low, high = np.quantile(times[1] / times[0], quartiles)
            more |= {"beside": 1 / np.median(times[1]), "ratio": ratio, "ratio_low": low, "ratio_high": high}
        self.add("training", name, 1 / step, "steps/s", **more)


def check(given: Mapping[str, str]) -> None:
    known = {"out": "gpu_check.csv", "peer": "", "models": ",".join(MODELS)}
    known |= {"device": "", "seconds": "", "limit": "540"}
    if wrong := given.keys() - known.keys():
        raise UserError(f"there is no setting {', '.join(sorted(wrong))}: choose from {', '.join(known)}")
    settings = {**known, **given}
    device = torch.device(settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
    if wrong := [name for name in settings["models"].split(",") if name not in MODELS]:
        raise UserError(f"models: {', '.join(wrong)}: choose from {', '.join(MODELS)}")
    tiny = device.type == "cpu"
    seconds = float(settings["seconds"] or (0.05 if tiny else 3))
    found = Check(device, tiny, seconds, float(settings["limit"]), Path(settings["out"]))
    peer = open_peer(Path(settings["peer"])) if settings["peer"] else None
    names = settings["models"].split(",")
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(found.equality, (name,)) for name in names]
    torch.set_float32_matmul_precision("high")  # TF32, as in training
    work += [(found.enhancement, (name,)) for name in names if name in ENHANCED]
    work += [(found.training, (name, peer)) for name in names]
    for step, arguments in work:
        if found.over:
            raise UserError(f"limit={settings['limit']} seconds are over: {settings['out']} has what was measured")
        step(*arguments)
    if different := [f"{row['model']} ({row['measured']})" for row in found.rows if row.get("within") == 0]:
        raise UserError(f"the device and the CPU differ too much in {', '.join(different)}")


if __name__ == "__main__":
    try:
        check(dict(word.split("=", 1) for word in sys.argv[1:]))
    except (UserError, ValueError) as error:
        sys.exit(f"error      {error}")
