"""Separation into several sources: the sum is enhancement where there is one, and assignment is as published."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from avdvae.enhancement.esteps import build_estep
from avdvae.enhancement.noise import Noise
from avdvae.enhancement.sources import (
    Assignment,
    Sources,
    SourceStep,
    assign,
    assigned,
    expected_powers,
    learned_noise,
)
from avdvae.enhancement.vem import NoisySpeech, Vem, enhance
from avdvae.errors import UserError
from avdvae.models.cvae import CVAE
from avdvae.models.dkf import DKF
from avdvae.models.hit_dvae import HiTDVAE
from avdvae.models.srnn import SRNN
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.probability.spectrum import ComplexGaussian, SourceSum
from avdvae.protocols import Batch, Prior

FRAMES = (6, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still(model: Any) -> Any:
    return model.eval().requires_grad_(False)


def priors() -> dict[str, Any]:
    """Small, and not trained."""
    torch.manual_seed(0)
    return {
        "vae": still(VAE(33, 16, 4)),
        "cvae": still(CVAE(33, 16, 16, 4)),
        "srnn": still(SRNN(33, 8, 4, 16, (8,))),
        "dkf": still(DKF(33, 8, 4)),
        "hit_dvae": still(HiTDVAE(33, 8, 4, 3, 8, heads=2, layers=1, inner=8, hidden_w=4)),  # it has a static latent
    }


def mixtures(*frames: int, sources: int = 2) -> Batch:
    """Noisy spectra and the lips of each source, another for each length."""
    mask = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    noisy = torch.zeros(*mask.shape, 33)
    lips = torch.zeros(*mask.shape, sources, 4, 4, dtype=torch.uint8)
    for b, count in enumerate(frames):
        noisy[b, :count] = (2 * torch.randn((count, 33), generator=seeded(count))).exp()
        lips[b, :count] = torch.randint(0, 256, lips[b, :count].shape, generator=seeded(count))
    return Batch(tuple(f"{count} frames" for count in frames), mask, noisy=noisy, lips=lips)


@pytest.mark.parametrize("kind", ["vae", "cvae", "srnn", "hit_dvae"])
@pytest.mark.parametrize("name", ["free_gaussian", "langevin", "encoder"])
def test_the_sum_of_one_source_is_enhancement(kind: str, name: str) -> None:
    model, batch = priors()[kind], mixtures(*(FRAMES[:1] if name == "encoder" else FRAMES), sources=1)
    assert batch.lips is not None
    vem = Vem(build_estep(name), iterations=4, rank=2)
    one = enhance(Sources([model]), batch, vem)
    alone = enhance(model, replace(batch, lips=batch.lips[:, :, 0] if kind == "cvae" else None), vem)
    torch.testing.assert_close(one.filters, alone.filters, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.cost, alone.cost, rtol=1e-6, atol=1e-6)


def test_masks_add_up_to_one_at_most_and_each_prior_has_its_own_lips_and_gain() -> None:
    every = priors()
    model, batch = Sources([every["cvae"], every["hit_dvae"], every["cvae"]]), mixtures(*FRAMES, sources=3)
    assert batch.lips is not None and set(model.sees) == {"power", "lips"} and not model.can_miss
    vem = Vem(build_estep("point"), iterations=5, rank=2)
    found = enhance(model, batch, vem)
    assert found.filters.shape == (3, 2, 9, 33) and (found.filters >= 0).all()
    total = found.filters.sum(0)[batch.mask]
    assert (total <= 1 + 1e-6).all() and total.mean() > 0.1
    assert (found.filters[0] - found.filters[2]).abs().max() > 1e-3  # their lips differ
    exchanged = enhance(model, replace(batch, lips=batch.lips.flip(2)), vem)
    torch.testing.assert_close(exchanged.filters, found.filters.flip(0), rtol=1e-4, atol=1e-5)
    for batch_of_one, b in ((mixtures(6, sources=3), 0), (mixtures(9, sources=3), 1)):
        alone = enhance(model, batch_of_one, vem)
        frames = batch_of_one.mask.shape[1]
        torch.testing.assert_close(alone.filters[:, 0], found.filters[:, b, :frames], rtol=1e-4, atol=1e-5)


def test_expected_powers_are_those_of_draws_and_separate_what_the_priors_separate() -> None:
    variance, count = torch.tensor([4.0, 1.0, 0.25]), 400_000
    s = torch.complex(*torch.randn((2, 3, count), generator=seeded(0))) * (variance[:, None] / 2).sqrt()
    x = s.sum(0).abs().square()
    for low, high in ((0.9, 1.1), (9.0, 11.0)):
        near = (low < x) & (x < high)
        found = expected_powers(x[near].mean().view(1, 1, 1), variance.view(3, 1, 1, 1)).flatten()
        torch.testing.assert_close(found, s[:, near].abs().square().mean(1), rtol=0.03, atol=0)

    every = priors()
    with torch.no_grad():  # one prior of loud frames, one of quiet ones
        every["dkf"].emitter[-1].bias += 6
        every["vae"].decoder[-1].bias -= 6
    model, batch = Sources([every["vae"], every["dkf"]]), mixtures(9)
    given = replace(batch, power=batch.noisy)
    of_mixture = every["dkf"].infer(given, mode="mean").z["z"]
    torch.testing.assert_close(model.infer(given, mode="mean").z["2.z"], of_mixture, rtol=1e-2, atol=1e-2)


def test_the_gradient_of_the_sum_is_that_of_its_density_by_autograd() -> None:
    every = priors()
    model, batch = Sources([every["vae"], every["dkf"]]), mixtures(*FRAMES)
    assert isinstance(model, Prior)
    noisy, gain = batch.need("noisy", model), torch.rand(2, 9, 2, generator=seeded(0)) + 0.5
    noise = torch.rand(2, 9, 33, generator=seeded(1))
    given = replace(batch, power=noisy)
    target = NoisySpeech(model, model.context(given), noisy, noise, gain)
    z = {name: value.requires_grad_() for name, value in model.infer(given, 2).z.items()}
    assert set(z) == {"1.z", "2.z"}
    found = target.gradient(z)
    one, two = (every[name].decode({"z": z[f"{j}.z"]}, target.context)["power"] for j, name in ((1, "vae"), (2, "dkf")))
    variance = gain[..., :1] * one.speech + gain[..., 1:] * two.speech + noise
    density = -((torch.pi * variance).log() + noisy / variance).sum(-1) + model.log_prior(z, target.context)
    torch.testing.assert_close(target.log_joint(z), density, rtol=1e-4, atol=1e-3)
    expected = torch.autograd.grad((density * batch.mask).sum(), [*z.values()])
    for name, slope in zip(z, expected, strict=True):
        torch.testing.assert_close(found.slopes[name], slope, rtol=1e-3, atol=1e-4)


def test_no_update_of_gains_raises_the_cost() -> None:
    noisy, *speech = ((2 * torch.randn((2, 1, 9, 33), generator=seeded(n))).exp() for n in range(3))
    W, H = torch.rand(1, 33, 2, generator=seeded(4)), torch.rand(1, 9, 2, generator=seeded(5))
    noise, costs = Noise(W, H, torch.full((1, 9, 2), 0.5)), []
    for _ in range(20):
        sources = SourceSum(tuple(ComplexGaussian(one.log()) for one in speech))
        likely = sources.add_noise(noise.gain_BTJ, noise.variance_BTF).components(noisy[0])
        costs.append(noise.update(noisy[0], likely).sum())
    costs = torch.stack(costs)
    assert (costs.diff() <= 1e-3).all() and costs[-1] < costs[0] - 1
    assert (noise.gain_BTJ[..., 0] / noise.gain_BTJ[..., 1] - 1).abs().max() > 0.1


# Assignment


def fixed_point(*sigma: float) -> tuple[Tensor, Tensor]:
    """eta and the filters of a bin of power 1, of sources with these variances."""
    eta, one = torch.full((len(sigma), 1, 1, 1), 1 / len(sigma)), torch.ones(1, 1, 1)
    for _ in range(70):
        found = [
            SourceStep(one, 0.03 * one, eta[j], torch.zeros(2, 1, 1, 1)).given(s * one) for j, s in enumerate(sigma)
        ]
        eta = assigned(torch.stack([source.distance_BTF for source in found]))
    return eta.flatten(), torch.stack([source.filter_BTF for source in found]).flatten()


@pytest.mark.parametrize(
    ("sigma", "eta", "filters"),
    [
        ((1.0, 0.1), (1.0, 0.0), (0.971, 0.0)),
        ((0.7, 0.3), (1.0, 0.0), (0.959, 0.0)),
        ((0.5, 0.5), (0.5, 0.5), (0.893, 0.893)),
    ],
)
def test_assignment_ends_all_or_nothing_unless_the_sources_are_alike(sigma, eta, filters) -> None:
    found_eta, found_filters = fixed_point(*sigma)
    torch.testing.assert_close(found_eta, torch.tensor(eta), rtol=0, atol=1e-3)
    torch.testing.assert_close(found_filters, torch.tensor(filters), rtol=0, atol=1e-3)


def test_a_source_given_the_mixture_is_that_of_dense_gaussian_conditioning() -> None:
    """x, of weight eta, with the variance v / eta around s ~ Nc(0, sigma)."""
    sigma, v, eta, x = (torch.rand(1, 1, 8, generator=seeded(n)) + 0.1 for n in range(4))
    draws = torch.randn(2, 1, 1, 8, generator=seeded(4))
    found = SourceStep(x.square(), v, eta, draws).given(sigma)
    gain = sigma / (sigma + v / eta)
    variance = (1 - gain) * sigma
    torch.testing.assert_close(found.filter_BTF, gain)
    expected = ((x - gain * x).square() + variance) / v
    torch.testing.assert_close(found.distance_BTF, expected, rtol=1e-4, atol=1e-5)
    drawn = torch.complex(gain * x + (variance / 2).sqrt() * draws[0], (variance / 2).sqrt() * draws[1])
    torch.testing.assert_close(found.power_BTF, drawn.abs().square())


@pytest.mark.parametrize("kind", ["srnn", "hit_dvae"])
def test_assignment_walks_an_autoregressive_prior_along_what_it_found(kind: str) -> None:
    """The variances of frame t are those that the model gives after the draws of the frames before."""
    prior, batch = priors()[kind], mixtures(9, sources=1)
    noisy = batch.need("noisy", prior)
    context = prior.context(replace(batch, power=noisy))
    z = prior.infer(replace(batch, power=noisy), mode="mean").z
    step = SourceStep(noisy, 0.03 * noisy, torch.full_like(noisy, 0.6), torch.randn(2, 1, 9, 33, generator=seeded(0)))
    found = step.of(prior, z, context)
    sigma = prior.decode(z, context, feedback=found.power_BTF)["power"].expected[0]
    for one, all_at_once in zip(found, step.given(sigma), strict=True):
        torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vae", "hit_dvae", "cvae"])
def test_an_utterance_is_assigned_alike_alone_and_in_a_batch_and_costs_less(kind: str) -> None:
    every = priors()
    model, settings = Sources([every[kind], every["dkf"]]), Assignment(iterations=6)
    found = assign(model, mixtures(*FRAMES), settings)
    assert found.filters.shape == (2, 2, 9, 33) and (found.filters >= 0).all() and (found.filters <= 1).all()
    alone = assign(model, mixtures(6), settings)
    torch.testing.assert_close(found.filters[:, :1, :6], alone.filters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cost[:, :1], alone.cost, rtol=1e-4, atol=1e-5)
    assert (found.cost[-1] < found.cost[0]).all()


def test_neither_assignment_nor_the_noise_raises_its_cost() -> None:
    noisy, other = ((2 * torch.randn((2, 9, 33), generator=seeded(n))).exp() for n in range(2))
    mask = torch.arange(9) < torch.tensor(FRAMES)[:, None]
    noise = 0.2 * noisy
    half = torch.full_like(noisy, 0.5)
    found = [SourceStep(noisy, noise, half, torch.zeros(2, 2, 9, 33)).given(sigma) for sigma in (noisy, other)]
    distance = torch.stack([source.distance_BTF for source in found])

    def cost(eta: Tensor, scale_B: Tensor) -> Tensor:
        v = scale_B[:, None, None]
        return ((eta * (distance / v + (v * noise).log() + eta.log())).sum((0, 3)) * mask).sum(1)

    one, eta = torch.ones(2), assigned(distance)
    for seed in range(5):
        mixed = 0.9 * eta + 0.1 * torch.rand(eta.shape, generator=seeded(seed)).softmax(0)
        assert (cost(eta, one) < cost(mixed, one)).all()
    best = (learned_noise(distance, eta, noise, noisy, mask) / noise)[:, 0, 0]
    assert (best - 1).abs().min() > 0.01
    for scale in (0.9, 1.1):
        assert (cost(eta, best) < cost(eta, scale * best)).all()


def test_fine_tuning_trains_a_copy_of_each_prior_on_one_utterance() -> None:
    srnn = priors()["srnn"]
    model, batch, settings = Sources([srnn, srnn]), mixtures(6), Assignment(iterations=3, learn_noise=True)
    before = {name: value.clone() for name, value in srnn.state_dict().items()}
    plain, tuned, again = (
        assign(model, batch, one).filters for one in (settings, *[replace(settings, finetune=True)] * 2)
    )
    assert (plain - tuned).abs().max() > 1e-4 and torch.equal(tuned, again)
    assert all(torch.equal(before[name], value) for name, value in srnn.state_dict().items())
    assert not any(parameter.requires_grad for parameter in srnn.parameters())
    with pytest.raises(UserError, match=r"finetune=true trains the priors on one utterance and was given 2"):
        assign(model, mixtures(*FRAMES), replace(settings, finetune=True))


@pytest.mark.parametrize("mixing", ["sum", "assignment"])
def test_two_identical_priors_stay_alike(mixing: str) -> None:
    """A saddle. In assignment, the draws of the sources part them, as little as those differ."""
    vae, batch = priors()["vae"], replace(mixtures(*FRAMES), lips=None)
    model = Sources([vae, vae])
    if mixing == "sum":
        first, second = enhance(model, batch, Vem(build_estep("point"), iterations=5, rank=2)).filters
    else:
        first, second = assign(model, batch, Assignment(iterations=1)).filters
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_separated_is_refused() -> None:
    with pytest.raises(UserError, match=r"VAEMM is a mixture of models.*choose a run of another model"):
        Sources([VAEMM(VAE(33, 16, 4), CVAE(33, 16, 16, 4))])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"noise": 2}, "noise=2: give a number above 0"),
        ({"iterations": 0}, "iterations=0"),
    ]
    for wrong, said in refused:
        with pytest.raises(UserError, match=said):
            Assignment(**wrong)
