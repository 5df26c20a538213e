"""What the models of waveforms share: stacks of samples, and the likelihood of 16-bit samples. Base classes only.

A step of a model is a stack of s samples, the stride; zeros fill the last stack. Given the output of a network for a
step, its samples are independent.

    x_n    sample of 16 bits                                       waveform_BN
    x_t    stack of S samples, companded if `coding` is mu-law     x_BTS, of `stacks`
    DMoL   likelihood, a discretised mixture of M logistics        CodeHead, `likelihood`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.dynamical_vae import AutoregressiveVAE
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule, divergence
from avdvae.probability.pcm import Coding, DMoL, Scoring, compand
from avdvae.protocols import Batch, Context, LatentSpec, Observed

MIXTURE = 10  # logistics of a sample


class CodeHead(nn.Linear):
    """The parameters of a DMoL of each of `samples` samples; the components start at different locations."""

    def __init__(self, features: int, samples: int = 1):
        super().__init__(features, samples * 3 * MIXTURE)
        start = torch.stack([torch.zeros(MIXTURE), torch.linspace(-0.5, 0.5, MIXTURE), torch.full((MIXTURE,), -2.0)])
        with torch.no_grad():
            self.bias.copy_(start.flatten().repeat(samples))


class Waveforms(nn.Module):
    observes: Observed = "waveform"
    sees: tuple[str, ...] = ("waveform",)
    can_miss: tuple[str, ...] = ()
    causal = False
    stride: int
    coding: Coding
    scoring: Scoring

    def set_coding(self, stride: int, coding: str, scoring: str) -> None:
        for key, given, allowed in (("coding", coding, ("mu-law", "linear")), ("scoring", scoring, ("exact", "paper"))):
            if given not in allowed:
                raise UserError(f"model.{key}={given}: choose {' or '.join(allowed)}")
        if stride < 1:
            raise UserError(f"model.stride={stride}: give the samples of a step, 1, 2, 3, ...")
        self.stride, self.coding, self.scoring = stride, coding, scoring  # type: ignore[assignment]  # checked

    def steps(self, batch: Batch) -> Bool[Tensor, "B T"]:
        """Which stacks hold data. Without a waveform, there are as many as the longest of `lengths` fills."""
        assert batch.lengths is not None
        samples = int(batch.lengths.max()) if batch.waveform is None else batch.waveform.shape[1]
        first_T = torch.arange(0, samples, self.stride, device=batch.lengths.device)
        return first_T < batch.lengths[:, None]

    def stacks(self, waveform: Float[Tensor, "... N"]) -> Float[Tensor, "... T S"]:
        filled = nn.functional.pad(waveform, (0, -waveform.shape[-1] % self.stride))
        return (compand(filled) if self.coding == "mu-law" else filled).unflatten(-1, (-1, self.stride))

    def likelihood(self, output: Float[Tensor, "... T M"]) -> DMoL:
        """From the output of a CodeHead for each stack."""
        return DMoL.of(output.unflatten(-1, (-1, 3 * MIXTURE)).flatten(-3, -2), self.coding, self.scoring)

    def bound(
        self,
        likelihood: DMoL,
        batch: Batch,
        schedule: Schedule,
        q: Mapping[str, Gaussian] | None = None,
        p: Mapping[str, Gaussian] | None = None,
        masks: Mapping[str, Bool[Tensor, "B T"]] | None = None,
        free_scale: Mapping[str, float] | None = None,
    ) -> Elbo:
        """From posterior and prior of each latent along one draw. `free_scale` multiplies the free nats of a latent."""
        waveform_BN = batch.need("waveform", self)
        assert batch.lengths is not None
        holds_data_BN = torch.arange(waveform_BN.shape[1], device=waveform_BN.device) < batch.lengths[:, None]
        recon = (likelihood.log_prob(waveform_BN) * holds_data_BN).sum(-1)
        kl, free = {}, {}
        if q is not None and p is not None and masks is not None:
            for name in q:
                scale = (free_scale or {}).get(name, 1.0)
                kl[name], free[name] = divergence(q[name], p[name], masks[name], schedule, scale)
        return Elbo(
            recon={"waveform": recon.flatten(end_dim=-2).mean(0) if recon.ndim > 1 else recon},
            kl=kl,
            n=batch.lengths.float(),
            aux={f"free_{name}": nats_B for name, nats_B in free.items()} if schedule.free else {},
        )

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """See protocols.WaveformModel. Of a whole utterance here, since its posterior depends on later samples."""
        return self(batch, schedule), None


class Predictor(Waveforms):
    """A model without latents: each stack from those before it."""

    causal = True

    def predict(self, before_BTS: Float[Tensor, "B T S"], state: Any) -> tuple[Float[Tensor, "B T M"], Any]:
        """The input of `likelihood` for x_t, from x_t-1 and the state after the stacks before; and the next state."""
        raise NotImplementedError

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        return self.carry(batch, schedule, None)[0]

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """See protocols.WaveformModel."""
        x_BTS = self.stacks(batch.need("waveform", self))
        last_B1S, inner = state or (torch.zeros_like(x_BTS[:, :1]), None)
        output, inner = self.predict(torch.cat([last_B1S, x_BTS[:, :-1]], 1), inner)
        return self.bound(self.likelihood(output), batch, schedule), (x_BTS[:, -1:], inner)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """See protocols.WaveformModel."""
        output, state = self.predict(nn.functional.pad(self.stacks(waveform_BN), (0, 0, 1, 0)), None)
        drawn: list[Tensor] = []
        for _ in range(-(-samples // self.stride)):
            drawn.append(self.likelihood(output[:, -1:]).sample())
            output, state = self.predict(self.stacks(drawn[-1]), state)
        return torch.cat(drawn, -1)[:, :samples]


class WaveformVAE(Waveforms, AutoregressiveVAE):
    """Turns an autoregressive dynamical VAE of spectra into one of stacks of samples."""

    def __init__(self, dim: int, stride: int, coding: str, scoring: str):
        AutoregressiveVAE.__init__(self, stride, dim, "waveform")
        self.set_coding(stride, coding, scoring)
        self.latents = (LatentSpec("z", dim, rate=stride, modality="audio"),)

    def observed(self, batch: Batch) -> Float[Tensor, "B T S"]:
        return self.stacks(batch.need("waveform", self))

    def context(self, batch: Batch) -> Context:
        return Context(self.steps(batch), past=None if batch.waveform is None else self.observed(batch))

    def fed_back(self, output: Float[Tensor, "K B 1 M"]) -> Float[Tensor, "K B 1 S"]:
        return self.stacks(self.likelihood(output).sample())

    def elbo(self, batch: Batch, context: Context, schedule: Schedule) -> Elbo:
        path = self._draw(batch, context, 1, "sample")
        p, output = self.prior_and_output(path, context, schedule)
        return self.bound(self.likelihood(output), batch, schedule, path.q, p, {"z": context.mask})

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """See protocols.WaveformModel."""
        lengths = torch.full((len(waveform_BN),), waveform_BN.shape[1], device=waveform_BN.device)
        mask = torch.ones(len(waveform_BN), 0, dtype=torch.bool)
        batch = Batch(("",) * len(waveform_BN), mask, waveform=waveform_BN, lengths=lengths)
        x_1BTS = self.observed(batch)[None]
        z_1BTL, state = x_1BTS.new_zeros(*x_1BTS.shape[:3], self.latents[0].dim), None
        if x_1BTS.shape[2]:
            z_1BTL = self.infer(batch).z["z"]
        x, z = (nn.functional.pad(value, (0, 0, 1, 0)) for value in (x_1BTS, z_1BTL))
        if x_1BTS.shape[2]:
            _, state = self.update_state(x[:, :, :-1], z[:, :, :-1], z[:, :, 1:], None)
        x, z, drawn = x[:, :, -1:], z[:, :, -1:], []
        for _ in range(-(-samples // self.stride)):
            h, state = self.update_state(x, z, z, state)
            z = self.prior_at(h, z).sample()[0]
            drawn.append(self.likelihood(self.output_at(h, z)).sample()[0])
            x = self.stacks(drawn[-1])[None]
        return torch.cat(drawn, -1)[:, :samples]
