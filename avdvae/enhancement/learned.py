"""The E-step `learned`: an encoder q(z | x, V) that is given the noisy power and the present estimate of the noise.

It is trained on clean speech with noise drawn from the noise model itself, without recordings of noise. The target is
that of the E-step, the bound of the mixture; decoder and prior stay as they are:

    E_q[ln p(x | z, V) + ln p(z)] + H(q)        q(z) = prod_t N(z_t; m_t, diag s_t^2)

    x      noisy speech                        P = |x|^2: noisy_BTF
    V      variances of the noise              noise_BTF
    a      share of P that is speech           P / (P + V exp(-u)), with u of share_head: a Wiener filter where u = 0
    m, s   moments of q                        of the model's own encoder, tuned, which is given a P as clean power

A gain of the speech leaves the posterior as it is if P and V are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.enhancement.contract import EStep, MovingEStep, RandomNumbers, Rounds, Target
from avdvae.enhancement.noise import EPSILON
from avdvae.enhancement.variational import FineTunedEncoder
from avdvae.enhancement.vem import NoisySpeech, Vem
from avdvae.errors import UserError, whole_numbers
from avdvae.nn.blocks import mlp, zero_init
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.spectrum import SpeechLikelihood
from avdvae.protocols import Batch, Inferred, LatentModel, Observed, Prior, is_speech_prior
from avdvae.signals.audio import BINS

FLOOR = 1e-4  # of powers, before their logarithm
LEAST_GAIN = 0.03  # by which powers are divided: a fainter frame has no speech to infer
FEW = Rounds(2, updates=2, thinned=16)
SOME = Rounds(18, updates=5)  # where another E-step goes on


class LearnedPosterior(nn.Module):
    """q(z | x, V) for a model of speech. A file of its weights holds what training has changed; the rest is the
    model's."""

    observes: Observed = "power"

    def __init__(
        self,
        prior: nn.Module | None = None,
        width: int = 128,  # of trunk and heads
        bins: int = BINS,
        tune: bool = True,  # the encoder, too; otherwise trunk and heads alone
        temper: float = Vem.temper,  # of the prior given the lips
    ):
        super().__init__()
        if prior is None or not is_speech_prior(prior) or "power" not in prior.sees:
            name = "nothing" if prior is None else type(prior).__name__
            raise UserError(
                f"a learned E-step is for a model with an encoder of noisy speech, and was given {name}: give the run "
                "of one, as start=[vae-librispeech]"
            )
        self.sees: tuple[str, ...] = prior.sees
        self.tune, self.temper = tune, temper
        model: Any = prior
        self.model: Any = model.eval()
        self.tuned: Any = deepcopy(self.model)
        self.trunk = mlp([2 * bins, width, width], nn.ReLU)
        self.share_head = nn.Linear(width, bins)
        self.heads = nn.ModuleDict(
            {
                s.name: nn.Sequential(*mlp([width + 2 * s.dim, width], nn.ReLU), nn.Linear(width, 2 * s.dim))
                for s in prior.latents
            }
        )
        for last in (self.share_head, *(head[-1] for head in self.heads.values())):  # type: ignore[index]
            zero_init(last)
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> LearnedPosterior:
        """Never of the model."""
        self.model.requires_grad_(False)
        self.tuned.requires_grad_(requires_grad and self.tune)
        for part in (self.trunk, self.share_head, self.heads):
            part.requires_grad_(requires_grad)
        return self

    def start_from(self, prior: LatentModel) -> None:
        state = prior.state_dict()  # type: ignore[attr-defined]
        for model in (self.model, self.tuned):
            model.load_state_dict(state)

    def train(self, mode: bool = True) -> LearnedPosterior:
        """The model stays in evaluation mode, without dropout, but for recurrent layers: cuDNN gives gradients only in
        training mode."""
        super().train(mode)
        for model in (self.model, self.tuned):
            for layer in model.modules():
                layer.training = mode and isinstance(layer, nn.RNNBase)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        before = {f"tuned.{name}": tensor for name, tensor in self.model.state_dict().items()}
        own = {name: tensor for name, tensor in state.items() if not name.startswith("model.")}
        return {n: t for n, t in own.items() if n not in before or not torch.equal(t, before[n])}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        models = {f"{part}.{n}": t for part in ("model", "tuned") for n, t in self.model.state_dict().items()}
        return super().load_state_dict({**models, **state_dict}, strict, assign)

    def infer(self, noisy_BTF: Tensor, noise_BTF: Tensor, batch: Batch) -> Inferred:
        """The means and their distributions, of noisy speech with a gain of 1 and the other modalities of `batch`."""
        h_BTM = self.trunk(torch.cat([noisy_BTF, noise_BTF], -1).add_(FLOOR).log_().add_(4).div_(2.5))
        factor_BTF = (-self.share_head(h_BTM).clamp(min=-30)).exp()  # of V; an infinite one would have no gradient
        power_BTF = noisy_BTF.square() / torch.addcmul(noisy_BTF + EPSILON, factor_BTF, noise_BTF)
        encoded = self.tuned.infer(replace(batch, power=power_BTF), mode="mean")
        q = {name: self._moved(name, gaussian, h_BTM, batch.mask) for name, gaussian in encoded.q.items()}
        return replace(encoded, q=q, z={name: gaussian.mean[None] for name, gaussian in q.items()})

    def _moved(self, name: str, q: Gaussian, h_BTM: Tensor, mask_BT: Tensor) -> Gaussian:
        """The posterior of a latent with the correction of its head."""
        moments = [value.expand(1, *q.mean.shape[-3:])[0] for value in (q.mean, q.log_var)]
        if moments[0].shape[1] != h_BTM.shape[1]:  # a latent of the whole utterance
            h_BTM = (h_BTM * mask_BT[..., None]).sum(1, keepdim=True) / mask_BT.sum(1)[:, None, None]
        more = self.heads[name](torch.cat([h_BTM, *moments], -1))
        return Gaussian.floored(*(value + part for value, part in zip(moments, more.chunk(2, -1), strict=True)))

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        clean_BTF, mask_BT = batch.need("power", self), batch.mask
        true_BTF, noise_BTF = drawn_noise(clean_BTF)
        level_B11 = 10 ** (0.3 * torch.randn_like(clean_BTF[:, :1, :1]))
        noisy_BTF = in_noise(level_B11 * clean_BTF, true_BTF)
        q = self.infer(noisy_BTF, noise_BTF, batch).q
        z = {name: gaussian.sample() for name, gaussian in q.items()}
        filtered_BTF = noisy_BTF.square() / (noisy_BTF + noise_BTF)
        context = self.model.context(replace(batch, power=filtered_BTF)).tempered(self.temper)
        target = NoisySpeech(self.model, context, noisy_BTF, noise_BTF, torch.ones_like(noisy_BTF[..., :1]))
        recon_BT = target.likelihood(z).log_potential(noisy_BTF).mean(0)
        log_prior_BT = self.model.log_prior(z, context).mean(0)
        entropy_B = sum((_entropy(g, mask_BT) for g in q.values()), torch.zeros_like(recon_BT[:, 0]))
        return Elbo(
            recon={"power": (recon_BT * mask_BT).sum(1)},
            kl={"latents": -(log_prior_BT * mask_BT).sum(1) - entropy_B},
            n=mask_BT.sum(1).float(),
        )


def _entropy(q: Gaussian, mask_BT: Tensor) -> Float[Tensor, " B"]:
    half_BT = (q.log_var + math.log(2 * math.pi * math.e)).sum(-1) / 2
    return (half_BT * mask_BT if half_BT.shape == mask_BT.shape else half_BT).sum(1)


def in_noise(power_BTF: Tensor, noise_BTF: Tensor) -> Float[Tensor, "B T F"]:
    """The power of speech of this power and a random phase, with Gaussian noise."""
    real_BTF, imaginary_BTF = (torch.randn_like(noise_BTF) * (noise_BTF / 2).sqrt() for _ in range(2))
    return (power_BTF.sqrt() + real_BTF).square() + imaginary_BTF.square()


def drawn_noise(like_BTF: Tensor, ranks: int = 8, waves: int = 12) -> tuple[Tensor, Tensor]:
    """V of drawn noise, and of an estimate of it."""
    B, T, F = like_BTF.shape
    on: dict[str, Any] = {"device": like_BTF.device}
    # Spectra: smooth on a scale of frequency that is finer below, with sharper detail
    place_F = torch.log1p(torch.linspace(0, 40, F, **on)) / math.log(41)
    order_Q = torch.arange(1, waves + 1, **on)
    wave_QF = torch.cos(math.pi * order_Q[:, None] * place_F)
    weight_BKQ = 6 * torch.rand(B, ranks, 1, **on) * torch.randn(B, ranks, waves, **on) / order_Q
    detail_BKF = 0.5 * torch.rand(B, ranks, 1, **on) * torch.randn(B, ranks, F, **on)
    W_BKF = (weight_BKQ @ wave_QF + detail_BKF).exp()
    W_BKF = W_BKF / W_BKF.mean(-1, keepdim=True)
    # Activations: H_t / H_t-1 is a gamma variable under the prior of noise.py
    some_BK1 = torch.arange(ranks, **on)[None, :, None] < torch.randint(1, ranks + 1, (B, 1, 1), **on)
    smoothness_BK1 = 10 ** (1 + 2 * torch.rand(B, ranks, 1, **on))
    rise_BKT = torch.distributions.Gamma((smoothness_BK1 + 1).expand(-1, -1, T), smoothness_BK1).sample()
    H_BKT = (rise_BKT.log().cumsum(-1) + 1.5 * torch.randn(B, ranks, 1, **on)).exp() * some_BK1
    true_BTF = H_BKT.mT @ W_BKF
    true_BTF = true_BTF / true_BTF.mean((1, 2), keepdim=True)
    true_BTF = true_BTF * 10 ** (3 * torch.rand(B, 1, 1, **on) - 1.5) * like_BTF.mean()
    # Estimate: between V and its mean over time, off by a smooth factor
    share_B11 = torch.rand(B, 1, 1, **on) * (torch.rand(B, 1, 1, **on) < 0.5)
    off_B1F = (torch.randn(B, 1, waves, **on) / order_Q) @ wave_QF + 0.7 * torch.randn(B, 1, 1, **on)
    off_B1F = 0.7 * torch.rand(B, 1, 1, **on) * off_B1F
    noise_BTF = true_BTF * (true_BTF.mean(1, keepdim=True) / true_BTF) ** share_B11 * off_B1F.exp()
    return true_BTF + EPSILON, noise_BTF + EPSILON


class _State(NamedTuple):
    model: Prior
    batch: Batch
    steps: int = 0
    then: Any = None  # the state of the E-step that goes on, once it has begun


@dataclass(frozen=True)
class Learned:
    """An encoder q(z | x, V), trained for a run by exp=learned_estep, in a few iterations.

    M-step and Wiener filter take its means, which serve better than some draws.

    then     an E-step that goes on from q, as free_gaussian, in some iterations more; None: the encoder to the end
    rounds   after which it does

    Of sound that arrives, new frames are encoded once before `then` goes on with them.
    """

    rounds: int = 3
    then: EStep | None = None
    network: LearnedPosterior | None = None  # from the folder of the run

    def __post_init__(self) -> None:
        whole_numbers("enhance.estep.", vars(self), rounds=1)
        if isinstance(self.then, Learned | FineTunedEncoder):
            raise UserError(
                "enhance.estep.then: another encoder does not begin from the posterior of this one: give "
                "+enhance.estep.then.name=free_gaussian, langevin, mala, metropolis_hastings or point"
            )

    @property
    def schedule(self) -> Rounds:
        return FEW if self.then is None else SOME

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _State:
        if self.network is None:
            raise UserError("enhance.estep.name=learned needs the run of a model: give run=, of one trained for it")
        if model.context(batch).sources > 1:
            raise UserError("enhance.estep.name=learned is for a single source: choose free_gaussian or langevin")
        self.network.to(batch.mask.device)
        return _State(model, batch)

    def step(self, target: Target, state: _State, random: RandomNumbers) -> tuple[_State, SpeechLikelihood]:
        if self.then is None or state.steps < self.rounds:
            return state._replace(steps=state.steps + 1), self._likelihood(target, state)
        inner = state.then
        if inner is None:
            inner = self.then.start(_Posterior(state.model, self._infer(target, state)), state.batch, random)
        inner, likelihood = self.then.step(target, inner, random)
        return state._replace(then=inner), likelihood

    def final(self, target: Target, state: _State, random: RandomNumbers) -> SpeechLikelihood:
        if self.then is None or state.then is None:
            return self._likelihood(target, state)
        return self.then.final(target, state.then, random)

    @property
    def cannot_move(self) -> str | None:
        return None if self.then is None or isinstance(self.then, MovingEStep) else type(self.then).__name__

    @property
    def each_move(self) -> int:
        return 1

    def entering(
        self, model: Prior, batch: Batch, target: Target, random: RandomNumbers
    ) -> Mapping[str, Sequence[Tensor]]:
        state = self.start(model, batch, random)
        if self.then is None:
            return {}
        assert isinstance(self.then, MovingEStep)
        return self.then.entering(_Posterior(model, self._infer(target, state)), batch, target, random)

    def saved(self, state: _State) -> Mapping[str, Sequence[Tensor]]:
        return self.then.saved(state.then) if isinstance(self.then, MovingEStep) else {}

    def restored(self, saved: Mapping[str, Sequence[Tensor]], model: Prior, batch: Batch) -> _State:
        then = self.then.restored(saved, model, batch) if isinstance(self.then, MovingEStep) else None
        return _State(model, batch, self.rounds, then)

    def _infer(self, target: Target, state: _State) -> Inferred:
        assert self.network is not None
        gain_BTJ = target.gain_BTJ.clamp_min(LEAST_GAIN)
        return self.network.infer(target.noisy_BTF / gain_BTJ, target.noise_BTF / gain_BTJ, state.batch)

    def _likelihood(self, target: Target, state: _State) -> SpeechLikelihood:
        inferred = self._infer(target, state)
        return target.likelihood(inferred.z).drawn(inferred.z, inferred.q)


class _Posterior:
    """A model whose posterior is known already, for an E-step that begins from it."""

    def __init__(self, model: Any, inferred: Inferred):
        self.context, self.decode, self.log_prior = model.context, model.decode, model.log_prior
        self.sees, self.can_miss, self.inferred = model.sees, model.can_miss, inferred

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        return self.inferred
