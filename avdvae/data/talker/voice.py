"""The voice: a formant synthesiser at 16 kHz, driven by a Performance.

A glottal source (pulses with jitter, shimmer and tilt, and breath) passes a cascade of resonators that follow the
formants; the noise of fricatives and bursts has the spectrum of its place of articulation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16
from scipy.signal import lfilter, resample_poly, sosfilt

from avdvae.data.talker.articulation import CONTROL_RATE, Performance
from avdvae.data.talker.people import Voice
from avdvae.signals.clock import RATE

_OVERSAMPLING = 4  # pulses have corners: drawn at 64 kHz, then decimated
_BLOCK = 32  # samples for which the resonators are constant: 2 ms
_WIDTHS = np.array([70.0, 90, 140, 220, 400, 800, 1500])  # of F1 to F7, Hz
_UPPER = np.array([4400.0, 5500, 6600])  # F5 to F7 do not move
_NASAL_POLE, _NASAL_ZERO, _NASAL_WIDTH = 270.0, 700.0, 100.0

# Noise of a constriction: level in dB, and the bands (centre Hz, width Hz, dB) that it fills.
NOISE_BANDS = {
    "f": (-8, ((1500, 2500, -12), (7000, 4500, -6))),
    "s": (0, ((5200, 1500, -3), (7000, 1800, 0))),
    "sh": (2, ((2700, 900, 0), (4600, 2200, -4))),
    "p": (-6, ((700, 900, 0), (2500, 3000, -12))),
    "t": (0, ((3600, 1500, -6), (5800, 2500, 0))),
    "k": (0, ((1900, 700, 0), (4300, 2500, -14))),
}


def _to_samples(control: np.ndarray, count: int, rate: int = RATE) -> np.ndarray:
    return np.interp(np.arange(count) / rate, np.arange(len(control)) / CONTROL_RATE, control)


def _pulses(act: Performance, voice: Voice, count: int, rng: np.random.Generator) -> np.ndarray:
    """Derivative of the glottal flow: rises as 2 q u - 3 u^2 while the glottis is open (u < q), drops, stays shut."""
    rate = RATE * _OVERSAMPLING
    f0 = _to_samples(act.f0, count * _OVERSAMPLING, rate)
    cycle = np.floor(np.cumsum(f0) / rate).astype(int)
    wobble = rng.normal(size=(2, cycle[-1] + 2))
    phase = np.cumsum(f0 * (1 + voice.jitter * wobble[0, cycle])) / rate
    u = phase % 1.0
    q = voice.open_quotient
    flow = np.where(u < q, (2 * q * u - 3 * u**2) / q**2, 0.0)
    flow *= 1 + voice.shimmer * wobble[1, np.minimum(np.floor(phase).astype(int), cycle[-1] + 1)]
    # One pole whose loss at 3 kHz is the tilt.
    loss, c = 10 ** (-voice.tilt / 10), np.cos(2 * np.pi * 3000 / rate)
    b = (1 - loss * c) / (1 - loss) if loss < 1 else np.inf
    pole = b - np.sqrt(b**2 - 1) if np.isfinite(b) else 0.0
    return resample_poly(lfilter([1 - pole], [1, -pole], flow), 1, _OVERSAMPLING)[:count]


def _nasal_zero(source: np.ndarray, act: Performance) -> np.ndarray:
    """The nasal zero, sample by sample; while the velum is shut it equals the nasal pole, and cancels it."""
    nasal = _to_samples(act.nasal, len(source))
    radius = np.exp(-np.pi * _NASAL_WIDTH / RATE)
    z1 = -2 * radius * np.cos(2 * np.pi * (_NASAL_POLE + (_NASAL_ZERO - _NASAL_POLE) * nasal) / RATE)
    before = np.concatenate([[0.0, 0.0], source])
    return (source + z1 * before[1:-1] + radius**2 * before[:-2]) / (1 + z1 + radius**2)


def _resonate(source: np.ndarray, act: Performance, voice: Voice) -> np.ndarray:
    """The cascade of the tract: seven formants and the nasal pole, constant for a block at a time."""
    blocks = -(-len(source) // _BLOCK)
    times = np.minimum(np.arange(blocks) * _BLOCK * CONTROL_RATE // RATE, len(act.f0) - 1)
    still = np.append(np.minimum(_UPPER * voice.tract, 7600), _NASAL_POLE)
    centres = np.hstack([act.formants[times], np.broadcast_to(still, (blocks, len(still)))])
    widths = np.append(_WIDTHS, _NASAL_WIDTH) * np.where(np.arange(8) < 4, 1 + 0.5 * act.nasal[times, None], 1)
    radius = np.exp(-np.pi * widths / RATE)
    a1, a2 = -2 * radius * np.cos(2 * np.pi * centres / RATE), radius**2
    zeros = np.zeros_like(a1)
    sections = np.stack([1 + a1 + a2, zeros, zeros, zeros + 1, a1, a2], -1)  # unit gain at zero frequency

    # Past outputs must be kept when coefficients change, or the change clicks. In the transposed form that sosfilt
    # keeps, the same two past outputs are the state (keep s1 + turn s2, keep s2) under the new coefficients.
    keep = a2[1:] / a2[:-1]
    turn = (a1[1:] - keep * a1[:-1]) / a2[:-1]
    padded = np.pad(source, (0, blocks * _BLOCK - len(source)))
    out, state = np.empty_like(padded), np.zeros((sections.shape[1], 2))
    for index in range(blocks):
        if index:
            state[:, 0] = keep[index - 1] * state[:, 0] + turn[index - 1] * state[:, 1]
            state[:, 1] *= keep[index - 1]
        part = slice(index * _BLOCK, (index + 1) * _BLOCK)
        out[part], state = sosfilt(sections[index], padded[part], zi=state)
    return out[: len(source)]


def _friction(act: Performance, voice: Voice, count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of each fricative and burst, coloured by its place and following the constriction's trajectory."""
    out = np.zeros(count)
    envelope = _to_samples(act.friction, count)
    for start, stop, spoken in act.segments:
        if spoken.phone.noise is None:
            continue
        # The trajectory runs a little over the edges of the phoneme.
        first, last = max(int((start - 0.02) * RATE), 0), min(int((stop + 0.02) * RATE), count)
        level, bands = NOISE_BANDS[spoken.phone.noise]
        hertz = np.fft.rfftfreq(last - first, 1 / RATE)
        gain = sum(10 ** (db / 20) / (1 + ((hertz - f * voice.tract**0.5) / (w / 2)) ** 2) for f, w, db in bands)
        noise = np.fft.irfft(np.fft.rfft(rng.normal(size=last - first)) * gain, last - first)
        out[first:last] += 10 ** (level / 20) * noise / noise.std() * envelope[first:last]
    return out


def speak(act: Performance, voice: Voice, rng: np.random.Generator) -> Int16[np.ndarray, " S"]:
    """The sentence as 16-bit sound, at the voice's level, over the faint noise of a quiet room."""
    count = int(act.seconds * RATE)
    pulses = _pulses(act, voice, count, rng)
    open_glottis = np.abs(pulses) / np.abs(pulses).max()
    voicing, breath = _to_samples(act.voice, count), _to_samples(act.breath, count)
    hiss = np.asarray(lfilter([1], [1, -0.6], rng.normal(size=count)))
    source = voicing * (pulses + voice.breath * hiss * (0.3 + open_glottis)) + 0.12 * breath * hiss

    sound = _resonate(_nasal_zero(source, act), act, voice) + 0.12 * _friction(act, voice, count, rng)
    sound *= 10 ** (voice.level / 20) / np.sqrt(np.mean(sound**2))
    sound += 10 ** (-75 / 20) * rng.normal(size=count)
    sound *= min(1.0, 0.98 / np.abs(sound).max())
    return np.rint(sound * 32767).astype(np.int16)
