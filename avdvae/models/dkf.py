"""DKF, the deep Kalman filter: a chain of latents, each of which makes its frame of speech.

R. Krishnan, U. Shalit, D. Sontag, "Structured inference networks for nonlinear state space models", AAAI 2017 (arXiv
1609.09869); for speech, Girin et al. (see dynamical_vae.py), section 5.

    p(x, z) = prod_t Nc(x_t; 0, sigma(z_t)) N(z_t; mu, diag var (z_t-1))
    q(z | x) = prod_t N(z_t; mu, diag var (z_t-1, x_t:T))
    ELBO: dynamical_vae.py
    prior: gate = sigmoid(A2 relu(A1 z)), new = B2 relu(B1 z), mu = (1 - gate) C z + gate new,
           var = softplus(D relu(new))
    q: from the average of what is heard of x_t:T, g_t, and of what z_t-1 tells

    x_t   speech spectrum     power_KBTF holds |x_t|^2
    z_t   latent              z_KBTL
    g_t   what is heard       g_KBTM
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from avdvae.blocks import GaussianHead, Recurrent, before, mlp
from avdvae.distributions import Gaussian
from avdvae.models.dynamical_vae import Draw, DynamicalVAE, along
from avdvae.protocols import Context, Latents


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


class DKF(DynamicalVAE):
    def __init__(self, frequencies: int = 513, hidden: int = 128, dim: int = 16):
        super().__init__(dim)
        self.listen = mlp([frequencies, 2 * hidden], nn.Tanh)
        self.hear = Recurrent(2 * hidden, hidden, "backward")
        self.recall = mlp([dim, 32, hidden], nn.Tanh)
        self.head = nn.Sequential(*mlp([hidden, 32], nn.Tanh), GaussianHead(32, dim))
        self.transition = GatedTransition(dim)
        self.speak = nn.Sequential(*mlp([dim, 32, 64, hidden, 2 * hidden], nn.Tanh), nn.Linear(2 * hidden, frequencies))

    def posterior(self, power_KBTF: Tensor, context: Context, draw: Draw) -> tuple[Latents, Mapping[str, Gaussian]]:
        g_KBTM = self.hear(self.listen(power_KBTF), context.mask)

        def step(g_NM: Tensor, z_NL: Tensor) -> Gaussian:
            return self.head((g_NM + self.recall(z_NL)) / 2)

        return along(g_KBTM, step, draw, self.latents[0].dim)

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.transition(before(z["z"]))}

    def log_variance(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.speak(z["z"])
