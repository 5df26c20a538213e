"""MIN-VAE: one decoder, and a mixture of two inference networks, one that hears and one that sees.

M. Sadeghi, X. Alameda-Pineda, "Mixture of inference networks for VAE-based audio-visual speech enhancement", IEEE TSP
69, 2021 (arXiv 1912.10647).

    p(m_t = m) = pi_m        p(z_t | m_t = m) = N(mu_m, var_m I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))
    q(m_t, z_t | s_t, v_t) = r(m_t) q(z_t | s_t)^[m_t = sound] q(z_t | v_t)^[m_t = lips]
    ELBO_m(t) = E_q_m[ln p(s_t | z_t)] - KL(q_m(z_t) || p(z_t | m))
    ELBO = sum_t ln sum_m pi_m exp ELBO_m(t), at the best r(m_t), which is in proportion to the terms of this sum

For a share of the training frames the network that hears gets a spectrum with noise added, so that there are frames
which the other wins. With responsibilities="per_epoch", r is that of the weights with which the epoch began, as in
the paper, and not that of the present ones. Enhancement keeps q(z | m), one z for each network, and starts each from
its own network, or both from that of the sound, whichever ends better (inference/vem.py); the published code has one z
for both and starts from the lips. A network that gets nothing is off.

    s_t       speech spectrum             power_BTF holds |s_t|^2
    v_t       mouth crop                  lips_BTHW
    z^m_t     latent                      z_KBTL, named sound and lips
    pi        prior of the switch         context.switch_B1M, in the order sound, lips
    mu, var   of the priors               prior_mean_ML, prior_log_var_M1
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.v_vae import VVAE
from avdvae.models.vae import VAE
from avdvae.nn.blocks import GaussianHead, LipEncoder, check_floor, check_same_floor, encoder_input, keep_given, mlp
from avdvae.probability.distributions import ComplexGaussian, Gaussian, Mixture
from avdvae.probability.objectives import Elbo, Schedule, Terms, mixture_elbo, responsibilities
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed


class MINVAE(nn.Module):
    observes: Observed = "power"
    sees: tuple[str, ...] = ("power", "lips")
    can_miss = ("power", "lips")  # either, not both
    components = ("sound", "lips")

    def __init__(
        self,
        frequencies: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 32,
        dropout: float = 0.3,
        spoilt: float = 0.5,  # share of the training frames that are heard in noise
        loudness: float = 50.0,  # of that noise: its power is uniform between 0 and this
        responsibilities: str = "optimal",  # or per_epoch
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__()
        if responsibilities not in ("optimal", "per_epoch"):
            raise UserError(f"model.responsibilities={responsibilities}: choose optimal or per_epoch")
        self.latents = (LatentSpec("sound", dim, 1, "audio"), LatentSpec("lips", dim, 1, "video"))
        check_floor(self.observes, floor)
        self.spoilt, self.loudness, self.floor = spoilt, loudness, floor
        self.hear = nn.Sequential(*mlp([frequencies, hidden], nn.Tanh), GaussianHead(hidden, dim))
        look = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.look = nn.Sequential(look, nn.Tanh(), GaussianHead(hidden, dim))
        self.decoder = nn.Sequential(*mlp([dim, hidden], nn.Tanh), nn.Linear(hidden, frequencies))
        self.prior_mean_ML = nn.Parameter(torch.zeros(2, dim))
        self.prior_log_var_M1 = nn.Parameter(torch.zeros(2, 1))
        self.register_buffer("pi_M", torch.full((2,), 0.5))
        self.pi_M: Tensor
        self.past = None
        if responsibilities == "per_epoch":
            self.past = deepcopy(self).requires_grad_(False)
            self.register_buffer("epoch", torch.tensor(-1))
            self.epoch: Tensor

    def start_from(self, vae: VAE, v_vae: VVAE) -> None:
        check_same_floor(self, vae)
        self.hear, self.decoder, self.look = vae.encoder, vae.decoder, v_vae.encoder

    def context(self, batch: Batch) -> Context:
        given = torch.tensor([batch.power is not None, batch.lips is not None], device=batch.mask.device)
        if not given.any():
            batch.need("power", self)
        pi_M = self.pi_M * given / (self.pi_M * given).sum()
        return Context(batch.mask, switch=pi_M.expand(len(batch.mask), 1, 2), learns=bool(given.all()))

    def prior(self, component: int, context: Context) -> Gaussian:
        mean_BTL = self.prior_mean_ML[component].expand(*context.mask.shape, -1)
        return Gaussian(mean_BTL, self.prior_log_var_M1[component])

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        """The latent of a network that gets nothing is inferred by the other: in the paper both share one z."""
        context = self.context(batch)
        p = {name: self.prior(m, context) for m, name in enumerate(self.components)}
        q = {}
        if batch.power is not None:
            q["sound"] = self.hear(encoder_input(batch.power, self.floor))
        if batch.lips is not None:
            q["lips"] = self.look(batch.lips)
        q = {name: q.get(name, next(iter(q.values()))) for name in self.components}
        z = {name: q[name].sample(k) if mode == "sample" else q[name].mean.expand(k, -1, -1, -1) for name in q}
        return Inferred(z, q, p)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Mixture]:
        parts = tuple(ComplexGaussian(self.decoder(z[name])) for name in self.components)
        assert context.switch is not None
        return {"power": Mixture(parts, self._log_priors(z, context), context.switch, context.mask)}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        return self._log_priors(z, context).sum(0)

    def _log_priors(self, z: Latents, context: Context) -> Float[Tensor, "M K B T"]:
        return torch.stack([self.prior(m, context).log_prob(z[name]) for m, name in enumerate(self.components)])

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        drawn = {name: self.prior(m, context).sample(k) for m, name in enumerate(self.components)}
        return keep_given(given, drawn)

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        heard_BTF = batch.need("power", self)
        if self.training:
            spoilt_BT1 = torch.rand_like(heard_BTF[..., :1]) < self.spoilt
            heard_BTF = heard_BTF + spoilt_BT1 * self.loudness * torch.rand_like(heard_BTF)
        terms, log_pi_M = self._terms(heard_BTF, batch), self.pi_M.log()
        judge = self._judge(schedule) if self.training else self
        with torch.no_grad():
            r_BTM = responsibilities(terms if judge is self else judge._terms(heard_BTF, batch), judge.pi_M.log())
            if self.training:
                present = batch.mask.sum()
                mean_M = (r_BTM * batch.mask[..., None]).sum((0, 1)) / present.clamp_min(1)
                self.pi_M = self.pi_M.lerp(mean_M, 0.01 * (present > 0)).clamp(1e-3, 1)
        return mixture_elbo(self.components, terms, r_BTM, log_pi_M, batch.mask)

    def _terms(self, heard_BTF: Tensor, batch: Batch) -> Terms:
        terms = []
        sound = self.hear(encoder_input(heard_BTF, self.floor))
        for m, q in enumerate((sound, self.look(batch.need("lips", self)))):
            said = ComplexGaussian(self.decoder(q.sample())).log_prob(batch.need("power", self)).mean(0)
            terms.append((said, q.kl(Gaussian(self.prior_mean_ML[m], self.prior_log_var_M1[m]))))
        return terms

    def _judge(self, schedule: Schedule) -> MINVAE:
        """The model whose responsibilities count: this one, or what it was when the epoch began."""
        if self.past is None:
            return self
        if schedule.epoch != self.epoch:
            now = {name: value for name, value in self.state_dict().items() if not name.startswith(("past.", "epoch"))}
            self.past.load_state_dict(now)
            self.epoch.fill_(schedule.epoch)
        return self.past
