"""Likelihoods of samples of 16 bits, over all the codes there are."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avdvae.probability.pcm import CODES, DMoL, compand

SEEDS = st.integers(0, 10_000)
ALL_CODES = torch.arange(-CODES, CODES, dtype=torch.float64) / CODES


@settings(deadline=None, max_examples=20)
@given(
    seed=SEEDS,
    scale=st.floats(1e-6, 3),
    reach=st.floats(0, 3),
    coding=st.sampled_from(["linear", "mu-law"]),
)
def test_the_codes_of_a_dmol_sum_to_one(seed, scale, reach, coding):
    """Wherever its logistics lie, however narrow they are; and in single precision nothing is infinite."""
    output = torch.randn((1, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    output[:, 3:6] *= reach
    output[:, 6:] += math.log(scale)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-3)):
        raw = output.to(dtype).requires_grad_()
        log_p = DMoL.of(raw.expand(2 * CODES, -1), coding, "exact").log_prob(ALL_CODES.to(dtype))
        assert log_p.isfinite().all() and log_p.dtype == dtype
        assert abs(log_p.detach().double().exp().sum().item() - 1) < tolerance
        (slope,) = torch.autograd.grad(log_p.sum(), raw)
        assert slope.isfinite().all()


def test_the_published_scoring_differs_as_it_is_known_to():
    """Masses that one logistic gives to what can occur, but for the loudest codes, which share a cell there, and the
    floor that its narrowest scale puts on the bits."""

    def log_p(loc: float, scale: float, coding: Any, scoring: Any) -> Tensor:
        output = torch.tensor([[0.0, loc, math.log(scale)]], dtype=torch.float64).expand(2 * CODES, -1)
        return DMoL.of(output, coding, scoring).log_prob(ALL_CODES)

    for loc, scale, mass in (
        (0, 0.05, 0.0005),
        (0, 0.3, 0.30),
        (0.55, 0.11, 0.40),
        (0.7, 0.05, 0.64),
        (0.9, 0.02, 3.9),
    ):
        found = log_p(loc, scale, "mu-law", "paper")[20:-20].exp().sum().item()
        assert found == pytest.approx(mass, rel=0.05)
    assert -log_p(0, 1e-9, "linear", "paper").max().item() / math.log(2) == pytest.approx(6.901, abs=1e-3)
    inner = slice(1000, -1000)
    torch.testing.assert_close(  # on the line of the samples the two differ by a half bin of 1 / (B - 1) for 1 / B
        log_p(0.1, 0.01, "linear", "paper")[inner], log_p(0.1, 0.01, "linear", "exact")[inner], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("coding", ["linear", "mu-law"])
def test_samples_of_a_dmol_come_as_often_as_it_says(coding):
    torch.manual_seed(0)
    output = torch.tensor([[0.5, -0.5, 0.3, -0.2, -2.5, -2.0]])
    likelihood = DMoL.of(output.expand(40_000, -1), coding, "exact")
    drawn = likelihood.sample()
    assert torch.equal(drawn, (drawn * CODES).round() / CODES)
    edges = torch.tensor([-1, -0.5, -0.01, -0.001, 0, 0.001, 0.01, 0.5, 1])
    single = DMoL.of(output.expand(2 * CODES, -1), coding, "exact")
    expected = torch.histogram(ALL_CODES.float(), edges, weight=single.log_prob(ALL_CODES.float()).exp()).hist
    torch.testing.assert_close(torch.histogram(drawn, edges).hist / 40_000, expected, rtol=0, atol=0.01)
    mode = likelihood.mode
    assert torch.equal(mode, mode[:1].expand(40_000))
    line = compand(mode[:1]) if coding == "mu-law" else mode[:1]
    torch.testing.assert_close(line, likelihood.loc[0, :1], rtol=0, atol=5e-3)
