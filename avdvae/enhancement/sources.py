"""The sources of a mixture, each with a trained model of its own as its prior.

Two models of the mixture:

sum           x_ft = sum_j sqrt(g_jt) s_jft + b_ft, with noise b. `Sources` stands for all priors in the EM of vem.py:
              their latents in one dictionary, their likelihoods added up. The E-step explores the posterior of all
              latents given x; the M-step has a gain for each source. With one source it is enhancement.

assignment    every bin belongs to one source, w_ft = j with probability 1 / J, and x_ft = s_jft + noise of the fixed
              variance v_ft = 0.03 |x_ft|^2: X. Lin, S. Leglaive, L. Girin, X. Alameda-Pineda, "Mixture of dynamical
              variational autoencoders for multi-source trajectory modeling and separation", TMLR 2023 (arXiv
              2312.04167). `assign`:

    E-Z    z_j = the mean of q(z_j | s_j), by the encoder of the prior of j
    E-S    sigma_j = the variances that the decoder gives; frame after frame where the prior is autoregressive
           V_j = (eta_j / v + 1 / sigma_j)^-1        m_j = V_j eta_j x / v
           s_j = a draw of Nc(m_j, V_j), whose power the encoder and the next frame get
    E-W    eta_j = the softmax over sources of -(|x - m_j|^2 + V_j) / v, each exponential above 1e-10
    M      rho = the mean over bins of sum_j eta_j (|x - m_j|^2 + V_j) / |x|^2, at least 0.001; v = rho |x|^2
    output m_j

    There is an M step if it is asked for, and fine-tuning, which trains a copy of each prior on s_j by a step of Adam.

    At its fixed points eta is 0 or 1 unless the variances of all sources are equal: it is a binary mask, and the
    estimates do not add up to the mixture. E-S leaves out what later frames imply: it is no exact coordinate ascent.

    |x|^2   power of the mixture     noisy_BTF        sigma   variances of a source      sigma_BTF
    eta     probability of w = j     eta_JBTF         m / x   its filter                 filter_BTF
    v       variance of the noise    noise_BTF        V       its variance given x       variance_BTF
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avdvae.enhancement.contract import RandomNumbers, first_latents
from avdvae.enhancement.noise import EPSILON
from avdvae.enhancement.vem import Enhanced, recurrent_layers_training
from avdvae.errors import UserError, whole_numbers
from avdvae.probability.objectives import Schedule
from avdvae.probability.spectrum import SourceSum
from avdvae.protocols import Autoregressive, Batch, Context, Inferred, Latents, MixtureModel

MIXING = ("sum", "assignment")
LEAST_NOISE = 1e-3  # as a share of the power of a bin, if it is learned
UNLIKELY = 1e-10  # added to the likelihood of each source of a bin, as published


@dataclass(frozen=True)
class Contexts(Context):
    """Those of all sources; of its own fields, the mask applies."""

    parts: tuple[Context, ...] = ()

    @property
    def sources(self) -> int:
        return len(self.parts)

    def tempered(self, exponent: float) -> Contexts:
        return replace(self, parts=tuple(part.tempered(exponent) for part in self.parts))

    def fed_back(self, power: Callable[[int], Float[Tensor, "B T F"]]) -> Contexts:
        parts = [part.fed_back(lambda _, j=j: power(j)) for j, part in enumerate(self.parts)]
        return replace(self, parts=tuple(parts))


class Sources(nn.Module):
    """The priors of several sources as one, for the EM. A latent has the number of its source before its name.

    A batch has the pictures of each source (see Batch); priors that take none get none.
    """

    def __init__(self, priors: Sequence[Any]):
        super().__init__()
        if mixtures := [type(prior).__name__ for prior in priors if isinstance(prior, MixtureModel)]:
            raise UserError(
                f"{mixtures[0]} is a mixture of models, whose components cannot be weighed within a sum of sources: "
                "choose a run of another model, such as exp=vae, cvae, av_rvae or srnn_gm"
            )
        self.priors = nn.ModuleList(priors)
        self.sees = tuple(dict.fromkeys(name for prior in priors for name in prior.sees))
        self.can_miss = tuple(
            name for name in self.sees if all(name in prior.can_miss for prior in priors if name in prior.sees)
        )

    def context(self, batch: Batch) -> Contexts:
        return Contexts(batch.mask, parts=tuple(p.context(self.given(j, batch)) for j, p in enumerate(self._priors)))

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        """Those of each source given its power, as expected from the mixture and the means of the priors: by lips, the
        sources differ from the start. Given the power of the mixture, all would begin alike, and stay so."""
        given = [self.given(j, batch) for j in range(len(self.priors))]
        if len(given) > 1:
            variance_JBTF = torch.stack([_at_the_mean(*each) for each in zip(self._priors, given, strict=True)])
            powers = expected_powers(batch.need("power", self), variance_JBTF)
            given = [replace(part, power=power_BTF) for part, power_BTF in zip(given, powers, strict=True)]
        each = [prior.infer(part, k, mode) for prior, part in zip(self._priors, given, strict=True)]
        return Inferred(*(_joined([getattr(one, part) for one in each]) for part in ("z", "q", "p")))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Mapping[str, SourceSum]:
        parts = zip(self._priors, self._parts(z), self._contexts(context), strict=True)
        return {"power": SourceSum(tuple(prior.decode(own, part)["power"] for prior, own, part in parts))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        parts = zip(self._priors, self._parts(z), self._contexts(context), strict=True)
        return torch.stack([prior.log_prior(own, part) for prior, own, part in parts]).sum(0)

    def given(self, source: int, batch: Batch) -> Batch:
        """The batch with the pictures that the prior of a source takes."""
        sees = {*self._priors[source].sees}
        sees |= {"confidence"} if "lips" in sees else set()
        pictures = {name: getattr(batch, name) if name in sees else None for name in ("lips", "confidence", "face")}
        own = {name: None if values is None else values[:, :, source] for name, values in pictures.items()}
        return replace(batch, **own)

    @property
    def _priors(self) -> Sequence[Any]:
        return [*self.priors]

    def _contexts(self, context: Context) -> tuple[Context, ...]:
        assert isinstance(context, Contexts)
        return context.parts

    def _parts(self, z: Latents) -> list[dict[str, Tensor]]:
        """The latents of each source."""
        parts: list[dict[str, Tensor]] = [{} for _ in self.priors]
        for name, value in z.items():
            number, _, own = name.partition(".")
            parts[int(number) - 1][own] = value
        return parts


@torch.no_grad()
def _at_the_mean(prior: Any, batch: Batch) -> Float[Tensor, "B T F"]:
    """The variances of a source at the mean of its prior."""
    means, _ = first_latents(prior, batch, "prior")
    return prior.decode(means, prior.context(batch))["power"].expected[0]


def expected_powers(
    mixture_BTF: Float[Tensor, "B T F"], variance_JBTF: Float[Tensor, "J B T F"]
) -> Float[Tensor, "J B T F"]:
    """E |s_j|^2 given |x|^2, for x = sum_j s_j and s_j ~ Nc(0, S_j): m_j^2 |x|^2 + (1 - m_j) S_j, m_j = S_j / sum S."""
    share_JBTF = variance_JBTF / variance_JBTF.sum(0).clamp_min(EPSILON)
    return share_JBTF.square() * mixture_BTF + (1 - share_JBTF) * variance_JBTF


def _joined(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{j + 1}.{name}": value for j, one in enumerate(each) for name, value in one.items()}


@dataclass(frozen=True)
class Assignment:
    """The settings of `assign`.

    noise         its variance, as a share of the power of a bin
    learn_noise   whether there is an M-step
    finetune      whether the priors are trained further on their sources, for one utterance at a time
    """

    iterations: int = 70
    noise: float = 0.03
    learn_noise: bool = False
    finetune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole_numbers("assignment.", vars(self), iterations=1)
        if type(self.noise) not in (int, float) or not 0 < self.noise <= 1:
            raise UserError(f"assignment.noise={self.noise}: give a number above 0, and 1 at most")


@torch.no_grad()
def assign(
    model: Sources, batch: Batch, settings: Assignment, progress: Callable[[float], None] = lambda share: None
) -> Enhanced:
    """The sources in `batch.noisy`. The result for an utterance does not depend on its batch.

    `cost` is the mean over bins of what E-W and M lower: sum_j eta_j [(|x - m_j|^2 + V_j) / v + ln v + ln eta_j].
    """
    if settings.finetune and len(batch.ids) > 1:
        raise UserError(
            f"assignment.finetune=true trains the priors on one utterance and was given {len(batch.ids)}: give "
            "enhance.batch_size=1"
        )
    noisy_BTF = batch.need("noisy", model)
    noise_BTF = (settings.noise * noisy_BTF).clamp_min(EPSILON)
    frames = batch.mask.sum(1)
    random = RandomNumbers.seeded(batch.ids, frames.tolist(), settings.seed)
    priors: Sequence[Any] = [deepcopy(prior) if settings.finetune else prior for prior in model.priors]
    tuners = [FineTuning.of(prior) for prior in priors] if settings.finetune else []
    given = [model.given(j, replace(batch, power=noisy_BTF)) for j in range(len(priors))]
    contexts = [prior.context(part) for prior, part in zip(priors, given, strict=True)]
    powers = [  # at first, the reconstruction of the mixture
        prior.decode(prior.infer(part, mode="mean").z, context)["power"].expected[0]
        for prior, part, context in zip(priors, given, contexts, strict=True)
    ]
    eta_JBTF, costs = noisy_BTF.new_full((len(priors), *noisy_BTF.shape), 1 / len(priors)), []
    for _ in range(settings.iterations):
        found = []
        for j, (prior, part, context) in enumerate(zip(priors, given, contexts, strict=True)):
            z = prior.infer(replace(part, power=powers[j]), mode="mean").z
            step = SourceStep(noisy_BTF, noise_BTF, eta_JBTF[j], random.normal(noisy_BTF.expand(2, -1, -1, -1)))
            found.append(step.of(prior, z, context))
            powers[j] = found[j].power_BTF
        distance_JBTF = torch.stack([one.distance_BTF for one in found])
        eta_JBTF = assigned(distance_JBTF)
        costs.append((eta_JBTF * (distance_JBTF + noise_BTF.log() + eta_JBTF.log())).sum((0, 3)))
        if settings.learn_noise:
            noise_BTF = learned_noise(distance_JBTF, eta_JBTF, noise_BTF, noisy_BTF, batch.mask)
        for tuner, part, power_BTF in zip(tuners, given, powers, strict=False):
            with random.of_torch(noisy_BTF.device):
                tuner.step(replace(part, power=power_BTF))
        progress(1 / settings.iterations)
    cost_IB = (torch.stack(costs) * batch.mask).sum(2) / (frames * noisy_BTF.shape[2])
    return Enhanced(torch.stack([one.filter_BTF for one in found]), cost_IB)


class Given(NamedTuple):
    """A source given the mixture: m / x, the power of a draw, and (|x - m|^2 + V) / v."""

    filter_BTF: Float[Tensor, "B T F"]
    power_BTF: Float[Tensor, "B T F"]
    distance_BTF: Float[Tensor, "B T F"]


@dataclass(frozen=True)
class SourceStep:
    """The E-S step of a source. `normal`: real and imaginary parts of standard normal numbers, for the draw."""

    noisy_BTF: Float[Tensor, "B T F"]
    noise_BTF: Float[Tensor, "B T F"]
    eta_BTF: Float[Tensor, "B T F"]
    normal_2BTF: Float[Tensor, "2 B T F"]

    def of(self, prior: Any, z: Latents, context: Context) -> Given:
        if not isinstance(prior, Autoregressive):
            return self.given(prior.decode(z, context)["power"].expected[0])
        frames: list[Given] = []

        def follow(t: int, likelihood: Any) -> Float[Tensor, "K B 1 F"]:
            frames.append(self.frame(t).given(likelihood.expected[0]))
            return frames[-1].power_BTF[None]

        prior.walk(z, context, follow)
        return Given(*(torch.cat(values, 1) for values in zip(*frames, strict=True)))

    def frame(self, t: int) -> SourceStep:
        tensors = (self.noisy_BTF, self.noise_BTF, self.eta_BTF, self.normal_2BTF)
        return SourceStep(*(tensor[..., t : t + 1, :] for tensor in tensors))

    def given(self, sigma_BTF: Float[Tensor, "B T F"]) -> Given:
        variance_BTF = (self.eta_BTF / self.noise_BTF + sigma_BTF.clamp_min(EPSILON).reciprocal()).reciprocal()
        filter_BTF = variance_BTF * self.eta_BTF / self.noise_BTF
        real_BTF, imaginary_BTF = (variance_BTF / 2).sqrt() * self.normal_2BTF  # around |m|: phases do not matter
        power_BTF = (filter_BTF * self.noisy_BTF.sqrt() + real_BTF).square() + imaginary_BTF.square()
        distance_BTF = ((1 - filter_BTF).square() * self.noisy_BTF + variance_BTF) / self.noise_BTF
        return Given(filter_BTF, power_BTF, distance_BTF)


def assigned(distance_JBTF: Float[Tensor, "J B T F"]) -> Float[Tensor, "J B T F"]:
    """The E-W step."""
    likely_JBTF = torch.exp(-distance_JBTF) + UNLIKELY
    return likely_JBTF / likely_JBTF.sum(0)


def learned_noise(
    distance_JBTF: Float[Tensor, "J B T F"],
    eta_JBTF: Float[Tensor, "J B T F"],
    noise_BTF: Float[Tensor, "B T F"],
    noisy_BTF: Float[Tensor, "B T F"],
    mask_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T F"]:
    """The M step; `distance_JBTF` was found with `noise_BTF`."""
    share_BTF = (eta_JBTF * distance_JBTF).sum(0) * noise_BTF / noisy_BTF.clamp_min(EPSILON)
    rho_B = (share_BTF.mean(2) * mask_BT).sum(1) / mask_BT.sum(1)
    return (rho_B.clamp_min(LEAST_NOISE)[:, None, None] * noisy_BTF).clamp_min(EPSILON)


class FineTuning(NamedTuple):
    """Of a copy of a prior, of which all parameters are trained."""

    prior: Any
    adam: torch.optim.Adam

    @classmethod
    def of(cls, prior: Any) -> FineTuning:
        return cls(prior, torch.optim.Adam(prior.requires_grad_(True).parameters(), lr=1e-3))

    @torch.enable_grad()
    def step(self, batch: Batch) -> None:
        schedule = Schedule(beta=0.01)  # as published
        with recurrent_layers_training(self.prior):
            elbo = self.prior(batch, schedule)
            self.adam.zero_grad()
            (elbo.loss(schedule).sum() / elbo.n.sum()).backward()
        self.adam.step()
