"""AV-CVAE: a VAE of speech conditioned on the lips, in encoder, decoder and prior.

M. Sadeghi, S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "Audio-visual speech enhancement using conditional
variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), equations 7 to 13.

    p(z_t | v_t) = N(mubar(v_t), diag varbar(v_t))    p(s_ft | z_t, v_t) = Nc(0, sigma_f(z_t, v_t))
    q(z_t | s_t, v_t) = N(mutilde(s_t, v_t), diag vartilde(s_t, v_t))
    ELBO      L = sum_t E_q[ln p(s_t | z_t, v_t)] - KL(q(z_t | s_t, v_t) || p(z_t | v_t))
    modified    = alpha L + (1 - alpha) sum_t E_{p(z_t | v_t)}[ln p(s_t | z_t, v_t)]

Encoder, decoder and prior share the features of the lips. Two things keep the model from ignoring the lips: the second
term of the modified bound, and batches in which the layers of the sound are frozen. Training may start from an A-VAE,
with weights of 0 for the lips; from scratch, the latent encodes less of the sound.

For faces unlike those of the training set, p(z | v) is narrow around a wrong mean. Enhancement uses p(z | v)^temper,
normalised, with a smaller exponent for such a face.

    |s_t|^2             power spectrum           power_BTF
    v_t                 mouth crop               lips_BTHW; its features: lip_encoder, context.video_BTM
    z_t                 latent                   z_KBTL
    mutilde, vartilde   of the posterior         encoder_audio_in, encoder_lips_in, posterior_head: Gaussian, B T L
    mubar, varbar       of the prior             prior_net: Gaussian, B T L
    sigma               variance of speech       decoder_latent_in, decoder_lips_in, decoder_head: exp(log_var_KBTF)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_same_floor, encoder_input, mlp, zero_init
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents


class CVAE(FrameVAE):
    sees = ("power", "lips")
    SOUND = ("encoder_audio_in.", "posterior_head.", "decoder_latent_in.")  # what `freeze_sound` freezes

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,  # of the hidden units of the lip encoder
        alpha: float = 0.9,  # weight of the ELBO; 1 - alpha weighs the likelihood given z of the prior
        freeze_sound: float = 0.2,  # fraction of the batches that train only the layers of the lips
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(dim, "audio-visual")
        for name, value in (("alpha", alpha), ("freeze_sound", freeze_sound)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{name}={value}: give a number from 0 to 1")
        self.alpha, self.freeze_sound, self.floor = alpha, freeze_sound, floor
        self.lip_encoder: Any = nn.Sequential(LipEncoder(pixels, features=hidden, dropout=dropout), nn.ReLU())
        self.encoder_audio_in, self.encoder_lips_in = nn.Linear(frequencies, hidden), nn.Linear(hidden, hidden)
        self.posterior_head = GaussianHead(hidden, dim)
        self.prior_net = nn.Sequential(mlp([hidden, hidden], nn.ReLU), GaussianHead(hidden, dim))
        self.decoder_latent_in, self.decoder_lips_in = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)
        self.decoder_head = nn.Linear(hidden, frequencies)

    def start_from(self, vae: VAE) -> None:
        check_same_floor(self, vae)
        self.encoder_audio_in, self.posterior_head = vae.encoder[0], vae.encoder[-1]
        self.decoder_latent_in, self.decoder_head = vae.decoder[0], vae.decoder[-1]
        for layer in (self.encoder_lips_in, self.decoder_lips_in, self.prior_net[1]):
            zero_init(layer)

    def video(self, batch: Batch) -> Float[Tensor, "B T M"]:
        return self.lip_encoder(batch.need("lips", self))

    def context(self, batch: Batch) -> Context:
        return replace(super().context(batch), typical=self.lip_encoder[0].typical(batch.need("lips", self)))

    def prior(self, context: Context) -> Gaussian:
        return self.prior_net(context.video).power(context.temper)

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        audio = self.encoder_audio_in(encoder_input(batch.need("power", self), self.floor))
        return self.posterior_head(torch.tanh(audio + self.encoder_lips_in(context.video)))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        hidden = torch.tanh(self.decoder_latent_in(z["z"]) + self.decoder_lips_in(context.video))
        return {"power": ComplexGaussian(self.decoder_head(hidden))}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        if self.training and schedule.coin < self.freeze_sound:  # the same pass, without their gradients
            frozen = {name: p.detach() for name, p in self.named_parameters() if name.startswith(self.SOUND)}
            return functional_call(self, frozen, (batch, replace(schedule, coin=1.0)))
        context = self.context(batch)
        elbo = self.elbo(batch, context)
        if self.alpha == 1:
            return elbo
        from_lips_BT = self.log_likelihood(self.sample_prior(context), context, batch)
        return elbo.shared_with((from_lips_BT * batch.mask).sum(1), self.alpha, schedule)
