"""Artificial vowels are what they are said to be: to Fourier, to Praat, and nothing else moves when one factor does."""

import numpy as np
import parselmouth
import pytest

from avdvae.data.talker.vowels import FACTORS, GRIDS, SETTINGS, Vowel, sound, trajectory, whispered
from avdvae.signals.clock import RATE


def some_vowels() -> list[Vowel]:
    """Ends and middle of every trajectory in every setting."""
    return [
        trajectory(factor, setting)[place]
        for factor in FACTORS
        for setting in SETTINGS[factor]
        for place in (0, 90, -1)
    ]


def heard(wave: np.ndarray) -> np.ndarray:
    """F1 to F3 by Praat, the median of a second's middle."""
    found = parselmouth.Sound(wave.astype(float), RATE).to_formant_burg(maximum_formant=5000, window_length=0.05)
    times = np.linspace(0.2, 0.8, 25)
    return np.array([np.median([found.get_value_at_time(k, t) for t in times]) for k in (1, 2, 3)])


def test_harmonics_lie_at_multiples_of_the_pitch_and_nowhere_else() -> None:
    for vowel in some_vowels():
        wave = sound(vowel, RATE).astype(float)
        power = np.abs(np.fft.rfft(wave * np.blackman(len(wave)), 16 * len(wave))) ** 2
        hertz = np.arange(len(power)) / 16
        number = np.rint(hertz / vowel.f0)
        for k in range(1, 13):
            peak = hertz[number == k][power[number == k].argmax()]
            assert peak == pytest.approx(k * vowel.f0, rel=0.001), (vowel, k)
        between = (np.abs(hertz - number * vowel.f0) > 10) | (number == 0) & (hertz > 10)
        assert power[between].max() < 1e-7 * power.max(), "nothing aliases"
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(1, rel=0.01)


def test_formants_are_where_they_should_be() -> None:
    """At a low pitch, where the harmonics are close enough to show them."""
    for f1, f2, f3 in ((300, 1100, 2300), (400, 2000, 2700), (600, 1500, 2500), (700, 1200, 2600), (500, 2600, 3150)):
        vowel = Vowel(100, f1, f2, f3)
        np.testing.assert_allclose(heard(sound(vowel, RATE)), (f1, f2, f3), rtol=0.03)
        breath = whispered(vowel, RATE, np.random.default_rng(0))
        np.testing.assert_allclose(heard(breath), (f1, f2, f3), rtol=0.06)


def test_one_factor_moves_at_a_time_and_the_formants_keep_their_order() -> None:
    assert {factor: len(grid) for factor, grid in GRIDS.items()} == {"f0": 201, "f1": 401, "f2": 181, "f3": 241}
    for factor in FACTORS:
        for setting in SETTINGS[factor]:
            values = np.array([(v.f0, v.f1, v.f2, v.f3, 3500) for v in trajectory(factor, setting)])
            assert ((np.ptp(values, 0) > 0) == [name == factor for name in (*FACTORS, "f4")]).all()
            assert (np.diff(values[:, 1:]) >= 150).all()
