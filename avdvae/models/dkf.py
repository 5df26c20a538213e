"""DKF, the deep Kalman filter: a chain of latents, each of which makes its frame of speech.

R. Krishnan, U. Shalit, D. Sontag, "Structured inference networks for nonlinear state space models", AAAI 2017 (arXiv
1609.09869); for speech, Girin et al. (see dynamical_vae.py), section 5.

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_t)) N(z_t; mu, diag var (z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (z_t-1, x_t:T))
    ELBO: dynamical_vae.py
    prior: gate = sigmoid(A2 relu(A1 z)), new = B2 relu(B1 z), mu = (1 - gate) C z + gate new,
           var = softplus(D relu(new))
    q: from the average of what is heard of x_t:T, g_t, and of what z_t-1 tells

    x_t   speech spectrum     observed_BTF holds |x_t|^2
    z_t   latent              z_KBTL
    g_t   what is heard       g_1BTM
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from avdvae.models.dynamical_vae import DynamicalVAE, Path, sample_path
from avdvae.nn.blocks import GaussianHead, Recurrent, mlp, shifted
from avdvae.probability.distributions import Gaussian
from avdvae.protocols import Context, Latents, Observed


class GatedTransition(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Sigmoid())
        self.new = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.stay = nn.Linear(dim, dim)
        self.spread = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, z: Float[Tensor, "*draws L"]) -> Gaussian:
        gate, new = self.gate(z), self.new(z)
        mean = (1 - gate) * self.stay(z) + gate * new
        return Gaussian.floored(mean, softplus(self.spread(new)).clamp_min(1e-10).log())


def averaging(head: Any, recall: nn.Module, g_1BTM: Tensor, noise_KBTL: Tensor) -> Path:
    """q(z_t) from the average of what is heard and what z_t-1 recalls."""
    first, squash, last = head
    told = nn.functional.linear(g_1BTM / 2, first.weight, first.bias)
    bias, weight = last.bias_and_weight()

    def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
        features_NM = squash(torch.addmm(told_NM, recall(z_NL), first.weight.t(), alpha=0.5))
        return torch.addmm(bias, features_NM, weight)

    return sample_path(told, noise_KBTL, step)


class DKF(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,
        recall: int = 32,
        narrow: Sequence[int] = (32, 64, 128, 256),
        observes: Observed = "power",
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.listen = mlp([features, wide], nn.Tanh)
        self.hear = Recurrent(wide, hidden, "backward")
        self.recall = mlp([dim, recall, hidden], nn.Tanh)
        self.head = nn.Sequential(*mlp([hidden, 32], nn.Tanh), GaussianHead(32, dim))
        self.transition = GatedTransition(dim)
        self.speak = nn.Sequential(*mlp([dim, *narrow], nn.Tanh), nn.Linear(narrow[-1], features))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        g_1BTM = self.hear(self.listen(observed_BTF[None]), context.mask)
        return averaging(self.head, self.recall, g_1BTM, noise["z"])

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.transition(shifted(z["z"]))}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.speak(z["z"])
