import math

import fast_bss_eval
import numpy as np
import pytest
from jaxtyping import Float

from avdvae.errors import UserError
from avdvae.signals.metrics import LOOKS, METRICS, RANGES, failed, rmse, score, sdr, si_sdr

RATE = 16_000
RNG = np.random.default_rng(0)


def _voice(seconds: float = 3.0) -> Float[np.ndarray, " N"]:
    """Harmonics that come and go four times a second, as syllables do."""
    time = np.arange(int(seconds * RATE)) / RATE
    harmonics = sum(np.sin(2 * np.pi * 140 * k * time + k * np.sin(2 * np.pi * 5 * time)) / k for k in range(1, 25))
    return (harmonics * np.clip(np.sin(2 * np.pi * 2 * time), 0, None) + 1e-3 * RNG.standard_normal(len(time))) / 8


VOICE = _voice()
NOISE = RNG.standard_normal(len(VOICE))
HISSING, NOISY = VOICE + 0.01 * NOISE, VOICE + 0.1 * NOISE


def test_ratios_agree_with_fast_bss_eval_and_with_their_definitions() -> None:
    lifted = NOISY + 0.2  # a mean that must not be removed
    for estimate in (HISSING, NOISY, lifted):
        loss = fast_bss_eval.si_sdr_loss(estimate, VOICE, zero_mean=False)
        assert si_sdr(VOICE, estimate) == pytest.approx(-np.asarray(loss).item(), abs=1e-6)
    assert si_sdr(VOICE, lifted) < si_sdr(VOICE, NOISY) - 3
    coloured = np.convolve(VOICE, [1, -0.9, 0.4])[: len(VOICE)]
    assert sdr(VOICE, coloured) > si_sdr(VOICE, coloured) + 30  # it forgives filters of 512 taps ...
    assert sdr(VOICE, np.convolve(VOICE, np.eye(1, 700, 699)[0])[: len(VOICE)]) < 15  # ... and no longer ones
    orthogonal = NOISE - VOICE * (NOISE @ VOICE) / (VOICE @ VOICE)
    speech, error = VOICE @ VOICE, orthogonal @ orthogonal
    assert si_sdr(VOICE, VOICE + orthogonal) == pytest.approx(10 * np.log10(speech / error))
    smallest = np.sqrt(speech * error / (speech + error) / len(VOICE))
    assert rmse(VOICE, 7 * (VOICE + orthogonal)) == pytest.approx(smallest)
    assert rmse(VOICE, -3 * VOICE) == pytest.approx(0, abs=1e-12)


def test_every_metric_ranks_noise_ignores_scale_and_knows_identity() -> None:
    names = [*METRICS, "rmse"]
    same, hissing, noisy = (score(VOICE, estimate, names=names) for estimate in (VOICE, HISSING, NOISY))
    louder = score(VOICE, 3 * NOISY, names=names)
    for name in names:
        sign = -1 if name == "rmse" else 1
        assert sign * same[name] > sign * hissing[name] > sign * noisy[name], name
        assert louder[name] == pytest.approx(noisy[name], rel=0.02), name  # PESQ sees other roundings
    assert same["stoi"] == pytest.approx(1) and same["estoi"] == pytest.approx(1) and same["pesq_wb"] > 4.6
    assert score(VOICE.astype(np.float32), NOISY.astype(np.float32))["si_sdr"] == pytest.approx(noisy["si_sdr"])
    assert set(names) < set(LOOKS) and all(same[name] <= RANGES[name][1] for name in METRICS)


@pytest.mark.parametrize(
    ("reference", "estimate", "defined"),
    [
        (np.zeros_like(VOICE), NOISY, set()),
        (np.full_like(VOICE, np.nan), NOISY, set()),
        (VOICE[:400], NOISY[:400], {"si_sdr"}),
        (VOICE[:3000], 0 * NOISY[:3000], {"si_sdr", "sdr"}),
        # over fifty utterances, of which the package for PESQ dies
        (np.tile(VOICE, 10), np.tile(NOISY, 10), {"si_sdr", "sdr", "stoi", "estoi"}),
    ],
)
def test_what_no_estimate_could_be_scored_by_is_nan(reference, estimate, defined: set[str]) -> None:
    assert {name for name, value in score(reference, estimate).items() if not math.isnan(value)} == defined


@pytest.mark.parametrize("value", [0.0, math.nan, -math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_failed_estimate_is_the_worst_there_is(value: float) -> None:
    broken = np.concatenate([VOICE[:-1], [value]]) if value else 0 * VOICE
    assert failed(broken) and not failed(NOISY)
    found = score(VOICE, broken, names=[*METRICS, "rmse"])
    worst = {name: RANGES[name][0] for name in METRICS} | {"rmse": math.sqrt(np.square(VOICE).mean())}
    assert found == pytest.approx(worst)
    for poor in (NOISE, -VOICE[::-1], np.eye(1, len(VOICE))[0]):
        assert all(value >= RANGES[name][0] for name, value in score(VOICE, poor).items())


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"no metric is called loudness: choose from si_sdr, .*rmse"):
        score(VOICE, NOISY, names=["si_sdr", "loudness"])
    with pytest.raises(UserError, match="48000 samples and the estimate 47999"):
        score(VOICE, NOISY[1:])
    with pytest.raises(UserError, match="pesq_wb is defined at 16000 Hz, not at 8000"):
        score(VOICE, NOISY, 8000)
