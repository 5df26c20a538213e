"""Unsupervised speech enhancement: variational EM with a trained prior of speech and an NMF model of noise.

S. Leglaive, L. Girin, R. Horaud, MLSP 2018; M. Sadeghi et al., IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), section V.

    x_ft = sqrt(g_t) s_ft + b_ft        b_ft ~ Nc(0, (H W^T)_tf)        s, z ~ the model, given the lips v

E-step   draws of z from its posterior, or an approximation of it: inference/esteps.py
M-step   W, H, then g, by majorise-minimise: with V = H W^T, S_r the speech variances of the draws, weighted by w_r,
         and X_r = g S_r + V, each factor is multiplied by the square root of
         (sum_r w_r P / X_r^2) / (sum_r w_r / X_r), contracted with what the factor multiplies
cost     mean over frames and frequencies of sum_r w_r (ln X_r + P / X_r), which no M-step raises
output   the Wiener filter sum_r w_r g S_r / X_r

    P   noisy power |x|^2              noisy_BTF      S   variances of speech      speech_RBTF
    W   spectra of the noise           W_BFK          w   their weights            weight_RBT1
    H   their activations              H_BTK          g   gain of a frame          gain_BT1
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.distributions import SpeechLikelihood
from avdvae.errors import UserError
from avdvae.inference.esteps import Draws, EStep
from avdvae.protocols import Batch, Context, Latents, SpeechPrior

EPSILON = 1e-10


@dataclass(frozen=True)
class Vem:
    """The settings of an enhancement.

    The EM finds the optimum nearest to its start. Here the noise starts at the spectrum that the quieter frames have,
    and the latents at what the encoder makes of the rest; with `paper`, the noise starts anywhere and the encoder hears
    the mixture, as published, which may end with speech and noise in each other's place. Models that can do with some
    of the modalities may begin from those of `begin_from` alone, where they are given: noise does not mislead the lips.
    """

    estep: EStep
    iterations: int = 100
    rank: int = 8
    paper: bool = False
    begin_from: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.begin_from or ()) - set(Batch.MODALITIES):
            raise UserError(
                f"enhance.begin_from: no modality is called {', '.join(sorted(unknown))}: choose from "
                f"{', '.join(Batch.MODALITIES)}"
            )
        for name in ("iterations", "rank"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise UserError(f"enhance.{name}={value}: give a whole number of 1 or more")


@dataclass(frozen=True)
class Enhanced:
    """filter  B T F   what the noisy spectrum is multiplied with, in 0..1
    cost       I B     after each iteration; an utterance's mean over its frames and frequencies
    switch     B T M   of mixtures: how probably each component made the frame"""

    filter: Float[Tensor, "B T F"]
    cost: Float[Tensor, "I B"]
    switch: Float[Tensor, "B T M"] | None = None


@dataclass
class Noise:
    """Gain and noise of a mixture, and their updates."""

    W_BFK: Float[Tensor, "B F K"]
    H_BTK: Float[Tensor, "B T K"]
    gain_BT1: Float[Tensor, "B T 1"]

    @classmethod
    def drawn(cls, noisy_BTF: Tensor, rank: int, draws: Draws) -> Noise:
        """W and H uniform in 0..1, g = 1."""
        frequencies = noisy_BTF.shape[2]
        W = [torch.rand((frequencies, rank), generator=g, device=g.device) for g in draws.generators]
        H_BTK = draws.uniform(noisy_BTF[..., :1].expand(-1, -1, rank))  # 0 in frames that pad
        gain_BT1 = torch.ones_like(noisy_BTF[..., :1])
        return cls(torch.stack(W).to(noisy_BTF.device).clamp_min(EPSILON), H_BTK, gain_BT1)

    def __post_init__(self) -> None:
        self._mix()

    def _mix(self) -> None:
        self.variance_BTF = (self.H_BTK @ self.W_BFK.mT).add_(EPSILON)  # so that digital silence divides nothing by 0

    def update(self, noisy_BTF: Tensor, speech_RBTF: Tensor, weight_RBT1: Tensor | None) -> None:
        """One M-step. Where H is zero, as in frames that pad, it stays so and the frame has no say in W."""
        above, below = self._slopes(noisy_BTF, speech_RBTF, weight_RBT1)
        self.W_BFK = _scaled(self.W_BFK, above.mT @ self.H_BTK, below.mT @ self.H_BTK).clamp_min_(EPSILON)
        self._mix()
        above, below = self._slopes(noisy_BTF, speech_RBTF, weight_RBT1)
        self.H_BTK = _scaled(self.H_BTK, above @ self.W_BFK, below @ self.W_BFK)
        self._mix()
        variance_RBTF = self.mixture(speech_RBTF)
        share_RBTF = speech_RBTF / variance_RBTF
        below = _average(share_RBTF.sum(-1, keepdim=True), weight_RBT1)
        above = _average(share_RBTF.div_(variance_RBTF).mul_(noisy_BTF).sum(-1, keepdim=True), weight_RBT1)
        self.gain_BT1 = _scaled(self.gain_BT1, above, below).clamp_min_(EPSILON)

    def _slopes(self, noisy_BTF: Tensor, speech_RBTF: Tensor, weight_RBT1: Tensor | None) -> tuple[Tensor, Tensor]:
        """sum_r w_r P / X_r^2 and sum_r w_r / X_r, whose difference is the slope of -cost in V."""
        precision_RBTF = self.mixture(speech_RBTF).reciprocal_()
        below = _average(precision_RBTF, weight_RBT1)
        return _average(precision_RBTF.square(), weight_RBT1).mul_(noisy_BTF), below

    def mixture(self, speech_RBTF: Tensor) -> Float[Tensor, "R B T F"]:
        """X, the variances of the mixture."""
        return torch.addcmul(self.variance_BTF, self.gain_BT1, speech_RBTF)

    def cost(self, noisy_BTF: Tensor, speech_RBTF: Tensor, weight_RBT1: Tensor | None) -> Float[Tensor, "B T"]:
        """Summed over the frequencies."""
        variance_RBTF = self.mixture(speech_RBTF)
        ratio_RBTF = noisy_BTF / variance_RBTF
        return _average(ratio_RBTF.add_(variance_RBTF.log_()).sum(-1, keepdim=True), weight_RBT1)[..., 0]


def _average(values: Float[Tensor, "R B T D"], weight_RBT1: Tensor | None) -> Float[Tensor, "B T D"]:
    if weight_RBT1 is not None:
        return (weight_RBT1 * values).sum(0)
    return values[0] if len(values) == 1 else values.mean(0)


def _scaled(factor: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return factor * (above / below.clamp_min(EPSILON)).sqrt_()


@dataclass(frozen=True)
class NoisySpeech:
    """ln p(x, z | v) = ln p(x | z, v) + ln p(z | v) for a given noise: what an E-step sees."""

    model: SpeechPrior
    context: Context
    noisy_BTF: Float[Tensor, "B T F"]
    noise_BTF: Float[Tensor, "B T F"]
    gain_BT1: Float[Tensor, "B T 1"]

    def likelihood(self, z: Latents) -> SpeechLikelihood:
        return self.model.decode(z, self.context)["power"].add_noise(self.gain_BT1, self.noise_BTF)

    def log_joint(self, z: Latents) -> Float[Tensor, "K B T"]:
        return self.likelihood(z).log_prob(self.noisy_BTF) + self.model.log_prior(z, self.context)

    def gradient(self, z: Latents) -> tuple[dict[str, Tensor], SpeechLikelihood]:
        with torch.enable_grad():
            z = {name: value.detach().requires_grad_() for name, value in z.items()}
            likelihood = self.likelihood(z)
            log_joint = likelihood.log_prob(self.noisy_BTF) + self.model.log_prior(z, self.context)
            total = (log_joint * self.context.mask).sum()
            return dict(zip(z, torch.autograd.grad(total, list(z.values())), strict=True)), likelihood


@torch.no_grad()
def enhance(
    model: SpeechPrior, batch: Batch, settings: Vem, progress: Callable[[int], None] = lambda iteration: None
) -> Enhanced:
    """Separate the speech of `batch.noisy` from its noise. An utterance gets the same alone as in any batch."""
    noisy_BTF = batch.need("noisy", model).contiguous()  # as an STFT leaves it, frequencies lie far apart
    frames = batch.mask.sum(1)
    draws = Draws([_generator(name, settings.seed) for name in batch.ids], frames.tolist())
    heard = replace(batch, power=noisy_BTF)
    context = model.context(heard)
    noise = Noise.drawn(noisy_BTF, settings.rank, draws)
    if not settings.paper:
        level_B1F, filter_BTF = subtraction(noisy_BTF, batch.mask)
        noise = replace(noise, W_BFK=noise.W_BFK * level_B1F.mT * (4 / settings.rank))  # V is this level on average
        heard = replace(batch, power=noisy_BTF * filter_BTF.square())
    begin = [name for name in settings.begin_from or () if getattr(heard, name) is not None]
    if isinstance(model, nn.Module):
        for layer in model.modules():
            if isinstance(layer, nn.RNNBase):
                layer.train()  # cuDNN gives gradients in no other mode; without dropout it is the same
    state = settings.estep.start(model, heard.only(*begin) if begin else heard, draws)

    def target() -> NoisySpeech:
        return NoisySpeech(model, context, noisy_BTF, noise.variance_BTF, noise.gain_BT1)

    costs = []
    for iteration in range(settings.iterations):
        state, likelihood = settings.estep.step(target(), state, draws)
        speech_RBTF, weight_RBT1, switch = likelihood.components(noisy_BTF)
        if switch and context.learns:
            context = replace(context, switch=switch.learned())
        noise.update(noisy_BTF, speech_RBTF, weight_RBT1)
        if context.past is not None:  # what passes for the speech by now
            past_BTF = _wiener(noise, speech_RBTF, weight_RBT1).square().mul_(noisy_BTF)
            context = replace(context, past=past_BTF)
        cost_BT = noise.cost(noisy_BTF, speech_RBTF, weight_RBT1) * batch.mask
        costs.append(cost_BT.sum(1) / (frames * noisy_BTF.shape[2]))
        progress(iteration)

    speech_RBTF, weight_RBT1, switch = settings.estep.final(target(), state, draws).components(noisy_BTF)
    return Enhanced(_wiener(noise, speech_RBTF, weight_RBT1), torch.stack(costs), switch and switch.frames)


def _wiener(noise: Noise, speech_RBTF: Tensor, weight_RBT1: Tensor | None) -> Float[Tensor, "B T F"]:
    return _average(noise.gain_BT1 * speech_RBTF / noise.mixture(speech_RBTF), weight_RBT1)


def subtraction(noisy_BTF: Tensor, mask_BT: Tensor) -> tuple[Float[Tensor, "B 1 F"], Float[Tensor, "B T F"]]:
    """A stationary noise, of the mean power that goes with the median power of each frequency, and the filter that
    takes twice as much off the spectrum."""
    present_BTF = noisy_BTF.masked_fill(~mask_BT[..., None], float("nan"))
    level_B1F = (present_BTF.nanmedian(1, keepdim=True).values / math.log(2)).clamp_min(EPSILON)
    return level_B1F, (1 - 2 * level_B1F / noisy_BTF.clamp_min(EPSILON)).clamp_min(0.01)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
