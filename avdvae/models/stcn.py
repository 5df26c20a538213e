"""STCN, dense: levels of latents from convolutions of growing reach; no recurrence, so all of time at once.

E. Aksan, O. Hilliges, "STCN: stochastic temporal convolutional networks", ICLR 2019 (arXiv 1902.06568); for speech, J.
D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    d^1..d^L    skip outputs at the end of L stacks of causal gated convolutions of x_1:t
    p(z | x) = prod_t prod_l N(z^l_t; mu_p, diag var_p (d^l_t-1, z^l+1_t))           from the top, L, down
    q(z | x) = prod_t prod_l N(z^l_t; mu, diag var (d^l_t, z^l+1_t)) N(z^l_t; mu_p, diag var_p), normalised
    p(x | z) = prod_t DMoL(x_t; f(z^1..L_t and before))
    ELBO = E_q[ln p(x | z)] - sum over l and t of KL(q || p), along one draw

    x_t     stack of s samples     x_BTS
    z^l_t   latents                z_KBTL of each level
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.waveform import CodeHead, Waveforms
from avdvae.nn.blocks import CausalConv, GatedLayer, concat_features, keep_given, mlp, shifted
from avdvae.probability.distributions import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec


class WideHead(nn.Module):
    """Mean and deviation, each by layers of its own; the deviation, at least 0.001, is `start` at first."""

    def __init__(self, features: int, hidden: int, dim: int, start: float):
        super().__init__()
        last = nn.Linear(hidden, dim)
        nn.init.constant_(last.bias, math.log(math.expm1(start - 1e-3)))
        self.mean = nn.Sequential(*mlp([features, hidden, hidden], nn.LeakyReLU), nn.Linear(hidden, dim))
        self.deviation = nn.Sequential(*mlp([features, hidden, hidden], nn.LeakyReLU), last)

    def forward(self, features: Float[Tensor, "... M"]) -> Gaussian:
        deviation = nn.functional.softplus(self.deviation(features).float()) + 1e-3
        return Gaussian.floored(self.mean(features), 2 * deviation.log())


class STCN(Waveforms):
    causal = True

    def __init__(
        self,
        stride: int = 64,
        channels: int = 256,
        dims: Sequence[int] = (256, 128, 64, 32, 16),  # of z^1, z^2, ...
        layers: int = 5,
        coding: str = "mu-law",
        scoring: str = "exact",
    ):
        super().__init__()
        self.listen_by(stride, coding, scoring)
        self.latents = tuple(LatentSpec(f"z{n}", dim, stride, "audio") for n, dim in enumerate(dims, start=1))
        self.first = CausalConv(stride, channels)
        self.layers = nn.ModuleList(GatedLayer(channels, 2**i) for _ in dims for i in range(layers))
        self.per_level = layers
        features = [channels + above for above in (*dims[1:], 0)]
        self.p_heads = nn.ModuleList(WideHead(m, channels, dim, 0.5) for m, dim in zip(features, dims, strict=True))
        self.q_heads = nn.ModuleList(WideHead(m, channels, dim, 0.1) for m, dim in zip(features, dims, strict=True))
        self.enter = nn.Linear(sum(dims), channels)
        self.speak = nn.ModuleList(GatedLayer(channels, 1) for _ in range(layers))
        self.head = CodeHead(channels, stride)
        self.reach = 2 + len(dims) * (2**layers - 1)  # stacks that the top d depends on

    def listen(self, x_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[list[Float[Tensor, "B T C"]], Any]:
        """d of each level, and the state that what follows is heard in."""
        old = iter(state or [None] * (1 + len(self.layers)))
        y_BTC, left = self.first(x_BTS, next(old))
        told, states = [], [left]
        for number, layer in enumerate(self.layers, start=1):
            y_BTC, skip_BTC, left = layer(y_BTC, next(old))
            states.append(left)
            if number % self.per_level == 0:
                told.append(skip_BTC)
        return told, states

    def speak_of(self, z: Latents, state: Any = None) -> tuple[Float[Tensor, "K B T M"], Any]:
        old = iter(state or [None] * len(self.speak))
        y = self.enter(torch.cat([z[spec.name] for spec in self.latents], -1))
        shape, y, total, states = y.shape, y.flatten(0, 1), 0.0, []
        for layer in self.speak:
            y, skip, left = layer(y, next(old))
            total, states = total + skip, [*states, left]
        return self.head(torch.relu(total + y)).view(*shape[:-1], -1), states

    def _descend(
        self, d_before: Sequence[Tensor], d: Sequence[Tensor] | None, choose: Callable[[str, Gaussian], Tensor]
    ) -> Inferred:
        """From the top down: `choose`, of the name of a latent and its distribution, gives it. Without a d, that is
        the prior."""
        z, q, p = {}, {}, {}
        above: list[Tensor] = []
        for level in reversed(range(len(self.latents))):
            name = self.latents[level].name
            p[name] = self.p_heads[level](concat_features(d_before[level][None], *above))
            q[name] = (
                p[name] if d is None else self.q_heads[level](concat_features(d[level][None], *above)).times(p[name])
            )
            z[name] = choose(name, q[name])
            above = [z[name]]
        return Inferred(z, q, p)

    def context(self, batch: Batch) -> Context:
        return Context(self.steps(batch), past=None if batch.waveform is None else self.stacks(batch.waveform))

    def _infer(self, context: Context, k: int, mode: str, state: Any = None) -> tuple[Inferred, Any]:
        assert context.past is not None
        last, inner = state or (None, None)
        d, inner = self.listen(context.past, inner)
        last = last or [torch.zeros_like(told[:, :1]) for told in d]
        d_before = [torch.cat([old, told[:, :-1]], 1) for old, told in zip(last, d, strict=True)]
        draw = torch.randn if mode == "sample" else torch.zeros
        dims = {spec.name: spec.dim for spec in self.latents}

        def choose(name: str, q: Gaussian) -> Tensor:
            return q.moved(draw((k, *context.mask.shape, dims[name]), device=context.mask.device))

        return self._descend(d_before, d, choose), ([told[:, -1:] for told in d], inner)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        batch.need("waveform", self)
        return self._infer(self.context(batch), k, mode)[0]

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return {"waveform": self.likelihood(self.speak_of(z)[0])}

    def _prior(self, context: Context, choose: Callable[[str, Gaussian], Tensor]) -> Inferred:
        assert context.past is not None
        return self._descend([shifted(told) for told in self.listen(context.past, None)[0]], None, choose)

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        p = self._prior(context, lambda name, _: z[name]).p
        return torch.stack([p[name].log_prob(z[name]) for name in p]).sum(0)

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """With the true past of the sound, behind whose end the model's own stands for it."""
        shape, heard = (k, *context.mask.shape), 0 if context.past is None else context.past.shape[-2]
        if heard < shape[2]:
            return self._walk(context, k, given or {})[0]

        def choose(name: str, p: Gaussian) -> Tensor:
            z_KBTL = p.moved(torch.randn((*shape, p.mean.shape[-1]), device=p.mean.device))
            return keep_given(given, {name: z_KBTL})[name]

        return self._prior(context, choose).z

    @torch.no_grad()
    def _walk(self, context: Context, k: int, given: Latents) -> tuple[Latents, Float[Tensor, "K B n"]]:
        """Step by step: latents, which begin with those that are given, and the sound of the model's own behind the
        past that there is."""
        (batch, steps), count = context.mask.shape, k * len(context.mask)
        known = {name: z.expand(k, batch, -1, -1).flatten(0, 1)[None] for name, z in given.items()}
        device = self.enter.weight.device
        x_NTS = torch.zeros(count, 0, self.stride, device=device)
        if context.past is not None:
            x_NTS = context.past.expand(k, batch, -1, -1).flatten(0, 1)
        last = [torch.zeros(count, 1, self.enter.out_features, device=device) for _ in self.latents]
        heard = spoken = None
        path, said = [], [torch.zeros(count, 0, device=device)]
        for t in range(steps):

            def choose(name: str, p: Gaussian, t: int = t) -> Tensor:
                z_1NTL = known.get(name)
                return p.sample()[0] if z_1NTL is None or t >= z_1NTL.shape[2] else z_1NTL[:, :, t : t + 1]

            z = self._descend(last, None, choose).z
            output, spoken = self.speak_of(z, spoken)
            if t < x_NTS.shape[1]:
                x_N1S = x_NTS[:, t : t + 1]
            else:
                said.append(self.likelihood(output).sample()[0])
                x_N1S = self.stacks(said[-1])
            last, heard = self.listen(x_N1S, heard)
            path.append(z)
        z = {name: torch.cat([one[name] for one in path], 2)[0].unflatten(0, (k, batch)) for name in path[0]}
        return z, torch.cat(said, -1).unflatten(0, (k, batch))

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        return self.carry(batch, schedule, None)[0]

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """See protocols.WaveformModel."""
        batch.need("waveform", self)
        context, (heard, spoken) = self.context(batch), state or (None, None)
        inferred, heard = self._infer(context, 1, "sample", heard)
        output, spoken = self.speak_of(inferred.z, spoken)
        masks = {spec.name: context.mask for spec in self.latents}
        elbo = self.bound(self.likelihood(output), batch, schedule, inferred.q, inferred.p, masks)
        return elbo, (heard, spoken)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """What may follow whole stacks of sound, or silence where there are none."""
        x_BTS = self.stacks(waveform_BN)
        mask = torch.ones(x_BTS.shape[:2], dtype=torch.bool, device=x_BTS.device)
        given = self._infer(Context(mask, past=x_BTS), 1, "sample")[0].z if x_BTS.shape[1] else {}
        whole = mask.new_ones(len(mask), mask.shape[1] - (-samples // self.stride))
        return self._walk(Context(whole, past=x_BTS), 1, given)[1][0, :, :samples]
