"""DSAE: one latent for what stays in an utterance and a chain of latents for what moves.

Y. Li, S. Mandt, "Disentangled sequential autoencoder", ICML 2018 (arXiv 1803.02991), its full model; for speech, Girin
et al. (see dynamical_vae.py), section 11.

    p(x, z, v) = N(v; 0, I) prod_t Nc(x_t; 0, sigma(z_t, v)) N(z_t; mu, diag var (z_1:t-1))
    q(z, v | x) = N(v; mu, diag var (x_1:T)) prod_t N(z_t; mu, diag var (x_1:T, v))
    ELBO: dynamical_vae.py, less KL(q(v | x) || N(0, I)) once an utterance

    x_t   speech spectrum     power_KBTF holds |x_t|^2
    z_t   what moves          z_KBTL
    v     what stays          v_KB1L
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import GaussianHead, Recurrent, before, mlp
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE
from avdvae.protocols import Context, Latents, LatentSpec


class DSAE(DynamicalVAE):
    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16, dim_v: int = 16):
        super().__init__(dim)
        self.latents = (LatentSpec("v", dim_v, rate=None, modality="audio"), *self.latents)
        self.hear_v = Recurrent(frequencies, hidden, "both")
        self.v_head = GaussianHead(2 * hidden, dim_v)
        self.hear_z = Recurrent(frequencies + dim_v, hidden, "both")
        self.follow = nn.RNN(2 * hidden, hidden, batch_first=True)
        self.z_head = GaussianHead(hidden, dim)
        self.expect = Recurrent(dim, hidden)
        self.p_head = GaussianHead(hidden, dim)
        widths = [dim_v + dim, 32, 64, hidden, 2 * hidden]
        self.speak = nn.Sequential(*mlp(widths, nn.Tanh), nn.Linear(2 * hidden, frequencies))

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        forth_KBTM, back_KBTM = self.hear_v(power_KBTF, context.mask).chunk(2, -1)
        last_B = context.mask.sum(1) - 1
        end_KBM = forth_KBTM[:, torch.arange(len(last_B)), last_B]
        q_v = self.v_head(torch.cat([end_KBM, back_KBTM[:, :, 0]], -1)[:, :, None])
        v_KB1L = draw(q_v)
        spread_KBTL = v_KB1L.expand(-1, -1, power_KBTF.shape[2], -1)
        heard_KBTM = self.hear_z(torch.cat([power_KBTF, spread_KBTL], -1), context.mask)
        followed = self.follow(heard_KBTM.flatten(end_dim=1))[0]
        q_z = self.z_head(followed.unflatten(0, heard_KBTM.shape[:2]))
        return {"v": v_KB1L, "z": draw(q_z)}, {"v": q_v, "z": q_z}

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        expected_KBTM = self.expect(before(z["z"]), context.mask)
        return {"v": Gaussian.standard(*z["v"].shape, like=z["v"]), "z": self.p_head(expected_KBTM)}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        spread_KBTL = z["v"].expand(-1, -1, z["z"].shape[2], -1)
        return self.speak(torch.cat([spread_KBTL, z["z"]], -1))
