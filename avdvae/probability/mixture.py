"""Mixtures of speech models: one component generates each frame, independently or by a Markov chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.probability.gaussian import Gaussian, Slopes
from avdvae.probability.spectrum import ComplexGaussian, Components, Switch


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
