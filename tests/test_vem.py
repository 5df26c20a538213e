"""The EM stage: updates that never raise the cost, E-steps against a posterior known in closed form, and the whole."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avdvae.enhancement.contract import EStep, RandomNumbers, Target
from avdvae.enhancement.esteps import ESTEPS, SCHEDULED, build_estep
from avdvae.enhancement.markov_chains import _total_variation_slope
from avdvae.enhancement.noise import Noise
from avdvae.enhancement.separation import filtered, separate, spectra_of
from avdvae.enhancement.vem import NoisySpeech, Vem, enhance
from avdvae.errors import UserError
from avdvae.models.cvae import CVAE
from avdvae.models.frame_vae import FrameVAE
from avdvae.models.rvae import RVAE
from avdvae.models.vae import VAE
from avdvae.probability.gaussian import Gaussian, Slopes
from avdvae.probability.spectrum import ComplexGaussian, Components, SpeechLikelihood
from avdvae.protocols import Batch, Context, Latents, Prior, is_speech_prior
from avdvae.signals.audio import Stft
from avdvae.signals.metrics import si_sdr

STFT = Stft(533)
ALONE = [name for name in ESTEPS if name not in SCHEDULED]  # which have tests of their own
EVERY_ESTEP = pytest.mark.parametrize("name", ALONE)
BATCHED = pytest.mark.parametrize("name", [name for name in ALONE if name != "encoder"])
SHORT_WALK = {"draws": 4, "burn_in": 2, "final_draws": 4, "final_burn_in": 2}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int) -> list[torch.Generator]:
    return [seeded(b) for b in range(count)]


# The M-step


def mean_cost(noise: Noise, noisy: Tensor, speech: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """As it is defined."""
    variance = noise.gain_BTJ * speech + noise.H_BTK @ noise.W_BFK.mT + 1e-10
    cost = ((weight * (variance.log() + noisy / variance)).sum(0) * mask[..., None]).sum((1, 2))
    for b, frames in enumerate(mask.sum(1).tolist() if noise.smoothness else ()):
        rise = noise.H_BTK[b, 1:frames] / noise.H_BTK[b, : frames - 1]
        cost[b] += noise.smoothness * (rise - rise.log() - 1).sum()
    return cost / (mask.sum(1) * noisy.shape[2])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    components=st.sampled_from([1, 5]),
    weighted=st.booleans(),
    rank=st.integers(1, 6),
    spread=st.sampled_from([0.5, 2.0, 5.0]),
    silent=st.booleans(),
    smoothness=st.sampled_from([0.0, 1.0, 200.0]),
)
def test_no_update_of_a_factor_raises_the_cost(seed, components, weighted, rank, spread, silent, smoothness):
    g, frames = seeded(seed), [9, 4]
    mask = torch.arange(9) < torch.tensor(frames)[:, None]
    noisy = (spread * torch.randn((2, 9, 7), generator=g)).exp() * mask[..., None]
    speech = (spread * torch.randn((components, 2, 9, 7), generator=g)).exp()
    weight = torch.rand((components, 2, 9, 1), generator=g) if weighted else torch.ones(components, 2, 9, 1)
    weight /= weight.sum(0)
    given = weight if weighted else None
    if silent:  # digital silence, also in the variances of speech
        noisy[:, 2], speech[:, :, 2] = 0, 1e-10
    noise = Noise.drawn(noisy, rank, RandomNumbers(generators(2), frames), smoothness)

    for _ in range(4):
        before = replace(noise)
        said = noise.update(noisy, Components(speech, 1 / before.mixture(speech), given)) * mask
        steps = [
            before,
            replace(before, W_BFK=noise.W_BFK),
            replace(before, W_BFK=noise.W_BFK, H_BTK=noise.H_BTK),
            noise,
        ]
        costs = [mean_cost(step, noisy, speech, weight, mask) for step in steps]
        torch.testing.assert_close(said.sum(1) / (mask.sum(1) * 7), costs[0], rtol=1e-5, atol=1e-5)
        for earlier, later in pairwise(costs):
            assert (later <= earlier + 1e-5 * (1 + earlier.abs())).all()
        assert (costs[1] < costs[0]).any() and noise.gain_BTJ.isfinite().all() and (noise.gain_BTJ > 0).all()
    assert (noise.H_BTK[1, 4:] == 0).all()  # frames that pad


def test_updates_find_the_noise_that_made_the_mixture():
    """Where the speech is known and the mixture is as strong as expected, its cost is nearly reached."""
    g = seeded(0)
    speech, W, H = (torch.rand(shape, generator=g) for shape in ((1, 1, 60, 40), (1, 40, 2), (1, 60, 2)))
    truth = Noise(W, H, 0.5 + torch.rand((1, 60, 1), generator=g))
    noisy = truth.mixture(speech)[0]
    noise = Noise.drawn(noisy, 2, RandomNumbers(generators(1), [60]))
    known = noisy, speech, torch.ones(1, 1, 60, 1), torch.ones(1, 60, dtype=torch.bool)
    gaps = []
    for _ in range(2):
        for _ in range(300):
            noise.update(noisy, Components(speech, 1 / noise.mixture(speech)))
        gaps.append((mean_cost(noise, *known) - mean_cost(truth, *known)).item())
    assert 0 <= gaps[1] < gaps[0] < 2e-3


# The E-step, where the posterior is known


@dataclass(frozen=True)
class Seen:
    """x ~ N(mean, sigma^2 I), whatever the noise: in place of a likelihood of sound."""

    z: Tensor
    mean: Tensor
    sigma: float

    def log_potential(self, power: Tensor) -> Tensor:
        return -0.5 * ((power - self.mean) / self.sigma).square().sum(-1)

    def slopes(self, power: Tensor, weight: Tensor) -> Slopes:
        return [(self.mean, weight[..., None] * (power - self.mean.detach()) / self.sigma**2)]

    def add_noise(self, gain: Tensor, noise: Tensor) -> SpeechLikelihood:
        return self

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> SpeechLikelihood:
        return self

    def components(self, power: Tensor) -> Components:
        ones = torch.ones(len(self.mean), *power.shape)
        return Components(ones, ones)


class Linear(FrameVAE):
    """x = A z + sigma e, z ~ N(0, I): the posterior is Gaussian. Its encoder gives another."""

    A_FL = torch.tensor([[1.0, 0.5], [0.2, -0.8], [0.9, 0.9]])
    sigma = 0.8
    x_F = torch.tensor([1.5, -1.0, 0.7])

    def __init__(self) -> None:
        super().__init__(2)
        self.precision = torch.eye(2) + self.A_FL.mT @ self.A_FL / self.sigma**2
        self.posterior_mean = torch.linalg.solve(self.precision, self.A_FL.mT @ self.x_F / self.sigma**2)

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        shape = (*batch.mask.shape, 2)
        return Gaussian(torch.full(shape, 0.5), torch.full(shape, -1.0))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Any:
        return {"power": Seen(z["z"], z["z"] @ self.A_FL.mT, self.sigma)}


FRAMES = [400, 250]  # each a case of its own, so that means over them have known errors


def toy() -> tuple[Linear, Batch, Target, RandomNumbers]:
    model, batch = Linear(), Batch(("a", "b"), torch.arange(400) < torch.tensor(FRAMES)[:, None])
    noisy = model.x_F.expand(2, 400, 3)
    target = NoisySpeech(model, model.context(batch), noisy, torch.zeros(2, 400, 3), torch.ones(2, 400, 1))
    assert isinstance(target, Target) and is_speech_prior(Linear())
    return model, batch, target, RandomNumbers(generators(2), FRAMES)


def seen(likelihood: Any) -> Seen:
    assert isinstance(likelihood, Seen)
    return likelihood


def explored(estep: EStep, steps: int) -> tuple[Linear, Tensor, Any]:
    """The final draws (K N L) of the frames, and the E-step's state."""
    model, batch, target, random = toy()
    with torch.no_grad():
        state, likelihood = estep.start(model, batch, random), None
        for _ in range(steps):
            state, likelihood = estep.step(target, state, random)
        z = seen(estep.final(target, state, random)).z
    assert (z[:, ~batch.mask] == 0.5).all()  # frames that pad stay where they were
    said = seen(likelihood).mean[:, batch.mask].mean((0, 1))
    torch.testing.assert_close(said, model.A_FL @ z[:, batch.mask].mean((0, 1)), rtol=0, atol=0.1)
    return model, z[:, batch.mask], state


def assert_mean(values_NL: Tensor, expected_L: Tensor, error: float) -> None:
    """Within four standard errors, which are at most `error`."""
    standard_L = values_NL.std(0) / len(values_NL) ** 0.5
    assert (standard_L < error).all(), standard_L
    assert ((values_NL.mean(0) - expected_L).abs() < 4 * standard_L).all(), (values_NL.mean(0), expected_L, standard_L)


@pytest.mark.parametrize("begin", ["posterior", "prior"])
def test_latents_begin_at_the_posterior_or_the_prior(begin):
    model, batch, target, random = toy()
    inferred = model.infer(batch, mode="mean")
    chosen = (inferred.q if begin == "posterior" else inferred.p)["z"]
    point, free = build_estep("point", begin=begin), build_estep("free_gaussian", begin=begin)
    langevin = build_estep("langevin", begin=begin, spread=0.3)
    walk = build_estep("metropolis_hastings", begin=begin)
    assert torch.equal(seen(point.final(target, point.start(model, batch, random), random)).z, chosen.mean[None])
    assert torch.equal(walk.start(model, batch, random).z["z"], chosen.mean[None])
    for estep, deviation in ((langevin, 0.3), (free, torch.exp(chosen.log_var / 2).mean())):
        z = seen(estep.final(target, estep.start(model, batch, random), random)).z - chosen.mean
        z = z[:, batch.mask]
        assert z.mean().abs() < 0.05 * deviation and (z.std() / deviation - 1).abs() < 0.05


def test_metropolis_hastings_draws_from_the_posterior():
    estep = build_estep("metropolis_hastings", step_size=0.8, final_draws=80, final_burn_in=20)
    model, z_KNL, state = explored(estep, 2)
    assert z_KNL.shape == (60, 650, 2) and state.z["z"].shape == (1, 2, 400, 2)
    assert_mean(z_KNL.mean(0), model.posterior_mean, 0.015)
    assert_mean((z_KNL - model.posterior_mean).square().mean(0), model.precision.inverse().diag(), 0.015)


def test_metropolis_hastings_throws_its_first_draws_away_and_goes_on_from_its_last():
    few = {"draws": 3, "burn_in": 1, "final_draws": 60, "final_burn_in": 59}
    estep = build_estep("metropolis_hastings", step_size=0.8, **few)
    model, z_1NL, _ = explored(estep, 1)
    assert_mean(z_1NL[0], model.posterior_mean, 0.03)
    assert_mean((z_1NL[0] - model.posterior_mean).square(), model.precision.inverse().diag(), 0.03)
    model, batch, target, random = toy()
    state, likelihood = estep.step(target, estep.start(model, batch, random), random)
    assert len(seen(likelihood).mean) == 2
    torch.testing.assert_close(state.z["z"] @ model.A_FL.mT, seen(likelihood).mean[-1:])


def test_langevin_draws_from_the_posterior():
    """With a step h and a precision J, Langevin draws have the covariance (J - h J^2 / 4)^-1 where nothing is tamed."""
    for step_size, chains, steps in ((0.1, 8, 120), (0.02, 8, 400)):
        estep = build_estep("langevin", step_size=step_size, chains=chains)
        model, z_KNL, _ = explored(estep, steps)
        assert z_KNL.shape == (chains, 650, 2)
        variance = (model.precision - step_size / 4 * model.precision @ model.precision).inverse().diag()
        assert_mean(z_KNL.mean(0), model.posterior_mean, 0.015)
        assert_mean((z_KNL - model.posterior_mean).square().mean(0), variance, 0.015)
    torch.testing.assert_close(variance, model.precision.inverse().diag(), rtol=0.03, atol=0)


def test_langevin_stays_where_the_density_is_narrower_than_its_step(monkeypatch):
    """Untamed, a step of 73 times the longest stable one multiplies the largest error by 145 in each move. Tamed, it
    stays within a few steps, but far wider than the posterior, as its docstring says."""
    monkeypatch.setattr(Linear, "sigma", 0.01)
    step_size = 0.01
    model, z_KNL, _ = explored(build_estep("langevin", step_size=step_size), 60)
    off = z_KNL - model.posterior_mean
    assert off.abs().max() < 2
    assert off.square().mean().sqrt() > 3 * model.precision.inverse().diag().max().sqrt()


class Stiff(FrameVAE):
    """A Gaussian posterior of curvatures from 1 to 3000; its encoder gives another."""

    curvature_L = torch.tensor([1.0, 10.0, 100.0, 3000.0])

    def __init__(self) -> None:
        super().__init__(4)

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        shape = (*batch.mask.shape, 4)
        return Gaussian(torch.full(shape, 0.2), torch.full(shape, -3.0))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Any:
        mean = z["z"] * (self.curvature_L - 1).sqrt()  # and the prior adds 1
        return {"power": Seen(z["z"], mean, 1.0)}


@pytest.mark.parametrize(("whole", "frames", "iterations"), [(False, 20, 400), (True, 5, 400)])
def test_metropolis_langevin_has_the_spread_of_stiff_posteriors(whole, frames, iterations):
    model, chains = Stiff(), 32
    batch = Batch(("a", "b"), torch.arange(frames) < torch.tensor([[frames], [frames - 2]]))
    noisy = torch.zeros(2, frames, 4)
    target = NoisySpeech(model, model.context(batch), noisy, torch.zeros_like(noisy), torch.ones(2, frames, 1))
    estep, random = build_estep("mala", chains=chains, whole=whole), RandomNumbers(generators(2), [frames, frames - 2])
    kept = []
    with torch.no_grad():
        state = estep.start(model, batch, random)
        for i in range(iterations):
            state, _ = estep.step(target, state, random)
            if i >= iterations - 30:
                kept.append(state.z["z"][:, batch.mask])
    z_NL = torch.cat(kept).flatten(end_dim=-2)
    torch.testing.assert_close(z_NL.var(0) * model.curvature_L, torch.ones(4), rtol=0, atol=0.06)
    assert (z_NL.mean(0) * model.curvature_L.sqrt()).abs().max() < 0.06
    assert (state.z["z"][:, ~batch.mask] == 0.2).all()  # frames that pad stay
    assert state.log_step.shape == (2, 1 if whole else frames)


def test_metropolis_langevin_finds_correlated_posteriors_with_several_moves_an_iteration():
    model, z_KNL, _ = explored(build_estep("mala", chains=8, moves=3), 60)
    assert_mean(z_KNL.mean(0), model.posterior_mean, 0.015)
    assert_mean((z_KNL - model.posterior_mean).square().mean(0), model.precision.inverse().diag(), 0.015)


def test_the_point_estimate_is_the_most_probable():
    model, z_KNL, _ = explored(build_estep("point", lr=0.03), 25)
    torch.testing.assert_close(z_KNL, model.posterior_mean.expand(1, 650, 2), rtol=0, atol=2e-3)


def test_the_free_gaussian_is_the_best_one_with_independent_dimensions():
    """Its precisions are the diagonal of the posterior's; the inverse of its variances would be others."""
    model, z_KNL, state = explored(build_estep("free_gaussian", lr=0.01, draws=8, final_draws=30), 500)
    assert z_KNL.shape == (30, 650, 2)
    mask = torch.arange(400) < torch.tensor(FRAMES)[:, None]
    mean_NL, variance_NL = state.mean["z"][0][mask], state.log_var["z"][0][mask].exp()
    assert_mean(mean_NL, model.posterior_mean, 0.01)
    torch.testing.assert_close(variance_NL.mean(0), 1 / model.precision.diag(), rtol=0.03, atol=0)
    assert not torch.allclose(model.precision.inverse().diag(), 1 / model.precision.diag(), rtol=0.1)
    moved = ((z_KNL - mean_NL) / variance_NL.sqrt()).flatten()
    assert moved.mean().abs() < 0.03 and (moved.var() - 1).abs() < 0.05


class Encoding(Linear):
    """Its encoder can be trained, but not the map that it shares with the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_var = torch.nn.Parameter(torch.full((2,), 0.5)), torch.nn.Parameter(torch.full((2,), -1.0))
        self.shared = torch.nn.Parameter(torch.eye(2))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        shape = (*batch.mask.shape, 2)
        return Gaussian((self.mean @ self.shared).expand(shape), self.log_var.expand(shape))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Any:
        return super().decode({"z": z["z"] @ self.shared}, context)


@pytest.mark.parametrize("count", [1, 3])
def test_a_fine_tuned_encoder_becomes_the_best_of_its_kind(count):
    model, mask = Encoding().requires_grad_(False), torch.ones(1, 400, dtype=torch.bool)
    noisy, random = model.x_F.expand(1, 400, 3), RandomNumbers(generators(1), [400])
    batch = Batch(("a",), mask, power=noisy)
    target = NoisySpeech(model, model.context(batch), noisy, torch.zeros(1, 400, 3), torch.ones(1, 400, 1))
    estep = build_estep("encoder", lr=0.02, draws=count)
    with torch.no_grad():
        state = estep.start(model, batch, random)
        for _ in range(400):
            state, _ = estep.step(target, state, random)
    assert torch.equal(state.model.shared, torch.eye(2)) and torch.equal(model.mean, torch.full((2,), 0.5))
    torch.testing.assert_close(state.model.mean.detach(), model.posterior_mean, rtol=0, atol=0.03)
    torch.testing.assert_close(state.model.log_var.exp().detach(), 1 / model.precision.diag(), rtol=0.1, atol=0)


def test_what_a_fine_tuned_encoder_gives_is_drawn_after_its_step():
    model, noisy, random = (
        Encoding().requires_grad_(False),
        Encoding.x_F.expand(1, 9, 3),
        RandomNumbers(generators(1), [9]),
    )
    model.log_var.fill_(-40)
    batch = Batch(("a",), torch.ones(1, 9, dtype=torch.bool), power=noisy)
    target = NoisySpeech(model, model.context(batch), noisy, torch.zeros(1, 9, 3), torch.ones(1, 9, 1))
    estep = build_estep("encoder", lr=0.1)
    with torch.no_grad():
        state, likelihood = estep.step(target, estep.start(model, batch, random), random)
    assert (state.model.mean - 0.5).abs().min() > 0.05
    torch.testing.assert_close(seen(likelihood).z, (state.model.mean @ model.shared).expand(1, 1, 9, 2))


def test_a_fine_tuned_encoder_leaves_torchs_random_numbers_alone():
    model = vaes()["vae"]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    enhance(model, sounds(7), few_steps("encoder"))
    assert torch.equal(torch.rand(3), expected)


def test_a_fine_tuned_encoder_is_that_of_one_utterance():
    with pytest.raises(UserError, match=r"one utterance and was given 2: give enhance\.batch_size=1"):
        enhance(vaes()["vae"], sounds(7, 5), few_steps("encoder"))
    with pytest.raises(UserError, match="Linear has no layers for inference alone: choose another"):
        enhance(Linear(), replace(sounds(7), noisy=Linear.x_F.expand(1, 7, 3)), few_steps("encoder"))


def test_the_target_and_its_gradient_agree():
    torch.manual_seed(0)
    model, batch = vaes()["cvae"], sounds(9, 5)
    noisy = batch.need("noisy", model)
    noise, gain = torch.rand(noisy.shape), torch.rand(2, 9, 1)
    target = NoisySpeech(model, model.context(batch), noisy, noise, gain)
    z = torch.randn(3, 2, 9, 4, requires_grad=True)
    slopes, likelihood, log_prior = target.gradient({"z": z})
    torch.testing.assert_close(log_prior, model.log_prior({"z": z}, target.context))
    speech = model.decode({"z": z}, target.context)["power"].components(noisy).speech
    torch.testing.assert_close(likelihood.components(noisy).speech, speech)
    variance = gain * speech + noise
    expected = -((torch.pi * variance).log() + noisy / variance).sum(-1)
    expected = expected + model.log_prior({"z": z}, target.context)
    torch.testing.assert_close(target.log_joint({"z": z}), expected, rtol=1e-4, atol=1e-3)
    (slope,) = torch.autograd.grad((expected * batch.mask).sum(), z)
    torch.testing.assert_close(slopes["z"], slope, rtol=1e-4, atol=1e-4)
    assert (slope[:, 1, 5:] == 0).all() and (slope[:, batch.mask] != 0).all()


# Total variation


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), frames=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_slope_of_total_variation_is_its_derivative_within_each_utterance(seed, frames):
    z = torch.randn((2, 2, 6, 3), generator=seeded(seed), dtype=torch.float64)

    def total(z: Tensor) -> Tensor:
        rows = [z[:, b, :count] for b, count in enumerate(frames)]
        return torch.stack([row.diff(dim=1).abs().sum() for row in rows]).sum()

    slope = _total_variation_slope(z, frames).flatten()
    for i in range(z.numel()):
        move = torch.zeros(z.numel(), dtype=z.dtype)
        move[i] = 1e-9
        ahead, behind = (total(z + sign * move.view_as(z)) for sign in (1, -1))
        assert abs((ahead - behind) / 2e-9 - slope[i]) < 1e-4


def test_a_larger_weight_of_total_variation_smoothes_the_chains():
    roughness = []
    for weight in (0.0, 1.0, 10.0):
        _, z_KNL, _ = explored(build_estep("langevin", step_size=0.01, total_variation=weight), 150)
        roughness.append(z_KNL[:, :400].diff(dim=1).abs().mean().item())
    assert roughness[1] < 0.9 * roughness[0] and roughness[2] < 0.5 * roughness[1]


# Enhancement


def vaes() -> dict[str, Any]:
    """Small, and not trained."""
    torch.manual_seed(0)
    models = {"vae": VAE(33, 16, 4), "cvae": CVAE(33, 16, 16, 4)}
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}


def sounds(*frames: int, width: int | None = None) -> Batch:
    """Noisy spectra, another for each length."""
    mask = torch.arange(width or max(frames)) < torch.tensor(frames)[:, None]
    noisy, lips = torch.zeros(*mask.shape, 33), torch.zeros(*mask.shape, 4, 4, dtype=torch.uint8)
    for b, count in enumerate(frames):
        g = seeded(count)
        noisy[b, :count] = (2 * torch.randn((count, 33), generator=g)).exp()
        lips[b, :count] = torch.randint(0, 256, (count, 4, 4), generator=g)
    return Batch(tuple(f"{count} frames" for count in frames), mask, noisy=noisy, lips=lips)


def few_steps(name: str, **settings: Any) -> Vem:
    """So few that rounding does not yet turn an acceptance of Metropolis-Hastings, after which its chains part."""
    return Vem(
        build_estep(name, **SHORT_WALK if name == "metropolis_hastings" else {}), **{"iterations": 5, **settings}
    )


@BATCHED
@pytest.mark.parametrize(("kind", "paper"), [("vae", True), ("cvae", False)])
def test_an_utterance_gets_the_same_alone_and_in_any_batch(name, kind, paper):
    model, vem = vaes()[kind], few_steps(name, paper=paper)
    if name == "langevin":
        vem = replace(vem, estep=replace(vem.estep, total_variation=2.0))  # type: ignore[type-var]
    alone = enhance(model, sounds(6), vem)
    assert alone.filter.shape == (1, 6, 33) and alone.cost.shape == (5, 1)
    for batch, b in ((sounds(6, width=11), 0), (sounds(6, 11), 0), (sounds(9, 4, 6), 2)):
        company = enhance(model, batch, vem)
        assert company.filter.isfinite().all() and company.cost.isfinite().all()
        torch.testing.assert_close(company.filter[b, :6], alone.filter[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(company.cost[:, b], alone.cost[:, 0], rtol=1e-4, atol=1e-5)


@EVERY_ESTEP
def test_the_seed_decides(name):
    model, batch = vaes()["vae"], sounds(7) if name == "encoder" else sounds(7, 5)
    first, same, other = (enhance(model, batch, few_steps(name, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.filter, same.filter) and torch.equal(first.cost, same.cost)
    assert (first.cost != other.cost).all()


def test_the_filter_is_that_of_the_final_draws_and_the_final_noise():
    model, batch, drawn, targets = vaes()["vae"], sounds(7, 5), torch.randn((3, 2, 7, 4), generator=seeded(0)), []

    class Counting:
        def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> int:
            return 0

        def step(self, target: Target, state: int, random: RandomNumbers) -> tuple[int, SpeechLikelihood]:
            targets.append(deepcopy(target))  # whose noise is about to change
            return state + 1, target.likelihood({"z": 0 * drawn})

        def final(self, target: Target, state: int, random: RandomNumbers) -> SpeechLikelihood:
            assert state == 4
            targets.append(target)
            return target.likelihood({"z": drawn})

    enhanced = enhance(model, batch, Vem(Counting(), iterations=4, smoothness=0.0))
    *_, before, target = targets
    speech = target.gain_BTJ * model.decode({"z": drawn}, target.context)["power"].speech
    torch.testing.assert_close(enhanced.filter, (speech / (speech + target.noise_BTF)).mean(0))
    mixture = before.gain_BTJ * model.decode({"z": 0 * drawn}, target.context)["power"].speech[0] + before.noise_BTF
    cost = ((mixture.log() + batch.need("noisy", model) / mixture).mean(2) * batch.mask).sum(1) / batch.mask.sum(1)
    torch.testing.assert_close(enhanced.cost[-1], cost)


class Past(NamedTuple):
    """An E-step that keeps what it was given."""

    targets: list[NoisySpeech]

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> Tensor:
        return torch.zeros(1, *batch.mask.shape, 1)

    def step(self, target: Target, state: Tensor, random: RandomNumbers) -> tuple[Tensor, SpeechLikelihood]:
        assert isinstance(target, NoisySpeech)
        self.targets.append(deepcopy(target))
        return state, target.likelihood({"z": state})

    def final(self, target: Target, state: Tensor, random: RandomNumbers) -> SpeechLikelihood:
        return target.likelihood({"z": state})


@pytest.mark.parametrize("paper", [False, True])
def test_the_past_is_the_present_estimate_of_the_speech_at_its_own_level(paper):
    class Hearing(Oracle):
        def context(self, batch: Batch) -> Context:
            return replace(super().context(batch), past=batch.need("power", self))

    batch, voices = mixed(16_000)
    model, estep = Hearing(STFT.power(voices) * 20), Past([])  # at another level than in the mixture
    enhance(model, batch, Vem(estep, iterations=3, rank=2, paper=paper))
    noisy, (first, second, *_) = batch.need("noisy", model), estep.targets
    past, later = first.context.past, second.context.past
    assert past is not None and later is not None
    assert torch.equal(past, noisy) if paper else past.sum() < 0.8 * noisy.sum()
    speech = model.log_power.exp() + 1e-10
    wiener = second.gain_BTJ * speech / (second.gain_BTJ * speech + second.noise_BTF)
    torch.testing.assert_close(later, wiener.square() * noisy / second.gain_BTJ, rtol=1e-4, atol=1e-4)
    assert (second.gain_BTJ - 1).abs().median() > 0.05  # or it would make no difference


def test_recurrent_layers_are_in_the_mode_that_they_were_in():
    torch.manual_seed(0)
    model = RVAE(features=33, hidden=8, dim=4).requires_grad_(False).eval()
    enhance(model, sounds(7), few_steps("point"))
    assert not any(layer.training for layer in model.modules())


def test_an_activation_of_zero_does_not_spread_along_its_chain():
    g = seeded(0)
    noisy, speech = torch.rand((1, 9, 7), generator=g), torch.rand((1, 1, 9, 7), generator=g)
    H = torch.rand((1, 9, 2), generator=g)
    H[0, 4, 1] = 0
    noise = Noise(torch.rand((1, 7, 2), generator=g), H, torch.ones(1, 9, 1), smoothness=200.0)
    for _ in range(20):
        cost = noise.update(noisy, Components(speech, 1 / noise.mixture(speech)))
        assert cost.isfinite().all() and (noise.H_BTK > 0).all()
    assert noise.H_BTK[0, :, 1].min() > 0.01 * noise.H_BTK[0, :, 1].max()


def made_by(model: Any, *frames: int) -> Batch:
    """Spectra of latents from the prior, in soft white noise."""
    batch = sounds(*frames)
    noisy = torch.zeros(*batch.mask.shape, 33)
    for b, count in enumerate(frames):
        g = seeded(count)
        z = torch.randn((1, 1, count, 4), generator=g)
        speech = model.decode({"z": z}, Context(batch.mask[b : b + 1, :count]))["power"].speech[0, 0]
        noisy[b, :count] = -torch.rand((count, 33), generator=g).log() * (speech + 0.01)
    return replace(batch, noisy=noisy)


@dataclass(frozen=True)
class Still:
    """An E-step whose latents stay where they start."""

    estep: Any

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> Any:
        return self.estep.start(model, batch, random)

    def step(self, target: Target, state: Any, random: RandomNumbers) -> tuple[Any, SpeechLikelihood]:
        return state, self.estep.final(target, state, random)

    def final(self, target: Target, state: Any, random: RandomNumbers) -> SpeechLikelihood:
        return self.estep.final(target, state, random)


FAST: dict[str, dict[str, Any]] = {
    "metropolis_hastings": {**SHORT_WALK, "step_size": 0.3},
    "langevin": {"step_size": 0.05},
    "mala": {},
    "point": {"lr": 0.03},
    "free_gaussian": {"steps": 5},
    "encoder": {"steps": 2, "lr": 0.05},
}


@EVERY_ESTEP
def test_the_em_lowers_its_cost_further_than_its_m_step_would_alone(name):
    """By more than 0.2 nats a bin, for one component of noise cannot explain what speech the latents miss."""
    seen: list[float] = []
    model = vaes()["vae"]
    for parameter in model.decoder.parameters():
        parameter *= 3
    batch = made_by(model, 30) if name == "encoder" else made_by(model, 30, 20)
    vem = Vem(build_estep(name, **FAST[name]), iterations=40, rank=1)
    cost = enhance(model, batch, vem, seen.append).cost
    still = enhance(model, batch, replace(vem, estep=Still(vem.estep))).cost
    assert (still[-1] < still[0] - 0.5).all() and seen == [1 / 40] * 40
    assert (cost[-1] < still[-1] - 0.2).all()


@EVERY_ESTEP
@pytest.mark.parametrize("level", [0.0, -25.0, -200.0])  # of the speech that the model expects
def test_silence_has_a_finite_filter(name, level):
    model, batch = vaes()["vae"], sounds(8) if name == "encoder" else sounds(8, 5)
    model.decoder[-1].bias += level
    holes = batch.need("noisy", model).clone()
    holes[:, 2:4] = 0
    for noisy in (torch.zeros_like(holes), holes):
        enhanced = enhance(model, replace(batch, noisy=noisy), few_steps(name, iterations=6))
        assert enhanced.cost.isfinite().all() and (enhanced.filter >= 0).all() and (enhanced.filter <= 1).all()


class Oracle(FrameVAE):
    """It decodes the true speech from any latent."""

    def __init__(self, power_BTF: Tensor):
        super().__init__(1)
        self.log_power = power_BTF.clamp_min(1e-10).log()

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        return self.prior(context)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Any:
        return {"power": ComplexGaussian(self.log_power + 0 * z["z"])}


def mixed(*samples: int, width: int | None = None) -> tuple[Batch, Tensor]:
    """Voices that come and go, in white noise at 0 dB; and the voices."""
    count = width or max(samples)
    voices, mixtures = torch.zeros(len(samples), count), torch.zeros(len(samples), count)
    noisy = torch.zeros(len(samples), STFT.frames(count), 513)
    for b, n in enumerate(samples):
        time = torch.arange(n) / 16_000
        pitch = 2 * torch.pi * torch.cumsum(100 + n % 37 + 30 * torch.sin(3 * time), 0) / 16_000
        voice = sum((torch.sin(k * pitch) / k for k in range(1, 20)), torch.zeros(n)) * torch.sin(9 * time).clamp_min(0)
        noise = torch.randn(n, generator=seeded(n))
        voices[b, :n] = voice
        mixtures[b, :n] = voice + noise * voice.square().mean().sqrt()
        noisy[b, : STFT.frames(n)] = STFT.power(mixtures[b : b + 1, :n])[0]
    lengths = torch.tensor(samples)
    mask = torch.arange(STFT.frames(count)) < (1 + lengths // STFT.hop)[:, None]
    ids = tuple(f"{n} samples" for n in samples)
    return Batch(ids, mask, mixture=mixtures, noisy=noisy, lengths=lengths), voices


@BATCHED
@pytest.mark.parametrize("paper", [False, True])
def test_an_oracle_of_the_speech_frees_it_of_noise(name, paper):
    """Nearly as well as the ideal Wiener filter; the noise begins 1.7 dB further off, and with `paper` 6 dB."""
    batch, voices = mixed(24_000, 16_000)
    assert batch.mixture is not None
    estep = build_estep(name, **SHORT_WALK if name == "metropolis_hastings" else {})
    vem = Vem(estep, iterations=40, rank=2, paper=paper)
    speech = separate(Oracle(STFT.power(voices)), batch, STFT, vem).speech
    power, noise = STFT.power(voices), STFT.power(batch.mixture - voices)
    ideal = filtered(spectra_of(batch, STFT), power / (power + noise).clamp_min(1e-10), batch, STFT)
    for b, n in enumerate((24_000, 16_000)):
        voice, mixture, found, best = (x[b, :n].numpy() for x in (voices, batch.mixture, speech, ideal))
        assert abs(si_sdr(voice, mixture)) < 0.5
        assert si_sdr(voice, found) > si_sdr(voice, best) - 1.5
    assert (speech[1, 16_000:] == 0).all()


@pytest.mark.parametrize("factor", [1e-4, 0.3, 2.0, 700.0])
def test_the_level_of_a_recording_does_not_matter(factor):
    torch.manual_seed(0)
    model, (batch, _) = VAE(hidden=16, dim=4).requires_grad_(False), mixed(9000, 6000)
    assert batch.mixture is not None and batch.noisy is not None
    scaled = replace(batch, mixture=batch.mixture * factor, noisy=batch.noisy * factor**2)
    vem = Vem(build_estep("point"), iterations=8)
    first, second = (separate(model, each, STFT, vem) for each in (batch, scaled))
    assert first.speech.abs().max() > 0.01 * batch.mixture.abs().max()
    torch.testing.assert_close(second.speech / factor, first.speech, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.cost, first.cost, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("snr", "paper"), [(0, False), (-10, False), (-10, True)])
def test_the_speech_in_a_mixture_is_scaled_to_the_level_of_training(monkeypatch, snr, paper):
    model, (batch, voices) = VAE(hidden=16, dim=4).requires_grad_(False), mixed(40_000)
    assert batch.mixture is not None
    mixture = voices + (batch.mixture - voices) * 10 ** (-snr / 20)
    batch, scaled = replace(batch, mixture=mixture, noisy=STFT.power(mixture)), []
    monkeypatch.setattr("avdvae.enhancement.separation.enhance", lambda *args: scaled.append(args[1]) or enhance(*args))
    separate(model, batch, STFT, Vem(build_estep("point"), iterations=1, paper=paper))
    ratio = (scaled[0].noisy / batch.need("noisy", model)).sqrt().mean().item()
    decibels = 20 * math.log10(ratio * voices.abs().max().item())  # of the voice's peak
    assert decibels < -6 if paper else abs(decibels) < 3


def test_separation_of_an_utterance_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model, vem = VAE(hidden=16, dim=4).requires_grad_(False), few_steps("langevin")
    alone = separate(model, mixed(6000)[0], STFT, vem)
    for batch, b in ((mixed(6000, width=9000)[0], 0), (mixed(9000, 6000)[0], 1)):
        company = separate(model, batch, STFT, vem)
        torch.testing.assert_close(company.speech[b, :6000], alone.speech[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(company.cost[:, b], alone.cost[:, 0], rtol=1e-4, atol=1e-5)


def test_mistakes_are_explained():
    def refused(action: Callable[[], object], match: str) -> None:
        with pytest.raises(UserError, match=match):
            action()

    refused(lambda: build_estep("gibbs"), "no E-step is called gibbs: choose from metropolis_hastings, langevin")
    refused(lambda: build_estep("langevin", chians=3), "enhance.estep has no chians: did you mean chains")
    refused(lambda: build_estep("langevin", step_size="fast"), "enhance.estep.step_size=fast: give a number")
    refused(
        lambda: build_estep("metropolis_hastings", draws=30), "enhance.estep.draws=30: draw more than the burn_in=30"
    )
    refused(
        lambda: build_estep("metropolis_hastings", final_draws=9, final_burn_in=9),
        "final_draws=9: draw more than the final_burn_in=9",
    )
    refused(lambda: Vem(build_estep("point"), iterations=0), "enhance.iterations=0")
    refused(lambda: Vem(build_estep("point"), rank=0), "enhance.rank=0")
    refused(lambda: Vem(build_estep("point"), smoothness=-1.0), "enhance.smoothness=-1.0: give 0 or more")
    refused(lambda: Vem(build_estep("point"), smoothness=math.nan), "enhance.smoothness=nan: give 0 or more")
    model, batch = vaes()["vae"], sounds(5)
    refused(lambda: enhance(model, batch.only("power"), few_steps("point")), "VAE needs noisy and got none")
    refused(lambda: enhance(vaes()["cvae"], batch.only("noisy"), few_steps("point")), "CVAE needs video")
    refused(lambda: separate(model, batch, STFT, few_steps("point")), "VAE needs mixture and got none")
