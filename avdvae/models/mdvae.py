"""MDVAE and VQ-MDVAE: what stays of a talker, and what moves: voice and face together, the voice alone, the face alone.

S. Sadok, S. Leglaive, L. Girin, X. Alameda-Pineda, R. Séguier, "A multimodal dynamical variational autoencoder for
audiovisual speech representation learning", Neural Networks 172, 2024 (arXiv 2305.03582).

    p(a, v, z, w) = N(w; 0, I) prod_t p(a_t | w, z^av_t, z^a_t) p(v_t | w, z^av_t, z^v_t)
                                      prod_i N(z^i_t; mu, diag var (z^i_1:t-1))
    q(z, w | a, v) = q(w | a_1:T, v_1:T) prod_t q(z^av_t | z^av_1:t-1, a_t, v_t, w)
                                                  q(z^a_t | z^a_1:t-1, a_t, z^av_t, w)
                                                  q(z^v_t | z^v_1:t-1, v_t, z^av_t, w)
    ELBO = sum_t E_q[ln p(a_t | .) + ln p(v_t | .)] - KL(q(w) || N(0, I)) - sum_t E_q[KL_av + KL_a + KL_v]

MDVAE explains sound and faces themselves, as Nc(0, sigma) and Gaussian pixels. VQMDVAE explains what the encoders of
two trained VQ-VAEs (vqvae.py), which stay as they are, make of them before quantisation, as Gaussians with a learned
variance for each feature; the published code takes a divergence of spectra for features of either sign. Networks take
and give features brought to mean 0 and variance 1: as they come, most of them are far off and nearly still.

A z that does not move costs as little as w and is learned sooner, so that w would be left empty. Therefore q(z) is told
how sound and face depart from their means over the utterance, and q(w) the mean of what its network makes of them. With
`paper` both are as published: q(z) is told everything, q(w) where its network arrives, and the divergence of w counts
once a frame, which is no bound, and not once an utterance.

    a_t, v_t   sound and face, or their features      a_BTA, v_BTV
    w          what stays                             w of B 1 L
    z^i        what moves, i = av, a, v               z_av, z_a, z_v of K B T L
    h^i_t      what is kept of z^i_1:t-1              h_NM, draws and utterances in one axis
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avdvae.blocks import FaceDecoder, FaceEncoder, GaussianHead, Recurrent, before, beside, ends, hoisted, mlp
from avdvae.distributions import ComplexGaussian, Gaussian, Picture
from avdvae.memory import FrameMemory
from avdvae.models.dynamical_vae import DynamicalVAE, Path, along
from avdvae.models.vqvae import HEARD_FROM, VQVAE, of_all_processes
from avdvae.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class Chain(nn.Module):
    """A latent whose prior and posterior look back on its own past: p(z_t | h_t), q(z_t | h_t, told_t)."""

    def __init__(self, dim: int, told: int, expect: int, find: Sequence[int], memory: int = 128):
        super().__init__()
        self.remember = nn.GRU(dim, memory, batch_first=True)
        self.p = nn.Sequential(mlp([memory, expect], nn.Tanh), GaussianHead(expect, dim))
        self.q_in = nn.Linear(told + memory, find[0])
        self.q_on = mlp(find, nn.Tanh)
        self.q_head = GaussianHead(find[-1], dim)

    def prior(self, z_KBTL: Float[Tensor, "K B T L"]) -> Gaussian:
        h_NTM, _ = self.remember(before(z_KBTL).flatten(end_dim=1))
        return self.p(h_NTM.unflatten(0, z_KBTL.shape[:2]))

    def posterior(self, told: Float[Tensor, "*draws B T M"], noise_KBTL: Tensor) -> tuple[Tensor, Gaussian]:
        (early, weight), (bias, out) = hoisted(self.q_in, told), self.q_head.joined()
        cell = self.remember.all_weights[0]
        h_NM = noise_KBTL.new_zeros(len(noise_KBTL) * noise_KBTL.shape[1], self.remember.hidden_size)

        def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
            nonlocal h_NM
            h_NM = torch.gru_cell(z_NL, h_NM, *cell)
            return torch.addmm(bias, self.q_on(torch.addmm(told_NM, h_NM, weight).tanh()), out)

        path = along(early, noise_KBTL, step)
        return path.z["z"], path.q["z"]


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


def average(x_BTM: Float[Tensor, "B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B M"]:
    """Over the frames that do not pad."""
    return (x_BTM * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)


class _Multimodal(DynamicalVAE):
    def __init__(self, heard: int, seen: int, size: int, dims: Mapping[str, int], memory: int, paper: bool):
        super().__init__(heard, dims["z_av"])
        self.sees, self.paper = ("power", "face"), paper
        kinds: dict[str, Literal["audio", "video", "audio-visual"]] = {"z_a": "audio", "z_v": "video"}
        self.latents = tuple(
            LatentSpec(name, dim, None if name == "w" else 1, kinds.get(name, "audio-visual"))
            for name, dim in dims.items()
        )
        w, av, a, v = dims.values()
        self.look = mlp([seen, 2 * size, size], nn.ReLU)
        self.hear_w = Recurrent(heard + size, size // 2, "both", nn.GRU)
        self.w_head = nn.Sequential(mlp([size, size // 2], nn.Tanh), GaussianHead(size // 2, w))
        self.chains = nn.ModuleDict(
            {
                "z_av": Chain(av, w + heard + size, 64, (256, 128), memory),
                "z_a": Chain(a, w + heard + av, 32, (128, 32), memory),
                "z_v": Chain(v, w + size + av, 64, (256, 128), memory),
            }
        )
        self.speak = nn.Sequential(mlp([a + w + av, 128, 256], nn.Tanh), nn.Linear(256, heard))
        self.show = nn.Sequential(mlp([v + w + av, size, 2 * size], nn.ReLU), nn.Linear(2 * size, seen))

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        """a and v as the networks take them."""
        raise NotImplementedError

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        """K B T by modality."""
        raise NotImplementedError

    def told(self, z: Latents) -> tuple[Float[Tensor, "K B T A"], Float[Tensor, "K B T V"]]:
        """What the likelihoods of sound and face are made of."""
        both = beside(z["w"], z["z_av"])
        return self.speak(beside(z["z_a"], both)), self.show(beside(z["z_v"], both))

    def _draw(self, batch: Batch, context: Context, k: int, mode: str) -> Path:
        return self._found(*self.observed(batch), context, self._noise(context, k, mode))

    def _found(self, a_BTA: Tensor, v_BTV: Tensor, context: Context, noise: Latents) -> Path:
        v_BTM = self.look(v_BTV)
        heard_BTM = self.hear_w(torch.cat([a_BTA, v_BTM], -1), context.mask)
        stays_BM = (ends if self.paper else average)(heard_BTM, context.mask)
        q: dict[str, Gaussian] = {"w": self.w_head(stays_BM[None, :, None])}
        z: dict[str, Tensor] = {"w": q["w"].moved(noise["w"])}
        if not self.paper:
            a_BTA, v_BTM = (x_BTM - average(x_BTM, context.mask)[:, None] for x_BTM in (a_BTA, v_BTM))
        for name, seen in (("z_av", (a_BTA, v_BTM)), ("z_a", (a_BTA,)), ("z_v", (v_BTM,))):
            together = () if name == "z_av" else (z["z_av"],)
            told = beside(z["w"], *(x_BTM[None] for x_BTM in seen), *together)
            z[name], q[name] = self.chain(name).posterior(told, noise[name])
        return Path(z, q)

    def chain(self, name: str) -> Chain:
        return self.chains[name]  # type: ignore[return-value]

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        moving = {name: self.chain(name).prior(z[name]) for name in self.chains}
        return {"w": Gaussian.standard(*z["w"].shape, like=z["w"]), **moving}

    def elbo(self, batch: Batch, context: Context, schedule: Schedule) -> Elbo:
        a_BTA, v_BTV = self.observed(batch)
        path = self._found(a_BTA, v_BTV, context, self._noise(context, 1, "sample"))
        p, n_B = self.prior(path.z, context), batch.mask.sum(1).float()
        kl = {name: q.kl(p[name]).mean(0) for name, q in path.q.items()}
        likelihoods = self.log_likelihood(path.z, batch, a_BTA, v_BTV)
        return Elbo(
            recon={name: (value.mean(0) * batch.mask).sum(1) for name, value in likelihoods.items()},
            kl={
                name: kl_BT.sum(1) * (n_B if self.paper else 1) if name == "w" else (kl_BT * batch.mask).sum(1)
                for name, kl_BT in kl.items()
            },
            n=n_B,
        )


def _dims(w: int, av: int, a: int, v: int) -> dict[str, int]:
    return {"w": w, "z_av": av, "z_a": a, "z_v": v}


class MDVAE(_Multimodal):
    def __init__(
        self,
        dim_w: int = 84,
        dim_av: int = 16,
        dim_a: int = 8,
        dim_v: int = 4,
        size: int = 512,
        memory: int = 128,
        width: int = 128,
        dim: int = 32,
        paper: bool = False,
    ):
        super().__init__(513, 64 * dim, size, _dims(dim_w, dim_av, dim_a, dim_v), memory, paper)
        self.eye, self.brush = FaceEncoder(width, dim), FaceDecoder(width, dim)

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        return (batch.need("power", self) + HEARD_FROM).log() / 5, self.eye(batch.need("face", self))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        a_KBTA, v_KBTV = self.told(z)
        return {"power": ComplexGaussian(a_KBTA), "face": Picture(self.brush(v_KBTV))}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        return {name: p.log_prob(batch.need(name, self)) for name, p in self.decode(z, Context(batch.mask)).items()}


class VQMDVAE(_Multimodal):
    """The parts `ear` and `eye` are frozen (train.freeze): they come trained by `start_from`."""

    PACE = 20  # at which logarithms of variances learn, to the weights' 1: they have as far to go

    def __init__(
        self,
        ear: VQVAE,
        eye: VQVAE,
        dim_w: int = 84,
        dim_av: int = 16,
        dim_a: int = 8,
        dim_v: int = 4,
        size: int = 512,
        memory: int = 128,
        variance: Literal["learned", "unit"] = "learned",
        paper: bool = False,
    ):
        dims = _dims(dim_w, dim_av, dim_a, dim_v)
        super().__init__(ear.size, eye.size, size, dims, memory, paper)
        self.ear, self.eye = ear.requires_grad_(False), eye.requires_grad_(False)
        self.met = FrameMemory(ear.size + eye.size)
        self.standard_a, self.standard_v = Standard(ear.size), Standard(eye.size)
        learned = variance == "learned"
        self.log_var_a = nn.Parameter(torch.zeros(ear.size), requires_grad=learned)
        self.log_var_v = nn.Parameter(torch.zeros(eye.size), requires_grad=learned)

    def start_from(self, *trained: nn.Module) -> None:
        for own, theirs in zip((self.ear, self.eye), trained, strict=True):
            own.load_state_dict(theirs.state_dict())
        self.met = FrameMemory(self.met.size)

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
        (a_KBTA, v_KBTV), ear, eye = self.told(z), self.ear, self.eye
        heard, seen = ear.quantised(self.standard_a.back(a_KBTA)), eye.quantised(self.standard_v.back(v_KBTV))
        return {"power": ear.likelihood(heard), "face": eye.likelihood(seen)}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        a_KBTA, v_KBTV = self.told(z)
        heard, seen = Gaussian(a_KBTA, self.PACE * self.log_var_a), Gaussian(v_KBTV, self.PACE * self.log_var_v)
        return {
            "power": heard.log_prob(a_BTA) - self.standard_a.scale_M.log().sum(),
            "face": seen.log_prob(v_BTV) - self.standard_v.scale_M.log().sum(),
        }
