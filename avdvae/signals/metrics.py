"""How close an estimate comes to the clean signal.

N samples. Where the reference cannot be scored (silence, PESQ without speech or over 20 s, STOI on less than half a
second) a metric is nan. Where the estimate cannot (silent, not finite, no speech by PESQ) it is the metric's floor: a
failure counts as the worst value. Settings that are wrong for every signal are an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from avdvae.errors import UserError, nearest
from avdvae.signals.dnsmos import dnsmos

METRICS = ("si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "estoi")
DNSMOS = ("dnsmos", "dnsmos_sig", "dnsmos_bak")  # with the extra of this name
OF_EACH_SAMPLE = ("bits_per_frame", "importance_bits", "bits_in_pieces", "dmol_bits", "flac_bits", "uniform_bits")
OF_EACH_WINDOW = ("energy_score", "ade", "fde", "mmade", "mmfde", "apd", "accuracy", "bone_error_mm")
# The metric by whose values means of another are weighted.
WEIGHTS = {**dict.fromkeys(OF_EACH_SAMPLE, "samples"), **dict.fromkeys(OF_EACH_WINDOW, "windows")}
LOW_IS_GOOD = (
    *("rmse", "rtf", "mpjpe_mm", "gross_error", "fine_error", "voicing_error"),
    *("f0", "f0_world", "f1", "f2", "f3"),  # relative errors
    *("log_spectral_distance", "log_spectral_distance_interpolated"),
    *("calibration_error", "calibration_error_loud", "calibration_error_quiet"),
    *("id_switches", "mostly_lost", "false_alarms", "misses"),
    *OF_EACH_SAMPLE,
    *("energy_score", "ade", "fde", "mmade", "mmfde", "bone_error_mm", "fid"),
)
NISQA = Path("~/.torchmetrics/NISQA/nisqa.tar")  # its weights, which the user puts there
INPUT = "input_"  # begins the names of the metrics of the unprocessed input
OTHER = "other_"  # begins the names of means over the other sources of a mixture
ALL_NOISES = "all"  # stands for a noise, where items of all noises are pooled
FAILED = "failed"  # 1 where an estimate is silent or not finite, else 0


class Look(NamedTuple):
    """How a metric is shown."""

    name: str
    unit: str
    digits: int

    @staticmethod
    def of(metric: str) -> Look:
        if metric.startswith(OTHER):
            own = Look.of(metric.removeprefix(OTHER))
            return own._replace(name=f"{own.name}, others")
        return LOOKS.get(metric, Look(metric, "", 3))


LOOKS = {
    "si_sdr": Look("SI-SDR", "dB", 1),
    "si_sdr_improvement": Look("SI-SDR gain", "dB", 1),
    "sdr": Look("SDR", "dB", 1),
    "pesq_wb": Look("PESQ wb", "", 2),
    "pesq_nb": Look("PESQ nb", "", 2),
    "stoi": Look("STOI", "", 3),
    "estoi": Look("ESTOI", "", 3),
    "dnsmos": Look("DNSMOS", "", 2),
    "dnsmos_sig": Look("DNSMOS, speech", "", 2),
    "dnsmos_bak": Look("DNSMOS, background", "", 2),
    "rmse": Look("RMSE", "", 4),
    "mpjpe_mm": Look("MPJPE", "mm", 1),
    "energy_score": Look("energy score", "m", 3),
    "ade": Look("ADE", "m", 3),
    "fde": Look("FDE", "m", 3),
    "mmade": Look("MMADE", "m", 3),
    "mmfde": Look("MMFDE", "m", 3),
    "apd": Look("APD", "m", 2),
    "fid": Look("FID", "", 2),
    "accuracy": Look("accuracy", "%", 1),
    "bone_error_mm": Look("error of bone lengths", "mm", 1),
    "windows": Look("windows", "", 0),
    "bits_per_frame": Look("bits", "a frame", 3),
    "importance_bits": Look("importance-weighted", "bits", 3),
    "bits_in_pieces": Look("in pieces", "bits", 3),
    "dmol_bits": Look("fitted DMoL", "bits", 3),
    "flac_bits": Look("FLAC", "bits", 3),
    "uniform_bits": Look("uniform", "bits", 1),
    "samples": Look("samples", "", 0),
    "gross_error": Look("gross errors of pitch", "%", 1),
    "fine_error": Look("fine error of pitch", "%", 1),
    "voicing_error": Look("errors of voicing", "%", 1),
    "f0": Look("f0 by Praat", "%", 1),
    "f0_world": Look("f0 by WORLD", "%", 1),
    "f1": Look("F1", "%", 1),
    "f2": Look("F2", "%", 1),
    "f3": Look("F3", "%", 1),
    "voiced": Look("still voiced", "%", 0),
    "f0_in_speech": Look("in speech: f0 by Praat", "%", 1),
    "f0_world_in_speech": Look("f0 by WORLD", "%", 1),
    "f1_in_speech": Look("F1", "%", 1),
    "f2_in_speech": Look("F2", "%", 1),
    "f3_in_speech": Look("F3", "%", 1),
    "voiced_in_speech": Look("still voiced", "%", 0),
    "nisqa": Look("NISQA", "", 2),
    "log_spectral_distance": Look("log-spectral distance", "dB", 1),
    "log_spectral_distance_interpolated": Look("interpolated", "dB", 1),
    "calibration_error": Look("calibration error", "", 3),
    "coverage_50": Look("in 50 % interval", "%", 1),
    "coverage_90": Look("in 90 % interval", "%", 1),
    "coverage_95": Look("in 95 % interval", "%", 1),
    "calibration_error_loud": Look("loud: error", "", 3),
    "coverage_50_loud": Look("loud: in 50 %", "%", 1),
    "coverage_90_loud": Look("loud: in 90 %", "%", 1),
    "coverage_95_loud": Look("loud: in 95 %", "%", 1),
    "calibration_error_quiet": Look("quiet: error", "", 3),
    "coverage_50_quiet": Look("quiet: in 50 %", "%", 1),
    "coverage_90_quiet": Look("quiet: in 90 %", "%", 1),
    "coverage_95_quiet": Look("quiet: in 95 %", "%", 1),
    "mota": Look("MOTA", "%", 1),
    "idf1": Look("IDF1", "%", 1),
    "motp": Look("MOTP", "%", 1),
    "id_switches": Look("identity switches", "a scene", 2),
    "mostly_tracked": Look("mostly tracked", "%", 1),
    "mostly_lost": Look("mostly lost", "%", 1),
    "false_alarms": Look("false alarms", "a scene", 1),
    "misses": Look("misses", "a scene", 1),
    **{
        f"{metric}_{frames}_{how}": Look(f"{metric.upper()}, {frames} frames, {how}", "%", 1)
        for metric in ("mota", "idf1")
        for frames in (60, 120, 300)
        for how in ("apart", "crossing")
    },
    "before_change": Look("SI-SDR before the change", "dB", 1),
    **{f"after_change_{n}": Look(f"SI-SDR, second {n} after it", "dB", 1) for n in (1, 2, 3)},
    "lips_weight": Look("weight of the lips", "", 2),
    "lips_weight_hidden": Look("while hidden", "", 2),
}


def si_sdr(reference: Float[np.ndarray, " N"], estimate: Float[np.ndarray, " N"]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019). The mean is not removed."""
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = reference * (estimate @ reference / (reference @ reference))
        return float(10 * np.log10(np.square(target).sum() / np.square(estimate - target).sum()))


def sdr(reference: Float[np.ndarray, " N"], estimate: Float[np.ndarray, " N"]) -> float:
    """Signal-to-distortion ratio of BSS Eval in dB, which allows any filter of 512 taps on the reference."""
    import fast_bss_eval

    if len(reference) <= 512:  # some filter would give the estimate exactly
        return float("nan")
    with np.errstate(divide="ignore"):
        return -np.asarray(fast_bss_eval.sdr_loss(estimate.astype(np.float64), reference.astype(np.float64))).item()


def rmse(reference: Float[np.ndarray, " N"], estimate: Float[np.ndarray, " N"]) -> float:
    """Root mean square error of the estimate at the scale that fits the reference best; of silence, that of scale 0."""
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    power = estimate @ estimate
    scale = estimate @ reference / power if power else 0.0
    return float(np.sqrt(np.square(scale * estimate - reference).mean()))


def naturalness(wave_N: Float[np.ndarray, " N"], rate: int) -> float:
    """The mean opinion score, 1 to 5, that NISQA v2.0 expects without a reference: G. Mittag, B. Naderi, A. Chehadi, S.
    Moeller, Interspeech 2021. nan where its package or its weights are not installed."""
    shortest, longest = _NISQA_TAKES
    if not NISQA.expanduser().is_file() or not shortest <= len(wave_N) / rate <= longest:
        return float("nan")
    try:
        from torchmetrics.functional.audio.nisqa import non_intrusive_speech_quality_assessment  # type: ignore

        return float(non_intrusive_speech_quality_assessment(torch.from_numpy(wave_N).float(), rate)[0])
    except ImportError:
        return float("nan")
    except (EOFError, RuntimeError) as error:
        raise UserError(f"{NISQA} cannot be used ({error}): put the weights of NISQA there again, or none") from error


def _pesq(mode: str, reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Narrow band at 16 kHz too: the package filters, nothing is resampled."""
    from pesq import PesqError, pesq

    if len(reference) > _LONGEST_PESQ * rate:
        return float("nan")
    try:
        return float(pesq(rate, reference, estimate, mode))
    except (PesqError, ValueError):  # no speech found, less than a quarter of a second, a level beyond single precision
        return float("nan")


def _stoi(extended: bool, reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return round(float(stoi(reference, estimate, rate, extended)), 9)  # it adds random noise of 1e-16
        except (RuntimeWarning, ValueError):  # too little speech
            return float("nan")


_COMPUTE: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "si_sdr": lambda reference, estimate, rate: si_sdr(reference, estimate),
    "sdr": lambda reference, estimate, rate: sdr(reference, estimate),
    "pesq_wb": lambda *signals_and_rate: _pesq("wb", *signals_and_rate),
    "pesq_nb": lambda *signals_and_rate: _pesq("nb", *signals_and_rate),
    "stoi": lambda *signals_and_rate: _stoi(False, *signals_and_rate),
    "estoi": lambda *signals_and_rate: _stoi(True, *signals_and_rate),
    "dnsmos": lambda reference, estimate, rate: dnsmos(estimate)["dnsmos"],
    "dnsmos_sig": lambda reference, estimate, rate: dnsmos(estimate)["dnsmos_sig"],
    "dnsmos_bak": lambda reference, estimate, rate: dnsmos(estimate)["dnsmos_bak"],
    "rmse": lambda reference, estimate, rate: rmse(reference, estimate),
}
# From the worst to the best that is reported: ratios by convention, as those of silence would be infinite; PESQ from
# the lower end of its mapping, for raw scores fall below the nominal -0.5; no relation to the reference, for STOI.
RANGES = {
    "si_sdr": (-30.0, 100.0),
    "sdr": (-30.0, 100.0),
    "pesq_wb": (0.999, 4.6440),
    "pesq_nb": (0.999, 4.5489),
    "stoi": (0.0, 1.0),
    "estoi": (0.0, 1.0),
    **dict.fromkeys(DNSMOS, (1.0, 5.0)),
}
# Packages by which they are computed.
PACKAGES = {
    "sdr": ("fast_bss_eval",),
    **dict.fromkeys(("pesq_wb", "pesq_nb"), ("pesq",)),
    **dict.fromkeys(("stoi", "estoi"), ("pystoi",)),
    **dict.fromkeys(DNSMOS, ("onnxruntime", "speechmos")),
}
_NISQA_TAKES = 0.15, 51.9  # seconds
_LONGEST_PESQ = 20  # seconds: longer signals may hold more than the 50 utterances at which the package crashes
_RATES = {"pesq_wb": (16_000,), "pesq_nb": (8_000, 16_000), **dict.fromkeys(DNSMOS, (16_000,))}


def check_names(names: Sequence[str]) -> None:
    if unknown := sorted(set(names) - set(_COMPUTE)):
        raise UserError(f"no metric is called {', '.join(unknown)}: {nearest(unknown[0], _COMPUTE)}")


def score(
    reference: Float[np.ndarray, " N"],
    estimate: Float[np.ndarray, " M"],
    rate: int = 16_000,
    names: Sequence[str] = METRICS,
) -> dict[str, float]:
    """The metrics asked for: those of METRICS and DNSMOS, or rmse."""
    check_names(names)
    if len(reference) != len(estimate):
        raise UserError(
            f"the reference has {len(reference)} samples and the estimate {len(estimate)}: cut or pad the estimate"
        )
    for name in names:
        if rate not in _RATES.get(name, (rate,)):
            allowed = " or ".join(str(allowed) for allowed in _RATES[name])
            raise UserError(f"{name} is defined at {allowed} Hz, not at {rate}: resample, or leave {name} out")
    if not reference.any() or not np.isfinite(reference).all():
        return dict.fromkeys(names, float("nan"))
    if failed(estimate):
        estimate = np.zeros_like(reference)
    return {name: _floored(name, reference, estimate, rate) for name in names}


def failed(estimate: Float[np.ndarray, " N"]) -> bool:
    """Whether an estimate is silent or not finite."""
    return not estimate.any() or not np.isfinite(estimate).all()


def _floored(name: str, reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    low, high = RANGES.get(name, (0.0, math.inf))
    value = _COMPUTE[name](reference, estimate, rate) if estimate.any() or name not in RANGES else float("nan")
    if math.isnan(value):  # nan of the reference against itself: no estimate could have been scored
        return value if math.isnan(_COMPUTE[name](reference, reference, rate)) else low
    return min(max(value, low), high)


def psnr(pictures: Float[torch.Tensor, "N C H W"], estimates: Float[torch.Tensor, "N C H W"]) -> float:
    """Peak signal-to-noise ratio in dB, of pixels from 0 to 1 and of all pictures together."""
    return float(-10 * (pictures - estimates).square().mean().clamp_min(1e-10).log10())


def ssim(pictures: Float[torch.Tensor, "N C H W"], estimates: Float[torch.Tensor, "N C H W"], side: int = 7) -> float:
    """Structural similarity (Wang et al., 2004) of pixels from 0 to 1, over square windows of `side` pixels."""
    stacked = torch.cat([pictures, estimates, pictures**2, estimates**2, pictures * estimates], 1)
    x, y, xx, yy, xy = torch.nn.functional.avg_pool2d(stacked, side, stride=1).chunk(5, 1)
    unbiased = side**2 / (side**2 - 1)
    var_x, var_y, cov = (unbiased * v for v in (xx - x**2, yy - y**2, xy - x * y))
    luminance = (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4)
    return float((luminance * (2 * cov + 9e-4) / (var_x + var_y + 9e-4)).mean())
