"""STCN, dense: levels of latents from dilated convolutions, level by level; no recurrence, so all steps at once.

E. Aksan, O. Hilliges, "STCN: stochastic temporal convolutional networks", ICLR 2019 (arXiv 1902.06568); for speech, J.
D. Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    d^1..d^L    skip outputs at the end of L stacks of causal gated convolutions of x_1:t
    p(z | x) = prod_t prod_l N(z^l_t; mu_p, diag var_p (d^l_t-1, z^l+1_t))           from the top, L, down
    q(z | x) = prod_t prod_l N(z^l_t; mu, diag var (d^l_t, z^l+1_t)) N(z^l_t; mu_p, diag var_p), normalised
    p(x | z) = prod_t DMoL(x_t; f(z^1..L_t and before))
    ELBO = E_q[ln p(x | z)] - sum over l and t of KL(q || p), along one draw

    x_t       stack of s samples           x_BTS; context.past
    d^l_t     features of x_1:t            d_BTM of each level; audio_in, tcn
    z^l_t     latent                       z_KBTL of z1, z2, ...
    p(z^l_t)  prior                        prior_nets[l] of d^l_t-1, z^l+1_t
    q(z^l_t)  p times another factor       posterior_nets[l] of d^l_t, z^l+1_t
    f         decoder                      latent_in, decoder_tcn, decoder_head
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
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.pcm import DMoL
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec


class GaussianNet(nn.Module):
    """Mean and standard deviation, each by layers of its own; the deviation is above 0.001, and `start` at first."""

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
        stride: int = 64,  # samples of a step
        channels: int = 256,
        dims: Sequence[int] = (256, 128, 64, 32, 16),  # of z^1, z^2, ...
        layers: int = 5,  # of convolutions for each latent
        coding: str = "mu-law",  # or linear: of samples, as inputs and in the likelihood
        scoring: str = "exact",  # or paper: as published, whose bits are not a code length
    ):
        super().__init__()
        self.set_coding(stride, coding, scoring)
        self.latents = tuple(LatentSpec(f"z{n}", dim, stride, "audio") for n, dim in enumerate(dims, start=1))
        self.audio_in = CausalConv(stride, channels)
        self.tcn = nn.ModuleList(GatedLayer(channels, 2**i) for _ in dims for i in range(layers))
        self.per_level = layers
        features = [channels + above for above in (*dims[1:], 0)]
        self.prior_nets, self.posterior_nets = (
            nn.ModuleList(GaussianNet(m, channels, dim, start) for m, dim in zip(features, dims, strict=True))
            for start in (0.5, 0.1)
        )
        self.latent_in = nn.Linear(sum(dims), channels)
        self.decoder_tcn = nn.ModuleList(GatedLayer(channels, 1) for _ in range(layers))
        self.decoder_head = CodeHead(channels, stride)
        self.reach = 2 + len(dims) * (2**layers - 1)  # stacks that the top d depends on

    def encode(self, x_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[list[Float[Tensor, "B T M"]], Any]:
        """d of each level, given the state after the stacks before; and the state after these."""
        states = iter(state or [None] * (1 + len(self.tcn)))  # of each convolution: its last inputs
        y_BTM, inputs = self.audio_in(x_BTS, next(states))
        d, later_states = [], [inputs]
        for number, layer in enumerate(self.tcn, start=1):
            y_BTM, skip_BTM, inputs = layer(y_BTM, next(states))
            later_states.append(inputs)
            if number % self.per_level == 0:
                d.append(skip_BTM)
        return d, later_states

    def output(self, z: Latents, state: Any = None) -> tuple[Float[Tensor, "K B T M"], Any]:
        """The input of `likelihood`, given the state after the latents before; and the state after these."""
        states = iter(state or [None] * len(self.decoder_tcn))
        y = self.latent_in(torch.cat([z[spec.name] for spec in self.latents], -1))
        shape, y, skips, later_states = y.shape, y.flatten(0, 1), 0.0, []
        for layer in self.decoder_tcn:
            y, skip, inputs = layer(y, next(states))
            skips, later_states = skips + skip, [*later_states, inputs]
        return self.decoder_head(torch.relu(skips + y)).view(*shape[:-1], -1), later_states

    def _top_down(
        self, d_before: Sequence[Tensor], d: Sequence[Tensor] | None, choose: Callable[[str, Gaussian], Tensor]
    ) -> Inferred:
        """`choose` gives a latent from its name and its posterior or, without d, its prior."""
        z, q, p = {}, {}, {}
        above: list[Tensor] = []
        for level in reversed(range(len(self.latents))):
            name = self.latents[level].name
            p[name] = q[name] = self.prior_nets[level](concat_features(d_before[level][None], *above))
            if d is not None:
                q[name] = self.posterior_nets[level](concat_features(d[level][None], *above)).times(p[name])
            z[name] = choose(name, q[name])
            above = [z[name]]
        return Inferred(z, q, p)

    def context(self, batch: Batch) -> Context:
        return Context(self.steps(batch), past=None if batch.waveform is None else self.stacks(batch.waveform))

    def _infer(self, context: Context, k: int, mode: str, state: Any = None) -> tuple[Inferred, Any]:
        assert context.past is not None
        last, encoder_state = state or (None, None)
        d, encoder_state = self.encode(context.past, encoder_state)
        last = last or [torch.zeros_like(d_BTM[:, :1]) for d_BTM in d]
        d_before = [torch.cat([last_B1M, d_BTM[:, :-1]], 1) for last_B1M, d_BTM in zip(last, d, strict=True)]
        noise_like = torch.randn if mode == "sample" else torch.zeros
        dims = {spec.name: spec.dim for spec in self.latents}

        def choose(name: str, q: Gaussian) -> Tensor:
            return q.moved(noise_like((k, *context.mask.shape, dims[name]), device=context.mask.device))

        return self._top_down(d_before, d, choose), ([d_BTM[:, -1:] for d_BTM in d], encoder_state)

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        batch.need("waveform", self)
        return self._infer(self.context(batch), k, mode)[0]

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, DMoL]:
        return {"waveform": self.likelihood(self.output(z)[0])}

    def _prior(self, context: Context, choose: Callable[[str, Gaussian], Tensor]) -> Inferred:
        assert context.past is not None
        return self._top_down([shifted(d_BTM) for d_BTM in self.encode(context.past, None)[0]], None, choose)

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        p = self._prior(context, lambda name, _: z[name]).p
        return torch.stack([p[name].log_prob(z[name]) for name in p]).sum(0)

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """Given the past of the waveform; after its end, given the samples that the model draws."""
        shape, steps = (k, *context.mask.shape), 0 if context.past is None else context.past.shape[-2]
        if steps < shape[2]:
            return self._sample_steps(context, k, given or {})[0]

        def choose(name: str, p: Gaussian) -> Tensor:
            z_KBTL = p.moved(torch.randn((*shape, p.mean.shape[-1]), device=p.mean.device))
            return keep_given(given, {name: z_KBTL})[name]

        return self._prior(context, choose).z

    @torch.no_grad()
    def _sample_steps(self, context: Context, k: int, given: Latents) -> tuple[Latents, Float[Tensor, "K B n"]]:
        """Step by step: latents, of which the first are those that are given, and the samples after `context.past`."""
        (batch, steps), count = context.mask.shape, k * len(context.mask)
        known = {name: z.expand(k, batch, -1, -1).flatten(0, 1)[None] for name, z in given.items()}
        device = self.latent_in.weight.device
        x_NTS = torch.zeros(count, 0, self.stride, device=device)
        if context.past is not None:
            x_NTS = context.past.expand(k, batch, -1, -1).flatten(0, 1)
        last = [torch.zeros(count, 1, self.latent_in.out_features, device=device) for _ in self.latents]
        encoder_state = decoder_state = None
        path, drawn = [], [torch.zeros(count, 0, device=device)]
        for t in range(steps):

            def choose(name: str, p: Gaussian, t: int = t) -> Tensor:
                z_1NTL = known.get(name)
                return p.sample()[0] if z_1NTL is None or t >= z_1NTL.shape[2] else z_1NTL[:, :, t : t + 1]

            z = self._top_down(last, None, choose).z
            output, decoder_state = self.output(z, decoder_state)
            if t < x_NTS.shape[1]:
                x_N1S = x_NTS[:, t : t + 1]
            else:
                drawn.append(self.likelihood(output).sample()[0])
                x_N1S = self.stacks(drawn[-1])
            last, encoder_state = self.encode(x_N1S, encoder_state)
            path.append(z)
        z = {name: torch.cat([one[name] for one in path], 2)[0].unflatten(0, (k, batch)) for name in path[0]}
        return z, torch.cat(drawn, -1).unflatten(0, (k, batch))

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        return self.carry(batch, schedule, None)[0]

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """See protocols.WaveformModel."""
        batch.need("waveform", self)
        context, (encoder_state, decoder_state) = self.context(batch), state or (None, None)
        inferred, encoder_state = self._infer(context, 1, "sample", encoder_state)
        output, decoder_state = self.output(inferred.z, decoder_state)
        masks = {spec.name: context.mask for spec in self.latents}
        elbo = self.bound(self.likelihood(output), batch, schedule, inferred.q, inferred.p, masks)
        return elbo, (encoder_state, decoder_state)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """See protocols.WaveformModel."""
        x_BTS = self.stacks(waveform_BN)
        mask = torch.ones(x_BTS.shape[:2], dtype=torch.bool, device=x_BTS.device)
        given = self._infer(Context(mask, past=x_BTS), 1, "sample")[0].z if x_BTS.shape[1] else {}
        whole = mask.new_ones(len(mask), mask.shape[1] - (-samples // self.stride))
        return self._sample_steps(Context(whole, past=x_BTS), 1, given)[1][0, :, :samples]
