"""The E-step `denoising`: the spectrum of speech is drawn, by annealing, with a prior that denoises and the mixture.

    x = sqrt(g) s + b,  b ~ Nc(0, V)        s_i = s + sigma_i c n        sigma_1 > ... > sigma_I, a step an iteration

    D, r^2   = denoise(s_i, sigma_i)          of the prior alone: models/denoiser.py, or any VAE, below
    S        = |D|^2 + r^2                    so that s is about Nc(0, S), as a VAE has it
    m, rho^2 = sqrt(g) S x / X, S V / X       with the mixture, X = g S + V
    s_{i+1}  = m + sqrt(rho^2 + sigma_{i+1}^2 c^2) n

As B. Zhang et al., "Improving diffusion inverse problem solving with decoupled noise annealing", CVPR 2025 (DAPS), with
a Gaussian in closed form in place of Langevin dynamics: no weight of the likelihood is to be chosen. Combining Nc(D,
r^2) with the mixture, in place of Nc(0, S), relies on the phase of D, and is worse (docs/denoising.md). M-step and
Wiener filter take S as the variance of speech; the last filter, the mean of S over the later half of the steps.

A VAE denoises, too: z is drawn from its encoder, given the power of s_i after subtraction of the noise. Speech of
variance S', to which z decodes, has D = S' / (S' + v) s_i and r^2 = v S' / (S' + v) in noise of variance v = sigma^2
c^2.

    x         spectrum of the mixture        mixture_BTF          s_i        noisy_KBTF
    V, g      noise and gain                 noise_BTF, gain_BTJ  S          S_KBTF
    sigma_i   levels                         levels               c          scale_F, of the prior
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from avdvae.enhancement.contract import RandomNumbers, Rounds, Target, draws_of, with_latents
from avdvae.enhancement.noise import EPSILON, subtraction
from avdvae.errors import UserError, whole_numbers
from avdvae.probability.gaussian import VARIANCE_FLOOR
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Denoised, Denoises, LatentPrior, Prior


@dataclass(frozen=True)
class WienerDenoiser:
    """A VAE or dynamical VAE of power as a prior that denoises; `batch` has its other modalities."""

    model: LatentPrior
    batch: Batch
    random: RandomNumbers

    @cached_property
    def scale_F(self) -> Float[Tensor, "B 1 F"]:
        """The mean |s| of each utterance, by its first estimate."""
        amplitude_BTF = self.batch.need("power", self.model).sqrt()
        return amplitude_BTF.sum(1, keepdim=True) / self.batch.mask.sum(1)[:, None, None]

    def denoise(self, noisy_KBTF: Tensor, sigma: float, context: Context) -> Denoised:
        v_B1F = (sigma * self.scale_F).square()
        mean, variance = [], []
        for noisy_BTF in noisy_KBTF:
            power_BTF = noisy_BTF.abs().square()
            given = replace(self.batch, power=power_BTF * subtraction(power_BTF, v_B1F).square())
            q = self.model.infer(given, mode="mean").q
            S_BTF = self.model.decode(draws_of(q, 1, self.random), context)["power"].components(power_BTF).mean()
            gain_BTF = S_BTF / (S_BTF + v_B1F)
            mean.append(gain_BTF * noisy_BTF)
            variance.append(v_B1F * gain_BTF)
        return Denoised(torch.stack(mean), torch.stack(variance))


class _Annealed(NamedTuple):
    prior: Any  # Denoises
    mixture_BTF: Tensor
    noisy_KBTF: Tensor  # s_i
    number: int  # i - 1
    mean_KBTF: Tensor  # of S, in the later half of the steps


@dataclass(frozen=True)
class Annealing:
    """Levels of noise, one an iteration.

    steps      levels, in a geometric series
    chains     draws, over which the result is averaged
    highest    sigma_1, in means of |s|
    lowest     sigma_I
    """

    steps: int = 30
    chains: int = 1
    highest: float = 1.0
    lowest: float = 0.02

    def __post_init__(self) -> None:
        whole_numbers("enhance.estep.", vars(self), steps=1, chains=1)
        if not 0 < self.lowest < self.highest:
            raise UserError(
                f"enhance.estep.lowest={self.lowest}, highest={self.highest}: give levels above 0, the lower one first"
            )

    @property
    def schedule(self) -> Rounds:
        return Rounds(self.steps)

    @property
    def levels(self) -> list[float]:
        ratio = (self.lowest / self.highest) ** (1 / max(self.steps - 1, 1))
        return [self.highest * ratio**i for i in range(self.steps)]

    def first(
        self,
        scale_F: Tensor,
        mixture_BTF: Complex[Tensor, "B T F"],
        power_BTF: Float[Tensor, "B T F"],
        random: RandomNumbers,
    ) -> Complex[Tensor, "K B T F"]:
        """s_1, of a first estimate: `power` with the phase of the mixture."""
        noise_KBTF = complex_normal(mixture_BTF.expand(self.chains, -1, -1, -1), random)
        first_BTF = mixture_BTF * (power_BTF / (mixture_BTF.abs().square() + EPSILON)).sqrt()
        return first_BTF + self.levels[0] * scale_F * noise_KBTF


@dataclass(frozen=True)
class Denoising(Annealing):
    """The spectrum of speech is drawn by annealing, with a prior that denoises and the mixture.

    guidance   w: D + (w - 1) (D - D without lips); 1: none
    """

    guidance: float = 1.0

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> _Annealed:
        mixture_BTF = batch.need("spectrum", model)
        if model.context(batch).sources > 1:
            raise UserError("enhance.estep.name=denoising is for a single source: choose free_gaussian or langevin")
        prior = model if isinstance(model, Denoises) else WienerDenoiser(with_latents(model), batch, random)
        noisy_KBTF = self.first(prior.scale_F, mixture_BTF, batch.need("power", model), random)
        return _Annealed(prior, mixture_BTF, noisy_KBTF, 0, torch.zeros_like(noisy_KBTF.real))

    def step(self, target: Target, state: _Annealed, random: RandomNumbers) -> tuple[_Annealed, ComplexGaussian]:
        levels, i = self.levels, min(state.number, self.steps - 1)
        D, r2 = self._denoise(state, levels[i], target.context)
        S_KBTF = D.real.square() + D.imag.square() + r2
        now = likelihood(S_KBTF, target)
        share_KBTF = S_KBTF * now.precision
        mean_KBTF = target.gain_BTJ.sqrt() * share_KBTF * state.mixture_BTF
        v_F = (levels[min(i + 1, self.steps - 1)] * state.prior.scale_F).square()
        deviation_KBTF = (share_KBTF * target.noise_BTF + v_F).sqrt()
        weight = 1 / max(state.number + 1 - self.steps // 2, 1)
        later = state._replace(
            noisy_KBTF=mean_KBTF + deviation_KBTF * complex_normal(D, random),
            number=state.number + 1,
            mean_KBTF=torch.lerp(state.mean_KBTF, S_KBTF, weight),
        )
        return later, now

    def final(self, target: Target, state: _Annealed, random: RandomNumbers) -> ComplexGaussian:
        return likelihood(state.mean_KBTF, target)

    def fill(
        self,
        prior: Denoises,
        known_BTF: Complex[Tensor, "B T F"],
        hidden_T: Bool[Tensor, " T"],
        context: Context,
        random: RandomNumbers,
    ) -> Complex[Tensor, "B T F"]:
        """A spectrum whose hidden frames are drawn given the others; if all are hidden, a draw of the prior."""
        found_BTF = known_BTF.masked_fill(hidden_T[:, None], 0)
        for sigma in self.levels:
            noisy_1BTF = found_BTF + sigma * prior.scale_F * complex_normal(known_BTF[None], random)
            D, r2 = prior.denoise(noisy_1BTF, sigma, context)
            drawn_BTF = (D + r2.sqrt() * complex_normal(D, random))[0]
            found_BTF = torch.where(hidden_T[:, None], drawn_BTF, known_BTF)
        return found_BTF

    def _denoise(self, state: _Annealed, sigma: float, context: Context) -> Denoised:
        denoised = state.prior.denoise(state.noisy_KBTF, sigma, context)
        if self.guidance == 1 or context.video is None or not isinstance(state.prior, Denoises):
            return denoised
        alone = state.prior.denoise(state.noisy_KBTF, sigma, replace(context, video=None))
        return denoised._replace(mean=torch.lerp(alone.mean, denoised.mean, self.guidance))


DRAWING = Denoising(highest=10.0)  # from noise in which nothing of speech is left


def likelihood(S_KBTF: Float[Tensor, "K B T F"], target: Target) -> ComplexGaussian:
    """Of speech of variance S in the present noise."""
    return ComplexGaussian(S_KBTF.clamp_min(VARIANCE_FLOOR).log()).add_noise(target.gain_BTJ, target.noise_BTF)


def complex_normal(like: Complex[Tensor, "K B T F"], random: RandomNumbers) -> Complex[Tensor, "K B T F"]:
    """Nc(0, I)"""
    return torch.complex(random.normal(like.real), random.normal(like.real)) * 0.5**0.5
