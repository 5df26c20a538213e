"""VQ-MDVAE: MDVAE of what the encoders of two trained VQ-VAEs make of sound and faces, before quantisation.

The model and its paper are those of mdvae.py, the VQ-VAEs those of vqvae.py; they stay as they are. Features are
Gaussian with a learned variance for each; the published code takes a divergence of spectra for features of either sign.
Networks take and give them brought to mean 0 and variance 1: as they come, most of them are far off and nearly still.

    u   features        u_BTA of sound, u_BTV of faces
    a, v   the same, of mean 0 and variance 1        a_BTA, v_BTV
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.mdvae import Multimodal
from avdvae.models.vqvae import VQVAE, of_all_processes
from avdvae.nn.frame_cache import FrameCache
from avdvae.probability.distributions import Gaussian
from avdvae.protocols import Batch, Context, Latents


class Standard(nn.Module):
    """Brings features to mean 0 and variance 1, by what was met in training lately."""

    SLOWEST = 0.01

    def __init__(self, size: int):
        super().__init__()
        self.moments_2M: Tensor  # means of features and of their squares
        self.met: Tensor
        self.register_buffer("moments_2M", torch.stack([torch.zeros(size), torch.ones(size)]))
        self.register_buffer("met", torch.tensor(0))

    @torch.no_grad()
    def follow(self, u_NM: Float[Tensor, "N M"]) -> None:
        sums_3M = of_all_processes(torch.stack([u_NM, u_NM.square(), torch.ones_like(u_NM)]).sum(1))
        self.met += 1
        self.moments_2M.lerp_(sums_3M[:2] / sums_3M[2], (1 / self.met).clamp_min(self.SLOWEST))

    @property
    def scale_M(self) -> Float[Tensor, " M"]:
        mean_M, squares_M = self.moments_2M
        return (squares_M - mean_M.square()).clamp_min(1e-4).sqrt()

    def forward(self, u: Float[Tensor, "*some M"]) -> Float[Tensor, "*some M"]:
        return (u - self.moments_2M[0]) / self.scale_M

    def back(self, a: Float[Tensor, "*some M"]) -> Float[Tensor, "*some M"]:
        return self.moments_2M[0] + self.scale_M * a


class VQMDVAE(Multimodal):
    """The parts `ear` and `eye` are frozen (train.freeze): they come trained by `start_from`."""

    PACE = 20  # at which logarithms of variances learn, to the weights' 1: they have as far to go
    LEAST = 0.05  # variance of faces: where few are learned by heart, next to none is left, and others are improbable

    def __init__(
        self,
        ear: VQVAE,
        eye: VQVAE,
        variance: Literal["learned", "unit"] = "learned",
        **common: Any,
    ):
        super().__init__(ear.size, eye.size, **common)
        self.ear, self.eye = ear.requires_grad_(False), eye.requires_grad_(False)
        self.met = FrameCache(ear.size + eye.size)
        self.standard_a, self.standard_v = Standard(ear.size), Standard(eye.size)
        learned = variance == "learned"
        self.log_var_a = nn.Parameter(torch.zeros(ear.size), requires_grad=learned)
        self.log_var_v = nn.Parameter(torch.zeros(eye.size), requires_grad=learned)

    def start_from(self, ear: VQVAE, eye: VQVAE) -> None:
        self.ear.load_state_dict(ear.state_dict())
        self.eye.load_state_dict(eye.state_dict())
        self.met = FrameCache(self.met.size)

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        power_BTF, face_BTHW3 = batch.need("power", self), batch.need("face", self)

        def find(these_BT: Tensor) -> Float[Tensor, "N M"]:
            heard, seen = self.ear.features(power_BTF[these_BT][None]), self.eye.features(face_BTHW3[these_BT][None])
            return torch.cat([heard[0], seen[0]], -1)

        if self.training and batch.starts is not None:
            u_BTA, u_BTV = self.met(batch, find).split([self.ear.size, self.eye.size], -1)
        else:
            u_BTA, u_BTV = self.ear.features(power_BTF), self.eye.features(face_BTHW3)
        if self.training:
            self.standard_a.follow(u_BTA[batch.mask])
            self.standard_v.follow(u_BTV[batch.mask])
        return self.standard_a(u_BTA), self.standard_v(u_BTV)

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        (a_KBTA, v_KBTV), ear, eye = self.told(z, context.mask), self.ear, self.eye
        heard, seen = ear.quantised(self.standard_a.back(a_KBTA)), eye.quantised(self.standard_v.back(v_KBTV))
        return {"power": ear.likelihood(heard), "face": eye.likelihood(seen)}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        a_KBTA, v_KBTV = self.told(z, batch.mask)
        var_M = self.LEAST + (1 - self.LEAST) * (self.PACE * self.log_var_v).exp()
        heard, seen = Gaussian(a_KBTA, self.PACE * self.log_var_a), Gaussian(v_KBTV, var_M.log())
        return {
            "power": heard.log_prob(a_BTA) - self.standard_a.scale_M.log().sum(),
            "face": seen.log_prob(v_BTV) - self.standard_v.scale_M.log().sum(),
        }
