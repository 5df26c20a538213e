"""The E-step `udiffse`: UDiffSE+, which reverses a diffusion and pulls the speech towards the mixture, by a weight.

B. Nortier, M. Sadeghi, R. Serizel, "Unsupervised speech enhancement with diffusion-based generative models", ICASSP
2024 (UDiffSE, arXiv 2309.10450); J.-E. Ayilo, M. Sadeghi, R. Serizel, X. Alameda-Pineda, "Diffusion-based unsupervised
audio-visual speech enhancement", 2024 (UDiffSE+, arXiv 2410.05301). An iteration of the EM is one step of the reversed
diffusion, v_i = sigma_i^2 c^2:

    corrector    s <- s + r^2 (D - s) + r sqrt(2 v_i) n
    predictor    s <- s + (1 - q) (D - s) + sqrt((1 - q) v_i) n      q = v_{i+1} / v_i; in the last step 0, without n
    likelihood   s <- s + lambda (1 - q) v_i grad ln Nc(x; sqrt(g) s, g v_i + V), in every so many steps

of which (D - s) / v_i is the score of the prior. M-step and, but for the last, the Wiener filter take |D|^2 as the
variance of speech: D is the estimate without noise, by Tweedie's formula.

What differs from the papers, so that the E-steps can be compared on the same terms: x = sqrt(g) s + b in the linear
STFT, in place of that of spectra whose amplitudes are compressed by a square root; a variance of noise for each
frequency, which falls with sigma in a geometric series, without a drift of s towards zero; s begins at the first
estimate of `denoising`, for the highest level would not cover the spectrum of loud noise in x; the noise model, its
start and M-step are those of all E-steps, an M-step in every step; the output is the Wiener filter of |s|^2, not s.

    s   reversed_KBTF      D   estimate_KBTF     x      mixture_BTF
    V   noise_BTF          g   gain_BTJ          c      scale_F, of the prior
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from avdvae.enhancement.contract import RandomNumbers, Target
from avdvae.enhancement.denoising import Annealing, complex_normal, likelihood
from avdvae.errors import UserError, whole_numbers
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Denoises, Prior


class Reversed(NamedTuple):
    prior: Denoises
    mixture_BTF: Tensor
    reversed_KBTF: Tensor
    number: int  # i - 1


@dataclass(frozen=True)
class UDiffSE(Annealing):
    """A reversed diffusion with steps towards the mixture, of a weight to be chosen: B. Nortier, M. Sadeghi, R.
    Serizel, "Unsupervised speech enhancement with diffusion-based generative models", ICASSP 2024 (arXiv 2309.10450).

    weight      lambda, of the step along the gradient of the likelihood
    every       it is taken in one of so many steps
    corrector   r, of the length of the corrector's step; 0: no corrector
    """

    weight: float = 1.0
    every: int = 2
    corrector: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_numbers("enhance.estep.", vars(self), every=1)
        for name in ("weight", "corrector"):
            if type(value := getattr(self, name)) not in (int, float) or not value >= 0:
                raise UserError(f"enhance.estep.{name}={value}: give 0 or more")

    def start(self, model: Prior, batch: Batch, random: RandomNumbers) -> Reversed:
        if not isinstance(model, Denoises):
            raise UserError(
                f"{type(model).__name__} has no score, which the E-steps udiffse and diffuseen take: give a run of "
                "exp=denoiser, flow or av_denoiser, or enhance.estep.name=denoising"
            )
        mixture_BTF = batch.need("spectrum", model)
        first_KBTF = self.first(model.scale_F, mixture_BTF, batch.need("power", model), random)
        return Reversed(model, mixture_BTF, first_KBTF, 0)

    def step(self, target: Target, state: Reversed, random: RandomNumbers) -> tuple[Reversed, ComplexGaussian]:
        prior, _, s_KBTF, number = state
        i = min(number, self.steps - 1)
        level, last = self.levels[i], i == self.steps - 1
        fall = 1.0 if last else 1 - (self.levels[i + 1] / level) ** 2  # 1 - q
        v_F = (level * prior.scale_F).square()

        if self.corrector:
            pull_KBTF = prior.denoise(s_KBTF, level, target.context).mean - s_KBTF
            noise_KBTF = (2 * v_F).sqrt() * complex_normal(s_KBTF, random)
            s_KBTF = s_KBTF + self.corrector**2 * pull_KBTF + self.corrector * noise_KBTF
        estimate_KBTF = prior.denoise(s_KBTF, level, target.context).mean
        s_KBTF = torch.lerp(s_KBTF, estimate_KBTF, fall)
        if not last:
            s_KBTF = s_KBTF + (fall * v_F).sqrt() * complex_normal(s_KBTF, random)
        if number % self.every == 0:
            slope_KBTF = self.slope(target, state._replace(reversed_KBTF=s_KBTF), estimate_KBTF, v_F)
            s_KBTF = s_KBTF + self.weight * fall * v_F * slope_KBTF
        later = state._replace(reversed_KBTF=s_KBTF, number=number + 1)
        return later, likelihood(self.power(estimate_KBTF, v_F), target)

    def final(self, target: Target, state: Reversed, random: RandomNumbers) -> ComplexGaussian:
        return likelihood(state.reversed_KBTF.abs().square(), target)

    def slope(self, target: Target, state: Reversed, estimate_KBTF: Tensor, v_F: Tensor) -> Complex[Tensor, "K B T F"]:
        """The gradient of ln p(x | s), where the noise of the diffusion has the variance v."""
        root_BT1 = target.gain_BTJ.sqrt()
        missing_KBTF = state.mixture_BTF - root_BT1 * state.reversed_KBTF
        return root_BT1 * missing_KBTF / (target.gain_BTJ * v_F + target.noise_BTF)

    def power(self, estimate_KBTF: Complex[Tensor, "K B T F"], v_F: Float[Tensor, " F"]) -> Float[Tensor, "K B T F"]:
        """The variance of speech, for the M-step."""
        return estimate_KBTF.abs().square()
