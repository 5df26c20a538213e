"""The learned E-step: what it gives without noise, what its training changes, and the way from a run to its use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_enhance import make_run

from avdvae.data.prepare import Summary
from avdvae.enhancement.contract import MANY, RandomNumbers
from avdvae.enhancement.esteps import build_estep
from avdvae.enhancement.learned import FEW, SOME, Learned, LearnedPosterior, drawn_noise, in_noise
from avdvae.enhancement.noise import Noise
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem, enhance
from avdvae.errors import UserError
from avdvae.models.rvae import RVAE
from avdvae.models.v_vae import VVAE
from avdvae.models.vae import VAE
from avdvae.nn.weights import load_weights, save_weights
from avdvae.probability.objectives import Schedule
from avdvae.probability.spectrum import Components
from avdvae.protocols import Batch
from avdvae.runs import build_vem, changed, open_run

BINS = 33


def small(kind: Any = VAE) -> Any:
    torch.manual_seed(0)
    return kind(BINS, 16, 4, floor=0.03).eval()


def speech(utterances: int = 8, frames: int = 12) -> Batch:
    g = torch.Generator().manual_seed(0)
    power = (2 * torch.randn((utterances, frames, BINS), generator=g)).exp()
    mask = torch.ones(utterances, frames, dtype=torch.bool)
    return Batch(tuple(map(str, range(utterances))), mask, power=power, noisy=power)


def trained(model: Any, steps: int) -> tuple[LearnedPosterior, list[float]]:
    network, batch, losses = LearnedPosterior(model, width=16, bins=BINS), speech(), []
    adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
    for _ in range(steps):
        adam.zero_grad()
        torch.manual_seed(1)  # the same noise
        loss = network.train()(batch, Schedule()).loss(Schedule()).mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return network.eval(), losses


@pytest.mark.parametrize("kind", [VAE, RVAE])
def test_without_noise_it_begins_as_the_posterior_of_the_model(kind):
    model, batch = small(kind), speech()
    network = LearnedPosterior(small(kind), bins=BINS).eval()
    assert batch.power is not None
    with torch.no_grad():
        expected = model.infer(batch, mode="mean").q["z"]
        quiet, loud = (network.infer(batch.power, torch.full_like(batch.power, v), batch).q["z"] for v in (1e-9, 1e9))
    for name in ("mean", "log_var"):
        wanted = getattr(expected, name).expand(1, 8, 12, 4)[0]
        torch.testing.assert_close(getattr(quiet, name), wanted, rtol=1e-4, atol=1e-4)
        assert (getattr(loud, name) - wanted).abs().mean() > 0.01  # the same power, and none of it is speech


@pytest.mark.parametrize("kind", [VAE, RVAE])
def test_training_raises_the_bound_and_leaves_the_model_as_it_is(kind, tmp_path):
    network, losses = trained(small(kind), 30)
    assert losses[-1] < losses[0] - 1
    model, before = network.model, small(kind).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    save_weights(network, tmp_path / "weights.safetensors")
    assert not any(name.startswith(("model.", "tuned.decoder")) for name in network.state_dict())
    again = LearnedPosterior(small(kind), width=16, bins=BINS)
    load_weights(again, tmp_path / "weights.safetensors")
    batch, noise = speech(), torch.rand(8, 12, BINS)
    with torch.no_grad():
        first, second = (of.eval().infer(batch.need("power", of), noise, batch).q["z"] for of in (network, again))
    assert torch.equal(first.mean, second.mean) and torch.equal(first.log_var, second.log_var)


def test_drawn_noise_is_what_is_added():
    torch.manual_seed(0)
    true, estimate = drawn_noise(torch.ones(64, 10, BINS))
    assert (true > 0).all() and (estimate > 0).all() and true.isfinite().all() and estimate.isfinite().all()
    noisy = torch.stack([in_noise(torch.ones_like(true), true) for _ in range(400)]).mean(0)
    ratio = noisy / (1 + true)  # the powers of independent signals add up
    assert abs(ratio.mean() - 1) < 0.01 and (ratio - 1).abs().max() < 0.4
    levels_db = 10 * true.mean((1, 2)).log10()
    assert -16 < levels_db.min() < -8 and 8 < levels_db.max() < 16


def test_several_updates_are_as_many_m_steps_with_the_same_speech():
    g = torch.Generator().manual_seed(0)
    noisy, speech_RBTF = (torch.randn((n, 1, 9, 7), generator=g).exp() for n in (1, 3))
    once, apart = (
        Noise.drawn(noisy[0], 2, RandomNumbers([torch.Generator().manual_seed(0)], [9]), 5.0) for _ in range(2)
    )
    cost = once.update(noisy[0], Components(speech_RBTF, 1 / once.mixture(speech_RBTF)), times=4)
    costs = [apart.update(noisy[0], Components(speech_RBTF, 1 / apart.mixture(speech_RBTF))) for _ in range(4)]
    torch.testing.assert_close(cost, costs[0])
    for name in ("W_BFK", "H_BTK", "gain_BTJ"):
        torch.testing.assert_close(getattr(once, name), getattr(apart, name), rtol=1e-4, atol=1e-6)


def test_updates_on_thinned_frames_are_those_on_all_where_frames_repeat():
    g = torch.Generator().manual_seed(0)
    noisy_BTF, *speech, H_BTK = (4 * torch.rand(shape, generator=g) for shape in ((2, 5, 7),) * 4 + ((2, 5, 2),))
    H_BTK[1, 3:] = 0  # frames that pad
    noisy_BTF, speech_RBTF, H_BTK = (
        values.repeat_interleave(4, -2) for values in (noisy_BTF, torch.stack(speech), H_BTK)
    )
    W_BFK = torch.rand((2, 7, 2), generator=g)
    thinned, full = (Noise(W_BFK, H_BTK, torch.ones(2, 20, 1)) for _ in range(2))
    for noise, updates in ((thinned, (0, 3)), (full, (3, 0))):
        noise.update(noisy_BTF, Components(speech_RBTF, 1 / noise.mixture(speech_RBTF)), *updates)
    torch.testing.assert_close(thinned.W_BFK, full.W_BFK)
    torch.testing.assert_close(thinned.H_BTK, full.H_BTK)
    torch.testing.assert_close(thinned.variance_BTF, full.variance_BTF)
    assert not thinned.H_BTK[1, 12:].any() and not torch.equal(full.W_BFK, W_BFK)


def test_another_e_step_begins_where_the_encoder_ends():
    network, seen = LearnedPosterior(small(), bins=BINS).eval().requires_grad_(False), []

    class Watched(FreeGaussian):
        def start(self, model: Any, batch, random):
            seen.append((model.infer(batch).q["z"].mean, state := super().start(model, batch, random)))
            return state

        def step(self, target, state, random):
            seen.append((target.noisy_BTF, target.noise_BTF.clone(), target.gain_BTJ.clamp_min(0.03)))
            return super().step(target, state, random)

    estep = Learned(rounds=2, then=Watched(lr=0.0), network=network)
    batch = speech(2)
    enhance(small().requires_grad_(False), batch, Vem(estep, iterations=5, rank=2))
    (mean, state), *targets = seen
    assert len(targets) == 3 and torch.equal(state.mean["z"][0], mean)
    noisy, noise, gain = targets[0]
    torch.testing.assert_close(mean, network.infer(noisy / gain, noise / gain, batch).q["z"].mean)
    assert Vem(estep).schedule == SOME and Vem(FreeGaussian()).schedule == MANY
    assert Vem(Learned(), 3, 4).schedule == (3, 4, FEW.thinned)


def test_settings_of_a_run_are_those_of_another_e_step_no_more():
    of_run = {"iterations": 100, "updates": 1, "rank": 4, "estep": {"name": "langevin", "chains": 2}}
    learned = changed(of_run, {"estep": {"name": "learned"}})
    assert learned == {"iterations": None, "updates": None, "rank": 4, "estep": {"name": "learned"}}
    assert changed(of_run, {"estep": {"name": "point"}})["iterations"] == 100
    assert changed(of_run, {"iterations": 7, "estep": {"name": "learned"}})["iterations"] == 7
    assert changed(of_run, {"estep": {"name": "denoising"}})["iterations"] is None


def test_from_a_run_to_enhanced_speech(avdvae_command: Callable[..., str], prepared: Summary):
    run = make_run(Path("runs/vae"), "VAE")
    open_run(run).note(seconds={"train": 1.0})
    sound = torch.randn(9000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    soundfile.write("noisy.wav", sound.astype(np.float32), 16_000)
    use = ["enhance", "noisy.wav", "clean.wav", f"run={run}", "enhance.estep.name=learned"]
    missing = avdvae_command(*use)
    assert f"{run} has no learned E-step: train one" in missing and f"exp=learned_estep start=[{run}]" in missing
    assert not Path("clean.wav").exists()

    train = ["train", "exp=learned_estep", f"start=[{run}]", f"prepared={prepared.out}", "train.epochs=1"]
    assert avdvae_command(*train, "train.frames=20", "model.width=8", "train.accelerator=cpu") == ""
    assert avdvae_command(*use) == "" and Path("clean.wav").stat().st_size > 9000
    vem = build_vem({"estep": {"name": "learned"}}, open_run(run))
    assert isinstance(vem.estep, Learned) and vem.estep.network is not None and vem.schedule == FEW
    again = avdvae_command(*train)
    assert "holds a run already" in again
    assert avdvae_command("train", f"resume={run}/learned_estep") == ""


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: LearnedPosterior(), "was given nothing: give the run of one"),
        (lambda: LearnedPosterior(VVAE()), "was given VVAE: give the run of one"),
        (lambda: build_estep("learned", then={"name": "encoder"}), "give +enhance.estep.then.name=free_gaussian"),
        (lambda: build_estep("learned", rounds=0), "enhance.estep.rounds=0: give a whole number of 1 or more"),
        (lambda: enhance(small(), speech(1), Vem(build_estep("learned"))), "needs the run of a model"),
    ],
)
def test_mistakes(wrong, sentence):
    with pytest.raises(UserError) as error:
        wrong()
    assert sentence in str(error.value)


def test_the_experiment_needs_a_run(avdvae_command: Callable[..., str]):
    assert "exp=learned_estep start=[]: give the run that it is for" in avdvae_command("train", "exp=learned_estep")
