"""VQ-MDVAE: MDVAE of the features that two trained VQ-VAEs, of sound and of faces, quantise.

The model and its paper are those of mdvae.py; the VQ-VAEs, those of vqvae.py, are frozen. Features are Gaussian with a
learned variance each; the published code takes the Itakura-Saito divergence, though features may be negative. The
networks take and give standardised features: of most, the mean is large and the variance small.

    u_t          features before quantisation      vqvae_a, vqvae_v: u_BTA of sound, u_BTV of faces
    a_t, v_t     the same, standardised            standard_a, standard_v: a_BTA, v_BTV
    var_a        variance of each feature of a     exp(LOG_VAR_SCALE log_var_a), A
    var_v        variance of each feature of v     exp(LOG_VAR_SCALE log_var_v), V, above a floor

The other symbols are those of mdvae.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.mdvae import Multimodal
from avdvae.models.vqvae import VQVAE
from avdvae.nn.blocks import sum_over_processes
from avdvae.nn.frame_cache import FrameCache
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Batch, Context, Latents


class Standardisation(nn.Module):
    """Gives features mean 0 and variance 1, by moving averages of their moments in training."""

    LEAST_RATE = 0.01

    def __init__(self, size: int):
        super().__init__()
        self.moments_2M: Tensor  # means of the features and of their squares
        self.updates: Tensor
        self.register_buffer("moments_2M", torch.stack([torch.zeros(size), torch.ones(size)]))
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, u_NM: Float[Tensor, "N M"]) -> None:
        sums_3M = sum_over_processes(torch.stack([u_NM, u_NM.square(), torch.ones_like(u_NM)]).sum(1))
        self.updates += 1
        self.moments_2M.lerp_(sums_3M[:2] / sums_3M[2], (1 / self.updates).clamp_min(self.LEAST_RATE))

    @property
    def scale_M(self) -> Float[Tensor, " M"]:
        mean_M, squares_M = self.moments_2M
        return (squares_M - mean_M.square()).clamp_min(1e-4).sqrt()

    def forward(self, u: Float[Tensor, "*some M"]) -> Float[Tensor, "*some M"]:
        return (u - self.moments_2M[0]) / self.scale_M

    def inverse(self, a: Float[Tensor, "*some M"]) -> Float[Tensor, "*some M"]:
        return self.moments_2M[0] + self.scale_M * a


class VQMDVAE(Multimodal):
    """The two VQ-VAEs are trained before and frozen (start_from, train.freeze)."""

    LOG_VAR_SCALE = 20  # log-variances have farther to go than weights, and learn this much faster
    FACE_VARIANCE_FLOOR = 0.05  # without it, a small corpus overfits and unseen faces get almost no likelihood

    def __init__(
        self,
        ear: VQVAE,
        eye: VQVAE,
        variance: Literal["learned", "unit"] = "learned",  # of each feature of the VQ-VAEs; or unit
        **common: Any,
    ):
        super().__init__(ear.size, eye.size, **common)
        self.vqvae_a, self.vqvae_v = ear.requires_grad_(False), eye.requires_grad_(False)
        self.cache = FrameCache(ear.size + eye.size)
        self.standard_a, self.standard_v = Standardisation(ear.size), Standardisation(eye.size)
        learned = variance == "learned"
        self.log_var_a = nn.Parameter(torch.zeros(ear.size), requires_grad=learned)
        self.log_var_v = nn.Parameter(torch.zeros(eye.size), requires_grad=learned)

    def start_from(self, ear: VQVAE, eye: VQVAE) -> None:
        self.vqvae_a.load_state_dict(ear.state_dict())
        self.vqvae_v.load_state_dict(eye.state_dict())
        self.cache = FrameCache(self.cache.size)

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        power_BTF, face_BTHW3 = batch.need("power", self), batch.need("face", self)

        def compute(these_BT: Tensor) -> Float[Tensor, "N M"]:
            u_1NA = self.vqvae_a.features(power_BTF[these_BT][None])
            u_1NV = self.vqvae_v.features(face_BTHW3[these_BT][None])
            return torch.cat([u_1NA, u_1NV], -1)[0]

        if self.training and batch.starts is not None:
            u_BTA, u_BTV = self.cache(batch, compute).split([self.vqvae_a.size, self.vqvae_v.size], -1)
        else:
            u_BTA, u_BTV = self.vqvae_a.features(power_BTF), self.vqvae_v.features(face_BTHW3)
        if self.training:
            self.standard_a.update(u_BTA[batch.mask])
            self.standard_v.update(u_BTV[batch.mask])
        return self.standard_a(u_BTA), self.standard_v(u_BTV)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        a_KBTA, v_KBTV = self.decoded(z, context.mask)
        e_KBTA = self.vqvae_a.quantised(self.standard_a.inverse(a_KBTA))
        e_KBTV = self.vqvae_v.quantised(self.standard_v.inverse(v_KBTV))
        return {"power": self.vqvae_a.likelihood(e_KBTA), "face": self.vqvae_v.likelihood(e_KBTV)}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        a_KBTA, v_KBTV = self.decoded(z, batch.mask)
        floor = self.FACE_VARIANCE_FLOOR
        var_V = floor + (1 - floor) * (self.LOG_VAR_SCALE * self.log_var_v).exp()
        p_a, p_v = Gaussian(a_KBTA, self.LOG_VAR_SCALE * self.log_var_a), Gaussian(v_KBTV, var_V.log())
        return {
            "power": p_a.log_prob(a_BTA) - self.standard_a.scale_M.log().sum(),
            "face": p_v.log_prob(v_BTV) - self.standard_v.scale_M.log().sum(),
        }
