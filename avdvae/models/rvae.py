"""RVAE: independent latents; a recurrent network decodes each frame from all of them, or from those so far.

S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "A recurrent variational autoencoder for speech enhancement",
ICASSP 2020 (arXiv 1910.10942).

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_1:t)) N(z_t; 0, I)        causal;    sigma(z_1:T) otherwise
    q(z | x) = prod_t N(z_t; mu, diag var (z_1:t-1, x_t:T))       causal;    (z_1:t-1, x_1:T) otherwise
    ELBO: dynamical_vae.py

Causal is the decoder; the encoder takes the future in both.

    x_t      speech spectrum                observed_BTF holds |x_t|^2
    z_t      latent                         z_KBTL
    g_t      features of x_t:T or x_1:T     encoder_rnn, g_1BTM
    h_t      features of z_1:t-1            latent_rnn, h_NM: draws and utterances share one axis
    q(z_t)   posterior                      posterior_head of g_t, h_t
    sigma    variances of x_t               decoder_head of decoder_rnn gives their logarithms
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import DynamicalVAE, Path, Recursion, each_frame, sample_path, stack_frames
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, split_linear
from avdvae.protocols import Context, Latents, Observed


class RVAE(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        causal: bool = True,  # the decoder; the encoder takes the future in both
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        sides = 1 if causal else 2
        self.encoder_rnn = Recurrent(features, hidden, "backward" if causal else "both")
        self.latent_rnn = nn.LSTMCell(dim, hidden)
        self.posterior_head = GaussianHead((sides + 1) * hidden, dim)
        self.decoder_rnn = Recurrent(dim, hidden, "forward" if causal else "both")
        self.decoder_head = nn.Linear(sides * hidden, features)

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        g_1BTM = self.encoder_rnn(observed_BTF[None], context.mask)
        z, state, frames = torch.zeros_like(noise["z"][:, :, :1]), None, []
        for g, epsilon in each_frame(g_1BTM, noise["z"]):
            state = self.latent_rnn(z.flatten(end_dim=2), state)  # of z_1:t-1
            h = state[0].unflatten(0, z.shape[:3])
            q = self.posterior_head(concat_features(g, h))  # q(z_t | z_1:t-1, x)
            z = q.moved(epsilon)
            frames.append((z, q))
        z_KBTL, q = stack_frames(frames)
        latents = {"z": z_KBTL}
        return z_KBTL, q, self.prior(latents, context)["z"], self.output(latents, context)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        """`recursion`, with what does not depend on z computed for all frames at once."""
        g_part, h_weight = split_linear(self.posterior_head, self.encoder_rnn(observed_BTF[None], context.mask))
        state = None

        def step(g_part_NM: Tensor, z_before_NL: Tensor) -> Tensor:
            nonlocal state
            state = self.latent_rnn(z_before_NL, state)
            return torch.addmm(g_part_NM, state[0], h_weight)

        return sample_path(g_part, noise["z"], step)

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.decoder_head(self.decoder_rnn(z["z"], context.mask))
