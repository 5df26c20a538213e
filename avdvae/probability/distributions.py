"""Likelihoods and latent distributions, in float32 whatever the precision around them.

Variances are parameterised by their logarithm and floored here, once. Log-densities carry every constant.
Shapes: K draws, R weighted speech variances, M components, B utterances, T frames, F frequencies, L latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

VARIANCE_FLOOR = 1e-10  # far below the rounding noise of 16-bit samples
PRIOR_FRAMES = 0.1

Slopes = list[tuple[Tensor, Tensor]]  # what some number is made of, and its derivative in each


@dataclass(frozen=True)
class Gaussian:
    """Independent dimensions. `log_var` may broadcast against `mean`."""

    mean: Float[Tensor, "*draws L"]
    log_var: Float[Tensor, "*#draws #L"]

    @classmethod
    def floored(cls, mean: Tensor, log_var: Tensor) -> Gaussian:
        """From the outputs of a network."""
        return cls(mean.float(), log_var.float().clamp_min(math.log(VARIANCE_FLOOR)))

    @classmethod
    def standard(cls, *shape: int, like: Tensor) -> Gaussian:
        zeros = torch.zeros(shape, device=like.device)
        return cls(zeros, zeros)

    def sample(self, k: int = 1) -> Float[Tensor, "K *draws L"]:
        """Reparameterised draws."""
        return self.moved(torch.randn((k, *self.mean.shape), device=self.mean.device))

    def moved(self, noise: Float[Tensor, "*some L"]) -> Float[Tensor, "*some L"]:
        """What standard normal noise becomes."""
        return torch.addcmul(self.mean, noise, torch.exp(self.log_var / 2))

    def log_prob(self, z: Float[Tensor, "*draws L"]) -> Float[Tensor, "*_draws"]:
        """Summed over the last axis."""
        quadratic = (z - self.mean).square() * torch.exp(-self.log_var)
        return -0.5 * (quadratic + self.log_var + math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Gaussian) -> Float[Tensor, "*_draws"]:
        """KL(self || other), summed over the last axis."""
        return self.divergences(other).sum(-1)

    def divergences(self, other: Gaussian) -> Float[Tensor, "*_draws L"]:
        """KL(self || other) of each dimension."""
        ratio = self.log_var - other.log_var
        moved = (self.mean - other.mean).square() * torch.exp(-other.log_var)
        return 0.5 * (ratio.exp() + moved - 1 - ratio)

    def nearness(self, other: Gaussian) -> Slopes:
        """What -KL(self || other), summed over all but averaged over draws, is made of, and its slopes."""
        off = other.mean - self.mean
        share = 1 / off.shape[:-3].numel()
        pull = off * torch.exp(-other.log_var).mul_(share)
        widen = (1 - torch.exp(self.log_var - other.log_var)).mul_(share / 2)
        slopes = [(self.mean, pull), (self.log_var, widen)]
        if other.mean.requires_grad or other.log_var.requires_grad:
            slopes += [(other.mean, -pull), (other.log_var, off * pull / 2 - widen)]
        return [(value, slope.sum_to_size(value.shape)) for value, slope in slopes]

    def times(self, other: Gaussian) -> Gaussian:
        """The normalised product of the densities: precisions add up."""
        log_var = -torch.logaddexp(-self.log_var, -other.log_var)
        mean = self.mean * torch.exp(log_var - self.log_var) + other.mean * torch.exp(log_var - other.log_var)
        return Gaussian(mean, log_var)


class Components(NamedTuple):
    """What a likelihood averages over, in the light of the power observed.

    speech     R B T F   variances of speech, gain and noise aside
    precision  R B T F   the inverse of what they are with gain and noise
    weight     R B T 1   None: all alike
    switch               which component of a mixture made each frame; None: there is but one
    """

    speech: Float[Tensor, "R B T F"]
    precision: Float[Tensor, "R B T F"]
    weight: Float[Tensor, "R B T 1"] | None = None
    switch: Switch | None = None

    def mean(self) -> Float[Tensor, "B T F"]:
        return self.speech.mean(0) if self.weight is None else (self.weight * self.speech).sum(0)


@runtime_checkable
class SpeechLikelihood(Protocol):
    """What the EM stage asks of a model's likelihood of the power spectrum."""

    def log_prob(self, power: Tensor) -> Tensor:
        """What the latents are to make large, K B T."""
        ...

    def slopes(self, power: Tensor, weight: Tensor) -> Slopes:
        """What log_prob is made of, and the slopes of its sum over draws and frames, which count by their weight, B T:
        for those who can do without its value."""
        ...

    def add_noise(self, gain: Tensor, noise: Tensor) -> SpeechLikelihood: ...

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> SpeechLikelihood:
        """The same, where it is known of which distributions its latents were drawn."""
        ...

    def components(self, power: Tensor) -> Components: ...


@dataclass(frozen=True)
class ComplexGaussian:
    """Circular complex Gaussians of mean zero, one a time-frequency bin, told by the power |s|^2 alone.

    The variance is gain * (exp(log_var) + 1e-10) + noise, and without the two that of clean speech. Up to what depends
    on the data alone, -log_prob is the Itakura-Saito divergence from the power to the variance.
    """

    log_var: Float[Tensor, "*draws B T F"]
    gain: Float[Tensor, "B T 1"] | None = None
    noise: Float[Tensor, "B T F"] | None = None

    @property
    def speech(self) -> Float[Tensor, "*draws B T F"]:
        """The variance of speech, before the floor. It is worked out once, but without the lock of cached_property, at
        which torch.compile would stop."""
        if "_speech" not in self.__dict__:
            self.__dict__["_speech"] = self.log_var.float().exp()
        return self.__dict__["_speech"]

    @property
    def precision(self) -> Float[Tensor, "*draws B T F"]:
        """The inverse of the variance, worked out once, too; it has no slopes."""
        if "_precision" not in self.__dict__:
            self.__dict__["_precision"] = _variance(self.speech.detach(), self.gain, self.noise).reciprocal_()
        return self.__dict__["_precision"]

    @property
    def expected(self) -> Float[Tensor, "*draws B T F"]:
        """The mean of the power of clean speech."""
        return self.speech

    def add_noise(self, gain: Float[Tensor, "B T 1"], noise: Float[Tensor, "B T F"]) -> ComplexGaussian:
        """The likelihood of sqrt(gain) * speech + Gaussian noise of this variance."""
        return replace(self, gain=gain, noise=noise)

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> ComplexGaussian:
        return self

    def log_prob(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "*draws B T"]:
        """The density of the complex spectrum, summed over the frequencies."""
        log_prob = _LogProb.apply(self.log_var, self.speech.detach(), self.gain, self.noise, power)
        return log_prob - self.log_var.shape[-1] * math.log(math.pi)  # type: ignore[operator]

    @torch.no_grad()
    def slopes(self, power: Float[Tensor, "B T F"], weight: Float[Tensor, "B T"]) -> Slopes:
        scale_BT1 = weight[..., None] if self.gain is None else weight[..., None] * self.gain
        slope = (power * self.precision).sub_(1).mul_(self.speech).mul_(self.precision)
        return [(self.log_var, slope.mul_(scale_BT1))]

    def components(self, power: Float[Tensor, "B T F"]) -> Components:
        return Components(self.speech.flatten(end_dim=-4), self.precision.flatten(end_dim=-4))


def _variance(speech: Tensor, gain: Tensor | None, noise: Tensor | None) -> Tensor:
    if gain is None or noise is None:
        return speech + VARIANCE_FLOOR
    return torch.addcmul(noise, gain, speech).add_(gain, alpha=VARIANCE_FLOOR)


class _LogProb(torch.autograd.Function):
    """sum_f -ln v - P / v for v = g (s + 1e-10) + b, differentiable in log_var, of which s is the exponential.

    The derivative, g s / v * (P / v - 1), is written out because this is the innermost loop of training and of the EM
    stage: autograd would make three times as many passes over the spectra.
    """

    @staticmethod
    def forward(
        ctx: Any, log_var: Tensor, speech: Tensor, gain: Tensor | None, noise: Tensor | None, power: Tensor
    ) -> Tensor:
        variance = _variance(speech, gain, noise)
        ratio = power / variance
        total = ratio.sum(-1)
        if ctx.needs_input_grad[0]:  # in place throughout: new memory costs more than what is done with it
            ctx.save_for_backward(ratio.sub_(1).mul_(speech).div_(variance), gain)
        return -total.add_(variance.log_().sum(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, gain = ctx.saved_tensors
        scale = grads[0][..., None]
        return slope * (scale if gain is None else scale * gain), None, None, None, None


@dataclass(frozen=True)
class Joints:
    """Places of joints in space, in metres, each off by a distance that is as probable in every direction:

        p(x) = exp(-|x - m| / b) / (8 pi b^3)        b = 1 cm

    To make this large is to make the mean distance, MPJPE, small. In published code the reconstruction of a frame
    weighs as its MPJPE in mm, a b of J mm for J joints; this weighs J / 10 times as much, 3.2 at 32 joints, as if beta
    were 0.31 there. train.beta = J / 10 gives the published weighting: its slopes are J / 10 times the published ones,
    and Adam does not depend on a factor of all slopes.
    """

    expected: Float[Tensor, "*draws B T D"]
    SPREAD = 0.01

    def log_prob(self, pose: Float[Tensor, "B T D"]) -> Float[Tensor, "*draws B T"]:
        constant = pose.shape[-1] // 3 * math.log(8 * math.pi * self.SPREAD**3)
        return -self.distances(pose).sum(-1) / self.SPREAD - constant

    def distances(self, pose: Float[Tensor, "B T D"]) -> Float[Tensor, "*draws B T J"]:
        """Of each joint from its expected place."""
        return (pose - self.expected.float()).unflatten(-1, (-1, 3)).norm(dim=-1)


@dataclass(frozen=True)
class Picture:
    """Coloured pixels, each a Gaussian about its expected value, where 0 is black and 1 white, of deviation 0.1."""

    expected: Float[Tensor, "*draws B T H W 3"]
    SPREAD = 0.1

    def log_prob(self, face: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "*draws B T"]:
        off = (face / 255 - self.expected.float()).flatten(-3) / self.SPREAD
        return -0.5 * off.square().sum(-1) - off.shape[-1] * math.log(self.SPREAD * math.sqrt(2 * math.pi))


def likelihood_of(modality: str, output: Float[Tensor, "*draws B T D"]) -> ComplexGaussian | Joints:
    """From the output of a network."""
    return ComplexGaussian(output) if modality == "power" else Joints(output)


@dataclass(frozen=True)
class Switch:
    """Which of M components is on in a frame; its prior is learned as if each had been seen in PRIOR_FRAMES before.

    frames   r(m_t)            B T M
    pairs    r(m_{t-1}, m_t)   B T-1 M M, where the switch has a memory
    """

    frames: Float[Tensor, "B T M"]
    mask: Bool[Tensor, "B T"]
    pairs: Float[Tensor, "B T-1 M M"] | None = None

    def learned(self) -> Float[Tensor, "B S M"]:
        """pi, or lambda above the rows of tau, as the utterance itself suggests them."""
        if self.pairs is None:
            shares_BSM = (self.frames * self.mask[..., None]).sum(1, keepdim=True)
        else:
            moves_BMM = (self.pairs * self.mask[:, 1:, None, None]).sum(1)
            shares_BSM = torch.cat([self.frames[:, :1], moves_BMM], 1)
        shares_BSM = shares_BSM + PRIOR_FRAMES  # a component that had no share at all would never return
        return shares_BSM / shares_BSM.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Mixture:
    """Speech that one of M components makes, frame by frame, each from a latent of its own.

    A latent is to explain what its component, were it on, would have made: `log_prob` sums over the components, so that
    draws are from r(z_m | m). How well it did is its evidence, of which the switch is inferred:

        ln r(m_t) = ln pi_m + E[ln p(s_t | z_m) + ln p(z_m) - ln q(z_m)] + constant

    An E-step gives the density of its draws by `drawn`; without it, the posteriors are taken to be equally wide.
    """

    parts: tuple[ComplexGaussian, ...]  # of K draws each
    prior: Float[Tensor, "M K B T"]  # ln p(z_m)
    switch: Float[Tensor, "B S M"]  # pi
    mask: Bool[Tensor, "B T"]
    log_q: Float[Tensor, "M K B T"] | None = None

    def add_noise(self, gain: Float[Tensor, "B T 1"], noise: Float[Tensor, "B T F"]) -> Mixture:
        return replace(self, parts=tuple(part.add_noise(gain, noise) for part in self.parts))

    def drawn(self, z: Mapping[str, Tensor], q: Mapping[str, Gaussian]) -> Mixture:
        return replace(self, log_q=torch.stack([q[name].log_prob(value) for name, value in z.items()]))

    def log_prob(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "K B T"]:
        return torch.stack([part.log_prob(power) for part in self.parts]).sum(0)

    def slopes(self, power: Float[Tensor, "B T F"], weight: Float[Tensor, "B T"]) -> Slopes:
        return [pair for part in self.parts for pair in part.slopes(power, weight)]

    @property
    def expected(self) -> Float[Tensor, "K B T F"]:
        """The mean of the power of clean speech, where nothing was heard that would tell of the switch."""
        prior_BTM = self.infer(self.prior.new_zeros(*self.mask.shape, len(self.parts))).frames
        weights_MBT1 = prior_BTM.movedim(-1, 0)[..., None]
        return sum(
            (weight * part.expected for weight, part in zip(weights_MBT1, self.parts, strict=True)), 0 * weights_MBT1[0]
        )

    def components(self, power: Float[Tensor, "B T F"]) -> Components:
        evidence_MKBT = torch.stack([part.log_prob(power) for part in self.parts]) + self.prior
        if self.log_q is not None:
            evidence_MKBT = evidence_MKBT - self.log_q
        switch = self.infer(evidence_MKBT.mean(1).movedim(0, -1))
        each = [part.components(power) for part in self.parts]
        speech_RBTF = torch.cat([one.speech for one in each])
        precision_RBTF = torch.cat([one.precision for one in each])
        draws = len(speech_RBTF) // len(self.parts)
        weight_MBT = switch.frames.movedim(-1, 0) / draws
        weight_RBT1 = weight_MBT.repeat_interleave(draws, 0)[..., None]
        return Components(speech_RBTF, precision_RBTF, weight_RBT1, switch)

    def infer(self, evidence_BTM: Float[Tensor, "B T M"]) -> Switch:
        return Switch((evidence_BTM + self.switch.log()).softmax(-1), self.mask)


class MarkovMixture(Mixture):
    """A Mixture whose switch has a memory: the first row of `switch` is lambda, the other M those of tau."""

    def infer(self, evidence_BTM: Float[Tensor, "B T M"]) -> Switch:
        """Forward-backward, by products of matrices in a tree, for a loop over frames would take as long as the rest.

        With A_t[i, j] = tau[i, j] p(s_t | j), the two messages are rows of A_1 ... A_t and sums over A_{t+1} ... A_T.
        """
        start_B1M, tau_BMM = self.switch.log().split([1, self.switch.shape[-1]], 1)
        heard_BTM = evidence_BTM - evidence_BTM.amax(-1, keepdim=True)  # only ratios matter
        heard_BTM = heard_BTM * self.mask[..., None]  # frames that pad tell nothing
        steps_BTMM = tau_BMM[:, None] + heard_BTM[:, :, None]
        first_BMM = (start_B1M + heard_BTM[:, :1]).expand_as(tau_BMM)
        forth_BTM = _products(torch.cat([first_BMM[:, None], steps_BTMM[:, 1:]], 1))[:, :, 0]
        back_BTMM = _products(steps_BTMM[:, 1:].flip(1).mT).flip(1).mT  # A_{t+1} ... A_T
        back_BTM = torch.cat([back_BTMM.logsumexp(-1), torch.zeros_like(heard_BTM[:, :1])], 1)
        pairs = forth_BTM[:, :-1, :, None] + steps_BTMM[:, 1:] + back_BTM[:, 1:, None]
        return Switch((forth_BTM + back_BTM).softmax(-1), self.mask, pairs.flatten(2).softmax(-1).view_as(pairs))


def _products(log_BTMM: Float[Tensor, "B T M M"]) -> Float[Tensor, "B T M M"]:
    """ln (A_1 ... A_t) for every t, from ln A_t."""
    reach = 1
    while reach < log_BTMM.shape[1]:
        left, right = log_BTMM[:, :-reach, :, :, None], log_BTMM[:, reach:, None]
        log_BTMM = torch.cat([log_BTMM[:, :reach], (left + right).logsumexp(3)], 1)
        reach *= 2
    return log_BTMM
