"""SRNN of waveforms: the recursion of srnn.py over stacks of samples, with other layers.

J. D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    h_t = GRU(h_t-1; x_t-1)
    p(x, z) = prod_t DMoL(x_t; f(h_t, z_t)) N(z_t; mu_p, diag var_p (h_t, z_t-1))
    q(z | x) = prod_t N(z_t; mu_p + mu, diag var (g_t, z_t-1)),  g_t = GRU(g_t+1; h_t, x_t)
    ELBO: dynamical_vae.py

    x_t      stack of s samples             x_BTS
    z_t      latent                         z_KBTL
    h_t      state                          rnn of phi_x; h_1BTM
    g_t      state, backward in time        encoder_rnn of phi_x, h_t; g_1BTM
    p(z_t)   prior                          prior_net of h_t, z_t-1
    mu, var  of q(z_t)                      posterior_net of g_t, z_t-1
    f        decoder                        decoder_net of h_t, z_t
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.srnn import SRNN
from avdvae.models.waveform import CodeHead, WaveformVAE
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, mlp


class SRNNWave(WaveformVAE, SRNN):
    residual = True

    def __init__(
        self,
        stride: int = 64,  # samples of a step
        dim: int = 256,
        wide: int = 256,
        hidden: int = 512,
        coding: str = "mu-law",  # or linear: of samples, as inputs and in the likelihood
        scoring: str = "exact",  # or paper: as published, whose bits are not a code length
    ):
        super().__init__(dim, stride, coding, scoring)
        self.phi_x = mlp([stride, wide, wide, wide], nn.LeakyReLU)
        self.rnn = nn.GRU(wide, hidden, batch_first=True)
        self.encoder_rnn = Recurrent(wide + hidden, hidden, "backward", nn.GRU)
        self.posterior_net, self.prior_net = (
            nn.Sequential(*mlp([hidden + dim, wide, wide, wide], nn.LeakyReLU), GaussianHead(wide, dim))
            for _ in range(2)
        )
        self.decoder_net = nn.Sequential(*mlp([hidden + dim, wide, wide], nn.LeakyReLU), CodeHead(wide, stride))

    def encoder_features(self, h: Tensor, observed_BTF: Tensor) -> Float[Tensor, "K B T M"]:
        return concat_features(self.phi_x(observed_BTF)[None], h)
