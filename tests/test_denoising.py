"""Priors that denoise and the E-step `denoising`: its draws, what training fits, and the way from a training to a
clean recording."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import avdvae
from avdvae.enhancement.contract import RandomNumbers
from avdvae.enhancement.denoising import Denoising
from avdvae.enhancement.diffuseen import DiffUSEEN
from avdvae.enhancement.esteps import build_estep
from avdvae.enhancement.udiffse import UDiffSE
from avdvae.enhancement.vem import NoisySpeech, Vem, enhance
from avdvae.errors import UserError
from avdvae.evaluation.results import read_results
from avdvae.models.denoiser import Denoiser
from avdvae.models.vae import VAE
from avdvae.probability.objectives import Schedule
from avdvae.protocols import Batch, Context, Denoised, Denoises


@dataclass
class Fixed:
    """It finds the same speech in any noise."""

    mean_F: Tensor
    variance_F: Tensor
    scale_F: Tensor
    sees: tuple[str, ...] = ("spectrum",)
    can_miss: tuple[str, ...] = ()

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask)

    def denoise(self, noisy_KBTF: Tensor, sigma: float, context: Context) -> Denoised:
        return Denoised(self.mean_F.expand_as(noisy_KBTF), self.variance_F.expand(noisy_KBTF.shape))


def noisy(*frames: int, width: int | None = None, F: int = 33) -> Batch:
    """Spectra, another for each length, as `separate` gives them to the EM."""
    mask = torch.arange(width or max(frames)) < torch.tensor(frames)[:, None]
    spectrum = torch.zeros(*mask.shape, F, dtype=torch.complex64)
    lips = torch.zeros(*mask.shape, 4, 4, dtype=torch.uint8)
    for b, count in enumerate(frames):
        g = torch.Generator().manual_seed(count)
        spectrum[b, :count] = torch.randn((count, F), generator=g, dtype=torch.complex64)
        lips[b, :count] = torch.randint(0, 256, (count, 4, 4), generator=g)
    power = spectrum.abs().square()
    return Batch(tuple(map(str, frames)), mask, power=power, noisy=power, spectrum=spectrum, lips=lips)


def small(**settings: Any) -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(frequencies=33, channels=12, dilations=(1, 2), pixels=16, **settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def test_a_step_draws_from_what_prior_and_mixture_say_together():
    """Speech of variance S = |D|^2 + r^2 in noise of variance V: a Wiener filter, and the next level of noise."""
    batch, g, V = noisy(1), 2.0, torch.linspace(0.1, 3, 33)
    D, r2, c = torch.polar(torch.linspace(0, 2, 33), torch.ones(33)), torch.linspace(1, 0.1, 33), torch.full((33,), 0.5)
    prior, estep = Fixed(D, r2, c), Denoising(steps=2, chains=20_000, highest=2.0, lowest=1.0)
    assert isinstance(prior, Denoises)
    x, random = batch.need("spectrum", prior), RandomNumbers.seeded(batch.ids, [1], 0)  # type: ignore[arg-type]
    target = NoisySpeech(
        prior, prior.context(batch), batch.need("noisy", prior), V[None, None], torch.full((1, 1, 1), g)
    )
    state, likelihood = estep.step(target, estep.start(prior, batch, random), random)
    S = D.abs().square() + r2
    torch.testing.assert_close(likelihood.components(target.noisy_BTF).speech[0, 0, 0], S)
    torch.testing.assert_close(state.noisy_KBTF.mean(0)[0, 0], g**0.5 * S / (g * S + V) * x[0, 0], rtol=0, atol=0.05)
    spread = (state.noisy_KBTF - state.noisy_KBTF.mean(0)).abs().square().mean(0)[0, 0]
    torch.testing.assert_close(spread, S * V / (g * S + V) + c.square(), rtol=0.1, atol=0)
    _, later = estep.step(target, state, random), estep.final(target, state, random)
    torch.testing.assert_close(later.precision[0, 0, 0], 1 / (g * (S + 1e-10) + V))


@pytest.mark.parametrize("estep", [UDiffSE, DiffUSEEN])
def test_published_samplers_move_as_their_formulas_say(estep):
    """For a prior that always finds the same speech: mean and variance of draws after the first step, and the last."""
    batch, g, V, r, weight, w = noisy(1), 2.0, torch.linspace(0.1, 3, 33), 0.4, 0.7, 0.03
    D, c = torch.polar(torch.linspace(0, 2, 33), torch.linspace(0, 1, 33)), torch.linspace(0.5, 1, 33)
    prior = Fixed(D, torch.ones(33), c)
    settings: Any = {"steps": 2, "chains": 20_000, "highest": 2.0, "lowest": 1.0, "corrector": r, "weight": weight}
    settings |= {"remainder": w} if estep is DiffUSEEN else {}
    x, random = batch.need("spectrum", prior), RandomNumbers.seeded(batch.ids, [1], 0)  # type: ignore[arg-type]
    target = NoisySpeech(
        prior, prior.context(batch), batch.need("noisy", prior), V[None, None], torch.full((1, 1, 1), g)
    )

    def pulled(m: Tensor, v: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The mean after the likelihood's step, and by what the step multiplies deviations."""
        known, u = torch.zeros(33), g * v + V
        if estep is DiffUSEEN:
            u = g * v + w * c.square()
            known = V / (V + u) * (x[0, 0] - g**0.5 * D)
        rate = weight * share * v / u
        return m + rate * g**0.5 * (x[0, 0] - known - g**0.5 * m), 1 - rate * g

    def moved(every: int) -> tuple[Any, Any, Tensor]:
        sampler = estep(**settings, every=every)
        state, first = sampler.step(target, sampler.start(prior, batch, random), random)
        last, _ = sampler.step(target, state, random)
        return state, first, sampler.final(target, last, random).components(target.noisy_BTF).speech[0, 0, 0]

    (state, first, last), v, share = moved(1), 4 * c.square(), 0.75  # from 2 c to c
    m, spread = (1 - r**2) * x[0, 0] + r**2 * D, (1 - r**2) ** 2 * v + 2 * r**2 * v
    m, spread = (1 - share) * m + share * D, (1 - share) ** 2 * spread + share * v
    m, factor = pulled(m, v, share)
    drawn = state.reversed_KBTF[:, 0, 0]
    torch.testing.assert_close(drawn.mean(0), m, rtol=0, atol=0.08)
    torch.testing.assert_close((drawn - drawn.mean(0)).abs().square().mean(0), spread * factor**2, rtol=0.1, atol=1e-3)
    S = D.abs().square() + (v if estep is DiffUSEEN else 0)
    torch.testing.assert_close(first.components(target.noisy_BTF).speech[0, 0, 0], S.clamp_min(1e-10))
    torch.testing.assert_close(last, pulled(D, c.square(), 1.0)[0].abs().square())
    torch.testing.assert_close(moved(2)[2], D.abs().square().clamp_min(1e-10))  # no pull in the second step


def test_a_denoiser_starts_as_that_of_white_speech_of_its_scale():
    """EDM's skip connection of data of variance c^2."""
    model, s = Denoiser(frequencies=33, channels=12, dilations=(1,)).eval(), noisy(7)
    model.scale_F *= 3
    found = model.denoise(s.spectrum[None], 2.0, model.context(s))  # type: ignore[index]
    torch.testing.assert_close(found.mean[0], s.spectrum / 5)  # type: ignore[operator]
    torch.testing.assert_close(found.variance, torch.full_like(found.variance, 36 / 5))


@pytest.mark.parametrize("objective", ["likelihood", "flow"])
def test_training_fits_the_variances_of_speech(objective):
    """Bins of a known variance: the error of the trained denoiser is near that of the Wiener filter, and is r^2."""
    torch.manual_seed(0)
    model = Denoiser(frequencies=33, channels=12, dilations=(1,), objective=objective, sigma=(0.1, 3))
    S_F, adam = 10 ** torch.linspace(-2, 1, 33), torch.optim.Adam(model.parameters(), 1e-2)
    mask = torch.ones(32, 10, dtype=torch.bool)
    for _ in range(150):
        batch = Batch(("",) * 32, mask, spectrum=S_F.sqrt() * torch.randn(32, 10, 33, dtype=torch.complex64))
        adam.zero_grad()
        model(batch, Schedule()).loss(Schedule()).sum().div(320).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        adam.step()
    model.eval().requires_grad_(False)
    s = S_F.sqrt() * torch.randn(1, 32, 10, 33, dtype=torch.complex64)
    v_F = (0.7 * model.scale_F).square()
    found = model.denoise(s + v_F.sqrt() * torch.randn_like(s), 0.7, Context(mask))
    error_F = (found.mean - s).abs().square().mean((0, 1, 2))
    assert (error_F / (S_F * v_F / (S_F + v_F)) - 1).abs().mean() < 0.15
    assert (found.variance.mean((0, 1, 2)) / error_F).log().abs().mean() < 0.2


@pytest.mark.parametrize(
    ("kind", "estep"), [("denoiser", Denoising), ("vae", Denoising), ("denoiser", UDiffSE), ("denoiser", DiffUSEEN)]
)
def test_the_seed_decides_and_company_does_not(kind, estep):
    torch.manual_seed(0)
    model: Any = small() if kind == "denoiser" else VAE(33, 8, 4).eval().requires_grad_(False)

    def filters(batch: Batch, seed: int = 0) -> Tensor:
        return enhance(model, batch, Vem(estep(steps=4, chains=2), seed=seed, rank=2)).filter

    alone, beside = filters(noisy(5)), filters(noisy(5, 8))
    torch.testing.assert_close(beside[:1, :5], alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(filters(noisy(5)), alone) and not torch.equal(filters(noisy(5), 1), alone)
    silent = replace(noisy(5), noisy=torch.zeros(1, 5, 33), spectrum=torch.zeros(1, 5, 33, dtype=torch.complex64))
    assert filters(silent).isfinite().all()


def test_hidden_frames_are_drawn_and_the_others_kept():
    batch, D, hidden = noisy(9), torch.full((33,), 2 + 1j), torch.arange(9).eq(4)
    prior, random = Fixed(D, torch.full((33,), 0.01), torch.ones(33)), RandomNumbers.seeded(batch.ids, [9], 0)
    known = batch.need("spectrum", prior)  # type: ignore[arg-type]
    filled = Denoising(steps=3).fill(prior, known, hidden, prior.context(batch), random)
    assert torch.equal(filled[:, ~hidden], known[:, ~hidden])
    assert 0.05 < (filled[0, 4] - D).abs().mean() < 0.15


def test_lips_count_and_may_be_missing():
    model, batch = small(lips=True), noisy(6)

    def filters(batch: Batch, **settings: Any) -> Tensor:
        start = ("spectrum", "power", "lips")
        return enhance(model, batch, Vem(Denoising(steps=3, **settings), rank=2, begin_from=start)).filter

    seen, unseen = filters(batch), filters(replace(batch, lips=None))
    assert not torch.allclose(seen, unseen)
    assert torch.equal(filters(replace(batch, lips=None), guidance=3.0), unseen)
    torch.testing.assert_close(filters(batch, guidance=0.0)[0, 0], unseen[0, 0], rtol=0.5, atol=0.5)
    assert not torch.allclose(filters(batch, guidance=3.0), seen)


@pytest.mark.parametrize("name", ["free_gaussian", "langevin", "mala", "metropolis_hastings", "point", "encoder"])
def test_other_e_steps_need_latents(name):
    with pytest.raises(UserError, match=r"Denoiser has no latents.*give enhance\.estep\.name=denoising"):
        enhance(small(), noisy(5), Vem(build_estep(name)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lowest": 4.0}, "lowest=4.0, highest=1.0: give levels above 0, the lower one first"),
        ({"steps": 0}, "enhance.estep.steps=0: give a whole number of 1 or more"),
        ({"name": "udiffse", "weight": -1}, "enhance.estep.weight=-1: give 0 or more"),
        ({"name": "diffuseen", "remainder": 0}, "enhance.estep.remainder=0: give a number above 0"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        build_estep(**{"name": "denoising", **settings})


@pytest.mark.parametrize("name", ["udiffse", "diffuseen"])
def test_published_samplers_need_a_score(name):
    with pytest.raises(UserError, match=r"VAE has no score, .*: give a run of exp=denoiser"):
        enhance(VAE(33, 8, 4), noisy(5), Vem(build_estep(name)))


def test_from_a_training_to_a_clean_recording(avdvae_command, prepared, tmp_path, monkeypatch):
    """The ways of docs/denoising.md, on a small corpus."""
    monkeypatch.chdir(tmp_path)
    small_one = ["model.channels=8", "model.dilations=[1]", "train=debug", f"prepared={prepared.out}"]
    assert "Traceback" not in avdvae_command("train", "exp=av_denoiser", "run_dir=run", *small_one)
    soundfile.write("noisy.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    assert avdvae_command("enhance", "noisy.wav", "clean.wav", "run=run", "+enhance.estep.steps=3") == ""
    assert len(soundfile.read("clean.wav")[0]) == 16_000
    gaps = ["evaluate", "run=run", "evaluate.tasks=[inpainting]", "evaluate.workers=1", "out=gaps"]
    assert "evaluate.lips=[occluded]: give clean, none or both" in avdvae_command(*gaps, "evaluate.lips=[occluded]")
    assert avdvae_command(*gaps, "evaluate.lips=[clean,none]", "evaluate.per_speaker=1") == ""
    scores = [r.value for r in read_results(Path("gaps/results.csv")) if r.metric == "log_spectral_distance"]
    assert len(scores) >= 2 and np.isfinite(scores).all()
    said = avdvae_command("evaluate", "run=run", "evaluate.tasks=[resynthesis]")
    assert "Denoiser has no latents, which this needs" in said
    assert avdvae_command("generate", "run=run", "seconds=1", "draws=2", "out=drawn") == ""
    one, two = (soundfile.read(f"drawn/draw_{number}.wav")[0] for number in (1, 2))
    assert len(one) == len(two) == 62 * 256 - 1 and np.abs(np.corrcoef(one, two)[0, 1]) < 0.5
    model = avdvae.load("run")
    assert model.enhance("noisy.wav", estep="udiffse", iterations=2).samples.shape == (16_000,)
    source = prepared.kept[0].id
    before: Any = model.stage.original(model.stage.clip("source", source)).sound
    goes_on: Any = model.generate(source=source, analysis=0.5, seed=1).sound
    np.testing.assert_allclose(goes_on[: 20 * 256], before[: 20 * 256], atol=1e-4)
    assert not np.allclose(goes_on[40 * 256 : 60 * 256], 0)
    for asked in (lambda: model.resynthesise(source), lambda: model.latents(source)):
        with pytest.raises(UserError, match="Denoiser has no latents: give a run of a model that has some"):
            asked()
    said = avdvae_command("transfer", "run=run", f"source={source}", f"target={source}", "latents=[z]")
    assert "Denoiser has no latents" in said
