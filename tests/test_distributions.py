"""Densities against integrals, identities, autograd and torch.distributions."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from avdvae.probability.gaussian import VARIANCE_FLOOR, Gaussian
from avdvae.probability.observed import Picture
from avdvae.probability.spectrum import ComplexGaussian, SpeechLikelihood

EXAMPLES = settings(deadline=None, max_examples=50)
SEEDS = st.integers(0, 10_000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_bins(seed: int, spread: float = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_var (K B T F), gain (B T 1), noise and power (B T F), over many orders of magnitude."""
    g = seeded(seed)
    log_var, noise, power = (spread * torch.randn(shape, generator=g) for shape in ((3, 2, 4, 5), (2, 4, 5), (2, 4, 5)))
    return log_var, torch.rand((2, 4, 1), generator=g) + 0.1, noise.exp(), power.exp()


def noisy_log_prob(log_var: Tensor, gain: Tensor, noise: Tensor, power: Tensor) -> Tensor:
    """As it is defined, for autograd."""
    variance = gain * (log_var.exp() + VARIANCE_FLOOR) + noise
    return -(math.log(math.pi) + variance.log() + power / variance).sum(-1)


@EXAMPLES
@given(log_var=st.floats(-15, 10), gain=st.floats(0.01, 10), noise=st.floats(1e-6, 100))
def test_the_density_of_a_bin_integrates_to_one_over_the_complex_plane(log_var, gain, noise):
    clean = ComplexGaussian(torch.full((1, 1, 1), log_var))
    noisy = clean.add_noise(torch.full((1, 1, 1), gain), torch.full((1, 1, 1), noise))
    for likelihood, variance in ((clean, math.exp(log_var)), (noisy, gain * math.exp(log_var) + noise)):
        radius = torch.linspace(0, 6 * math.sqrt(variance), 3001)
        values: Any = (x if x is None else x.expand(1, 3001, 1) for x in vars(likelihood).values())
        density = ComplexGaussian(*values).log_prob(radius.square()[None, :, None])[0].exp()
        assert torch.trapezoid(2 * math.pi * radius * density, radius).item() == pytest.approx(1, abs=1e-4)


@EXAMPLES
@given(seed=SEEDS)
def test_what_is_maximised_is_minus_the_itakura_saito_divergence(seed):
    log_var, _, _, power = noisy_bins(seed)
    found = ComplexGaussian(log_var).log_prob(power)
    ratio = power.double() / (log_var.double().exp() + VARIANCE_FLOOR)
    divergence = (ratio - ratio.log() - 1).sum(-1)
    best = -(power.double().log() + 1 + math.log(math.pi)).sum(-1)
    torch.testing.assert_close(found.double(), best - divergence, rtol=1e-5, atol=1e-3)


@EXAMPLES
@given(seed=SEEDS, spread=st.sampled_from([1, 4, 8]))
def test_the_noisy_density_and_its_written_out_slopes_are_those_of_autograd(seed, spread):
    log_var, gain, noise, power = noisy_bins(seed, spread)
    upstream = torch.randn((3, 2, 4), generator=seeded(seed))
    results = []
    for dtype in (torch.float32, torch.float64):
        x = log_var.to(dtype, copy=True).requires_grad_()
        if dtype == torch.float32:
            likelihood = ComplexGaussian(x).add_noise(gain, noise)
            value = likelihood.log_prob(power)
            ((made_of, said),) = likelihood.slopes(power, upstream[0])
            assert made_of is x
        else:
            value = noisy_log_prob(x, gain.double(), noise.double(), power.double())
            (said,) = torch.autograd.grad((value * upstream[0]).sum(), x, retain_graph=True)
        (slope,) = torch.autograd.grad((value * upstream).sum(), x)
        results.append((value.detach().float(), slope.float(), said.float()))
    for written, exact in zip(*results, strict=True):
        torch.testing.assert_close(written, exact, rtol=1e-4, atol=1e-4 * min(exact.abs().max().item(), 1e3))


def test_a_likelihood_is_averaged_over_the_variances_of_clean_speech():
    log_var, gain, noise, power = noisy_bins(0)
    likelihood = ComplexGaussian(log_var).add_noise(gain, noise)
    assert isinstance(likelihood, SpeechLikelihood)
    speech, precision, weights, switch, _ = likelihood.components(power)
    torch.testing.assert_close(speech, log_var.exp())
    torch.testing.assert_close(precision, 1 / (gain * log_var.exp() + noise))
    assert weights is None and switch is None
    pairs = ComplexGaussian(torch.stack([log_var, log_var + 1])).components(power).speech
    torch.testing.assert_close(pairs, torch.cat([log_var, log_var + 1]).exp())


def test_densities_are_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    power, features = torch.rand(2, 3, 65), torch.randn(4, 2, 3, 8)
    gain, noise, linear = torch.ones(2, 3, 1), torch.rand(2, 3, 65), nn.Linear(8, 65)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = linear(features)
        assert coarse.dtype == torch.bfloat16
        speech, latent = ComplexGaussian(coarse), Gaussian.floored(coarse, coarse)
        standard = Gaussian.standard(4, 2, 3, 65, like=coarse)
        z = latent.sample()[0]
        found = [
            speech.log_prob(power),
            speech.add_noise(gain, noise).log_prob(power),
            speech.components(power).speech,
            latent.mean,
            latent.log_prob(z),
            latent.kl(standard),
        ]
        found[1].sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all()
    speech, latent = ComplexGaussian(coarse.detach().float()), Gaussian(coarse.float(), coarse.float())
    expected = [
        speech.log_prob(power),
        speech.add_noise(gain, noise).log_prob(power),
        speech.components(power).speech,
        latent.mean,
        latent.log_prob(z),
        latent.kl(standard),
    ]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the dtype too


def normals(seed: int) -> tuple[Gaussian, Normal]:
    mean, log_var = 3 * torch.randn((2, 4, 3, 5), generator=seeded(seed))
    return Gaussian(mean, log_var), Normal(mean, (log_var / 2).exp())


@EXAMPLES
@given(seed=SEEDS)
def test_gaussians_are_those_of_torch(seed):
    (p, p_torch), (q, q_torch) = normals(seed), normals(seed + 1)
    z = q.sample()[0]
    torch.testing.assert_close(p.log_prob(z), p_torch.log_prob(z).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.kl(p), kl_divergence(q_torch, p_torch).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.kl(q), torch.zeros(4, 3))
    row = Gaussian(p.mean, p.log_var[:1, :1])  # one variance for all
    torch.testing.assert_close(row.log_prob(z), Gaussian(p.mean, row.log_var.expand(4, 3, 5)).log_prob(z))


@EXAMPLES
@given(seed=SEEDS, alike=st.sampled_from(["q", "p", "widths", "nothing"]))
def test_the_slopes_of_minus_the_kl_are_those_of_autograd(seed, alike):
    """Where one of the two is the same for all draws, or all variances are one, too."""
    q_mean, q_log_var, p_mean, p_log_var = torch.randn((4, 3, 2, 4, 5), generator=seeded(seed), dtype=torch.float64)
    if alike == "q":
        q_mean, q_log_var = q_mean[0], q_log_var[0]
    elif alike == "p":
        p_mean, p_log_var = p_mean[0], p_log_var[0]
    elif alike == "widths":
        q_log_var = q_log_var[:1, :1, :1, :1]
    made_of = [value.clone().requires_grad_() for value in (q_mean, q_log_var, p_mean, p_log_var)]
    q, p = Gaussian(*made_of[:2]), Gaussian(*made_of[2:])
    expected = torch.autograd.grad(-q.kl(p).sum() / 3, made_of)
    values, slopes = zip(*q.minus_kl_slopes(p), strict=True)
    assert [id(value) for value in values] == [id(value) for value in made_of]
    torch.testing.assert_close(slopes, expected)
    fixed = Gaussian(p.mean.detach(), p.log_var.detach())
    torch.testing.assert_close([slope for _, slope in q.minus_kl_slopes(fixed)], list(expected[:2]))
    assert len(q.minus_kl_slopes(Gaussian(fixed.mean, p.log_var))) == 4  # whose width alone is learned


def test_the_divergence_is_what_draws_say():
    torch.manual_seed(0)
    q = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([0.3, -1.0]))
    p = Gaussian(torch.tensor([0.0, 0.2]), torch.tensor([0.8, 0.1]))
    z = q.sample(100_000)
    moments: Any = (z.mean(0), z.var(0))
    torch.testing.assert_close(moments, (q.mean, q.log_var.exp()), rtol=0, atol=0.03)
    ratio = Gaussian(q.mean.expand_as(z), q.log_var).log_prob(z) - Gaussian(p.mean.expand_as(z), p.log_var).log_prob(z)
    error = ratio.std() / len(z) ** 0.5
    assert (ratio.mean() - q.kl(p)).abs() < 4 * error and error < 0.01 * q.kl(p)


def test_draws_pass_gradients_to_mean_and_variance():
    mean, log_var = torch.zeros(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    z = Gaussian(mean, log_var).sample(3)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((6,), 3.0))
    torch.testing.assert_close(log_var.grad, z.detach().sum(0) / 2)


def test_variances_have_a_floor():
    latent = Gaussian.floored(torch.zeros(1), torch.tensor([-1e4]))
    torch.testing.assert_close(latent.log_var.exp().item(), VARIANCE_FLOOR, rtol=1e-4, atol=0)
    silence, nothing = torch.zeros(1, 2, 3), torch.zeros(1, 2, 1)
    log_var = torch.full((1, 1, 2, 3), -1e4, requires_grad=True)
    loudest = -3 * math.log(math.pi * VARIANCE_FLOOR)  # the density of digital silence
    clean = ComplexGaussian(log_var)
    for likelihood in (clean, clean.add_noise(nothing + 1, silence)):
        value = likelihood.log_prob(silence)
        torch.testing.assert_close(value, torch.full((1, 1, 2), loudest))
        value.sum().backward()
        assert log_var.grad is not None and (log_var.grad == 0).all()
    assert clean.log_prob(silence + 1).isfinite().all()


@EXAMPLES
@given(seed=SEEDS)
def test_a_product_of_gaussians_is_their_product(seed):
    a, b = (Gaussian(*2 * torch.randn((2, 5, 3), generator=seeded(seed + n), dtype=torch.float64)) for n in (0, 1))
    x, y = torch.randn((2, 5, 3), generator=seeded(seed + 2), dtype=torch.float64)
    told = [a.log_prob(z) + b.log_prob(z) - a.times(b).log_prob(z) for z in (x, y)]
    torch.testing.assert_close(*told)  # a constant


def test_pictures_are_gaussian_pixels():
    face = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8)
    expected = torch.rand(5, 2, 3, 4, 4, 3)
    density = torch.distributions.Normal(expected, 0.1).log_prob(face / 255).sum((-3, -2, -1))
    torch.testing.assert_close(Picture(expected).log_prob(face), density, rtol=1e-5, atol=1e-3)
