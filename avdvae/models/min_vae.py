"""MIN-VAE: one decoder, and a mixture of two inference networks, one of the sound and one of the lips.

M. Sadeghi, X. Alameda-Pineda, "Mixture of inference networks for VAE-based audio-visual speech enhancement", IEEE TSP
69, 2021 (arXiv 1912.10647).

    p(m_t = m) = pi_m        p(z_t | m_t = m) = N(mu_m, var_m I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))
    q(m_t, z_t | s_t, v_t) = r(m_t) q(z_t | s_t)^[m_t = sound] q(z_t | v_t)^[m_t = lips]
    ELBO_m(t) = E_q_m[ln p(s_t | z_t)] - KL(q_m(z_t) || p(z_t | m))
    ELBO = sum_t ln sum_m pi_m exp ELBO_m(t), at the best r(m_t), proportional to the terms of this sum

In training, noise is added to the input of the audio encoder in a fraction of the frames, which the lips then explain
better. With responsibilities="per_epoch", r is computed with the weights at the start of the epoch, as in the paper,
and not with the present ones. Enhancement keeps q(z | m), one z for each network. It starts each z from its own network
and, a second time, both from that of the sound, and keeps the better result (enhancement/vem.py); the published code
has one z for both and starts from the lips. If a modality is missing, pi of its network is 0.

    |s_t|^2      power spectrum           power_BTF
    v_t          mouth crop               lips_BTHW
    m            inference network        components: sound, lips
    z^m_t        latents                  z_KBTL, named sound and lips
    q(z | s)     posterior of the sound   audio_encoder: Gaussian, B T L
    q(z | v)     posterior of the lips    visual_encoder: Gaussian, B T L
    sigma        variance of speech       decoder: exp(log_var_KBTF)
    pi           prior of the switch      pi_C; context.switch_B1C
    mu_m, var_m  of the priors            prior_mean_CL, exp(prior_log_var_C1)
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.mixture_vae import MixtureVAE
from avdvae.models.v_vae import VVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_floor, check_same_floor, encoder_input, mlp
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule, Terms, mixture_elbo, responsibilities
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, LatentSpec


class MINVAE(MixtureVAE):
    can_miss: tuple[str, ...] = ("power", "lips")  # either, not both
    components = ("sound", "lips")

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,  # of the hidden units of the lip encoder
        spoilt: float = 0.5,  # fraction of the training frames whose encoder input gets noise
        loudness: float = 50.0,  # the power of that noise is uniform between 0 and this
        responsibilities: str = "optimal",  # or per_epoch, as published
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__()
        if responsibilities not in ("optimal", "per_epoch"):
            raise UserError(f"model.responsibilities={responsibilities}: choose optimal or per_epoch")
        self.latents = (LatentSpec("sound", dim, 1, "audio"), LatentSpec("lips", dim, 1, "video"))
        check_floor(self.observes, floor)
        self.spoilt, self.loudness, self.floor = spoilt, loudness, floor
        self.audio_encoder = nn.Sequential(*mlp([frequencies, hidden], nn.Tanh), GaussianHead(hidden, dim))
        lip_encoder = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.visual_encoder = nn.Sequential(lip_encoder, nn.Tanh(), GaussianHead(hidden, dim))
        self.decoder = nn.Sequential(*mlp([dim, hidden], nn.Tanh), nn.Linear(hidden, frequencies))
        self.prior_mean_CL = nn.Parameter(torch.zeros(2, dim))
        self.prior_log_var_C1 = nn.Parameter(torch.zeros(2, 1))
        self.register_buffer("pi_C", torch.full((2,), 0.5))
        self.pi_C: Tensor
        self.epoch_start = None  # the model with its weights at the start of the epoch
        if responsibilities == "per_epoch":
            self.epoch_start = deepcopy(self).requires_grad_(False)
            self.register_buffer("epoch", torch.tensor(-1))
            self.epoch: Tensor

    def start_from(self, vae: VAE, v_vae: VVAE) -> None:
        check_same_floor(self, vae)
        self.audio_encoder, self.decoder, self.visual_encoder = vae.encoder, vae.decoder, v_vae.encoder

    def context(self, batch: Batch) -> Context:
        given = torch.tensor([batch.power is not None, batch.lips is not None], device=batch.mask.device)
        if not given.any():
            batch.need("power", self)
        pi_C = self.pi_C * given / (self.pi_C * given).sum()
        return Context(batch.mask, switch=pi_C.expand(len(batch.mask), 1, 2), learns=bool(given.all()))

    def posteriors(self, batch: Batch, context: Context) -> dict[str, Gaussian]:
        """Without a modality, its latent has the posterior of the other: in the paper both share one z."""
        q = {}
        if batch.power is not None:
            q["sound"] = self.audio_encoder(encoder_input(batch.power, self.floor))
        if batch.lips is not None:
            q["lips"] = self.visual_encoder(batch.lips)
        return {name: q.get(name, next(iter(q.values()))) for name in self.components}

    def prior(self, name: str, context: Context) -> Gaussian:
        m = self.components.index(name)
        mean_BTL = self.prior_mean_CL[m].expand(*context.mask.shape, -1)
        return Gaussian(mean_BTL, self.prior_log_var_C1[m])

    def component(self, name: str, z_KBTL: Float[Tensor, "K B T L"], context: Context) -> ComplexGaussian:
        return ComplexGaussian(self.decoder(z_KBTL))

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        input_BTF = batch.need("power", self)
        if self.training:
            spoilt_BT1 = torch.rand_like(input_BTF[..., :1]) < self.spoilt
            input_BTF = input_BTF + spoilt_BT1 * self.loudness * torch.rand_like(input_BTF)
        terms, log_pi_C = self._terms(input_BTF, batch), self.pi_C.log()
        model = self._model_of_responsibilities(schedule) if self.training else self
        with torch.no_grad():
            r_BTC = responsibilities(terms if model is self else model._terms(input_BTF, batch), model.pi_C.log())
            if self.training:
                present = batch.mask.sum()
                mean_C = (r_BTC * batch.mask[..., None]).sum((0, 1)) / present.clamp_min(1)
                self.pi_C = self.pi_C.lerp(mean_C, 0.01 * (present > 0)).clamp(1e-3, 1)
        return mixture_elbo(self.components, terms, r_BTC, log_pi_C, batch.mask)

    def _terms(self, input_BTF: Tensor, batch: Batch) -> Terms:
        terms = []
        q_sound = self.audio_encoder(encoder_input(input_BTF, self.floor))
        for m, q in enumerate((q_sound, self.visual_encoder(batch.need("lips", self)))):
            log_likelihood_BT = ComplexGaussian(self.decoder(q.sample())).log_prob(batch.need("power", self)).mean(0)
            terms.append((log_likelihood_BT, q.kl(Gaussian(self.prior_mean_CL[m], self.prior_log_var_C1[m]))))
        return terms

    def _model_of_responsibilities(self, schedule: Schedule) -> MINVAE:
        if self.epoch_start is None:
            return self
        if schedule.epoch != self.epoch:
            now = {name: value for name, value in self.state_dict().items() if not name.startswith("epoch")}
            self.epoch_start.load_state_dict(now)
            self.epoch.fill_(schedule.epoch)
        return self.epoch_start
