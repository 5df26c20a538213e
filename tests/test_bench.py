"""The program that times models, as a user starts it, beside a checkout that looks like the peer's."""

import csv
import itertools
import json
import math
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_run import EXPERIMENTS, PROJECT, refuse, run

from avdvae.configurations import compose
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.models.vae import VAE
from avdvae.others import bench
from avdvae.others.bench import random_batch
from avdvae.others.peer import open_peer
from avdvae.signals.audio import Stft

TINY = ["device=cpu", "batch=2", "frames=30", "seconds=0.01", "em_iterations=2", "utterance=0.5"]
PEER = {
    "dvae/__init__.py": "",
    "dvae/utils/__init__.py": """
from not_installed_anywhere import metric
def loss_ISD(x, y):
    return (x / y - (x / y).log() - 1).sum()
def loss_KLD(mean, logvar, mean_p, logvar_p):
    return ((mean - mean_p) ** 2 + logvar.exp() - logvar + logvar_p).sum() / 2
""",
    "dvae/model/__init__.py": """
import torch
class Autoencoder(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.encode, self.decode = torch.nn.Linear(513, dim), torch.nn.Linear(dim, 513)
    def forward(self, x_TBF):
        assert x_TBF.shape == (30, 2, 513)
        self.z_mean = self.encode(x_TBF)
        self.z_logvar = self.z_mean_p = self.z_logvar_p = torch.zeros_like(self.z_mean)
        return self.decode(self.z_mean)
def build_VAE(cfg, device):
    return Autoencoder(cfg.getint("Network", "z_Dim")).to(device)
build_RVAE = build_VAE
""",
    "config/speech/cfg_vae.ini": "[Network]\nz_Dim = 4\n",
    "config/speech/cfg_rvae_Causal.ini": "[Network]\nz_Dim = 8\n",
}


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    for name, text in PEER.items():
        (tmp_path / "peer" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "peer" / name).write_text(text)
    return tmp_path / "peer"


def lstm(inputs: int, hidden: int = 128) -> int:
    return 4 * hidden * (inputs + hidden)


def test_every_column_is_measured_and_the_work_is_that_counted_by_hand(peer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "speed.csv"
    dim = 8
    words = ["models=[vae_sequences,rvae_causal]", *TINY, f'overrides=["model.dim={dim}"]']
    printed = run("bench.py", *words, f"peer={peer}", f"out={out}")
    assert printed.count("times as fast") == 2 and "rvae_causal" in printed
    with out.open() as file:
        rows = {row.pop("model"): row for row in csv.DictReader(file)}
    for row in rows.values():
        assert row.pop("device") == "cpu"
        assert not any(row.pop(name) for name in [*row] if name.startswith("corpus_") or name == "generated_per_s")
        assert all(math.isfinite(float(value)) and float(value) > 0 for value in row.values()), row
    # Each weight is multiplied with its inputs, and backward with its outputs' slopes twice: once for the weight's
    # slope, once for the inputs'. What is heard needs no slope.
    weights = {
        "vae_sequences": 513 * 128 + 3 * 128 * dim + 128 * 513,
        "rvae_causal": lstm(513) + 2 * lstm(dim) + 2 * 256 * dim + 128 * 513,
    }
    heard = {"vae_sequences": 513 * 128, "rvae_causal": 513 * 4 * 128}
    for name, row in rows.items():
        by_hand = 2 * 60 * (3 * weights[name] - heard[name]) / 1e9
        assert float(row["step_gflop"]) == pytest.approx(by_hand, rel=0.03)
        speed = float(row["step_gflop"]) * float(row["steps_per_s"])
        assert float(row["matmul_share"]) == pytest.approx(speed / float(row["matmul_gflops"]))
    assert [int(rows[name]["peer_parameters"]) for name in rows] == [2 * 513 * 4 + 517, 2 * 513 * 8 + 521]


def test_a_batch_goes_through_the_em_at_once_and_each_frame_of_a_stream_is_timed(monkeypatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(bench, "now", lambda device: float(next(ticks)))  # a second between any two calls
    model, vem, cpu = VAE(dim=2).eval().requires_grad_(False), Vem(FreeGaussian(), iterations=100), torch.device("cpu")
    for utterances in (1, 4):  # two iterations of a hundred are run: 98 more, and 3 seconds for these two
        rtf = bench.em_real_time_factor(model, vem, Stft(256), 0.5, 2, 67, cpu, utterances)
        assert rtf == pytest.approx((3 + 98) / (0.5 * utterances))
    cost = bench.streaming_cost(model, vem, Stft(256), 0.5, 67, cpu)
    assert asdict(cost) == pytest.approx(
        {
            "stream_latency_ms": 1000 * (1024 + 2 * 256) / 16_000,
            "stream_frames_per_s": 1,
            "stream_frame_ms": 1000,
            "stream_frame_p99_ms": 1000,
        }
    )


def test_generation_is_timed_of_models_that_take_their_own_past(tmp_path: Path) -> None:
    out = tmp_path / "speed.csv"
    run("bench.py", "models=[dkf,srnn]", *TINY, f"out={out}")
    with out.open() as file:
        rates = {row["model"]: row["generated_per_s"] for row in csv.DictReader(file)}
    assert not rates["dkf"] and float(rates["srnn"]) > 0


def test_training_from_a_corpus_is_timed_beside_batches_in_memory_and_separation(prepared, tmp_path: Path) -> None:
    out = tmp_path / "speed.csv"
    words = ["models=[cvae]", *TINY, "frames=1", "hop=533", "sources=2", f"prepared={prepared.out}", f"out={out}"]
    printed = run("bench.py", *words)
    assert "% of this" in printed and "of 2 sources" in printed
    with out.open() as file:
        (row,) = csv.DictReader(file)
    low, middle, high = (float(row[f"corpus_{name}"]) for name in ("ratio_low", "ratio", "ratio_high"))
    assert 0 < low <= middle <= high and float(row["corpus_steps_per_s"]) > 0 and not row["peer_parameters"]
    assert row["sources"] == "2" and float(row["em_rtf"]) > 0


def test_models_of_waveforms_are_timed_beside_a_peer_of_their_size(tmp_path: Path) -> None:
    audio = """
import torch
class Peer(torch.nn.Module):
    def __init__(self, *given, **sizes):
        super().__init__()
        self.level, self.sizes = torch.nn.Parameter(torch.ones(())), sizes
    def forward(self, x_BN, lengths_B):
        assert x_BN.shape == (2, 30 * 256) and lengths_B.tolist() == [30 * 256] * 2 and 0 < x_BN.abs().max() <= 1
        return (self.level * x_BN).square().mean(), {}
"""
    names = ("CWVAEAudio", "LSTMAudio", "VRNNAudio", "SRNNAudio", "STCN", "WaveNet")
    for file, classes in (("models", names), ("modules/distributions", ["DiscretizedLogisticMixtureDense"])):
        path = tmp_path / "blvm" / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(audio + "\n".join(f"class {name}(Peer): pass" for name in classes))
    peer, batch = open_peer(tmp_path), random_batch(2, 30, 67, 256, torch.device("cpu"))
    sizes = {
        "cw_vae_3": ("CWVAEAudio", {"h_size": 32, "strides": [64, 8, 8], "z_size": [32] * 3}),
        "lstm": ("LSTMAudio", {"stack_size": 64, "hidden_size": 128, "num_layers": 1}),
        "vrnn_wave_paper": ("VRNNAudio", {"input_size": 64, "hidden_size": 256, "latent_size": 256}),
        "srnn_wave_paper": ("SRNNAudio", {"input_size": 64, "hidden_size": 256, "latent_size": 256}),
        "stcn": ("STCN", {"res_channels": 64, "latent_size": [64, 32, 16, 8, 4], "n_layers": 5, "n_stacks": 5}),
        "wavenet": ("WaveNet", {"n_stack_frames": 64, "res_channels": 32, "n_layers": 10, "n_stacks": 5}),
    }
    configs = {name: compose("config", [f"exp={name}"])["model"] for name in (*sizes, "vrnn_wave", "vae")}
    for name, (counterpart, expected) in sizes.items():
        trainee = peer.trainee(name, batch, configs[name])
        assert trainee is not None and type(trainee.model).__name__ == counterpart
        model: Any = trainee.model
        assert expected.items() <= model.sizes.items()
        trainee.step()
    assert peer.trainee("vrnn_wave", batch, configs["vrnn_wave"]) is None  # it has no such sizes
    assert peer.trainee("vae", batch, configs["vae"]) is None


def test_every_model_is_timed() -> None:
    same_model = {"cvae_plain", "flow", "srnn_gm", "srnn_tf_gm"}
    models = {name for name in EXPERIMENTS if not name.endswith(("_paper", "_large"))}
    large = {"byte_lm"}  # takes gigabytes for a batch of the others
    assert set(OmegaConf.load(PROJECT / "configs/bench.yaml").models) == models - same_model - large


def test_what_cannot_be_timed_is_refused_in_a_sentence(peer: Path, tmp_path: Path) -> None:
    shape = ["models=[vae_sequences]", "frames=20", f"peer={peer}"]  # AssertionError, where the peer takes 30
    assert "its code fails at vae_sequences with batch=2 frames=20 (AssertionError" in refuse("bench.py", *TINY, *shape)
    assert "is no checkout of the DVAE benchmark" in refuse("bench.py", *TINY, f"peer={tmp_path}")
    assert "no experiment is called nothing" in refuse("bench.py", *TINY, "models=[vae,nothing]")
    assert "write models=[vae]" in refuse("bench.py", *TINY, "models=vae")
    assert "there is no setting model.nothing" in refuse("bench.py", *TINY, 'overrides=["model.nothing=1"]')
    assert "frames=0" in refuse("bench.py", *TINY, "frames=0")


def test_the_check_of_a_gpu_has_the_models_of_the_experiments() -> None:
    models = runpy.run_path(str(PROJECT / "experiments/gpu_check.py"))["MODELS"]
    paper = {name.removesuffix("_paper").removesuffix("_large"): name for name in models}
    assert paper.keys() | {"cw_vae_1", "cw_vae_3"} == {*OmegaConf.load(PROJECT / "configs/bench.yaml").models}
    for name, (settings, _) in models.items():
        composed = compose("config", [f"exp={name}"])["model"]
        assert json.loads(json.dumps(settings)) == json.loads(json.dumps(composed)), name


def test_the_check_of_a_gpu_runs_on_a_cpu_with_few_packages(peer: Path, tmp_path: Path) -> None:
    hidden = ["av", "hydra", "mediapipe", "omegaconf", "pesq", "pystoi", "rich", "soundfile", "lightning_fabric"]
    script, out = PROJECT / "experiments/gpu_check.py", tmp_path / "out.csv"
    words = [str(script), "device=cpu", "models=rvae_causal,vae,lstm_paper", f"peer={peer}", f"out={out}"]
    program = f"""
import runpy, sys
sys.modules |= dict.fromkeys({hidden})  # importing them raises ImportError
sys.argv = {words}
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        rows = {(row["measured"], row["model"]): row for row in csv.DictReader(file)}
    measured = ["equality, loss", "equality, gradient", "training"]
    expected = {(what, name) for what in measured for name in ("vae", "rvae_causal", "lstm_paper")}
    expected |= {(what, "vae") for what in ("equality, EM", "enhancement, FreeGaussian", "enhancement, Learned")}
    assert rows.keys() == expected
    assert all(row["within"] == "1" for (what, _), row in rows.items() if what.startswith("equality"))
    assert all(float(row["value"]) > 0 for (what, _), row in rows.items() if not what.startswith("equality"))
    assert float(rows["training", "rvae_causal"]["ratio"]) > 0 and not rows["training", "lstm_paper"]["ratio"]


def test_the_check_of_a_gpu_finds_another_gradient_and_says_so(tmp_path: Path) -> None:
    check = runpy.run_path(str(PROJECT / "experiments/gpu_check.py"))
    torch.manual_seed(0)
    model, batch = VAE(dim=2).eval(), random_batch(2, 20, 67, 256, torch.device("cpu"))
    before = check["training_step"](model, batch)
    again = check["training_step"](model, batch)
    assert all(check["difference"](before[what], again[what]) == 0 for what in before)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    after = check["training_step"](model, batch)
    assert all(check["difference"](before[what], after[what]) > check["TOLERANCES"][what] for what in before)
    for wrong, sentence in (("models", "nothing: choose from nmf, vae"), ("wrong", "no setting wrong")):
        with pytest.raises(UserError, match=sentence):
            check["check"]({wrong: "nothing"})
    check["TOLERANCES"]["gradient"] = -1.0
    with pytest.raises(UserError, match=r"differ too much in nmf \(equality, gradient\)$"):
        check["check"]({"models": "nmf", "device": "cpu", "out": str(tmp_path / "out.csv")})
