"""AV-RVAE: an RVAE whose prior of the latents is conditioned on the lips.

The recurrent model of S. Leglaive et al., ICASSP 2020 (see rvae.py), with a prior from the lips, as in the AV-CVAE (see
cvae.py), here recurrent, to a power in enhancement as there; features of the lips are normalised to mean 0 and
variance 1.

    p(x, z | v) = prod_t Nc(x_t; 0, sigma(z_1:t)) N(z_t; mu, diag var (v_1:t))      causal;  sigma(z_1:T) otherwise
    q(z | x)    that of the RVAE
    ELBO        dynamical_vae.py, everything given v

    x_t      speech spectrum             observed_BTF holds |x_t|^2
    v_t      mouth crop                  lips_BTHW
    z_t      latent                      z_KBTL
    p(z_t)   prior                       prior_head of prior_rnn, context.video_BTM, of lip_encoder
    q, sigma                             those of the RVAE
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from avdvae.models.rvae import RVAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, Recurrent, check_same_floor, zero_init
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class AVRVAE(RVAE):
    def __init__(
        self,
        features: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 16,
        causal: bool = False,  # the decoder; the encoder takes the future in both
        dropout: float = 0.3,  # of the hidden units of lip_encoder
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, hidden, dim, causal, floor=floor)
        self.sees = ("power", "lips")
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio-visual"),)
        lips = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.lip_encoder: Any = nn.Sequential(lips, nn.LayerNorm(hidden, elementwise_affine=False), nn.Tanh())
        self.prior_rnn = Recurrent(hidden, hidden)
        self.prior_head = GaussianHead(hidden, dim)

    def start_from(self, rvae: RVAE) -> None:
        check_same_floor(self, rvae)
        self.load_state_dict(rvae.state_dict(), strict=False)
        zero_init(self.prior_head)

    def context(self, batch: Batch) -> Context:
        lips_BTHW = batch.need("lips", self)
        video_BTM = self.prior_rnn(self.lip_encoder(lips_BTHW)[None], batch.mask)[0]
        return Context(batch.mask, video_BTM, typical=self.lip_encoder[0].typical(lips_BTHW))

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        p, size = self.prior_head(context.video).power(context.temper), z["z"].shape
        return {"z": Gaussian(p.mean.expand(size), p.log_var.expand(size))}
