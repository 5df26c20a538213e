"""A denoiser of complex spectra: a diffusion model of speech, or by another target a flow, with lips or without.

T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS
2022 (EDM, arXiv 2206.00364); Y. Lipman et al., "Flow matching for generative modeling", ICLR 2023 (arXiv 2210.02747).
Preconditioning by the variance of each bin, in place of one for all data, and the likelihood as the loss are this
project's.

    s_tau = s + sigma c n        n ~ Nc(0, I)        v = sigma^2 c^2
    p(s | s_tau) = Nc(D, r^2)    D = G s_tau + sqrt(v G) U        r^2 = v G        G = S / (S + v)

S and U are outputs of the network: if s ~ Nc(0, S), a Wiener filter is exact and U = 0; U holds what neighbouring
frames and frequencies say of the phase. EDM is the case of the same S for all bins. D is the posterior mean, from which
follows the score, (D - s_tau) / v, and r^2 is its own error, by which an E-step weighs it against a mixture.

    likelihood   E[ln Nc(s; D, r^2)], ln sigma uniform
    flow         -E|c n - s - u|^2 / c^2, of the velocity u = (x_tau - D) / tau at x_tau = (1 - tau) s + tau c n, which
                 is s_tau / (1 + sigma), tau = sigma / (1 + sigma) uniform; and the likelihood in r^2 alone

There is no bound of ln p(s), and there are no latents.

    s       spectrum                      spectrum_BTF
    s_tau   with noise                    noisy_KBTF
    c       mean of |s| of a frequency    scale_F
    v       variance of the noise         v_F
    D, r^2  posterior mean and variance   Denoised.mean_KBTF, .variance_KBTF
    S, U    of each bin                   from `head`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.nn.blocks import LipEncoder, zero_init
from avdvae.probability.gaussian import VARIANCE_FLOOR
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Denoised, Observed

MOMENTUM, UNSEEN = 0.01, 1.0  # of c, a running mean, and its value before the first batch


class DilatedLayer(nn.Module):
    """A gated convolution over frames t - d, t, t + d, scaled and shifted by conditions; residual and skip outputs."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.conv, self.out = nn.Linear(3 * channels, 2 * channels), nn.Linear(channels, 2 * channels)

    def forward(
        self, h_NTC: Float[Tensor, "N T C"], condition: Float[Tensor, "N _ G"], mask_NT1: Float[Tensor, "N T 1"]
    ) -> tuple[Tensor, Tensor]:
        d, frames = self.dilation, h_NTC.shape[1]
        wide = nn.functional.pad(h_NTC * mask_NT1, (0, 0, d, d))
        taps = torch.cat([wide[:, i * d : i * d + frames] for i in range(3)], -1)
        scale, shift = condition.chunk(2, -1)
        content, gate = torch.addcmul(shift, self.conv(taps), 1 + scale).chunk(2, -1)
        residual, skip = self.out(torch.tanh(content) * torch.sigmoid(gate)).chunk(2, -1)
        return (h_NTC + residual) * 0.5**0.5, skip


class Denoiser(nn.Module):
    observes: Observed = "spectrum"

    def __init__(
        self,
        lips: bool = False,  # condition on them
        frequencies: int = 513,
        channels: int = 192,
        dilations: Sequence[int] = (1, 2, 4, 8, 2, 1),
        objective: Literal["likelihood", "flow"] = "likelihood",
        sigma: Sequence[float] = (0.01, 10.0),  # lowest and highest in training
        missing: float = 0.2,  # fraction of windows that are trained without their lips
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        dropout: float = 0.3,  # of the hidden units of the lip encoder
    ):
        super().__init__()
        if objective not in ("likelihood", "flow"):
            raise UserError(f"model.objective={objective}: choose likelihood or flow")
        if len(sigma) != 2 or not 0 < sigma[0] < sigma[1]:
            raise UserError(f"model.sigma={list(sigma)}: give the lowest level of noise, above 0, and the highest")
        self.sees: tuple[str, ...] = ("spectrum", "lips") if lips else ("spectrum",)
        self.can_miss: tuple[str, ...] = ("lips",) if lips else ()
        self.objective, self.sigma, self.missing = objective, tuple(sigma), missing
        self.register_buffer("scale_F", torch.full((frequencies,), UNSEEN))
        self.scale_F: Tensor
        features = 128
        self.lip_encoder = nn.Sequential(LipEncoder(pixels, 512, features, dropout), nn.LayerNorm(features))
        if not lips:
            del self.lip_encoder
        self.embedding = nn.Sequential(nn.Linear(64, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU())
        self.inputs = nn.Linear(3 * frequencies, channels)
        self.layers = nn.ModuleList(DilatedLayer(channels, dilation) for dilation in dilations)
        self.from_sigma = nn.Linear(channels, 4 * channels * len(dilations))
        self.from_lips = nn.Linear(features, 4 * channels * len(dilations), bias=False) if lips else None
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 3 * frequencies)
        )
        zero_init(self.from_sigma)
        zero_init(self.head[-1])
        if self.from_lips is not None:
            zero_init(self.from_lips)

    def context(self, batch: Batch) -> Context:
        video_BTM = None if batch.lips is None or "lips" not in self.sees else self.lip_encoder(batch.lips)
        return Context(batch.mask, video_BTM)

    def denoise(
        self, noisy_KBTF: Complex[Tensor, "K B T F"], sigma: float | Float[Tensor, " B"], context: Context
    ) -> Denoised:
        sigma_B = torch.as_tensor(sigma, device=noisy_KBTF.device).expand(noisy_KBTF.shape[1])
        v_BTF = (sigma_B[:, None, None] * self.scale_F).square()
        U_KBTF, log_S_KBTF = self._network(noisy_KBTF, sigma_B, v_BTF, context)
        log_v_BTF = v_BTF.log()
        G_KBTF = torch.sigmoid(log_S_KBTF - log_v_BTF)
        r2_KBTF = v_BTF * G_KBTF
        return Denoised(G_KBTF * noisy_KBTF + r2_KBTF.sqrt() * U_KBTF, r2_KBTF + VARIANCE_FLOOR)

    def _network(
        self, noisy_KBTF: Tensor, sigma_B: Tensor, v_BTF: Tensor, context: Context
    ) -> tuple[Complex[Tensor, "K B T F"], Float[Tensor, "K B T F"]]:
        draws, mask_BT1 = len(noisy_KBTF), context.mask[..., None].float()
        unit_KBTF = noisy_KBTF / (self.scale_F.square() + v_BTF).sqrt()  # of variance 1 about
        root_KBTF = unit_KBTF / (unit_KBTF.abs() + 1e-2).sqrt()  # loud and quiet bins within the same range
        level_KBTF = (noisy_KBTF.abs().square() / v_BTF + 1e-2).log() / 4
        h = self.inputs(torch.cat([root_KBTF.real, root_KBTF.imag, level_KBTF], -1)).flatten(end_dim=1)
        condition = self.from_sigma(self.embedding(_fourier(sigma_B)))[:, None]
        if self.from_lips is not None and context.video is not None:
            condition = condition + self.from_lips(context.video)
        condition = condition.expand(draws, *condition.shape).flatten(end_dim=1)
        mask_NT1, skips = mask_BT1.expand(draws, *mask_BT1.shape).flatten(end_dim=1), 0.0
        for layer, own in zip(self.layers, condition.chunk(len(self.layers), -1), strict=True):
            h, skip = layer(h, own, mask_NT1)
            skips = skips + skip
        outputs = self.head(skips / len(self.layers) ** 0.5).unflatten(0, noisy_KBTF.shape[:2])
        real, imaginary, log_S = outputs.chunk(3, -1)
        return torch.complex(real, imaginary), log_S + 2 * self.scale_F.log()

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        s_BTF, mask_BT = batch.need("spectrum", self), batch.mask
        if self.training:
            self._follow(s_BTF, mask_BT)
        context = self.context(batch)
        if context.video is not None and self.training:
            kept_B11 = torch.rand(len(s_BTF), 1, 1, device=s_BTF.device) >= self.missing
            context = replace(context, video=context.video * kept_B11)
        sigma_B = self._levels(len(s_BTF), s_BTF.device)
        n_BTF = torch.randn_like(s_BTF)
        noise_BTF = sigma_B[:, None, None] * self.scale_F * n_BTF
        denoised = self.denoise((s_BTF + noise_BTF)[None], sigma_B, context)
        error_BTF = (denoised.mean[0] - s_BTF).abs().square()
        variance_BTF = denoised.variance[0]
        parts: dict[str, Tensor] = {}
        if self.objective == "flow":
            tau_B = sigma_B / (1 + sigma_B)
            velocity_BT = (error_BTF / (tau_B[:, None, None] * self.scale_F).square()).sum(-1)
            parts["velocity"] = -(velocity_BT * mask_BT).sum(1)
            error_BTF = error_BTF.detach()
        log_p_BT = -(error_BTF / variance_BTF + variance_BTF.log() + math.log(math.pi)).sum(-1)
        return Elbo(recon={"spectrum": (log_p_BT * mask_BT).sum(1)}, kl={}, n=mask_BT.sum(1).float(), aux=parts)

    def _levels(self, count: int, device: torch.device) -> Float[Tensor, " B"]:
        low, high = self.sigma
        uniform_B = torch.rand(count, device=device)
        if self.objective == "flow":
            low, high = low / (1 + low), high / (1 + high)
            tau_B = low + (high - low) * uniform_B
            return tau_B / (1 - tau_B)
        return low * (high / low) ** uniform_B

    @torch.no_grad()
    def _follow(self, s_BTF: Tensor, mask_BT: Bool[Tensor, "B T"]) -> None:
        mean_F = s_BTF.abs()[mask_BT].mean(0).clamp_min(1e-3)
        self.scale_F.copy_(torch.where(self.scale_F == UNSEEN, mean_F, self.scale_F.lerp(mean_F, MOMENTUM)))


def _fourier(sigma_B: Float[Tensor, " B"]) -> Float[Tensor, "B 64"]:
    """Features of ln sigma."""
    speed = math.pi / 8 * 2 ** torch.linspace(0, 4, 32, device=sigma_B.device)
    angle = sigma_B.log()[:, None] * speed
    return torch.cat([angle.cos(), angle.sin()], -1)
