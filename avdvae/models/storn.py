"""STORN: independent latents, which drive a recurrent network that also hears its own past.

J. Bayer, C. Osendorfer, "Learning stochastic recurrent networks", 2014 (arXiv 1411.7610); for speech, Girin et al. (see
dynamical_vae.py), section 7.

    p(x, z) = prod_t Nc(x_t; 0, sigma(x_1:t-1, z_1:t)) N(z_t; 0, I)
    q(z | x) = prod_t N(z_t; mu, diag var (x_1:t))
    ELBO: dynamical_vae.py

    x_t   speech spectrum     observed_BTF holds |x_t|^2; what is heard of x_t-1: context.past, a frame late
    z_t   latent              z_KBTL
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import AutoregressiveVAE, Path
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, mlp
from avdvae.protocols import Context, Latents, Observed


class STORN(AutoregressiveVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,
        narrow: Sequence[int] = (64, 32),
        observes: Observed = "power",
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.encoder_rnn = Recurrent(wide, hidden)
        self.posterior_net = nn.Sequential(*mlp([hidden, *narrow], nn.Tanh), GaussianHead(narrow[-1], dim))
        self.phi_z = mlp([dim, *reversed(narrow)], nn.Tanh)
        self.phi_past = mlp([features, wide], nn.Tanh)
        self.decoder_rnn = nn.LSTM(wide + narrow[0], hidden, batch_first=True)
        self.decoder_net = nn.Sequential(*mlp([hidden, wide], nn.Tanh), nn.Linear(wide, features))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        q = self.posterior_net(self.encoder_rnn(self.phi_x(observed_BTF[None]), context.mask))
        return Path({"z": q.moved(noise["z"])}, {"z": q})

    def update_state(
        self, heard: Tensor, z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        told_KBTM = concat_features(self.phi_z(z_KBTL), self.phi_past(heard))
        h, state = self.decoder_rnn(told_KBTM.flatten(end_dim=1), state)
        return h.unflatten(0, told_KBTM.shape[:2]), state

    def output_at(self, h: Tensor, z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(h)
