"""DKF, the deep Kalman filter: a Markov chain of latents, each of which emits a frame of speech.

R. Krishnan, U. Shalit, D. Sontag, "Structured inference networks for nonlinear state space models", AAAI 2017 (arXiv
1609.09869); for speech, Girin et al. (see dynamical_vae.py), section 5.

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_t)) N(z_t; mu, diag var (z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (z_t-1, x_t:T))
    ELBO: dynamical_vae.py

    x_t      speech spectrum                                 observed_BTF holds |x_t|^2
    z_t      latent                                          z_KBTL
    g_t      features of x_t:T                               encoder_rnn of phi_x, g_1BTM
    p(z_t)   (1 - gate) z_to_loc(z_t-1) + gate proposed,     transition: gate, proposed_mean, z_to_loc, scale
             var = softplus(scale(proposed))
    q(z_t)   posterior_net((z_to_hidden(z_t-1) + g_t) / 2)   combiner: z_to_hidden, posterior_net
    sigma    variances of x_t                                emitter gives their logarithms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from avdvae.models.dynamical_vae import DynamicalVAE, Path, Recursion, each_frame, sample_path, stack_frames
from avdvae.nn.blocks import GaussianHead, Recurrent, mlp, shifted
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed


class GatedTransition(nn.Module):
    """p(z_t | z_t-1): the mean moves between a linear and a nonlinear prediction."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Sigmoid())
        self.proposed_mean = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.z_to_loc = nn.Linear(dim, dim)
        self.scale = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, z_before: Float[Tensor, "*draws L"]) -> Gaussian:
        gate, proposed = self.gate(z_before), self.proposed_mean(z_before)
        mean = (1 - gate) * self.z_to_loc(z_before) + gate * proposed
        return Gaussian.floored(mean, softplus(self.scale(proposed)).clamp_min(1e-10).log())


class Combiner(nn.Module):
    """q(z_t | z_t-1, x_t:T), from the average of features of z_t-1 and of x_t:T."""

    def __init__(self, hidden: int, dim: int, recall: int):
        super().__init__()
        self.z_to_hidden = mlp([dim, recall, hidden], nn.Tanh)
        self.posterior_net: Any = nn.Sequential(*mlp([hidden, 32], nn.Tanh), GaussianHead(32, dim))

    def forward(self, z_before: Float[Tensor, "K B T L"], g: Float[Tensor, "1 B T M"]) -> Gaussian:
        return self.posterior_net((self.z_to_hidden(z_before) + g) / 2)

    def path(self, g_1BTM: Tensor, noise_KBTL: Tensor) -> Path:
        """z_1 to z_T, with what does not depend on z computed for all frames at once."""
        first, activation, head = self.posterior_net
        g_part, (bias, weight) = linear(g_1BTM / 2, first.weight, first.bias), head.bias_and_weight()

        def step(g_part_NM: Tensor, z_before_NL: Tensor) -> Tensor:
            hidden_NM = torch.addmm(g_part_NM, self.z_to_hidden(z_before_NL), first.weight.t(), alpha=0.5)
            return torch.addmm(bias, activation(hidden_NM), weight)

        return sample_path(g_part, noise_KBTL, step)


class DKF(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,  # of phi_x
        recall: int = 32,  # of the layer between z_t-1 and the combiner
        narrow: Sequence[int] = (32, 64, 128, 256),  # of the layers of the emitter
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.phi_x = mlp([features, wide], nn.Tanh)
        self.encoder_rnn = Recurrent(wide, hidden, "backward")
        self.combiner = Combiner(hidden, dim, recall)
        self.transition = GatedTransition(dim)
        self.emitter = nn.Sequential(*mlp([dim, *narrow], nn.Tanh), nn.Linear(narrow[-1], features))

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        g_1BTM = self.encoder_rnn(self.phi_x(observed_BTF[None]), context.mask)
        z, frames = torch.zeros_like(noise["z"][:, :, :1]), []
        for g, epsilon in each_frame(g_1BTM, noise["z"]):
            p = self.transition(z)  # p(z_t | z_t-1)
            q = self.combiner(z, g)  # q(z_t | z_t-1, x_t:T)
            z = q.moved(epsilon)
            frames.append((z, q, p, self.emitter(z)))  # p(x_t | z_t)
        return stack_frames(frames)

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        g_1BTM = self.encoder_rnn(self.phi_x(observed_BTF[None]), context.mask)
        return self.combiner.path(g_1BTM, noise["z"])

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.transition(shifted(z["z"]))}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.emitter(z["z"])
