"""AV-CVAE: a VAE of speech conditioned on the lips, in encoder, decoder and prior.

M. Sadeghi, S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, "Audio-visual speech enhancement using conditional
variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), equations 7 to 13.

    p(z_t | v_t) = N(mubar(v_t), diag varbar(v_t))    p(s_ft | z_t, v_t) = Nc(0, sigma_f(z_t, v_t))
    q(z_t | s_t, v_t) = N(mutilde(s_t, v_t), diag vartilde(s_t, v_t))
    ELBO      L = sum_t E_q[ln p(s_t | z_t, v_t)] - KL(q(z_t | s_t, v_t) || p(z_t | v_t))
    modified    = alpha L + (1 - alpha) sum_t E_{p(z_t | v_t)}[ln p(s_t | z_t, v_t)]

Encoder, decoder and prior share one look at the lips. The second term of the modified bound, and a share of the batches
in which the layers that carry sound stand still, keep the model from ignoring them. Training may start from an A-VAE,
to which the lips add nothing at first; from scratch, the latent ends up telling less.

From a face unlike those of the training, p(z | v) is narrow at a wrong place. Enhancement takes its power `temper`,
normalised.

    s_t     speech spectrum    power_BTF holds |s_t|^2
    v_t     mouth crop         lips_BTHW; its features: context.video_BTM
    z_t     latent             z_KBTL
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_same_floor, encoder_input, mlp, zero_init
from avdvae.probability.distributions import ComplexGaussian, Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Latents


class CVAE(FrameVAE):
    sees = ("power", "lips")
    SOUND = ("sound_in.", "latent_out.", "head.")  # what `freeze_sound` freezes

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,
        alpha: float = 0.9,
        freeze_sound: float = 0.2,  # share of the batches that train the layers of the lips alone
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(dim, "audio-visual")
        for name, share in (("alpha", alpha), ("freeze_sound", freeze_sound)):
            if not 0 <= share <= 1:
                raise UserError(f"model.{name}={share}: give a share from 0 to 1")
        self.alpha, self.freeze_sound, self.floor = alpha, freeze_sound, floor
        self.look = nn.Sequential(LipEncoder(pixels, features=hidden, dropout=dropout), nn.ReLU())
        self.sound_in, self.lips_in = nn.Linear(frequencies, hidden), nn.Linear(hidden, hidden)
        self.head = GaussianHead(hidden, dim)
        self.prior_head = nn.Sequential(mlp([hidden, hidden], nn.ReLU), GaussianHead(hidden, dim))
        self.latent_out, self.lips_out = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)
        self.sound_out = nn.Linear(hidden, frequencies)

    def start_from(self, vae: VAE) -> None:
        check_same_floor(self, vae)
        self.sound_in, self.head = vae.encoder[0], vae.encoder[-1]
        self.latent_out, self.sound_out = vae.decoder[0], vae.decoder[-1]
        for layer in (self.lips_in, self.lips_out, self.prior_head[1]):
            zero_init(layer)

    def video(self, batch: Batch) -> Float[Tensor, "B T M"]:
        return self.look(batch.need("lips", self))

    def prior(self, context: Context) -> Gaussian:
        p = self.prior_head(context.video)
        return Gaussian(p.mean, p.log_var - math.log(context.temper))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        sound = self.sound_in(encoder_input(batch.need("power", self), self.floor))
        return self.head(torch.tanh(sound + self.lips_in(context.video)))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        hidden = torch.tanh(self.latent_out(z["z"]) + self.lips_out(context.video))
        return {"power": ComplexGaussian(self.sound_out(hidden))}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        if self.training and schedule.coin < self.freeze_sound:  # the same pass, without slopes in the layers of sound
            still = {name: p.detach() for name, p in self.named_parameters() if name.startswith(self.SOUND)}
            return functional_call(self, still, (batch, replace(schedule, coin=1.0)))
        context = self.context(batch)
        elbo = self.elbo(batch, context)
        if self.alpha == 1:
            return elbo
        from_lips_BT = self.log_likelihood(self.sample_prior(context), context, batch)
        return elbo.shared_with((from_lips_BT * batch.mask).sum(1), self.alpha, schedule)
