"""AV-VAE: a VAE of speech whose encoder and decoder are conditioned on the lips, and whose prior is not.

M. Sadeghi, S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "Audio-visual speech enhancement using conditional
variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590).

    p(z_t) = N(0, I)        p(s_ft | z_t, v_t) = Nc(0, sigma_f(z_t, v_t))        q(z_t | s_t, v_t) Gaussian
    ELBO = sum_t E_q[ln p(s_t | z_t, v_t)] - KL(q(z_t | s_t, v_t) || N(0, I))

Encoder and decoder have an encoder of the lips each, whose output is added before the tanh. Training may start from an
A-VAE, with weights of 0 for the lips; from scratch, the latent encodes less of the sound.

    |s_t|^2   power spectrum         power_BTF
    v_t       mouth crop             lips_BTHW; its features for the decoder: decoder_lips_in, context.video_BTM
    z_t       latent                 z_KBTL
    q         posterior              encoder_audio_in, encoder_lips_in, posterior_head: Gaussian, B T L
    sigma     variance of speech     decoder_latent_in, decoder_lips_in, decoder_head: exp(log_var_KBTF)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_same_floor, encoder_input, zero_init
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents


class AVVAE(FrameVAE):
    sees = ("power", "lips")

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,  # of the hidden units of the lip encoder
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(dim, "audio-visual")
        self.floor = floor
        self.encoder_audio_in = nn.Linear(frequencies, hidden)
        self.encoder_lips_in = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.posterior_head = GaussianHead(hidden, dim)
        self.decoder_latent_in = nn.Linear(dim, hidden)
        self.decoder_lips_in = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.decoder_head = nn.Linear(hidden, frequencies)

    def start_from(self, vae: VAE) -> None:
        check_same_floor(self, vae)
        self.encoder_audio_in, self.posterior_head = vae.encoder[0], vae.encoder[-1]
        self.decoder_latent_in, self.decoder_head = vae.decoder[0], vae.decoder[-1]
        for layer in (self.encoder_lips_in.features, self.decoder_lips_in.features):
            zero_init(layer)

    def video(self, batch: Batch) -> Float[Tensor, "B T M"]:
        return self.decoder_lips_in(batch.need("lips", self))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        power_BTF, lips_BTHW = batch.need("power", self), batch.need("lips", self)
        audio = self.encoder_audio_in(encoder_input(power_BTF, self.floor))
        return self.posterior_head(torch.tanh(audio + self.encoder_lips_in(lips_BTHW)))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        hidden = torch.tanh(self.decoder_latent_in(z["z"]) + context.video)
        return {"power": ComplexGaussian(self.decoder_head(hidden))}
