"""Byte LM: a causal Transformer over the bytes of 16-bit samples; no latents.

P. Long, Z. Novack, C. Donahue, "Benchmarking language modeling for lossless compression of full-fidelity audio", 2026
(arXiv 2603.08683), for bytes as tokens. The likelihood is exact: -log2 p(x) is a code length in bits.

    32768 (x_n + 1) = 256 h_n + l_n      b = h_1, l_1, h_2, l_2, ...  of silence, h = 128 and l = 0
    p(x) = prod_i p(b_i | b_1:i-1)       p(b_i | b_1:i-1) = softmax(H y_i),  y after all layers
    y_i = E b_i-1,  b_0 = 0              each layer:  y_i <- y_i + O a_i,  then  y_i <- y_i + MLP(y_i)
    a_i = sum_j softmax_j(<R_i q_i, R_j k_j> / sqrt(M / heads)) v_j,  j = i - W + 1 .. i,  in each head

Each layer begins with a normalisation (LayerNorm), and so do its MLP and H. Before the first byte, k = v = 0. A byte
depends on the layers * (W - 1) + 1 before it. Rotations depend on differences of positions alone, so an utterance may
be of any length, and be given whole or in pieces.

    x_n      sample of 16 bits                          waveform_BN
    b_i      0..255 of a high byte, 256..511 of a low   tokens_BI, of `tokens_of`
    E, H     of a byte, and of the next one             embedding, head
    q, k, v  query, key, value                          layers[i].qkv
    O, MLP   of the attention, and after it             layers[i].out, layers[i].mlp
    R_i      rotation by the position i (RoPE)          `rotated`
    W        bytes that a layer attends to              context
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.pcm import CODES
from avdvae.protocols import Batch, Observed

BYTES = 256
SLOWEST = 10_000.0  # wavelength of the slowest rotation, over 2 pi


def tokens_of(waveform: Float[Tensor, "B N"]) -> Int64[Tensor, "B I"]:
    code = (waveform * CODES).round().long().clamp(-CODES, CODES - 1) + CODES
    return torch.stack([code // BYTES, BYTES + code % BYTES], -1).flatten(-2)


def waveform_of(tokens: Int64[Tensor, "B I"]) -> Float[Tensor, "B N"]:
    high, low = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    return (BYTES * high + low - BYTES - CODES) / CODES


def rotated(x: Float[Tensor, "... I D"], first: int = 0) -> Float[Tensor, "... I D"]:
    """Pairs of features rotated by angles in proportion to the position, which counts from `first`."""
    pairs = x.shape[-1] // 2
    speed_P = SLOWEST ** (-torch.arange(pairs, device=x.device) / pairs)
    angle_IP = torch.arange(first, first + x.shape[-2], device=x.device)[:, None] * speed_P
    cos, sin, (a, b) = angle_IP.cos(), angle_IP.sin(), x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Layer(nn.Module):
    """Returns its output and the last keys and values, for a call on the bytes that follow."""

    def __init__(self, dim: int, heads: int, context: int):
        super().__init__()
        self.heads, self.context = heads, context
        self.norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, y_BIM: Tensor, past_BWM: Tensor | None) -> tuple[Tensor, Tensor]:
        q_BIM, kv_BIM = self.qkv(self.norm(y_BIM)).tensor_split([y_BIM.shape[-1]], -1)
        none_BWM = kv_BIM.new_zeros(len(kv_BIM), self.context - 1, kv_BIM.shape[-1])
        kv_BWM = torch.cat([none_BWM if past_BWM is None else past_BWM, kv_BIM], 1)
        y_BIM = y_BIM + self.out(self.attention(q_BIM, kv_BWM))
        return y_BIM + self.mlp(y_BIM), kv_BWM[:, kv_BWM.shape[1] - self.context + 1 :]

    def attention(self, q_BIM: Tensor, kv_BWM: Tensor) -> Float[Tensor, "B I M"]:
        """In blocks of queries, each with the keys that any of them attends to, so that the cost is linear in time."""
        count, before = q_BIM.shape[1], self.context - 1
        size = min(self.context, count)
        fill = (0, 0, 0, -count % size)
        q = nn.functional.pad(q_BIM, fill).unflatten(1, (-1, size))
        kv = nn.functional.pad(kv_BWM, fill).unfold(1, before + size, size).mT
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in (q, *kv.chunk(2, -1)))
        lag = torch.arange(size, device=q.device)[:, None] + before - torch.arange(before + size, device=q.device)
        mixed = nn.functional.scaled_dot_product_attention(
            rotated(q, before).flatten(0, 1),
            rotated(k).flatten(0, 1),
            v.flatten(0, 1),
            attn_mask=(lag >= 0) & (lag <= before),
        )
        return mixed.transpose(1, 2).flatten(2).unflatten(0, (len(q_BIM), -1)).flatten(1, 2)[:, :count]


class ByteLM(nn.Module):
    observes: Observed = "waveform"
    sees: tuple[str, ...] = ("waveform",)
    stride, causal = 1, True

    def __init__(
        self,
        dim: int = 512,
        heads: int = 8,
        layers: int = 8,
        context: int = 1024,  # bytes that a layer attends to
    ):
        super().__init__()
        if min(dim, heads, layers) < 1 or dim % (2 * heads):
            raise UserError(
                f"model.dim={dim} model.heads={heads} model.layers={layers}: give 1 or more of each, and a dim that is "
                "a multiple of twice the heads"
            )
        if context < 2:
            raise UserError(f"model.context={context}: give the bytes that a layer attends to, 2 or more")
        self.embedding = nn.Embedding(2 * BYTES, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, context) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, BYTES))

    def predict(self, before_BI: Int64[Tensor, "B I"], states: Any) -> tuple[Float[Tensor, "B I C"], Any]:
        """ln p(b_i | b_1:i-1) from b_i-1 and the state after the bytes before; and the next state."""
        y_BIM, later = self.embedding(before_BI), []
        for layer, past in zip(self.layers, states or [None] * len(self.layers), strict=True):
            y_BIM, state = layer(y_BIM, past)
            later.append(state)
        return self.head(y_BIM).log_softmax(-1), later

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        return self.carry(batch, schedule, None)[0]

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """See protocols.WaveformModel."""
        tokens_BI = tokens_of(batch.need("waveform", self))
        assert batch.lengths is not None
        last_B1, states = state or (torch.full_like(tokens_BI[:, :1], BYTES), None)
        log_p_BIC, states = self.predict(torch.cat([last_B1, tokens_BI[:, :-1]], 1), states)
        log_p_BI = log_p_BIC.gather(-1, (tokens_BI % BYTES)[..., None])[..., 0]
        holds_data_BI = torch.arange(tokens_BI.shape[1], device=tokens_BI.device) < 2 * batch.lengths[:, None]
        elbo = Elbo(recon={"waveform": (log_p_BI * holds_data_BI).sum(1)}, kl={}, n=batch.lengths.float())
        return elbo, (tokens_BI[:, -1:], states)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """See protocols.WaveformModel. Keys and values of the bytes so far are kept."""
        tokens_BI, drawn = nn.functional.pad(tokens_of(waveform_BN), (1, 0), value=BYTES), []
        log_p_BIC, states = self.predict(tokens_BI, None)
        for i in range(2 * samples):
            noise_BC = -torch.rand_like(log_p_BIC[:, -1]).clamp_min(1e-30).log()
            byte_B1 = (log_p_BIC[:, -1].exp() / noise_BC).argmax(-1, keepdim=True)
            drawn.append(byte_B1 + BYTES * (i % 2))
            log_p_BIC, states = self.predict(drawn[-1], states)
        return waveform_of(torch.cat(drawn, 1))
