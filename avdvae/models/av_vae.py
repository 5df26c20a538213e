"""AV-VAE: encoder and decoder look at the lips; the latent's prior does not.

M. Sadeghi, S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "Audio-visual speech enhancement using conditional
variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590).

    p(z_t) = N(0, I)        p(s_ft | z_t, v_t) = Nc(0, sigma_f(z_t, v_t))        q(z_t | s_t, v_t) Gaussian
    ELBO = sum_t E_q[ln p(s_t | z_t, v_t)] - KL(q(z_t | s_t, v_t) || N(0, I))

Sound and lips are added before the tanh, in the encoder and in the decoder, each with its own look at the lips.
Training may start from an A-VAE, to which the lips add nothing at first; from scratch, the latent ends up telling less.

    s_t     speech spectrum    power_BTF holds |s_t|^2
    v_t     mouth crop         lips_BTHW; its features for the decoder: context.video_BTM
    z_t     latent             z_KBTL
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_same_floor, encoder_input, zero_init
from avdvae.probability.distributions import ComplexGaussian, Gaussian
from avdvae.protocols import Batch, Context, Latents


class AVVAE(FrameVAE):
    sees = ("power", "lips")

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(dim, "audio-visual")
        self.floor = floor
        self.sound_in = nn.Linear(frequencies, hidden)
        self.lips_in = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.head = GaussianHead(hidden, dim)
        self.latent_out = nn.Linear(dim, hidden)
        self.lips_out = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.sound_out = nn.Linear(hidden, frequencies)

    def start_from(self, vae: VAE) -> None:
        check_same_floor(self, vae)
        self.sound_in, self.head = vae.encoder[0], vae.encoder[-1]
        self.latent_out, self.sound_out = vae.decoder[0], vae.decoder[-1]
        for layer in (self.lips_in.features, self.lips_out.features):
            zero_init(layer)

    def video(self, batch: Batch) -> Float[Tensor, "B T M"]:
        return self.lips_out(batch.need("lips", self))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        power_BTF, lips_BTHW = batch.need("power", self), batch.need("lips", self)
        sound = self.sound_in(encoder_input(power_BTF, self.floor))
        return self.head(torch.tanh(sound + self.lips_in(lips_BTHW)))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        hidden = torch.tanh(self.latent_out(z["z"]) + context.video)
        return {"power": ComplexGaussian(self.sound_out(hidden))}
