"""Likelihoods of 16-bit waveforms, sample by sample.

A. van den Oord et al., "WaveNet", 2016 (arXiv 1609.03499), for the mu-law; T. Salimans et al., "PixelCNN++", ICLR 2017
(arXiv 1701.05517), for mixtures of logistics; J. D. Havtorn et al., 2022 (arXiv 2202.12707), for both together.
Shapes: N samples, C logistics of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

CODES = 2**15  # PCM codes k = -CODES..CODES - 1 stand for the samples k / CODES
LOGISTIC_SCALES = (-14.0, 14.0)  # of ln s: at -14, one code can have all of the mass
Coding = Literal["linear", "mu-law"]
Scoring = Literal["exact", "paper"]


def compand(x: Tensor) -> Tensor:
    """mu-law with mu = 2^16 - 1, on [-1, 1]."""
    mu = 2 * CODES - 1
    return torch.sign(x) * torch.log1p(mu * x.abs()) / math.log1p(mu)


def expand(y: Tensor) -> Tensor:
    """The inverse of `compand`."""
    mu = 2 * CODES - 1
    return torch.sign(y) * torch.expm1(y.abs() * math.log1p(mu)) / mu


@cache
def _cells(coding: Coding, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper edges of the cells of all codes, and their widths. The outermost cells reach to infinity, which
    `DMoL._exact` accounts for."""
    with torch.inference_mode(False):
        edges = (torch.arange(-CODES, CODES + 1, dtype=torch.float64) - 0.5) / CODES
        edges = compand(edges) if coding == "mu-law" else edges
        cells = edges[:-1], edges[1:], edges.diff()
        return cells[0].to(device, dtype), cells[1].to(device, dtype), cells[2].to(device, dtype)


def _log1mexp(u: Tensor) -> Tensor:
    """ln(1 - exp(-u)) for u > 0."""
    return torch.where(u < math.log(2), (-torch.expm1(-u)).log(), torch.log1p(-torch.exp(-u)))


@dataclass(frozen=True)
class DMoL:
    """Discretised mixture of logistics: each 16-bit sample has C logistics on a line with one cell for each PCM code.

    coding    linear: the line of the samples; mu-law: the companded line
    scoring   exact: the mass of the cell of the code, sigma((upper - loc) / s) - sigma((lower - loc) / s), so that the
              probabilities sum to 1 and -log2 is a code length. paper: as Havtorn et al. publish it, with s >= e^-7,
              and cells 1 / 32768 wide on the companded line, too, unlike the cells of the codes: no code length

    It may have more samples than the waveform, to fill the last stack: those at the end are ignored.
    """

    logits: Float[Tensor, "*draws N C"]
    loc: Float[Tensor, "*draws N C"]
    log_scale: Float[Tensor, "*draws N C"]
    coding: Coding = "mu-law"
    scoring: Scoring = "exact"

    @classmethod
    def of(cls, output: Float[Tensor, "*draws N C3"], coding: Coding, scoring: Scoring) -> DMoL:
        """From the output of a network."""
        output = output if output.dtype == torch.float64 else output.float()
        logits, loc, log_scale = output.chunk(3, -1)
        return cls(logits, loc, log_scale, coding, scoring)

    def log_prob(self, waveform: Float[Tensor, "*#draws n"]) -> Float[Tensor, "*_draws n"]:
        """Of each sample."""
        n = waveform.shape[-1]
        logits, loc, log_scale = (part[..., :n, :] for part in (self.logits, self.loc, self.log_scale))
        score = self._exact if self.scoring == "exact" else self._paper
        return (score(waveform, loc, log_scale) + logits.log_softmax(-1)).logsumexp(-1)

    def _exact(self, waveform: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        """ln(sigma(b) - sigma(a)) = ln sigma(b) + ln sigma(-a) + ln(1 - exp(a - b)), without cancellation."""
        code = (waveform * CODES).round().long().clamp(-CODES, CODES - 1)[..., None] + CODES
        low, high, width = (edges[code] for edges in _cells(self.coding, loc.device, loc.dtype))
        per_scale = torch.exp(-log_scale.clamp(*LOGISTIC_SCALES))
        below = nn.functional.logsigmoid((loc - low) * per_scale)
        above = nn.functional.logsigmoid((high - loc) * per_scale)
        inside = above + below + _log1mexp(width * per_scale)
        return torch.where(code == 0, above, torch.where(code == 2 * CODES - 1, below, inside))

    def _paper(self, waveform: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        y = (compand(waveform) if self.coding == "mu-law" else waveform)[..., None]
        log_scale, half = log_scale.clamp_min(-7), 1 / (2 * CODES - 1)
        per_scale = torch.exp(-log_scale)
        upper, middle, lower = (per_scale * (y - loc + step) for step in (half, 0, -half))
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        density = middle - log_scale - 2 * nn.functional.softplus(middle) - math.log(CODES)
        inside = torch.where(mass > 1e-5, mass.clamp_min(1e-10).log(), density)
        first, last = nn.functional.logsigmoid(upper), nn.functional.logsigmoid(-lower)
        return torch.where(y < -1 + 1 / CODES, first, torch.where(y > 1 - 1 / CODES, last, inside))

    def sample(self) -> Float[Tensor, "*draws N"]:
        """A draw of each sample."""
        noise = torch.rand_like(self.logits).clamp(1e-5, 1 - 1e-5)
        chosen = (self.logits - (-noise.log()).log()).argmax(-1, keepdim=True)
        loc, log_scale = (part.gather(-1, chosen)[..., 0] for part in (self.loc, self.log_scale))
        low, high = (-7, math.inf) if self.scoring == "paper" else LOGISTIC_SCALES
        where = torch.rand_like(loc).clamp(1e-5, 1 - 1e-5).logit()
        return self._samples(loc + log_scale.clamp(low, high).exp() * where)

    @property
    def mode(self) -> Float[Tensor, "*draws N"]:
        """The middle of the most probable component."""
        return self._samples(self.loc.gather(-1, self.logits.argmax(-1, keepdim=True))[..., 0])

    def _samples(self, y: Tensor) -> Tensor:
        """From the line of `coding`; exact ones are rounded to PCM codes."""
        x = y.clamp(-1, 1)
        x = expand(x) if self.coding == "mu-law" else x
        return x if self.scoring == "paper" else (x * CODES).round().clamp(-CODES, CODES - 1) / CODES
