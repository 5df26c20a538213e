"""DNSMOS P.835: the mean opinion scores, 1 to 5, that a network expects of speech without a reference.

C. K. A. Reddy, V. Gopal, R. Cutler, "DNSMOS P.835: a non-intrusive perceptual objective speech quality metric to
evaluate noise suppressors", ICASSP 2022. Network, polynomials and windows are those of Microsoft's package speechmos
(MIT licence): scores are comparable with published ones. Its Python code is not imported, as it needs librosa.

N samples, K windows.
"""

from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float

RATE = 16_000
SECONDS = 9.01  # of a window; one begins each second
# From each output of the network, in its order, to a score: coefficients, that of the highest power first.
POLYNOMIALS = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos": (-0.06766283, 1.11546468, 0.04602535),
}


def dnsmos(wave_N: Float[np.ndarray, " N"]) -> dict[str, float]:
    """The scores of the speech, of the background and overall, of sound at 16 kHz that is not empty. They depend on its
    level."""
    return _scores(wave_N.astype(np.float32).tobytes())


@lru_cache(maxsize=2)  # each of the three metrics asks for the same estimate, and may for its reference
def _scores(samples: bytes) -> dict[str, float]:
    wave_N, size = np.frombuffer(samples, np.float32), int(SECONDS * RATE)
    while len(wave_N) < size:
        wave_N = np.tile(wave_N, 2)
    starts = range(int(len(wave_N) // RATE - SECONDS) + 1)
    windows = [wave_N[start * RATE : int((start + SECONDS) * RATE)] for start in starts]
    # As published: by rounding, windows that begin at seconds 7 to 23 are a sample short, and are left out.
    outputs = [_network().run(None, {"input_1": window[None]})[0][0] for window in windows if len(window) == size]
    scores = zip(POLYNOMIALS.items(), np.stack(outputs, 1), strict=True)
    return {name: float(np.polyval(polynomial, of_K).mean()) for (name, polynomial), of_K in scores}


@cache
def _network() -> Any:
    import onnxruntime
    import speechmos

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = files(speechmos) / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
