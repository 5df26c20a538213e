"""HiT-DVAE: a static latent of the sequence and one a frame, with attention over the past in place of recurrent states.

X. Bie, W. Guo, S. Leglaive, L. Girin, F. Moreno-Noguer, X. Alameda-Pineda, "HiT-DVAE: Human motion generation via
hierarchical transformer dynamical VAE", 2022 (arXiv 2204.01565); for speech, X. Lin, X. Bie, S. Leglaive, L. Girin,
X. Alameda-Pineda, "Speech modeling with a hierarchical transformer dynamical VAE", ICASSP 2023 (arXiv 2303.09404).

    p(x, z, w) = N(w; 0, I) prod_t Nc(x_t; 0, sigma(x_1:t-1, z_1:t, w)) N(z_t; mu, diag var (x_1:t-1, z_1:t-1, w))
    q(z, w | x) = N(w; mu, diag var (x_1:T)) prod_t N(z_t; mu, diag var (x_1:T, w))
    ELBO: dynamical_vae.py, less KL(q(w | x) || N(0, I)) once a sequence

    e_t = E [f(x_t-1), w],  x_0 = 0          a_t = A [z_t, w] of the output, A [z_t-1, w] of the prior, z_0 = 0
    query = z:  y_t = a_t,  keys and values from e_1:t          query = x:  y_t = e_t,  keys and values from a_1:t
    each layer:  y_t <- y_t + attention(LN y_t; LN y_1:t),  y_t <- y_t + attention(LN y_t; keys and values),
                 y_t <- y_t + MLP(LN y_t)
    score of t for s, in head i of n:  <q_t, k_s> / sqrt(M / n) - 2^(-8 i / n) |t - s|,  s <= t but in the encoder

The query is the stream that each layer adds to. With query = z, it begins at the latent, and the past is looked up;
with query = x, it begins at x_t-1, and an output near x_t-1 needs no latent. Scores depend on differences in time alone
(ALiBi: O. Press et al., ICLR 2022, arXiv 2108.12409), so a sequence may be longer than the windows of training. What is
added to a stream is made from its normalised frames, but the stream itself is free to grow: where it was normalised in
each layer, the range from silence to speech was learned only by steps so large that the latents were ignored.

    x_t      speech spectrum            observed_BTF holds |x_t|^2; context.past that of x_t-1, shifted to t
    z_t, w   latents                    z_KBTL, w_KB1L
    f        features of a frame        phi_x
    E, A     of the past, of a latent   past_embedding, latent_embedding
    q(w)     posterior                  w_posterior_head of the last state of w_encoder_rnn of f(x_1:T)
    q(z_t)   posterior                  posterior_head of encoder, which attends to all frames, of encoder_embedding
    p(z_t)   prior                      prior_head of y_t, from decoders[0]
    sigma    variances of x_t           output_head of y_t, from decoders[-1], gives their logarithms
    h_t      y_t of prior and output    h_KBTM, concatenated

`light` is LigHT-DVAE: one decoder for both. Without `past_in_prior`, the prior is p(z_t | z_1:t-1, w), as in T-DVAE:
J.-O. Perschewski, S. Stober, "T-DVAE: a transformer-based dynamical variational autoencoder for speech", 2024.

Of these papers, the abstracts alone were read. They have two levels of latents, attention over the past, generation
frame by frame from an observation of any length, "a simpler training procedure", and of LigHT-DVAE that it has
recurrent layers and cross-attention and, trained, ignores connections from output to latents. From memory of the field,
not checked: the factorisation, queries from z, one decoder in LigHT-DVAE. Sizes by default are those of a training
script of the same group, except that it has 12 layers. The rest is a choice of this project: where w enters, the order
of normalisations, positions, `query` as a setting, and sizes for two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.dynamical_vae import AutoregressiveVAE, Path, Recursion, each_frame, stack_frames
from avdvae.nn.blocks import GaussianHead, concat_features, mlp, shifted
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed

Kept = tuple[Tensor, Tensor | None]  # keys and values of a layer so far: of its own stream, and of the other one


class Attention(nn.Module):
    """Returns its output and the keys and values so far, concatenated, for a call on the frames that follow."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(
        self,
        y_NTM: Float[Tensor, "N T M"],
        source_NTM: Float[Tensor, "N T M"],
        recency: Float[Tensor, "#N _ T S"],
        past: Float[Tensor, "N _ G"] | None = None,
    ) -> tuple[Float[Tensor, "N T M"], Float[Tensor, "N S G"]]:
        kept = torch.cat([self.key(source_NTM), self.value(source_NTM)], -1)
        kept = kept if past is None else torch.cat([past, kept], 1)
        parts = self.query(y_NTM), *kept.chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=recency)
        return self.out(mixed.transpose(1, 2).flatten(2)), kept


class Layer(nn.Module):
    """Attention to its own stream and, if it `crosses`, to another one; also returns what both attentions keep."""

    def __init__(self, hidden: int, heads: int, inner: int, crosses: bool):
        super().__init__()
        self.attention, self.norm = Attention(hidden, heads), nn.LayerNorm(hidden)
        if crosses:
            self.cross_attention, self.cross_norm = Attention(hidden, heads), nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))
        self.mlp_norm = nn.LayerNorm(hidden)

    def forward(
        self, y_NTM: Tensor, other_NTM: Tensor | None, recency: Tensor, past: Kept | None = None
    ) -> tuple[Float[Tensor, "N T M"], Kept]:
        own_past, other_past = past or (None, None)
        n_NTM, other = self.norm(y_NTM), None
        found, own = self.attention(n_NTM, n_NTM, recency, own_past)
        y_NTM = y_NTM + found
        if other_NTM is not None:
            found, other = self.cross_attention(self.cross_norm(y_NTM), other_NTM, recency, other_past)
            y_NTM = y_NTM + found
        return y_NTM + self.mlp(self.mlp_norm(y_NTM)), (own, other)


def recency_of(lag_TS: Int64[Tensor, "T S"], heads: int) -> Float[Tensor, "1 heads T S"]:
    """What is added to scores: it falls with the distance in time, in each head at another pace."""
    slopes = 2 ** (-8 * torch.arange(1, heads + 1, device=lag_TS.device) / heads)
    return (-slopes[:, None, None] * lag_TS.abs())[None]


class State(NamedTuple):
    """After some frames: w, and what the layers keep of them, of the decoder of the prior and of that of the output."""

    w: Float[Tensor, "K B 1 L"]
    prior: Sequence[Kept] | None = None
    output: Sequence[Kept] | None = None


class HiTDVAE(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 256,  # of the streams
        dim: int = 16,
        dim_w: int = 32,  # of the latent of the whole sequence
        wide: int = 256,  # of phi_x
        heads: int = 8,
        layers: int = 4,  # of the encoder and of each decoder
        inner: int = 1024,  # of the MLP in a layer
        hidden_w: int = 512,  # of w_encoder_rnn
        layers_w: int = 2,
        light: bool = False,  # LigHT-DVAE: prior and output share a decoder
        query: str = "z",  # or x: where queries come from; keys and values come from the other
        past_in_prior: bool = True,  # whether p(z_t) depends on x_1:t-1
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        if min(hidden, heads, layers) < 1 or hidden % heads:
            raise UserError(
                f"model.hidden={hidden} model.heads={heads} model.layers={layers}: give 1 or more of each, and a "
                "hidden that is a multiple of the heads"
            )
        if query not in ("z", "x"):
            raise UserError(f"model.query={query}: choose z or x")
        if query == "x" and not past_in_prior:
            raise UserError("model.past_in_prior=false: with model.query=x, the prior is made from the past: choose z")
        self.latents = (replace(self.latents[0], name="w", dim=dim_w, rate=None), *self.latents)
        self.heads, self.query, self.past_in_prior = heads, query, past_in_prior
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.w_encoder_rnn = nn.LSTM(wide, hidden_w, layers_w, batch_first=True)
        self.w_posterior_head = GaussianHead(hidden_w, dim_w)
        self.encoder_embedding = nn.Linear(wide + dim_w, hidden)
        self.encoder = nn.ModuleList(Layer(hidden, heads, inner, crosses=False) for _ in range(layers))
        self.posterior_head = GaussianHead(hidden, dim)
        self.past_embedding = nn.Linear(wide + dim_w, hidden)
        self.latent_embedding = nn.Linear(dim + dim_w, hidden)
        self.decoders = nn.ModuleList(
            nn.ModuleList(Layer(hidden, heads, inner, crosses) for _ in range(layers))
            for crosses in ([True] if light else [past_in_prior, True])
        )
        self.prior_head = GaussianHead(hidden, dim)
        self.output_head = nn.Linear(hidden, features)

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        f_BTM = self.phi_x(observed_BTF)
        w = self.static_posterior(f_BTM, context).moved(noise["w"])
        g_KBTM = self.encode(f_BTM, w, context.mask)
        z, state, frames = torch.zeros_like(noise["z"][:, :, :1]), State(w), []
        for g, x_before, epsilon in each_frame(g_KBTM, self.x_before(context), noise["z"]):
            q = self.posterior_head(g)  # q(z_t | x_1:T, w)
            z_before, z = z, q.moved(epsilon)
            h, state = self.update_state(x_before, z_before, z, state)  # from x_1:t-1, z_1:t and w
            frames.append((z, q, self.prior_at(h, z_before), self.output_at(h, z)))
        return stack_frames(frames)

    def static_posterior(self, f_BTM: Tensor, context: Context) -> Gaussian:
        states_BTM, last_B = self.w_encoder_rnn(f_BTM)[0], context.mask.sum(1) - 1
        return self.w_posterior_head(states_BTM[torch.arange(len(last_B)), last_B][None, :, None])

    def encode(self, f_BTM: Tensor, w_KB1L: Tensor, mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "K B T M"]:
        y_KBTM = self.encoder_embedding(concat_features(f_BTM[None], w_KB1L))
        frame_T = torch.arange(f_BTM.shape[1], device=f_BTM.device)
        recency = recency_of(frame_T[:, None] - frame_T, self.heads)
        if mask_BT.device.type != "cpu" or not mask_BT.all():  # on a GPU, the check would wait for it
            mask_NT = mask_BT.expand(len(y_KBTM), -1, -1).flatten(0, 1)
            recency = recency.masked_fill(~mask_NT[:, None, None], -torch.inf)
        y_NTM = y_KBTM.flatten(0, 1)
        for layer in self.encoder:
            y_NTM, _ = layer(y_NTM, None, recency)
        return y_NTM.view_as(y_KBTM)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        f_BTM = self.phi_x(observed_BTF)
        q_w = self.static_posterior(f_BTM, context)
        w_KB1L = q_w.moved(noise["w"])
        q_z = self.posterior_head(self.encode(f_BTM, w_KB1L, context.mask))
        return Path({"w": w_KB1L, "z": q_z.moved(noise["z"])}, {"w": q_w, "z": q_z})

    def first_state(self, z: Latents) -> State:
        return State(z["w"])

    def update_state(
        self, x_before: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: State
    ) -> tuple[Float[Tensor, "K B T M"], State]:
        past_KBTM = self.embed_past(x_before, state.w)
        h_prior, prior = self.decode_prior(z_before_KBTL, past_KBTM, state.w, state.prior)
        h_output, output = self._decode(self.decoders[-1], z_KBTL, past_KBTM, state.w, state.output)
        return torch.cat([h_prior, h_output], -1), State(state.w, prior, output)

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        """Without the output's part of h."""
        past_KBTM = self.embed_past(self.x_before(context), z["w"])
        h_KBTM, _ = self.decode_prior(shifted(z["z"]), past_KBTM, z["w"])
        return {"w": Gaussian.standard(*z["w"].shape, like=z["w"]), "z": self.prior_head(h_KBTM)}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        """Without the prior's part of h."""
        past_KBTM = self.embed_past(self.x_before(context), z["w"])
        return self.output_head(self._decode(self.decoders[-1], z["z"], past_KBTM, z["w"])[0])

    def embed_past(self, x_before: Tensor, w_KB1L: Tensor) -> Float[Tensor, "K B T M"]:
        return self.past_embedding(concat_features(self.phi_x(x_before), w_KB1L))

    def decode_prior(
        self, z_before_KBTL: Tensor, past_KBTM: Tensor, w_KB1L: Tensor, kept: Sequence[Kept] | None = None
    ) -> tuple[Float[Tensor, "K B T M"], Sequence[Kept]]:
        past = past_KBTM if self.past_in_prior else None
        return self._decode(self.decoders[0], z_before_KBTL, past, w_KB1L, kept)

    def _decode(
        self,
        decoder: nn.Module,
        z_KBTL: Tensor,
        past_KBTM: Tensor | None,
        w_KB1L: Tensor,
        kept: Sequence[Kept] | None = None,
    ) -> tuple[Float[Tensor, "K B T M"], Sequence[Kept]]:
        """y_t of the last layer, and what all layers keep. Without `past_KBTM`, of the latents alone."""
        y_KBTM, other_KBTM = self.latent_embedding(concat_features(z_KBTL, w_KB1L)), past_KBTM
        if self.query == "x":
            assert past_KBTM is not None
            y_KBTM, other_KBTM = past_KBTM, y_KBTM
        y_NTM, other_NTM = y_KBTM.flatten(0, 1), None if other_KBTM is None else other_KBTM.flatten(0, 1)
        frame_S = torch.arange(y_NTM.shape[1] + (kept[0][0].shape[1] if kept else 0), device=y_NTM.device)
        lag_TS = frame_S[-y_NTM.shape[1] :, None] - frame_S
        recency = recency_of(lag_TS, self.heads).masked_fill(lag_TS < 0, -torch.inf)
        later = []
        for layer, past in zip(decoder.children(), kept or [None] * len(self.encoder), strict=True):
            y_NTM, keeps = layer(y_NTM, other_NTM, recency, past)
            later.append(keeps)
        return y_NTM.view_as(y_KBTM), later

    def prior_at(self, h: Tensor, z_before_KBTL: Tensor) -> Gaussian:
        return self.prior_head(h.chunk(2, -1)[0])

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.output_head(h.chunk(2, -1)[1])
