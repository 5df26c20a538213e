"""Training is exact: the same run, however it is interrupted, split over processes or over accumulated batches."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from avdvae.data.augment import augmented
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.models.cvae import CVAE
from avdvae.models.vae import VAE
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch
from avdvae.randomness import stream
from avdvae.signals.audio import Stft
from avdvae.training import loop as training
from avdvae.training.curves import best_epoch
from avdvae.training.loop import Trained, train
from avdvae.training.settings import Training

STFT = Stft(533)
PROGRAM = """
import json, sys
from pathlib import Path
from test_training import fit, silence_noise

if __name__ == "__main__":
    name, root, run, settings, noise = json.loads(sys.argv[1])
    if not noise:
        silence_noise()
    fit(name, Path(root), Path(run), **settings)
"""

# What torch.compile makes graphs of; to make code of them, it would need a C++ compiler.
TRACED = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from avdvae.models import av_rvae, cvae, min_vae, srnn, vrnn
from test_training import fit, records

compile, told = torch.compile, []
torch.compile = lambda function: compile(function, backend="eager")
torch._dynamo.config.fail_on_recompile_limit_hit = True
torch._dynamo.config.recompile_limit = 16  # for layers of several sizes, in training or not, in smaller batches too
for kind in (av_rvae.AVRVAE, cvae.CVAE, min_vae.MINVAE, srnn.SRNN, vrnn.VRNN):
    losses = []
    torch._dynamo.reset()
    for compiled in (False, True):
        torch.manual_seed(0)
        run = Path(sys.argv[2], kind.__name__, str(compiled))
        fit(kind(hidden=8, dim=4), Path(sys.argv[1]), run, compile=compiled, epochs=1, frames=4)
        losses.append([row.get("valid/loss", row.get("train/loss")) for row in records(run)])
    told.append((kind.__name__, *losses))
    assert counters["stats"].pop("unique_graphs"), kind
print(json.dumps(told))
"""


def silence_noise() -> None:
    Gaussian.sample = lambda self, k=1: self.mean.expand(k, *self.mean.shape)  # type: ignore[method-assign]


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(Gaussian, "sample", None)  # to be put back
    silence_noise()


def new_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return VAE(hidden=16, dim=4) if name == "vae" else CVAE(hidden=16, dim=4, dropout=0.0, freeze_sound=0.5)


def fit(model: str | nn.Module, root: Path, run: Path, resume: bool = False, **settings: Any) -> Trained:
    """At most a dozen steps an epoch, on the CPU."""
    given = {"frames": 10, "batch_size": 8, "accelerator": "cpu", "epochs": 2, "log_every": 1, "schedule": "constant"}
    settings = {**given, **settings}
    splits = PreparedCorpus(root, "train"), PreparedCorpus(root, "valid")
    model = new_model(model) if isinstance(model, str) else model
    return train(model, *splits, STFT, Training(**settings), run, resume)


def start(name: str, root: Path, run: Path, noise: bool = True, **settings: Any) -> subprocess.Popen:
    run.mkdir(parents=True)
    program = run / "program.py"
    program.write_text(PROGRAM)
    arguments = json.dumps([name, str(root), str(run), settings, noise])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, program, arguments], env=environment)


def records(run: Path, *without: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]


def saved(run: Path) -> dict[str, Any]:
    return torch.load(run / "last" / "state.pt", weights_only=True)


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float = 0) -> None:
    torch.testing.assert_close(dict(one), dict(two), atol=atol, rtol=0)


def assert_alike(*runs: Path) -> None:
    """But for rounding: single weights may differ, for of a gradient that should be zero Adam sees the sign."""
    one, two = (saved(run) for run in runs)
    for mine, theirs in zip(*(state["optimisers"][-1]["state"].values() for state in (one, two)), strict=True):
        assert mine["step"] == theirs["step"]
        assert (mine["exp_avg"] - theirs["exp_avg"]).norm() < 1e-4 * mine["exp_avg"].norm()
    for name, weight in one["model"].items():
        assert (weight - two["model"][name]).norm() < 1e-4 * weight.norm()


class Recorded(VAE):
    """Remembers the weights that each training step began with, and does something in the step of a given number."""

    def __init__(self, number: int = 0, deed=lambda elbo: elbo):
        torch.manual_seed(0)
        super().__init__(hidden=16, dim=4)
        self.number, self.deed, self.before = number, deed, []

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        elbo = super().forward(batch, schedule)
        if self.training:
            self.batch = batch
            self.before.append({name: value.clone() for name, value in self.state_dict().items()})
            if len(self.before) == self.number:
                self.deed(elbo)
        return elbo


class Scripted(nn.Module):
    """Has given validation losses, and a weight that grows by lr a step."""

    observes, sees = "power", ("power",)

    def __init__(self, *losses: float):
        super().__init__()
        self.weight, self.losses, self.validated = nn.Parameter(torch.zeros(1)), losses, []

    def train(self, mode: bool = True):
        if not mode:
            self.validated.append(self.weight.item())
        return super().train(mode)

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        n = batch.mask.sum(1).float()
        loss = -self.weight if self.training else self.losses[len(self.validated) - 1] + 0 * self.weight
        return Elbo(recon={"power": -loss * n}, kl={"z": 0 * n}, n=n)


def test_a_training_leaves_products_as_exact_as_they_were(prepared, tmp_path, monkeypatch):
    launch = training.launch

    def fast(settings: Training) -> Any:  # as on a GPU
        torch.set_float32_matmul_precision("high")
        return launch(settings)

    monkeypatch.setattr(training, "launch", fast)
    fit("vae", prepared.out, tmp_path / "run", epochs=1)
    assert torch.get_float32_matmul_precision() == "highest"


def test_it_learns_and_shows_how(prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = fit("vae", prepared.out, tmp_path, epochs=3, log_every=5, lr=3e-3)
    rows = records(tmp_path)
    losses = [row["valid/loss"] for row in rows if "valid/loss" in row]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0] and trained.best_loss == losses[2]
    assert trained.best_epoch == trained.epochs == 3 and not trained.model.training
    assert [row["step"] for row in rows if "lr" in row] == list(range(5, trained.steps + 1, 5))
    for row in rows:
        kind = "train" if "lr" in row else "valid"
        assert row[f"{kind}/bound"] == pytest.approx(row[f"{kind}/recon_power"] - row[f"{kind}/kl_z"], rel=1e-5)
    board = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "audio": 0}).Reload()
    assert [event.value for event in board.Scalars("valid/loss")] == pytest.approx(losses)
    for tag in ("speech/clean", "speech/resynthesis"):
        assert [event.step for event in board.Images(tag)] == [event.step for event in board.Audio(tag)]
    assert [event.step for event in board.Images("speech/clean")] == [rows[-1]["step"] // 3 * e for e in (1, 2)]
    assert board.Tags()["images"] == ["speech/clean", "speech/resynthesis"]  # no lips: it does not use them


def test_the_best_weights_are_kept_and_patience_ends(prepared, tmp_path):
    model = Scripted(3, 1, 2, 1, 5)
    trained = fit(model, prepared.out, tmp_path / "a", epochs=9, patience=2)
    assert (trained.best_epoch, trained.best_loss, trained.epochs) == (2, 1, 4)
    best = model.validated[1]
    assert model.weight.item() == best == load_file(tmp_path / "a" / "weights.safetensors")["weight"].item()
    assert best < model.validated[3] == saved(tmp_path / "a")["model"]["weight"].item()

    patient = fit(Scripted(1, *[2] * 8), prepared.out, tmp_path / "b", epochs=9, patience=2, warmup_epochs=3)
    assert patient.epochs == 5
    longer = fit(Scripted(*[2] * 9), prepared.out, tmp_path / "b", resume=True, epochs=9, patience=4, warmup_epochs=3)
    assert (longer.epochs, longer.best_epoch) == (7, 1)


def test_the_best_weights_are_those_of_the_best_resynthesis_where_so_asked(prepared, tmp_path, monkeypatch):
    speakers = {u.speaker for u in PreparedCorpus(prepared.out, "valid").utterances}
    scores, score = (
        iter([value for epoch in (1.0, 3.0, 2.0, 4.0, 0.0) for value in [epoch] * len(speakers)]),
        training.score,
    )

    def scripted(clean, speech, rate, names):
        assert math.isfinite(score(clean, speech, rate, names)["si_sdr"])
        return {"si_sdr": next(scores)}

    monkeypatch.setattr(training, "score", scripted)
    with pytest.raises(UserError, match=r"train.best_by=si_sdr: Scripted resynthesises no speech"):
        fit(Scripted(1), prepared.out, tmp_path / "no", best_by="si_sdr")
    trained = fit("vae", prepared.out, tmp_path, best_by="si_sdr", epochs=5)
    assert (trained.best_epoch, trained.best_loss) == (4, -4.0) and not [*scores]
    assert best_epoch(records(tmp_path)) == 4
    assert [row["valid/si_sdr"] for row in records(tmp_path) if "valid/loss" in row] == [1, 3, 2, 4, 0]


def test_crops_are_changed_in_training_alone_and_a_seed_says_how(prepared, tmp_path):
    lips_BTHW = torch.randint(0, 256, (5, 1, 20, 20), dtype=torch.uint8).expand(-1, 3, -1, -1)
    torch.manual_seed(1)
    changed_BTHW = augmented(lips_BTHW)
    assert changed_BTHW.shape == lips_BTHW.shape and changed_BTHW.dtype == torch.uint8
    assert (changed_BTHW == changed_BTHW[:, :1]).all() and all((changed_BTHW != lips_BTHW).any((1, 2, 3)))
    torch.manual_seed(1)
    assert torch.equal(augmented(lips_BTHW), changed_BTHW)

    seen: list[bool] = []

    class Watched(CVAE):
        def forward(self, batch, schedule):
            assert batch.lips is not None
            rows = {u.id: u for u in corpora[self.training].utterances}
            known = {crop.tobytes() for name in batch.ids for crop in corpora[self.training].lips(rows[name])}
            of_items = zip(batch.lips[batch.mask].numpy(), strict=True)
            seen.append(self.training == any(crop.tobytes() in known for (crop,) in of_items))
            return super().forward(batch, schedule)

    corpora = {split == "train": PreparedCorpus(prepared.out, split) for split in ("train", "valid")}
    for name in ("once", "again"):
        torch.manual_seed(0)
        fit(Watched(hidden=16, dim=4), prepared.out, tmp_path / name, epochs=1, augment=True)
    assert_alike(tmp_path / "once", tmp_path / "again")
    assert not any(seen)  # in training no crop is one of the corpus, in validation each is


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_what_was_stopped_goes_on_exactly(prepared, tmp_path, how):
    """The optimiser, the average, the loader, the sums between records and the best so far: nothing may be lost."""
    settings = {"epochs": 3, "log_every": 4, "schedule": "cosine", "ema": 0.8, "warmup_epochs": 1, "batch_size": 5}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained = fit("vae", prepared.out, whole, **settings)
    moment = random.SystemRandom().randint(1, trained.steps - 2)
    print(f"stopped after step {moment} of {trained.steps}")
    if how == "killed":
        process = start("vae", prepared.out, parts, **settings, save_every=0)
        while not (parts / "last" / "state.pt").exists() or saved(parts)["at"]["step"] < moment:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with (parts / "metrics.jsonl").open("a") as file:
            file.write('{"written": "after the state was saved"}\n')
    else:
        with pytest.raises(KeyboardInterrupt):
            model = Recorded(moment, lambda elbo: signal.raise_signal(signal.SIGINT))
            fit(model, prepared.out, parts, **settings)
        assert saved(parts)["at"]["step"] == moment
    resumed = fit("vae", prepared.out, parts, resume=True, **settings)
    assert (resumed.best_epoch, resumed.steps) == (trained.best_epoch, trained.steps)
    assert_equal(resumed.model.state_dict(), trained.model.state_dict())
    assert records(parts, "seconds") == records(whole, "seconds")
    for name in ("model", "average"):
        assert_equal(saved(parts)[name], saved(whole)[name])


def test_a_loss_that_is_not_finite_stops_and_spoils_nothing(prepared, tmp_path):
    def spoil(elbo: Elbo) -> None:
        elbo.recon["power"].data[2] = torch.nan

    first = fit("vae", prepared.out, tmp_path / "first", epochs=1)
    number = first.steps + 3
    model = Recorded(number, spoil)
    with pytest.raises(UserError, match=rf"not finite at step {number} of epoch 2, on (\S+): .*train.lr") as caught:
        fit(model, prepared.out, tmp_path / "run", save_every=0, log_every=number + 1)
    before = saved(tmp_path / "run")
    assert before["at"]["step"] == number - 1
    assert_equal(before["model"], model.before[number - 1])
    assert_equal(load_file(tmp_path / "run" / "weights.safetensors"), first.model.state_dict())
    assert sum(f"on {u.id}:" in str(caught.value) for u in PreparedCorpus(prepared.out, "train").utterances) == 1


def test_two_processes_are_as_one(prepared, tmp_path, no_noise):
    """Whole utterances by threes: shares differ in utterances and in frames. Half of the steps freeze layers."""
    settings = {"frames": None, "batch_size": 3, "accumulate": 2, "epochs": 3, "optimiser": "adam"}
    one, two = tmp_path / "one", tmp_path / "two"
    process = start("cvae", prepared.out, two, noise=False, **settings, devices=2)
    trained = fit("cvae", prepared.out, one, **settings)
    coins = [stream("step", 0, step).random() < 0.5 for step in range(trained.steps)]
    assert True in coins and False in coins
    assert process.wait(timeout=120) == 0
    for mine, theirs in zip(records(one, "seconds"), records(two, "seconds"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    assert_alike(one, two)


def test_accumulated_batches_are_as_one(prepared, tmp_path, no_noise):
    one = fit("vae", prepared.out, tmp_path / "one", batch_size=16, optimiser="adam")
    two = fit("vae", prepared.out, tmp_path / "two", batch_size=8, accumulate=2, optimiser="adam")
    assert one.steps == two.steps
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_gradients_are_means_over_frames_and_clipped(prepared, tmp_path, no_noise):
    """Adam's first moment after one step is a tenth of the gradient."""
    model = Recorded()
    fit(model, prepared.out, tmp_path / "free", epochs=1, batch_size=10_000, optimiser="adam")
    fit("vae", prepared.out, tmp_path / "clipped", epochs=1, batch_size=10_000, clip_norm=0.5, optimiser="adam")
    again = new_model("vae")
    elbo = again(model.batch, Schedule())
    (elbo.loss(Schedule()).sum() / elbo.n.sum()).backward()
    free, clipped = (
        torch.cat(
            [moments["exp_avg"].flatten() for moments in saved(tmp_path / run)["optimisers"][-1]["state"].values()]
        )
        for run in ("free", "clipped")
    )
    gradient = torch.cat([parameter.grad.flatten() for parameter in again.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(free, gradient / 10, rtol=1e-3, atol=1e-4)
    assert gradient.norm() > 1
    torch.testing.assert_close(clipped, gradient / gradient.norm() * 0.05, rtol=1e-3, atol=1e-6)


def test_muon_moves_matrices_alike_in_all_directions_and_adam_the_rest(prepared, tmp_path):
    model = Recorded()
    fit(model, prepared.out, tmp_path, epochs=1, batch_size=10_000, lr=1e-3)
    now = saved(tmp_path)["model"]
    for name, before in model.before[0].items():
        step = now[name] - before
        if before.ndim == 2:
            assert step.square().mean().sqrt() == pytest.approx(1e-3, rel=0.25), name  # lr is what a step moves
            strengths = torch.linalg.svdvals(step)
            assert strengths[0] < 3 * strengths[-1], name
        else:
            torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-3), rtol=1e-2, atol=0)


def test_the_average_is_the_average(prepared, tmp_path):
    model = Recorded()
    trained = fit(model, prepared.out, tmp_path, epochs=1, ema=0.9)
    mean = model.before[0]
    for weights in [*model.before[1:], saved(tmp_path)["model"]]:
        mean = {name: 0.9 * mean[name] + 0.1 * weights[name] for name in mean}
    assert_equal(trained.model.state_dict(), mean, atol=1e-6)


def test_rates_follow_their_schedules(prepared, tmp_path):
    steps = fit("vae", prepared.out, tmp_path, epochs=3, schedule="cosine", lr=0.02, beta=0.5, warmup_epochs=2).steps
    rows = [row for row in records(tmp_path) if "lr" in row]
    done = torch.arange(steps).double() / steps
    assert [row["lr"] for row in rows] == pytest.approx((0.01 * (1 + torch.cos(torch.pi * done))).tolist())
    assert [row["beta"] for row in rows] == pytest.approx((0.5 * (done * 3 / 2).clamp(max=1)).tolist())
    free = [row["train/loss"] == pytest.approx(-row["train/recon_power"]) for row in rows]
    assert free[0] and not any(free[1:])


def test_half_precision_spares_the_likelihoods(prepared, tmp_path):
    class Watched(VAE):
        seen: set

        def decode(self, z, context, feedback=None):
            result = super().decode(z, context)
            self.seen |= {self.decoder(z["z"]).dtype, result["power"].log_var.dtype, z["z"].dtype}
            return result

    model = Watched(hidden=16, dim=4)
    model.seen = set()
    trained = fit(model, prepared.out, tmp_path, precision="bf16-mixed", ema=0.5)
    assert model.seen == {torch.bfloat16, torch.float32}
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in records(tmp_path))
    assert {weight.dtype for weight in trained.model.state_dict().values()} == {torch.float32}


def test_compiled_models_learn_the_same_and_batches_do_not_compile_them_anew(prepared, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # no hooks that check types, but models alone
    command = [sys.executable, "-c", TRACED, prepared.out, tmp_path]
    told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    for model, plain, compiled in json.loads(told.splitlines()[-1]):
        assert compiled == pytest.approx(plain, rel=1e-4), model


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_where_nothing_can_be_compiled_that_is_said(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"train.compile=true .*no-such-compiler.* give train.compile=false"):
        fit("vae", prepared.out, tmp_path / "run", compile=True)
    assert not (tmp_path / "run").exists()


def test_wrong_settings_are_told_at_once(prepared, tmp_path):
    wrong = {
        "epochs": -1,
        "lr": -1.0,
        "schedule": "linear",
        "ema": 1.0,
        "level_db": [0, -20],
        "patience": 0,
        "seed": -1,
    }
    with pytest.raises(UserError) as caught:
        Training(**wrong)  # type: ignore[arg-type]
    assert all(f"train.{name}={value!r} (give " in str(caught.value) for name, value in wrong.items())
    assert str(caught.value).count("(give ") == len(wrong)
    with pytest.raises(UserError, match="holds no training to resume"):
        fit("vae", prepared.out, tmp_path, resume=True)
    fit("vae", prepared.out, tmp_path, epochs=1)
    with pytest.raises(UserError, match="holds a training already"):
        fit("vae", prepared.out, tmp_path)
    with pytest.raises(UserError, match="would now take"):
        fit("vae", prepared.out, tmp_path, resume=True, batch_size=9, ema=0.5)
    with pytest.raises(UserError, match="another model"):
        fit("cvae", prepared.out, tmp_path, resume=True)


class Harmful:
    """Makes a file when it is read as a pickle may be."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_damaged_state_is_named_and_never_executed(prepared, tmp_path):
    fit("vae", prepared.out, tmp_path, epochs=1)
    path = tmp_path / "last" / "state.pt"
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 4  # of a tensor, where torch itself notices nothing
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.ones(3)}, foreign)
    harmful = tmp_path / "harmful.pt"
    torch.save(Harmful(tmp_path / "executed"), harmful)
    for content in (middle, whole[:-100], whole[:1000], b"text", b"", foreign.read_bytes(), harmful.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"state.pt is cut off, damaged or no state of a training \(.*\): restore"):
            fit("vae", prepared.out, tmp_path, resume=True, epochs=2)
    assert not (tmp_path / "executed").exists()
    path.write_bytes(whole)
    assert fit("vae", prepared.out, tmp_path, resume=True, epochs=2).epochs == 2
