"""NMF: a dictionary of speech spectra, the classical baseline of the VAEs.

C. Fevotte, N. Bertin, J.-L. Durrieu, "Nonnegative matrix factorization with the Itakura-Saito divergence", Neural
Computation 21(3), 2009, as a generative model with a log-normal prior on the activations.

    p(z_tk) = N(m_k, v_k)        p(s_ft | z_t) = Nc(0, sum_k D_fk exp(z_tk))        q(z_tk | s_t) = N(ln h_tk(s_t), c_k)
    ELBO = sum_t E_q[ln p(s_t | z_t)] - KL(q(z_t | s_t) || p(z_t))

h minimises the Itakura-Saito divergence from |s|^2 to h D^T by multiplicative updates with D fixed. D, m, v and c
are trained.

    |s_t|^2   power spectrum           power_BTF
    z_t       log-activations          z_KBTL
    h_t       activations              activations: h_BTL
    D         dictionary               exp(log_dictionary): D_FL
    m, v      of the prior             prior_mean, exp(prior_log_var), L
    c         of the posterior         exp(posterior_log_var), L
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.frame_vae import FrameVAE
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents

TINY = 1e-8


class NMF(FrameVAE):
    def __init__(
        self,
        frequencies: int = 513,
        atoms: int = 64,
        updates: int = 20,  # multiplicative updates of the activations
    ):
        super().__init__(atoms)
        self.updates = updates
        self.log_dictionary = nn.Parameter(torch.randn(frequencies, atoms))
        self.prior_mean, self.prior_log_var = nn.Parameter(torch.zeros(atoms)), nn.Parameter(torch.zeros(atoms) + 3)
        self.posterior_log_var = nn.Parameter(torch.zeros(atoms))

    def prior(self, context: Context) -> Gaussian:
        shape = (*context.mask.shape, -1)
        return Gaussian.floored(self.prior_mean.expand(shape), self.prior_log_var.expand(shape))

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        h_BTL = self.activations(batch.need("power", self))
        return Gaussian.floored(h_BTL.log(), self.posterior_log_var.expand_as(h_BTL))

    @torch.no_grad()
    def activations(self, power_BTF: Float[Tensor, "B T F"]) -> Float[Tensor, "B T L"]:
        D_FL = self.log_dictionary.exp()
        power_BTF = power_BTF + TINY
        h_BTL = (power_BTF.mean(-1, keepdim=True) / D_FL.sum(1).mean()).expand(-1, -1, D_FL.shape[1])
        for _ in range(self.updates):
            precision_BTF = (h_BTL @ D_FL.mT + TINY).reciprocal()
            ratio_BTL = ((power_BTF * precision_BTF.square()) @ D_FL) / (precision_BTF @ D_FL)
            h_BTL = (h_BTL * ratio_BTL.sqrt()).clamp_min(TINY)
        return h_BTL

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, ComplexGaussian]:
        return {"power": ComplexGaussian((z["z"].exp() @ self.log_dictionary.exp().mT + TINY).log())}
