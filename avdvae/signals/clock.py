"""Time: the sample rate of all sound, and which picture belongs to a moment of sound."""

from __future__ import annotations

import numpy as np

RATE = 16_000  # samples a second
SLOWEST_SOUND, FASTEST_SOUND = 4000, 768_000  # Hz, of sound that is read
SLOWEST, FASTEST = 5, 1000  # pictures a second, of films that are read


def nearest_frames(times: np.ndarray, fps: float, count: int) -> np.ndarray:
    """The picture nearest to each time, where picture k of `count` is shown at k / fps seconds.

    An STFT frame takes its picture by time and not by number: 30.02 STFT frames a second and 29.97 pictures a second
    are three pictures apart after a minute.
    """
    return np.clip(np.rint(np.asarray(times) * fps), 0, count - 1).astype(np.int64)
