"""Base classes of the dynamical VAEs, whose latents z_1:T depend on each other, on the past of x, or on both.

L. Girin, S. Leglaive, X. Bie, J. Diard, T. Hueber, X. Alameda-Pineda, "Dynamical variational autoencoders: a
comprehensive review", Foundations and Trends in Machine Learning 15, 2021 (arXiv 2008.12595).

    ELBO = sum_t E_q[ln p(x_t | z_1:T, x_1:t-1)] - E_q[KL(q(z_t | z_1:t-1, x_1:T) || p(z_t | z_1:t-1, x_1:t-1))]

with one draw of z_1:T, along which the divergences are taken.

    x_t   observed frame        observed_BTF; power_BTF holds |x_t|^2 of speech, or pose_BTD, boxes_BT4
    z_t   latent                z_KBTL; z_KB1L of a latent of the whole utterance
    h_t   recurrent state       h_KBTM of an AutoregressiveVAE, from x_1:t-1 and latents

A model computes all frames at once where it can: `posterior`, `prior`, `output`. Its `recursion` is the same, frame by
frame, as the paper writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.nn.blocks import check_floor, check_same_floor, encoder_input, keep_given, shifted
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.observed import likelihood_of
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed


@dataclass(frozen=True)
class Path:
    """Draws of the latents, the posterior of each, and the states h of an autoregressive model that computed them."""

    z: Latents
    q: Mapping[str, Gaussian]
    h: Float[Tensor, "#K B T M"] | None = None


Own = TypeVar("Own", bound="DynamicalVAE")


class DynamicalVAE(nn.Module):
    can_miss: tuple[str, ...] = ()

    def __init__(self, features: int, dim: int, observes: Observed = "power", floor: float | None = None):
        super().__init__()
        check_floor(observes, floor)
        self.features, self.floor = features, floor
        self.observes: Observed = observes
        self.sees: tuple[str, ...] = (observes,)
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio" if observes == "power" else "motion"),)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        """Draws of the latents from standard normal noise, and their posterior."""
        raise NotImplementedError

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        """p(z_t | z_1:t-1, x_1:t-1) of each latent along z, here N(0, I)."""
        return {name: Gaussian.standard(*value.shape, like=value) for name, value in z.items()}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        """Parameters of the likelihood: log-variances of speech, positions of joints, or moments of boxes."""
        raise NotImplementedError

    def observed(self, batch: Batch) -> Float[Tensor, "B T F"]:
        return batch.need(self.observes, self)

    def likelihood(self, output: Float[Tensor, "K B T F"]) -> Any:
        return likelihood_of(self.observes, output)

    def prior_and_output(
        self, path: Path, context: Context, schedule: Schedule
    ) -> tuple[Mapping[str, Gaussian], Float[Tensor, "K B T F"]]:
        """Of the inferred latents, in training."""
        return self.prior(path.z, context), self.output(path.z, context)

    def start_from(self: Own, trained: Own) -> None:
        check_same_floor(self, trained)
        self.load_state_dict(trained.state_dict())

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        context = self.context(batch)
        path = self._draw(batch, context, k, mode)
        return Inferred(path.z, path.q, self.prior(path.z, context))

    def _draw(self, batch: Batch, context: Context, k: int, mode: str) -> Path:
        observed_BTF = self.observed(batch)
        if (found := observed_BTF.shape[-1]) != self.features:
            raise UserError(f"a frame of {self.observes} has {found} numbers here: give model.features={found}")
        return self.posterior(self.network_input(observed_BTF), context, self._noise(context, k, mode))

    def network_input(self, observed: Float[Tensor, "*draws F"]) -> Float[Tensor, "*draws F"]:
        """Observed frames, as the networks take them."""
        return encoder_input(observed, self.floor)

    def _noise(self, context: Context, k: int, mode: str) -> Latents:
        draw = torch.randn if mode == "sample" else torch.zeros
        return {name: draw(size, device=context.mask.device) for name, size in self._sizes(context, k).items()}

    def _sizes(self, context: Context, k: int) -> dict[str, tuple[int, ...]]:
        utterances, frames = context.mask.shape
        return {s.name: (k, utterances, 1 if s.rate is None else frames, s.dim) for s in self.latents}

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return {self.observes: self.likelihood(self.output(z, context))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        """A latent of the whole utterance adds an equal part to each frame."""
        part_BT = context.mask / context.mask.sum(1, keepdim=True)
        log_p = {name: p.log_prob(z[name]) for name, p in self.prior(z, context).items()}
        return sum((log_p[s.name] * part_BT if s.rate is None else log_p[s.name] for s in self.latents), 0 * part_BT)

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """One frame after another, each from the prior given those before it."""
        z, known = self._to_draw(context, k, given)
        for t in range(context.mask.shape[1]):
            if missing := [name for name in z if known[name] <= t < z[name].shape[2]]:
                p = self.prior(z, context)
                for name in missing:
                    z[name][:, :, t] = p[name].sample()[0][:, :, t]
        return z

    def _to_draw(self, context: Context, k: int, given: Latents | None) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The given latents, then 0, and how many frames of each are given."""
        sizes = self._sizes(context, k)
        z = {name: torch.zeros(size, device=context.mask.device) for name, size in sizes.items()}
        known = {name: given[name].shape[2] if given and name in given else 0 for name in sizes}
        return keep_given(given, z), known

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        context = self.context(batch)  # not in `elbo`, where torch.compile would guard on the names in the batch
        return self.elbo(batch, context, schedule)

    def elbo(self, batch: Batch, context: Context, schedule: Schedule) -> Elbo:
        path = self._draw(batch, context, 1, "sample")
        p, output = self.prior_and_output(path, context, schedule)
        likelihood_BT = self.likelihood(output).log_prob(self.observed(batch)).mean(0)
        kl = {name: q.kl(p[name]).mean(0) for name, q in path.q.items()}
        return Elbo(
            recon={self.observes: (likelihood_BT * batch.mask).sum(1)},
            kl={s.name: (kl[s.name] if s.rate is None else kl[s.name] * batch.mask).sum(1) for s in self.latents},
            n=batch.mask.sum(1).float(),
        )


class AutoregressiveVAE(DynamicalVAE):
    """Conditioned on the past of what it models: the true past, `context.past`, or its own output after its end."""

    residual = False  # whether posterior_net gives the mean of q as its difference from that of the prior

    def update_state(
        self, x_before: Float[Tensor, "#K B T F"], z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        """h_t from x_t-1, z_t-1 and z_t, for frames that follow those of `state`; and the state after them."""
        raise NotImplementedError

    def prior_at(self, h: Float[Tensor, "#K B T M"], z_before_KBTL: Tensor) -> Gaussian:
        """p(z_t | h_t, z_t-1), here N(0, I)"""
        return Gaussian.standard(*z_before_KBTL.shape, like=z_before_KBTL)

    def output_at(self, h: Float[Tensor, "#K B T M"], z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        """Parameters of p(x_t | h_t, z_t)."""
        raise NotImplementedError

    def x_before(self, context: Context) -> Float[Tensor, "#K B T F"]:
        """x_t-1 at t, as the networks take it."""
        assert context.past is not None
        return self.network_input(shifted(context.past if context.past.ndim == 4 else context.past[None]))

    def first_state(self, z: Latents) -> Any:
        """Before the first frame. Latents of the whole utterance enter the recursion here."""
        return None

    def states(self, z: Latents, context: Context) -> Float[Tensor, "#K B T M"]:
        return self.update_state(self.x_before(context), shifted(z["z"]), z["z"], self.first_state(z))[0]

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return self._priors(z, self.states(z, context))

    def _priors(self, z: Latents, h: Float[Tensor, "#K B T M"]) -> Mapping[str, Gaussian]:
        """That of a latent of the whole utterance is N(0, I)."""
        static = {s.name: Gaussian.standard(*z[s.name].shape, like=z[s.name]) for s in self.latents if s.rate is None}
        return {**static, "z": self.prior_at(h, shifted(z["z"]))}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.output_at(self.states(z, context), z["z"])

    def prior_and_output(
        self, path: Path, context: Context, schedule: Schedule
    ) -> tuple[Mapping[str, Gaussian], Float[Tensor, "K B T F"]]:
        """With scheduled sampling; gradients stop at the model's own past."""
        h = path.h
        if schedule.own:
            own = (torch.rand(context.mask.shape[1]) < schedule.own).tolist()
            h = self.states(path.z, replace(context, past=self.own_past(path.z, context, own)))
        elif h is None:
            h = self.states(path.z, context)
        return self._priors(path.z, h), self.output_at(h, path.z["z"])

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, past=getattr(batch, self.observes))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return super().decode(z, context if feedback is None else replace(context, past=feedback))

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """One frame after another; after the end of `context.past`, the past is the model's own output."""
        z, known = self._to_draw(context, k, given)
        true = 0 if context.past is None else context.past.shape[-2]
        for spec in self.latents:
            if spec.rate is None and not known[spec.name]:
                z[spec.name] = torch.randn(z[spec.name].shape, device=context.mask.device)
        self._generate(z, known["z"], context, [t >= true for t in range(context.mask.shape[1])])
        return z

    def fed_back(self, output: Float[Tensor, "K B 1 F"]) -> Float[Tensor, "K B 1 F"]:
        """The frame that stands for x_t where the past is the model's own."""
        return self.likelihood(output).expected

    def own_past(self, z: Latents, context: Context, own: Sequence[bool] | None = None) -> Float[Tensor, "K B T F"]:
        """See protocols.Autoregressive."""
        frames = z["z"].shape[2]
        return self._generate(z, frames, context, own or [True] * frames)

    def walk(self, z: Latents, context: Context, follow: Callable[[int, Any], Float[Tensor, "K B 1 F"]]) -> None:
        """See protocols.Autoregressive."""
        self._proceed(z, z["z"].shape[2], lambda t, h, z_t: follow(t, self.likelihood(self.output_at(h, z_t))))

    def _generate(self, latents: Latents, known: int, context: Context, own: Sequence[bool]) -> Tensor:
        """x_1:T, true or the model's own, K B T F; see `_proceed`."""

        def frame(t: int, h: Tensor, z: Tensor) -> Tensor:
            if own[t]:
                return self.fed_back(self.output_at(h, z))
            assert context.past is not None
            return context.past[..., t : t + 1, :].expand(*z.shape[:3], -1)

        return self._proceed(latents, known, frame)

    @torch.no_grad()
    def _proceed(self, latents: Latents, known: int, frame: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """x_1:T, K B T F: in turn, `frame` gives x_t from t, h_t and z_t. z_t from frame `known` on are drawn from the
        prior, in place."""
        z_KBTL = latents["z"]
        z_before = torch.zeros_like(z_KBTL[:, :, :1])
        x = z_KBTL.new_zeros(*z_KBTL.shape[:2], 1, self.features)
        state, past = self.first_state(latents), []
        for t, z in enumerate(z_KBTL.split(1, 2)):  # views
            x_before = self.network_input(x)
            if t >= known:  # z_t is still 0; p(z_t) does not depend on it
                h, _ = self.update_state(x_before, z_before, z, state)
                z.copy_(self.prior_at(h, z_before).sample()[0])
            h, state = self.update_state(x_before, z_before, z, state)
            x = frame(t, h, z)
            past.append(x)
            z_before = z
        return torch.cat(past, 2)


def sample_path(
    inputs: Float[Tensor, "#K B T M"], noise_KBTL: Tensor, step: Callable[[Tensor, Tensor], Tensor]
) -> Path:
    """z_t one after another from z_0 = 0: `step`, of the inputs at t and of z_t-1, gives mean and log-variance of q,
    concatenated. In its tensors, draws and utterances share one axis, N."""
    inputs_NTM = inputs.expand(len(noise_KBTL), -1, -1, -1).flatten(end_dim=1)
    noise_NTL = noise_KBTL.flatten(end_dim=1)
    z_NL, path, posteriors = torch.zeros_like(noise_NTL[:, 0]), [], []
    for inputs_NM, noise_NL in zip(inputs_NTM.unbind(1), noise_NTL.unbind(1), strict=True):
        q_N2L = step(inputs_NM, z_NL)
        mean_NL, log_var_NL = q_N2L.chunk(2, -1)
        z_NL = torch.addcmul(mean_NL, noise_NL, torch.exp(log_var_NL / 2))
        path.append(z_NL)
        posteriors.append(q_N2L)
    z_KBTL = torch.stack(path, 1).view_as(noise_KBTL)
    mean_KBTL, log_var_KBTL = torch.stack(posteriors, 1).unflatten(0, noise_KBTL.shape[:2]).chunk(2, -1)
    return Path({"z": z_KBTL}, {"z": Gaussian.floored(mean_KBTL, log_var_KBTL)})


Recursion = tuple[Tensor, Gaussian, Gaussian, Tensor]  # of all frames: z, posterior, prior, output


def each_frame(*tensors: Float[Tensor, "... T _"]) -> Iterator[tuple[Tensor, ...]]:
    """Frame t of all tensors, with an axis of time of length 1."""
    return zip(*(tensor.split(1, -2) for tensor in tensors), strict=True)


def stack_frames(frames: Sequence[tuple[Tensor | Gaussian, ...]]) -> Any:
    """What a recursion found at each t, along time."""

    def along_time(parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], Gaussian):
            return Gaussian(along_time([p.mean for p in parts]), along_time([p.log_var for p in parts]))
        return torch.cat([*parts], -2)

    return tuple(along_time(parts) for parts in zip(*frames, strict=True))
