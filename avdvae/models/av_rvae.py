"""AV-RVAE: an RVAE whose encoder and decoder are told what the lips show.

The recurrent model of S. Leglaive et al., ICASSP 2020 (see rvae.py), conditioned as the AV-VAE is (see av_vae.py); the
features of the lips are brought to mean 0 and variance 1.

    p(x, z | v) = prod_t Nc(x_t; 0, sigma(z_1:t, v_1:t)) N(z_t; 0, I)        causal;    all of z and v otherwise
    q(z | x, v) = prod_t N(z_t; mu, diag var (z_1:t-1, x_t:T, v_t:T))        causal;    all of x and v otherwise
    ELBO: dynamical_vae.py, everything given v

    x_t   speech spectrum           observed_BTF holds |x_t|^2
    v_t   features of the lips      context.video_BTM
    z_t   latent                    z_KBTL
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.blocks import LipEncoder, beside
from avdvae.models.dynamical_vae import Path
from avdvae.models.rvae import RVAE
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class AVRVAE(RVAE):
    def __init__(
        self,
        features: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 16,
        causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(features, hidden, dim, causal, told=hidden)
        self.sees = ("power", "lips")
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio-visual"),)
        lips = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.look = nn.Sequential(lips, nn.LayerNorm(hidden, elementwise_affine=False), nn.Tanh())

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, video=self.look(batch.need("lips", self)))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        assert context.video is not None
        return super().posterior(beside(observed_BTF, context.video), context, noise)

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        assert context.video is not None
        return super().output({"z": beside(z["z"], context.video[None])}, context)
