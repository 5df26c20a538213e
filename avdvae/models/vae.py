"""A-VAE: a variational autoencoder of speech spectra, frame by frame.

S. Leglaive, L. Girin, R. Horaud, "A variance modeling framework based on variational autoencoders for speech
enhancement", MLSP 2018; as the audio-only model of M. Sadeghi et al., "Audio-visual speech enhancement using
conditional variational auto-encoders", IEEE/ACM TASLP 28, 2020 (arXiv 1908.02590), section III.

    p(z_t) = N(0, I)        p(s_ft | z_t) = Nc(0, sigma_f(z_t))        q(z_t | s_t) = N(mu(|s_t|^2), diag var(|s_t|^2))
    ELBO = sum_t E_q[ln p(s_t | z_t)] - KL(q(z_t | s_t) || N(0, I))

    |s_t|^2   power spectrum                  power_BTF
    z_t       latent                          z_KBTL
    mu, var   of the posterior                encoder: mean_BTL, exp(log_var_BTL)
    sigma     variance of speech              decoder: exp(log_var_KBTF)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.frame_vae import FrameVAE
from avdvae.nn.blocks import GaussianHead, check_floor, check_same_floor, encoder_input, mlp
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.observed import likelihood_of
from avdvae.protocols import Batch, Context, Latents, Observed


class VAE(FrameVAE):
    def __init__(
        self,
        frequencies: int = 513,
        hidden: int | Sequence[int] = 128,
        dim: int = 32,
        observes: Observed = "power",  # or pose, with `frequencies` coordinates per frame
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        """A sequence `hidden` gives the sizes of several layers, in the order of the encoder. With observes="pose",
        `frequencies` is the number of coordinates per frame."""
        check_floor(observes, floor)
        super().__init__(dim, "audio" if observes == "power" else "motion")
        self.observes: Observed = observes
        self.floor = floor
        self.sees: tuple[str, ...] = (observes,)
        sizes = [frequencies, *([hidden] if isinstance(hidden, int) else hidden)]
        self.encoder = nn.Sequential(*mlp(sizes, nn.Tanh), GaussianHead(sizes[-1], dim))
        self.decoder = nn.Sequential(*mlp([dim, *sizes[:0:-1]], nn.Tanh), nn.Linear(sizes[1], frequencies))

    def start_from(self, vae: VAE) -> None:
        check_same_floor(self, vae)
        self.load_state_dict(vae.state_dict())

    def posterior(self, batch: Batch, context: Context) -> Gaussian:
        observed_BTF = batch.need(self.observes, self)
        if (found := observed_BTF.shape[-1]) != self.decoder[-1].out_features:
            raise UserError(f"a frame of {self.observes} has {found} numbers here: give model.frequencies={found}")
        return self.encoder(encoder_input(observed_BTF, self.floor))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        return {self.observes: likelihood_of(self.observes, self.decoder(z["z"]))}
