"""VQ-VAE: spectra and faces as small maps of codes, frame by frame, with a learned codebook.

A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural discrete representation learning", NeurIPS 2017 (arXiv 1711.00937),
with a codebook of moving averages; the networks are those of S. Sadok et al. (see mdvae.py).

    u_t = encoder(x_t)        k_i = argmin_k |u_i - e_k|^2 at each place i of the map        p(x_t | e_k_1, e_k_2, ...)
    loss = -ln p(x_t | e_k) + 1/4 sum_i |u_i - e_k_i|^2        straight-through: u_i gets the gradient at e_k_i
    e_k: moving average of the u_i that were quantised to it

p is Nc(0, sigma) for spectra, and Gaussian for the pixels of faces. The encoder's input is ln |s|^2; in the published
code it is |s|^2, which is almost 0 in all but the loudest bins. A code that is hardly used is dead and restarts at some
u_i of the batch; in the first step all codes do.

    x_t   power spectrum, or face           power_BTF, face_BTHW3
    u     features before quantisation      encoder: u_BTM, of M = P places with L features each
    e     codebook                          codebook.words_CL
    k     codes                             codebook.nearest: B T P
    p     likelihood                        decoder: ComplexGaussian or Picture
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from avdvae.nn.blocks import FaceDecoder, FaceEncoder, Residual, sum_over_processes
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.observed import Picture
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch

POWER_FLOOR = 1e-6  # of |s|^2 in the logarithm; the rounding noise of 16-bit samples is below


class Codebook(nn.Module):
    DECAY, SMOOTHING, COMMITMENT = 0.99, 1e-5, 0.25
    DEAD, RESTARTED = 0.03, 0.05  # of the count under uniform use; a restarted code has 50 steps to get used

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.words_CL: Tensor
        self.count_C: Tensor  # moving averages per step: number of vectors quantised to each code, and their sum
        self.sum_CL: Tensor
        self.register_buffer("words_CL", torch.randn(codes, dim))
        self.register_buffer("count_C", torch.zeros(codes))
        self.register_buffer("sum_CL", torch.zeros(codes, dim))

    def nearest(self, u: Float[Tensor, "*places L"]) -> Int64[Tensor, "*places"]:
        return (self.words_CL.square().sum(-1) - 2 * u @ self.words_CL.t()).argmin(-1)

    def forward(self, u: Float[Tensor, "*places L"]) -> Float[Tensor, "*places L"]:
        """The nearest words, with a straight-through gradient."""
        return u + (self.words_CL[self.nearest(u)] - u).detach()

    @torch.no_grad()
    def restart_dead(self, u_NL: Float[Tensor, "N L"], weight_N: Float[Tensor, " N"]) -> None:
        """Move dead codes to vectors of the batch, drawn in proportion to their weight."""
        fair = weight_N.sum() / len(self.count_C)
        dead_C = self.count_C <= self.DEAD * fair
        fresh_CL = u_NL[torch.multinomial(weight_N, len(dead_C), replacement=True)]
        self.words_CL.copy_(torch.where(dead_C[:, None], fresh_CL, self.words_CL))
        self.count_C.copy_(torch.where(dead_C, self.RESTARTED * fair, self.count_C))
        self.sum_CL.copy_(torch.where(dead_C[:, None], self.count_C[:, None] * fresh_CL, self.sum_CL))

    @torch.no_grad()
    def update(self, u_NL: Float[Tensor, "N L"], chosen_NC: Float[Tensor, "N C"]) -> None:
        """Move each word towards the vectors that were quantised to it, in all processes."""
        both_CL1 = sum_over_processes(chosen_NC.t() @ nn.functional.pad(u_NL, (0, 1), value=1.0))
        self.sum_CL.lerp_(both_CL1[:, :-1], 1 - self.DECAY)
        self.count_C.lerp_(both_CL1[:, -1], 1 - self.DECAY)
        total = self.count_C.sum()
        smooth_C = (self.count_C + self.SMOOTHING) / (total + len(self.count_C) * self.SMOOTHING) * total
        self.words_CL.copy_(self.sum_CL / smooth_C[:, None])


class VQVAE(nn.Module):
    """The base of the VQ-VAEs of sound and of faces."""

    observes: Literal["power", "face"]
    sees: tuple[str, ...]

    def __init__(self, codes: int, dim: int, places: tuple[int, ...]):
        super().__init__()
        self.codebook, self.places = Codebook(codes, dim), places

    @property
    def size(self) -> int:
        """M, the number of features per frame."""
        return self.codebook.words_CL.shape[1] * torch.Size(self.places).numel()

    def features(self, observed: Tensor) -> Float[Tensor, "B T M"]:
        """u"""
        raise NotImplementedError

    def likelihood(self, e: Float[Tensor, "*draws B T M"]) -> Any:
        """p(x | e)"""
        raise NotImplementedError

    def quantised(self, u: Float[Tensor, "*draws T M"]) -> Float[Tensor, "*draws T M"]:
        return self.codebook(u.unflatten(-1, (-1, self.codebook.words_CL.shape[1]))).flatten(-2)

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        observed, mask_BT = batch.need(self.observes, self), batch.mask
        u_BTM = self.features(observed)
        u_NL = u_BTM.reshape(-1, self.codebook.words_CL.shape[1])
        weight_N = mask_BT[..., None].expand(*mask_BT.shape, len(u_NL) // mask_BT.numel()).reshape(-1).float()
        if self.training:
            self.codebook.restart_dead(u_NL.detach(), weight_N)
        chosen_NC = nn.functional.one_hot(self.codebook.nearest(u_NL), len(self.codebook.words_CL)) * weight_N[:, None]
        e_BTM = self.quantised(u_BTM)
        if self.training:
            self.codebook.update(u_NL.detach(), chosen_NC)
        likelihood_BT = self.likelihood(e_BTM).log_prob(observed)
        squared_error_BT = (u_BTM - e_BTM.detach()).square().sum(-1)
        n_B = mask_BT.sum(1).float()
        return Elbo(
            recon={self.observes: (likelihood_BT * mask_BT).sum(1)},
            kl={},
            n=n_B,
            aux={"commitment": -Codebook.COMMITMENT * (squared_error_BT * mask_BT).sum(1)},
            noted={name: value * n_B for name, value in codebook_use(chosen_NC.sum(0)).items()},
        )


def codebook_use(count_C: Float[Tensor, " C"]) -> dict[str, Tensor]:
    """Fraction of the codes in use, and the exponential of the entropy of their use."""
    p_C = count_C / count_C.sum()
    return {"usage": (count_C > 0).float().mean(), "perplexity": torch.special.entr(p_C).sum().exp()}


class SoundVQ(VQVAE):
    observes, sees = "power", ("power",)

    def __init__(
        self,
        width: int = 32,  # channels of the convolutions
        codes: int = 64,
        dim: int = 8,  # of a code; a frame has 64 of them
    ):
        super().__init__(codes, dim, places=(64,))
        self.encoder = nn.Sequential(  # 513 frequencies, 256, 128, 64 places
            *(nn.Conv1d(1, width // 2, 4, stride=2, padding=1), nn.Tanh()),
            *(nn.Conv1d(width // 2, width, 4, stride=2, padding=1), nn.Tanh()),
            *(nn.Conv1d(width, width, 3, stride=2, padding=1), nn.Tanh()),
            *(Residual(nn.Conv1d, width, width // 2, nn.Tanh), nn.Tanh()),
            nn.Conv1d(width, dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(dim, width, 3, padding=1),
            *(Residual(nn.Conv1d, width, width // 2, nn.Tanh), nn.Tanh()),
            *(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1), nn.Tanh()),
            *(nn.ConvTranspose1d(width, width // 2, 4, stride=2, padding=1), nn.Tanh()),
            nn.ConvTranspose1d(width // 2, 1, 3, stride=2),
        )

    def features(self, observed: Float[Tensor, "B T F"]) -> Float[Tensor, "B T M"]:
        log_power_BTF = (observed + POWER_FLOOR).log() / 5
        return self.encoder(log_power_BTF.flatten(end_dim=1)[:, None]).mT.reshape(*log_power_BTF.shape[:2], -1)

    def likelihood(self, e: Float[Tensor, "*draws B T M"]) -> ComplexGaussian:
        map_NLP = e.reshape(-1, *self.places, len(self.codebook.words_CL[0])).mT
        return ComplexGaussian(self.decoder(map_NLP).reshape(*e.shape[:-1], -1))


class FaceVQ(VQVAE):
    observes, sees = "face", ("face",)

    def __init__(self, width: int = 128, codes: int = 512, dim: int = 32):
        super().__init__(codes, dim, places=(8, 8))
        self.encoder, self.decoder = FaceEncoder(width, dim), FaceDecoder(width, dim)

    def features(self, observed: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T M"]:
        return self.encoder(observed)

    def likelihood(self, e: Float[Tensor, "*draws B T M"]) -> Picture:
        return Picture(self.decoder(e))
