"""Unsupervised speech enhancement: variational EM with a trained prior of speech and an NMF model of noise.

S. Leglaive, L. Girin, R. Horaud, MLSP 2018; M. Sadeghi et al., IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), section V.

    x_ft = sqrt(g_t) s_ft + b_ft        b_ft ~ Nc(0, (H W^T)_tf)        s, z ~ the model, given the lips v

of one source, the speech. With `Sources` (sources.py) as the model, there are several: sum_j sqrt(g_jt) s_jft.

E-step   draws of z from its posterior, or an approximation of it: markov_chains.py, variational.py
M-step   W, H, then g: noise.py
output   the Wiener filter sum_r w_r g S_r / X_r, with X_r = g S_r + H W^T: the posterior mean of the speech. Of a
         mixture, w_r holds the switch; VAE-MM and Sw-VAE average inverse variances in its place, 1 / gamma = sum pi / S

    P   noisy power |x|^2              noisy_BTF      S   variances of speech      speech_RBTF
    W   spectra of the noise           W_BFK          w   their weights            weight_RBT1
    H   their activations              H_BTK          g   gain of a frame          gain_BTJ
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.enhancement.contract import MANY, EStep, Gradient, RandomNumbers, Rounds, Scheduled, backpropagated
from avdvae.enhancement.noise import Noise, StationaryNoise
from avdvae.errors import UserError, whole_numbers
from avdvae.probability.spectrum import SpeechLikelihood
from avdvae.protocols import Batch, Context, Latents, Prior

WIDE = 0.2  # exponent of a prior given the lips, at the start


@dataclass(frozen=True)
class Vem:
    """The settings of an enhancement. The EM converges to a local optimum, which depends on its start.

    iterations  None: 100, or those that the E-step needs
    updates     of the noise and the gains in an M-step; None: 1, or as many as the E-step needs
    thinned     updates before these, on every fourth frame; None: 0, or as many as the E-step needs
    smoothness  weight of the prior under which noise changes slowly; 0: none
    temper      exponent of a prior given the lips: below 1 it is wider, above 1 narrower. It begins at 0.2 or less and
                rises from 10 to 30 % of the iterations, for the EM does not leave a narrow prior's poor optimum
    paper       as published: the noise starts at random, the encoder gets the mixture, smoothness and temper are off.
                Otherwise the noise starts at the spectrum of the quieter frames, and the encoder gets the mixture after
                spectral subtraction; from a random start, speech and noise may be exchanged
    begin_from  modalities from which the first latents are inferred, for models that can miss some. None: a model that
                can miss the lips runs twice, with and without them, and each utterance keeps the result with the better
                bound, because latents inferred from an unseen face may be far off; other models get all modalities
    """

    estep: EStep
    iterations: int | None = None
    updates: int | None = None
    thinned: int | None = None
    rank: int = 8
    smoothness: float = 200.0
    temper: float = 0.2
    paper: bool = False
    begin_from: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.begin_from or ()) - set(Batch.MODALITIES):
            raise UserError(
                f"enhance.begin_from: no modality is called {', '.join(sorted(unknown))}: choose from "
                f"{', '.join(Batch.MODALITIES)}"
            )
        given = {name: value for name, value in vars(self).items() if value is not None}
        least = {name: low for name, low in Rounds(1, 1, 0)._asdict().items() if name in given}
        whole_numbers("enhance.", given, **least, rank=1)
        if type(self.smoothness) not in (int, float) or not self.smoothness >= 0:
            raise UserError(f"enhance.smoothness={self.smoothness}: give 0 or more")
        if type(self.temper) not in (int, float) or not 0 < self.temper < math.inf:
            raise UserError(f"enhance.temper={self.temper}: give a number above 0")

    @property
    def schedule(self) -> Rounds:
        given = {name: getattr(self, name) for name in Rounds._fields if getattr(self, name) is not None}
        return (self.estep.schedule if isinstance(self.estep, Scheduled) else MANY)._replace(**given)

    def exponent(self, done: float) -> float:
        """Of the prior given the lips, in iterations up to this share of all."""
        rise = min(max((done - 0.1) / 0.2, 0), 1)
        first = min(WIDE, self.temper)
        return first * (self.temper / first) ** rise


@dataclass(frozen=True)
class Enhanced:
    """filters  J B T F   the Wiener filter of each source, in 0..1
    cost        I B       before each M-step; an utterance's mean over its frames and frequencies
    switch      B T C     of mixtures of models: posterior probability of each component"""

    filters: Float[Tensor, "J B T F"]
    cost: Float[Tensor, "I B"]
    switch: Float[Tensor, "B T C"] | None = None

    @property
    def filter(self) -> Float[Tensor, "B T F"]:
        """Of the first source, in enhancement the only one."""
        return self.filters[0]

    def better(self, other: Enhanced) -> Enhanced:
        """For each utterance, the result with the lower final cost."""
        lower_B = other.cost[-1] < self.cost[-1]

        def chosen(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(lower_B[:, None, None], others, own)

        switch = None if self.switch is None or other.switch is None else chosen(self.switch, other.switch)
        return Enhanced(chosen(self.filters, other.filters), torch.where(lower_B, other.cost, self.cost), switch)


@dataclass(frozen=True)
class NoisySpeech:
    """ln p(x, z | v) = ln p(x | z, v) + ln p(z | v) for a given noise: the target of an E-step."""

    model: Any  # a LatentPrior where the likelihood is asked for
    context: Context
    noisy_BTF: Float[Tensor, "B T F"]
    noise_BTF: Float[Tensor, "B T F"]
    gain_BTJ: Float[Tensor, "B T J"]

    def likelihood(self, z: Latents) -> SpeechLikelihood:
        return self.model.decode(z, self.context)["power"].add_noise(self.gain_BTJ, self.noise_BTF)

    def log_joint(self, z: Latents) -> Float[Tensor, "K B T"]:
        return self.likelihood(z).log_potential(self.noisy_BTF) + self.model.log_prior(z, self.context)

    def gradient(self, z: Latents) -> Gradient:
        with torch.enable_grad():
            z = {name: value.detach().requires_grad_() for name, value in z.items()}
            likelihood, log_prior = self.likelihood(z), self.model.log_prior(z, self.context)
        present_BT = self.context.mask.float()
        slopes = [*likelihood.slopes(self.noisy_BTF, present_BT), (log_prior, present_BT.expand_as(log_prior))]
        gradients = dict(zip(z, backpropagated(slopes, list(z.values())), strict=True))
        return Gradient(gradients, likelihood, log_prior.detach())


@torch.no_grad()
def enhance(
    model: Prior,
    batch: Batch,
    settings: Vem,
    progress: Callable[[float], None] = lambda share: None,
    stationary: StationaryNoise | None = None,
) -> Enhanced:
    """Separate the speech in `batch.noisy` from its noise. The result for an utterance does not depend on its batch.

    `progress` is called after each iteration with its share of the work; `stationary` is estimated if it is not given.
    """
    noisy_BTF = batch.need("noisy", model).contiguous()  # an STFT leaves frequencies far apart in memory
    given, level_B1F = replace(batch, power=noisy_BTF), None
    if not settings.paper:
        level_B1F, filter_BTF = stationary or StationaryNoise.of(noisy_BTF, batch.mask)
        given = replace(batch, power=noisy_BTF * filter_BTF.square())
    context = model.context(given)
    starts = [tuple(settings.begin_from or ())]
    if settings.begin_from is None and "lips" in batch.present and "lips" in model.can_miss:
        starts += [("power",)]
    share = 1 / (len(starts) * settings.schedule.iterations)
    ends = []
    for modalities in starts:
        chosen = [name for name in modalities if name in given.present]
        start = given.only(*chosen) if chosen else given
        ends.append(_run(model, start, noisy_BTF, level_B1F, context, settings, lambda: progress(share)))
    return reduce(Enhanced.better, ends)


def _run(
    model: Prior,
    start: Batch,
    noisy_BTF: Float[Tensor, "B T F"],
    level_B1F: Float[Tensor, "B 1 F"] | None,
    context: Context,
    settings: Vem,
    progress: Callable[[], None],
) -> Enhanced:
    """The EM from latents inferred from `start`."""
    frames = start.mask.sum(1)
    random = RandomNumbers.seeded(start.ids, frames.tolist(), settings.seed)
    smoothness = 0.0 if settings.paper else settings.smoothness
    noise = Noise.drawn(noisy_BTF, settings.rank, random, smoothness, context.sources)
    if level_B1F is not None:
        noise = noise.at_level(level_B1F)

    target = NoisySpeech(model, context, noisy_BTF, noise.variance_BTF, noise.gain_BTJ)
    costs, rounds = [], settings.schedule
    with recurrent_layers_training(model):
        state = settings.estep.start(model, start, random)
        for number in range(1, rounds.iterations + 1):
            if not settings.paper:
                target = replace(target, context=target.context.tempered(settings.exponent(number / rounds.iterations)))
            target, state, cost_BT = iterate(settings.estep, target, noise, state, random, rounds)
            costs.append(cost_BT)
            progress()
        likely = settings.estep.final(target, state, random).components(noisy_BTF)

    cost_IB = (torch.stack(costs) * start.mask).sum(2) / (frames * noisy_BTF.shape[2])
    filters_JBTF = torch.stack([noise.wiener(likely, source) for source in range(context.sources)])
    return Enhanced(filters_JBTF, cost_IB, likely.switch and likely.switch.frames)


def iterate(
    estep: EStep, target: NoisySpeech, noise: Noise, state: Any, random: RandomNumbers, rounds: Rounds
) -> tuple[NoisySpeech, Any, Float[Tensor, "B T"]]:
    """An E-step and an M-step, which changes `noise`: the next target, the state of the E-step, and the cost before."""
    state, likelihood = estep.step(target, state, random)
    likely, context = likelihood.components(target.noisy_BTF), target.context
    if likely.switch and context.learns:
        context = replace(context, switch=likely.switch.learned())
    cost_BT = noise.update(target.noisy_BTF, likely, rounds.updates, rounds.thinned)
    context = context.fed_back(partial(noise.power, likely, target.noisy_BTF))
    target = replace(target, context=context, noise_BTF=noise.variance_BTF, gain_BTJ=noise.gain_BTJ)
    return target, state, cost_BT


@contextmanager
def recurrent_layers_training(model: object) -> Iterator[None]:
    """cuDNN gives gradients only in training mode, which without dropout changes nothing else."""
    layers = [m for m in (model.modules() if isinstance(model, nn.Module) else ()) if isinstance(m, nn.RNNBase)]
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
