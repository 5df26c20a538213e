"""VRNN of waveforms: the recursion of vrnn.py over stacks of samples, with other layers.

J. D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    h_t = GRU(h_t-1; x_t-1, z_t-1),  h_1 = 0
    p(x, z) = prod_t DMoL(x_t; f(h_t, z_t)) N(z_t; mu_p, diag var_p (h_t))
    q(z | x) = prod_t N(z_t; mu_p + mu, diag var (h_t, x_t))
    ELBO: dynamical_vae.py

    x_t      stack of s samples             x_BTS
    z_t      latent                         z_KBTL
    h_t      state                          rnn of phi_x, phi_z; h_KBTM
    p(z_t)   prior                          prior_net of h_t
    mu, var  of q(z_t)                      posterior_net of phi_x, h_t
    f        decoder                        decoder_net of h_t, phi_z
"""

from __future__ import annotations

from typing import Any

from torch import nn

from avdvae.models.vrnn import VRNN
from avdvae.models.waveform import CodeHead, WaveformVAE
from avdvae.nn.blocks import GaussianHead, mlp


class VRNNWave(WaveformVAE, VRNN):
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
        self.phi_z = mlp([dim, wide, wide, wide, wide], nn.ReLU)
        self.rnn: Any = nn.GRU(2 * wide, hidden, batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        self.posterior_net = nn.Sequential(*mlp([wide + hidden, wide, wide, wide], nn.ReLU), GaussianHead(wide, dim))
        self.prior_net = nn.Sequential(*mlp([hidden, wide, wide, wide], nn.ReLU), GaussianHead(wide, dim))
        self.decoder_net = nn.Sequential(*mlp([hidden + wide, wide, wide], nn.LeakyReLU), CodeHead(wide, stride))
