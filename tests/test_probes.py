"""Readers of recordings and of latents against the formulas that they stand for."""

import numpy as np
import pytest
import torch
from scipy.fft import dct

from avdvae.latents.neighbours import discriminants, neighbours_right
from avdvae.latents.probes import Classes, Line, cepstra_of, correlation, face_of, loudness, mouth_of, voice_of


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("classes", "dims", "count"), [(4, 9, 3), (4, 2, 2), (9, 9, 5), (1, 9, 1)])
def test_discriminants_are_those_of_fisher(classes, dims, count):
    """V^T W V = I and V^T B V diagonal, of the scatter within and between, with the largest ratios first."""
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.3, 200) - 1, classes - 1)  # some are rare
    x = rng.standard_normal((classes, 5))[labels] + rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))
    W, B = np.zeros((5, 5)), np.zeros((5, 5))
    for label in range(classes):
        mine = x[labels == label]
        W += np.cov(mine.T, bias=True) * len(mine) / 200
        B += np.outer(mine.mean(0) - x.mean(0), mine.mean(0) - x.mean(0)) * len(mine) / 200
    W += np.eye(5) * np.trace(W) / 5 / 100
    V = discriminants(x, labels, dims)
    ratios = np.sort(np.linalg.eigvals(np.linalg.solve(W, B)).real)[::-1][:count]
    np.testing.assert_allclose(V.T @ W @ V, np.eye(count), atol=1e-6)
    np.testing.assert_allclose(V.T @ B @ V, np.diag(ratios), atol=1e-6)


def test_most_of_the_nearest_points_decide_and_the_nearest_where_they_are_even():
    """On a line, which one discriminant leaves as it is; each point is a group of its own."""
    x, labels = np.array([0.0, 0.1, 1.0, 1.3, 5.0, 5.5, 5.7]), np.array([0, 0, 1, 0, 1, 1, 1])
    right = neighbours_right(x[:, None], labels, np.arange(7), 1, [1, 2, 3, 6])
    for row, k in zip(right, (1, 2, 3, 6), strict=True):
        for i, own in enumerate(labels):
            others = [n for n in np.argsort(np.abs(x - x[i]), kind="stable") if n != i][:k]
            ones = labels[others].mean()
            vote = labels[others[0]] if ones == 0.5 else int(ones > 0.5)
            assert row[i] == (vote == own), (k, i)
    assert right.any() and not right.all()


def test_classes_are_at_the_optimum_of_their_penalised_likelihood(g):
    centres = 2 * torch.randn((3, 4), generator=g)
    target = torch.arange(60) % 3
    x = 3 + centres[target] + 5 * torch.randn((60, 4), generator=g)
    fitted = Classes.fit(x, ["cab"[n] for n in target], penalty=0.1)
    assert fitted.names == ("a", "b", "c")
    standard = (x - x.mean(0)) / (x.std(0) + 1e-3)
    probability = fitted.log_probs(x).exp()
    torch.testing.assert_close(probability, torch.softmax(standard @ fitted.weight + fitted.bias, -1))
    off = (probability - torch.eye(3)[torch.tensor([2, 0, 1])[target]]) / 60
    torch.testing.assert_close(off.sum(0), torch.zeros(3), atol=2e-4, rtol=0)
    torch.testing.assert_close(standard.T @ off, -0.2 * fitted.weight, atol=2e-4, rtol=0)
    assert [fitted.name(row) for row in x] == ["abc"[n] for n in probability.argmax(1)]


def test_a_line_solves_its_normal_equations(g):
    x, y = torch.randn((50, 4), generator=g), torch.randn(50, generator=g)
    line = Line.fit(x, y, penalty=3.0)
    torch.testing.assert_close(x.T @ (y - line(x)), 3 * line.weight, rtol=1e-4, atol=1e-4)


def test_correlation_is_that_of_numpy(g):
    x, y = (torch.randn((40, 3), generator=g) + 5 for _ in range(2))
    y[:, 0] += x[:, 0]
    expected = np.mean([np.corrcoef(x[:, c], y[:, c])[0, 1] for c in range(3)])
    assert correlation(x, y) == pytest.approx(expected, abs=1e-6) and correlation(x, torch.ones(40, 3)) == 0


def test_voices_and_faces_are_read_in_bands_and_blocks(g):
    power = torch.rand((7, 513), generator=g)
    loud = loudness(power)
    assert loud.shape == (7, 40) and (loud.exp().diff(dim=1).abs() > 0).any()
    tone = torch.zeros(1, 513)
    tone[0, 64] = 100  # 1 kHz, which is 1000 mel: of 40 bands to 2840 mel, the 14th has its top nearest to that
    assert loudness(tone).argmax() == 13 and (loudness(tone) > np.log(1.01e-4)).sum() == 2
    torch.testing.assert_close(voice_of(power), torch.cat([loud.std(0), loud.mean(0)]))
    expected = torch.from_numpy(np.asarray(dct(loud.double().numpy(), axis=1))[:, 1:13] / 2).float()
    torch.testing.assert_close(cepstra_of(power), expected, rtol=1e-4, atol=1e-4)
    face = torch.randint(0, 256, (5, 64, 64, 3), generator=g, dtype=torch.uint8)
    shares = face.numpy() / np.float32(255)
    blocks = shares.mean(0).reshape(8, 8, 8, 8, 3).mean((1, 3)).transpose(2, 0, 1).ravel()
    mouth = shares[:, 36:58, 14:50].reshape(5, 11, 2, 18, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(5, -1)
    for given in (face, torch.from_numpy(shares), torch.from_numpy(np.where(shares == 1, 3, shares))):
        torch.testing.assert_close(face_of(given), torch.from_numpy(blocks))
        torch.testing.assert_close(mouth_of(given), torch.from_numpy(mouth - mouth.mean(0)))
