"""Pitch and formants by Praat and WORLD, which evaluate control, and their own changes of pitch, its baselines.

Values are those at T given times, in seconds; f0 is 0 where a frame is not voiced, a formant nan where none is found.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from avdvae.signals.clock import RATE

FLOOR, CEILING = 70.0, 420.0  # of f0, Hz
_STEP = 0.005  # seconds between the frames of an analysis


def _package(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pyworld asks setuptools for its version
        return importlib.import_module(name)


def pitch_praat(wave_N: Float[np.ndarray, " N"], times_T: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """By autocorrelation."""
    pitch = _sound(wave_N).to_pitch_ac(time_step=_STEP, pitch_floor=FLOOR, pitch_ceiling=CEILING)
    return np.nan_to_num([pitch.get_value_at_time(time) for time in times_T])


def pitch_world(wave_N: Float[np.ndarray, " N"], times_T: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """By Harvest."""
    hertz, times = _harvest(wave_N)
    return hertz[np.abs(times - times_T[:, None]).argmin(1)]


def formants(wave_N: Float[np.ndarray, " N"], times_T: Float[np.ndarray, " T"]) -> Float[np.ndarray, "3 T"]:
    """F1 to F3 by Burg's method."""
    found = _sound(wave_N).to_formant_burg(time_step=_STEP, max_number_of_formants=5, maximum_formant=5500)
    return np.array([[found.get_value_at_time(number, time) for time in times_T] for number in (1, 2, 3)])


def move_by_world(wave_N: Float[np.ndarray, " N"], target_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """f0 set to a contour in Hz, a value a sample, wherever WORLD finds a voiced frame."""
    world, wave = _package("pyworld"), wave_N.astype(np.float64)
    hertz, times = _harvest(wave_N)
    envelope, aperiodicity = world.cheaptrick(wave, hertz, times, RATE), world.d4c(wave, hertz, times, RATE)
    asked = target_N[(times * RATE).astype(int).clip(0, len(wave_N) - 1)].astype(np.float64)
    moved = world.synthesize(np.where(hertz > 0, asked, 0), envelope, aperiodicity, RATE, 1000 * _STEP)
    return np.pad(moved, (0, max(0, len(wave_N) - len(moved))))[: len(wave_N)]


def move_by_psola(wave_N: Float[np.ndarray, " N"], target_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The same by Praat's TD-PSOLA."""
    call = _package("parselmouth.praat").call
    manipulation = call(_sound(wave_N), "To Manipulation", 2 * _STEP, FLOOR, CEILING)
    tier = call("Create PitchTier", "target", 0, len(wave_N) / RATE)
    for sample in range(0, len(wave_N), int(2 * _STEP * RATE)):
        call(tier, "Add point", sample / RATE, float(target_N[sample]))
    call([tier, manipulation], "Replace pitch tier")
    return call(manipulation, "Get resynthesis (overlap-add)").values[0][: len(wave_N)]


def _sound(wave_N: np.ndarray) -> Any:
    return _package("parselmouth").Sound(wave_N.astype(np.float64), RATE)


def _harvest(wave_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = _package("pyworld").harvest(wave_N.astype(np.float64), RATE, FLOOR, CEILING, 1000 * _STEP)
    return found[0], found[1]
