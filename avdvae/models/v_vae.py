"""V-VAE: a VAE of speech whose latent is inferred from the lips alone.

M. Sadeghi, S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "Audio-visual speech enhancement using conditional
variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), section IV-A, with raw mouth crops.

    p(z_t) = N(0, I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))        q(z_t | v_t) = N(mu(v_t), diag var(v_t))
    ELBO = sum_t E_q[ln p(s_t | z_t)] - KL(q(z_t | v_t) || N(0, I))

    |s_t|^2   power spectrum        power_BTF
    v_t       mouth crop            lips_BTHW
    z_t       latent                z_KBTL
    mu, var   of the posterior      encoder: mean_BTL, exp(log_var_BTL)
    sigma     variance of speech    decoder: exp(log_var_KBTF)
"""

from __future__ import annotations

from torch import Tensor, nn

from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, mlp
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents


class VVAE(FrameVAE):
    sees = ("lips",)

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,  # of the hidden units of the lip encoder
    ):
        super().__init__(dim, "audio-visual")
        lip_encoder = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.encoder = nn.Sequential(lip_encoder, nn.Tanh(), GaussianHead(hidden, dim))
        self.decoder = nn.Sequential(*mlp([dim, hidden], nn.Tanh), nn.Linear(hidden, frequencies))

    def start_from(self, vae: VAE) -> None:
        self.decoder = vae.decoder

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        return self.encoder(batch.need("lips", self))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        return {"power": ComplexGaussian(self.decoder(z["z"]))}
