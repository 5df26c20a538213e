"""Intervals of posterior draws: of power that the model itself generates, and of other power."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_likelihood import subject_of

from avdvae.errors import UserError
from avdvae.evaluation.measure import measure
from avdvae.evaluation.results import summarise
from avdvae.evaluation.tasks.calibration import cumulative, scores_of
from avdvae.evaluation.tasks.task import Subject
from avdvae.models.lstm import LSTM
from avdvae.models.vae import VAE
from avdvae.probability.mixture import Mixture
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch


class Generated(Subject):
    """Power drawn from the model, times 1 or 4, in place of that of the corpus."""

    times = 1.0

    def loader(self, items: Any, condition: Any = None) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().loader(items, condition):
            variance = self.model.decode(self.model.infer(batch).z, self.model.context(batch))["power"].expected[0]
            yield replace(batch, power=-self.times * variance * torch.rand_like(variance).log())


def vae_without_encoder(spread: float) -> VAE:
    """Its posterior is the same for all frames, so that one more draw of z is one of the K."""
    torch.manual_seed(0)
    model: Any = VAE(dim=4).eval().requires_grad_(False)
    for head in (model.encoder[-1].mean, model.encoder[-1].log_var):
        head.weight.zero_()
    model.decoder[-1].weight.mul_(spread)
    model.decoder[-1].bias.add_(torch.linspace(2, -6, 513))
    return model


@pytest.mark.parametrize(("times", "spread"), [(1.0, 3.0), (4.0, 0.0), (0.25, 0.0)])
def test_power_of_the_model_itself_is_covered_and_that_of_other_variances_is_not(times, spread, prepared, tmp_path):
    """Of an exponential whose mean is `times` as large, F(u) is 1 - (1 - u)^(1 / times)."""
    subject = subject_of(vae_without_encoder(spread), prepared, tmp_path, tasks=("calibration",), per_speaker=1)
    generated = Generated(**vars(subject))
    object.__setattr__(generated, "times", times)
    means = {item["metric"]: item["mean"] for item in summarise(measure(generated))}
    for suffix in ("", "_loud", "_quiet"):
        assert means[f"calibration_error{suffix}"] == pytest.approx(abs(0.5 - 1 / (1 + times)), abs=0.015)
        for level in (50, 90, 95):
            expected = 100 * ((0.5 + level / 200) ** (1 / times) - (0.5 - level / 200) ** (1 / times))
            assert means[f"coverage_{level}{suffix}"] == pytest.approx(expected, abs=1.5)  # 20 draws are not all
    for name in ("coverage_50", "coverage_90"):  # a tenth of the bins is loud
        assert means[name] == pytest.approx(0.1 * means[f"{name}_loud"] + 0.9 * means[f"{name}_quiet"], abs=0.01)


def test_components_count_by_their_weight():
    parts = tuple(ComplexGaussian(torch.full((2, 1, 1, 1), value)) for value in (0.0, math.log(100)))
    switch = torch.tensor([[[0.3, 0.7]]])
    mixture = Mixture(parts, torch.zeros(2, 2, 1, 1), switch, torch.ones(1, 1, dtype=torch.bool))
    power = torch.tensor([[[5.0]]])
    densities = [0.3 * math.exp(-5), 0.7 * math.exp(-0.05) / 100]
    weights = [density / sum(densities) for density in densities]
    expected = weights[0] * (1 - math.exp(-5)) + weights[1] * (1 - math.exp(-0.05))
    assert cumulative(mixture.components(power), power).item() == pytest.approx(expected, rel=1e-5)


def test_scores_of_known_probabilities():
    loudness = torch.arange(1000.0)
    even = torch.linspace(0.0005, 0.9995, 1000)
    scores = scores_of(even[torch.randperm(1000)], loudness)
    assert scores["calibration_error"] < 1e-3
    assert [scores[f"coverage_{level}"] for level in (50, 90, 95)] == [50, 90, 95]
    middle_where_loud = torch.where(loudness < 900, 0.999, 0.5)
    scores = scores_of(middle_where_loud, loudness)
    assert (scores["coverage_50_loud"], scores["coverage_95_quiet"]) == (100, 0)
    assert scores["calibration_error_loud"] == pytest.approx(0.25) and scores["coverage_90"] == 10


def test_models_without_such_draws_are_named(prepared, tmp_path):
    with pytest.raises(UserError, match="LSTM has no draws of latents that power spectra are decoded from"):
        measure(subject_of(LSTM(hidden=4), prepared, tmp_path, tasks=("calibration",)))
