"""What the dynamical VAEs share: latents z_1:T that depend on each other, on the past of what they explain, or both.

L. Girin, S. Leglaive, X. Bie, J. Diard, T. Hueber, X. Alameda-Pineda, "Dynamical variational autoencoders: a
comprehensive review", Foundations and Trends in Machine Learning 15, 2021 (arXiv 2008.12595).

    ELBO = sum_t E_q[ln p(x_t | z_1:T, x_1:t-1)] - E_q[KL(q(z_t | z_1:t-1, x_1:T) || p(z_t | z_1:t-1, x_1:t-1))]

with one draw of z_1:T; the divergences are those along its path. Not to be used themselves.

    x   what is explained: speech, of which power_BTF holds |x|^2, or pose_BTD      observed_BTF
    z   latents                                                                   z_KBTL; z_KB1L of a whole utterance
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.nn.blocks import check_floor, check_same_floor, encoder_input, keep_given, shifted, split_linear
from avdvae.probability.distributions import Gaussian, likelihood_of
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec, Observed


@dataclass(frozen=True)
class Path:
    """Draws of the latents, the q of each on the way, and what an autoregressive model made of the past meanwhile."""

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
        self.latents = (LatentSpec("z", dim, rate=1, modality="motion" if observes == "pose" else "audio"),)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        """What standard normal noise becomes."""
        raise NotImplementedError

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        """p of each latent on the path z, here N(0, I)."""
        return {name: Gaussian.standard(*value.shape, like=value) for name, value in z.items()}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        """What the likelihood is made of: log-variances of speech, or places of joints."""
        raise NotImplementedError

    def observed(self, batch: Batch) -> Float[Tensor, "B T F"]:
        return batch.need(self.observes, self)

    def likelihood(self, output: Float[Tensor, "K B T F"]) -> Any:
        return likelihood_of(self.observes, output)

    def prior_and_output(
        self, path: Path, context: Context, schedule: Schedule
    ) -> tuple[Mapping[str, Gaussian], Float[Tensor, "K B T F"]]:
        """Prior and output of what was inferred, in training."""
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
        """What is observed, as the networks take it."""
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
        """That of a latent of the whole utterance is spread evenly over the frames."""
        share_BT = context.mask / context.mask.sum(1, keepdim=True)
        log_p = {name: p.log_prob(z[name]) for name, p in self.prior(z, context).items()}
        return sum((log_p[s.name] * share_BT if s.rate is None else log_p[s.name] for s in self.latents), 0 * share_BT)

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """One frame after another, each from the prior that those before it give."""
        z, known = self._to_draw(context, k, given)
        for t in range(context.mask.shape[1]):
            if missing := [name for name in z if known[name] <= t < z[name].shape[2]]:
                p = self.prior(z, context)
                for name in missing:
                    z[name][:, :, t] = p[name].sample()[0][:, :, t]
        return z

    def _to_draw(self, context: Context, k: int, given: Latents | None) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Latents that are 0 where nothing is given, and how many frames of each are given."""
        sizes = self._sizes(context, k)
        z = {name: torch.zeros(size, device=context.mask.device) for name, size in sizes.items()}
        known = {name: given[name].shape[2] if given and name in given else 0 for name in sizes}
        return keep_given(given, z), known

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        context = self.context(batch)  # by itself: amid a call, torch.compile would look at the names of the batch
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
    """Hears the past of what it explains: the true one, `context.past`, or its own where nobody has that."""

    residual = False  # whether the mean of q is told as its distance from that of the prior

    def update_state(
        self, heard: Float[Tensor, "#K B T F"], z_before_KBTL: Tensor, z_KBTL: Tensor, state: Any
    ) -> tuple[Float[Tensor, "#K B T M"], Any]:
        """h_t from x_t-1, z_t-1 and z_t, for frames that follow those which left `state`; and the state after them."""
        raise NotImplementedError

    def prior_at(self, h: Float[Tensor, "#K B T M"], z_before_KBTL: Tensor) -> Gaussian:
        """p(z_t | h_t, z_t-1), here N(0, I)"""
        return Gaussian.standard(*z_before_KBTL.shape, like=z_before_KBTL)

    def output_at(self, h: Float[Tensor, "#K B T M"], z_KBTL: Tensor) -> Float[Tensor, "K B T F"]:
        """What the likelihood of x_t is made of."""
        raise NotImplementedError

    def states(self, z: Latents, context: Context) -> Float[Tensor, "#K B T M"]:
        assert context.past is not None
        past = shifted(context.past if context.past.ndim == 4 else context.past[None])
        return self.update_state(self.network_input(past), shifted(z["z"]), z["z"], None)[0]

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.prior_at(self.states(z, context), shifted(z["z"]))}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.output_at(self.states(z, context), z["z"])

    def prior_and_output(
        self, path: Path, context: Context, schedule: Schedule
    ) -> tuple[Mapping[str, Gaussian], Float[Tensor, "K B T F"]]:
        """By scheduled sampling: what the model says is taken for the past, and does not train what said it."""
        h = path.h
        if schedule.own:
            own = (torch.rand(context.mask.shape[1]) < schedule.own).tolist()
            h = self.states(path.z, replace(context, past=self.own_past(path.z, context, own)))
        elif h is None:
            h = self.states(path.z, context)
        return {"z": self.prior_at(h, shifted(path.z["z"]))}, self.output_at(h, path.z["z"])

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, past=getattr(batch, self.observes))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return super().decode(z, context if feedback is None else replace(context, past=feedback))

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """One frame after another; what lies behind the end of `context.past` is what the model says itself."""
        z, known = self._to_draw(context, k, given)
        heard = 0 if context.past is None else context.past.shape[-2]
        self._walk(z["z"], known["z"], context, [t >= heard for t in range(context.mask.shape[1])])
        return z

    def fed_back(self, output: Float[Tensor, "K B 1 F"]) -> Float[Tensor, "K B 1 F"]:
        """What the model takes for the past where it hears itself."""
        return self.likelihood(output).expected

    def own_past(self, z: Latents, context: Context, own: Sequence[bool] | None = None) -> Float[Tensor, "K B T F"]:
        """See protocols.Autoregressive."""
        frames = z["z"].shape[2]
        return self._walk(z["z"], frames, context, own or [True] * frames)

    @torch.no_grad()
    def _walk(self, z_KBTL: Tensor, known: int, context: Context, own: Sequence[bool]) -> Float[Tensor, "K B T F"]:
        """The past as it is heard, frame after frame; the latents from frame `known` on are drawn on the way."""
        z_before = torch.zeros_like(z_KBTL[:, :, :1])
        said = z_KBTL.new_zeros(*z_KBTL.shape[:2], 1, self.features)
        state, past = None, []
        for t, z_now in enumerate(z_KBTL.split(1, 2)):  # views
            taken = self.network_input(said)
            if t >= known:  # h is told z_t = 0, which p(z_t) does not hear
                h, _ = self.update_state(taken, z_before, z_now, state)
                z_now.copy_(self.prior_at(h, z_before).sample()[0])
            h, state = self.update_state(taken, z_before, z_now, state)
            if own[t]:
                said = self.fed_back(self.output_at(h, z_now))
            else:
                assert context.past is not None
                said = context.past[..., t : t + 1, :].expand_as(said)
            past.append(said)
            z_before = z_now
        return torch.cat(past, 2)


def split_net(
    network: Any, early: Float[Tensor, "... M"]
) -> tuple[Float[Tensor, "... N"], Callable[[Tensor, Tensor], Tensor]]:
    """Of layers that end in a GaussianHead, what the first inputs add to the first of them, for all frames at once; and
    what makes mean and log-variance, side by side, of that and of the other inputs in a loop."""
    layers: list[Any] = [*network] if isinstance(network, nn.Sequential) else [network]
    told, late_weight = split_linear(layers[0], early)
    between = layers[1:-1]
    bias, weight = layers[-1].bias_and_weight() if layers[1:] else (None, late_weight)

    def finish(told_NM: Tensor, late_NM: Tensor) -> Tensor:
        features_NM = torch.addmm(told_NM, late_NM, late_weight)
        for layer in between:
            features_NM = layer(features_NM)
        return features_NM if bias is None else torch.addmm(bias, features_NM, weight)

    return told, finish


def sample_path(told: Float[Tensor, "#K B T M"], noise_KBTL: Tensor, step: Callable[[Tensor, Tensor], Tensor]) -> Path:
    """z_t one after another from z_0 = 0: `step`, of what is told at t and of z_t-1, gives mean and log-variance of q
    side by side. For it, draws and utterances are in one axis."""
    told_NTM = told.expand(len(noise_KBTL), -1, -1, -1).flatten(end_dim=1)
    noise_NTL = noise_KBTL.flatten(end_dim=1)
    z_NL, path, on_the_way = torch.zeros_like(noise_NTL[:, 0]), [], []
    for told_NM, noise_NL in zip(told_NTM.unbind(1), noise_NTL.unbind(1), strict=True):
        q_N2L = step(told_NM, z_NL)
        mean_NL, log_var_NL = q_N2L.chunk(2, -1)
        z_NL = torch.addcmul(mean_NL, noise_NL, torch.exp(log_var_NL / 2))
        path.append(z_NL)
        on_the_way.append(q_N2L)
    z_KBTL = torch.stack(path, 1).view_as(noise_KBTL)
    mean_KBTL, log_var_KBTL = torch.stack(on_the_way, 1).unflatten(0, noise_KBTL.shape[:2]).chunk(2, -1)
    return Path({"z": z_KBTL}, {"z": Gaussian.floored(mean_KBTL, log_var_KBTL)})
