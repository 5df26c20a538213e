"""Code lengths of 16-bit recordings, in bits per recording: by a model's bound, by one mixture of logistics for all
samples, and by FLAC at libsndfile's highest compression without file headers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor, nn

from avdvae.probability.objectives import Schedule
from avdvae.probability.pcm import CODES, DMoL
from avdvae.protocols import Batch, LatentModel, WaveformModel

PIECE = 65_536  # samples of a piece for a causal model


@torch.no_grad()
def bound_bits(model: WaveformModel, batch: Batch) -> Float[Tensor, " B"]:
    """Minus the bound, with one draw."""
    assert batch.waveform is not None and batch.lengths is not None
    bits_B, state = torch.zeros(len(batch.ids), device=batch.waveform.device), None
    size = PIECE // model.stride * model.stride if model.causal else batch.waveform.shape[1]
    for first in range(0, batch.waveform.shape[1], size):
        part_BN = batch.waveform[:, first : first + size]
        lengths = (batch.lengths - first).clamp(0, part_BN.shape[1])
        part = Batch(batch.ids, batch.mask, waveform=part_BN, lengths=lengths)
        elbo, state = model.carry(part, Schedule(), state)
        bits_B -= elbo.bound / math.log(2)
    return bits_B


@torch.no_grad()
def bits_in_pieces(model: WaveformModel, batch: Batch, size: int) -> Float[Tensor, " B"]:
    """Minus the bounds of pieces of `size` samples, each as an utterance of its own."""
    assert batch.waveform is not None and batch.lengths is not None
    bits = []
    for name, waveform_N, length in zip(batch.ids, batch.waveform, batch.lengths.tolist(), strict=True):
        pieces_BN = nn.functional.pad(waveform_N[:length], (0, -length % size)).view(-1, size)
        lengths_B = (length - size * torch.arange(len(pieces_BN), device=pieces_BN.device)).clamp_max(size)
        mask_BT = torch.ones(len(pieces_BN), 0, dtype=torch.bool)
        pieces = Batch((name,) * len(pieces_BN), mask_BT, waveform=pieces_BN, lengths=lengths_B)
        bits.append(-model.carry(pieces, Schedule(), None)[0].bound.sum() / math.log(2))
    return torch.stack(bits)


@torch.no_grad()
def importance_bits(model: LatentModel, batch: Batch, draws: int) -> Float[Tensor, " B"]:
    """Minus log2 (1/K sum_k p(x, z_k) / q(z_k | x)), an upper bound, tighter with more draws."""
    waveform_BN = batch.need("waveform", model)
    assert batch.lengths is not None
    samples_N = torch.arange(waveform_BN.shape[1], device=waveform_BN.device)
    holds_data_BN, context, log_weights = samples_N < batch.lengths[:, None], model.context(batch), []
    for _ in range(draws):
        inferred = model.infer(batch)
        log_x_BN = model.decode(inferred.z, context)["waveform"].log_prob(waveform_BN)[0]
        log_w_B = (log_x_BN * holds_data_BN).sum(-1)
        for spec in model.latents:
            z, q, p = inferred.z[spec.name], inferred.q[spec.name], inferred.p[spec.name]
            first_T = torch.arange(z.shape[2], device=z.device) * (spec.rate or 0)
            ratio_BT = (p.log_prob(z) - q.log_prob(z))[0]
            log_w_B = log_w_B + (ratio_BT * (first_T < batch.lengths[:, None])).sum(-1)
        log_weights.append(log_w_B)
    return -(torch.stack(log_weights).logsumexp(0) - math.log(draws)) / math.log(2)


def fitted_dmol(recordings: Sequence[Int16[np.ndarray, " _"]], components: int = 2) -> Float[np.ndarray, " codes"]:
    """The bits of each code under one mixture of logistics for all samples, fitted to these recordings."""
    counts = np.bincount(np.concatenate(recordings).astype(np.int32) + CODES, minlength=2 * CODES)
    present = torch.from_numpy(np.flatnonzero(counts))
    frequency = torch.from_numpy(counts[present] / counts.sum())
    code = torch.arange(-CODES, CODES, dtype=torch.float64) / CODES
    start = torch.cat([torch.zeros(components), torch.linspace(-0.4, 0.4, components), torch.full((components,), -2.0)])
    output = start.double().requires_grad_()
    optimiser = torch.optim.LBFGS([output], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        log_p = DMoL.of(output.expand(len(present), -1), "mu-law", "exact").log_prob(code[present])
        value = -(frequency * log_p).sum()
        value.backward()
        return value

    optimiser.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        return -DMoL.of(output.expand(2 * CODES, -1), "mu-law", "exact").log_prob(code).numpy() / math.log(2)


def flac_bits(codes: Int16[np.ndarray, " N"], rate: int) -> int:
    """The size of FLAC's frames, without the marker and the metadata blocks before them."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, codes, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    stream, begin, last = file.getvalue(), 4, False
    while not last:
        last, begin = bool(stream[begin] & 0x80), begin + 4 + int.from_bytes(stream[begin + 1 : begin + 4], "big")
    return 8 * (len(stream) - begin)
