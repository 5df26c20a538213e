"""RVAE: independent latents, from all of which, or from those so far, a recurrent network makes the speech.

S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "A recurrent variational autoencoder for speech enhancement",
ICASSP 2020 (arXiv 1910.10942).

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_1:t)) N(z_t; 0, I)        causal;    sigma(z_1:T) otherwise
    q(z | x) = prod_t N(z_t; mu, diag var (z_1:t-1, x_t:T))       causal;    (z_1:t-1, x_1:T) otherwise
    ELBO: dynamical_vae.py

Causal is how the sound is made; to infer its latents takes the future in both.

    x_t   speech spectrum                observed_BTF holds |x_t|^2
    z_t   latent                         z_KBTL
    g_t   what is heard of x at t        g_1BTM
    h_t   what is kept of z_1:t-1        h_NM, draws and utterances in one axis
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import DynamicalVAE, Path, sample_path
from avdvae.nn.blocks import GaussianHead, Recurrent, split_linear
from avdvae.protocols import Context, Latents, Observed


class RVAE(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        causal: bool = True,
        observes: Observed = "power",
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        sides = 1 if causal else 2
        self.encoder_rnn = Recurrent(features, hidden, "backward" if causal else "both")
        self.latent_rnn = nn.LSTMCell(dim, hidden)
        self.posterior_head = GaussianHead((sides + 1) * hidden, dim)
        self.decoder_rnn = Recurrent(dim, hidden, "forward" if causal else "both")
        self.decoder_head = nn.Linear(sides * hidden, features)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        g_1BTM, state = self.encoder_rnn(observed_BTF[None], context.mask), None
        told, weight = split_linear(self.posterior_head, g_1BTM)

        def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
            nonlocal state
            state = self.latent_rnn(z_NL, state)
            return torch.addmm(told_NM, state[0], weight)

        return sample_path(told, noise["z"], step)

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.decoder_head(self.decoder_rnn(z["z"], context.mask))
