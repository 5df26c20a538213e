"""MDVAE: what stays of a talker, and what moves: voice and face together, the voice alone, the face alone.

S. Sadok, S. Leglaive, L. Girin, X. Alameda-Pineda, R. Séguier, "A multimodal dynamical variational autoencoder for
audiovisual speech representation learning", Neural Networks 172, 2024 (arXiv 2305.03582).

    p(a, v, z, w) = N(w; 0, I) prod_t p(a_t | w, z^av_t, z^a_t) p(v_t | w, z^av_t, z^v_t)
                                      prod_i N(z^i_t; mu, diag var (z^i_1:t-1))
    q(z, w | a, v) = q(w | a_1:T, v_1:T) prod_t q(z^av_t | z^av_1:t-1, a_t, v_t, w)
                                                  q(z^a_t | z^a_1:t-1, a_t, z^av_t, w)
                                                  q(z^v_t | z^v_1:t-1, v_t, z^av_t, w)
    ELBO = sum_t E_q[ln p(a_t | .) + ln p(v_t | .)] - KL(q(w) || N(0, I)) - sum_t E_q[KL_av + KL_a + KL_v]

MDVAE explains sound and faces themselves, as Nc(0, sigma) and Gaussian pixels; for VQ-MDVAE see vq_mdvae.py.

A z that does not move costs as little as w and is learned sooner, so that w would be left empty. Therefore w comes
easily, and z cannot say what stays. q(w) is a linear layer of the means of sound and face over the utterance and of
their deviations, narrow at first; q(z) is told what is left without the two. Likewise, what networks make of w and z_t
loses its mean and its deviation, and w alone gives it others: p(a_t | w, z_1:T), p(v_t | w, z_1:T). What z^av can tell
is for it to tell: in the first epochs there is no other z. With `paper` all is as published: q(w) where a recurrent
network arrives, q(z) told everything, what networks make of w and z_t taken as it is, all latents from the start, and
the divergence of w once a frame, which is no bound.

    a_t, v_t   sound and face, or their features      a_BTA, v_BTV
    w          what stays                             w of B 1 L
    z^i        what moves, i = av, a, v               z_av, z_a, z_v of K B T L
    h^i_t      what is kept of z^i_1:t-1              h_NM, draws and utterances in one axis
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import DynamicalVAE, Path, sample_path
from avdvae.models.vqvae import HEARD_FROM
from avdvae.nn.blocks import (
    FaceDecoder,
    FaceEncoder,
    GaussianHead,
    Recurrent,
    concat_features,
    final_states,
    mlp,
    shifted,
    split_linear,
)
from avdvae.probability.distributions import ComplexGaussian, Gaussian, Picture
from avdvae.probability.objectives import Elbo, Schedule
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
        h_NTM, _ = self.remember(shifted(z_KBTL).flatten(end_dim=1))
        return self.p(h_NTM.unflatten(0, z_KBTL.shape[:2]))

    def posterior(self, told: Float[Tensor, "*draws B T M"], noise_KBTL: Tensor) -> tuple[Tensor, Gaussian]:
        (early, weight), (bias, out) = split_linear(self.q_in, told), self.q_head.bias_and_weight()
        cell = self.remember.all_weights[0]
        h_NM = noise_KBTL.new_zeros(len(noise_KBTL) * noise_KBTL.shape[1], self.remember.hidden_size)

        def step(told_NM: Tensor, z_NL: Tensor) -> Tensor:
            nonlocal h_NM
            h_NM = torch.gru_cell(z_NL, h_NM, *cell)
            return torch.addmm(bias, self.q_on(torch.addmm(told_NM, h_NM, weight).tanh()), out)

        path = sample_path(early, noise_KBTL, step)
        return path.z["z"], path.q["z"]


def average(x: Float[Tensor, "*draws B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "*draws B 1 M"]:
    """Over the frames that do not pad."""
    return (x * mask_BT[..., None]).sum(-2, keepdim=True) / mask_BT.sum(1)[:, None, None]


class Moves(NamedTuple):
    """What is left of x over an utterance, of mean 0 and variance 1, and that mean and deviation."""

    left: Float[Tensor, "*draws B T M"]
    mean: Float[Tensor, "*draws B 1 M"]
    deviation: Float[Tensor, "*draws B 1 M"]

    @classmethod
    def of(cls, x: Float[Tensor, "*draws B T M"], mask_BT: Bool[Tensor, "B T"]) -> Moves:
        mean = average(x, mask_BT)
        deviation = (average((x - mean).square(), mask_BT) + 1e-2).sqrt()
        return cls((x - mean) / deviation, mean, deviation)


class Multimodal(DynamicalVAE):
    """Not to be used itself: what MDVAE and VQ-MDVAE share. `together`: epochs that z^av is learned before z^a, z^v."""

    NARROW = -4.0  # log-variance of q(w) at first

    def __init__(
        self,
        heard: int,
        seen: int,
        dim_w: int = 84,
        dim_av: int = 16,
        dim_a: int = 8,
        dim_v: int = 4,
        size: int = 512,
        memory: int = 128,
        together: int = 4,
        paper: bool = False,
    ):
        super().__init__(heard, dim_av)
        self.sees, self.together, self.paper = ("power", "face"), together, paper
        w, av, a, v = dim_w, dim_av, dim_a, dim_v
        self.latents = (
            LatentSpec("w", w, None, "audio-visual"),
            LatentSpec("z_av", av, 1, "audio-visual"),
            LatentSpec("z_a", a, 1, "audio"),
            LatentSpec("z_v", v, 1, "video"),
        )
        self.look = mlp([seen, 2 * size, size], nn.ReLU)
        self.w_head: nn.Module
        if paper:
            self.hear_w = Recurrent(heard + size, size // 2, "both", nn.GRU)
            self.w_head = nn.Sequential(mlp([size, size // 2], nn.Tanh), GaussianHead(size // 2, w))
        else:
            self.w_head = GaussianHead(2 * (heard + size), w)
            nn.init.constant_(self.w_head.log_var.bias, self.NARROW)
            self.stays = (heard, heard, seen)  # means and logarithms of deviations of sound, means of faces
            self.stay = nn.Linear(w, sum(self.stays))
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

    def told(self, z: Latents, mask_BT: Tensor) -> tuple[Float[Tensor, "K B T A"], Float[Tensor, "K B T V"]]:
        """What the likelihoods of sound and face are made of."""
        both = concat_features(z["w"], z["z_av"])
        a, v = self.speak(concat_features(z["z_a"], both)), self.show(concat_features(z["z_v"], both))
        if self.paper:
            return a, v
        still_a, swing_a, still_v = self.stay(z["w"]).split(self.stays, -1)
        return still_a + swing_a.exp() * Moves.of(a, mask_BT).left, still_v + v - average(v, mask_BT)

    def _draw(self, batch: Batch, context: Context, k: int, mode: str) -> Path:
        return self._found(*self.observed(batch), context, self._noise(context, k, mode))

    def _found(
        self, a_BTA: Tensor, v_BTV: Tensor, context: Context, noise: Latents, without: Sequence[str] = ()
    ) -> Path:
        """Latents that training is still `without` are 0."""
        v_BTM, mask_BT = self.look(v_BTV), context.mask
        if self.paper:
            stays_BM = final_states(self.hear_w(torch.cat([a_BTA, v_BTM], -1), mask_BT), mask_BT)
        else:
            a, v = Moves.of(a_BTA, mask_BT), Moves.of(v_BTM, mask_BT)
            a_BTA, v_BTM = a.left, v.left
            stays_BM = torch.cat([a.mean, v.mean, a.deviation, v.deviation], -1)[:, 0]
        q: dict[str, Gaussian] = {"w": self.w_head(stays_BM[None, :, None])}
        z: dict[str, Tensor] = {"w": q["w"].moved(noise["w"])}
        for name, seen in (("z_av", (a_BTA, v_BTM)), ("z_a", (a_BTA,)), ("z_v", (v_BTM,))):
            if name in without:
                z[name] = torch.zeros_like(noise[name])
            else:
                together = () if name == "z_av" else (z["z_av"],)
                told = concat_features(z["w"], *(x_BTM[None] for x_BTM in seen), *together)
                z[name], q[name] = self.chain(name).posterior(told, noise[name])
        return Path(z, q)

    def chain(self, name: str) -> Chain:
        return self.chains[name]  # type: ignore[return-value]

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        moving = {name: self.chain(name).prior(z[name]) for name in self.chains}
        return {"w": Gaussian.standard(*z["w"].shape, like=z["w"]), **moving}

    def elbo(self, batch: Batch, context: Context, schedule: Schedule) -> Elbo:
        early = self.training and not self.paper and schedule.epoch < self.together
        a_BTA, v_BTV = self.observed(batch)
        noise = self._noise(context, 1, "sample")
        path = self._found(a_BTA, v_BTV, context, noise, without=("z_a", "z_v") if early else ())
        p, n_B = self.prior(path.z, context), batch.mask.sum(1).float()
        kl = {name: path.q.get(name, p[name]).kl(p[name]).mean(0) for name in p}  # of what there is not yet, 0
        likelihoods = self.log_likelihood(path.z, batch, a_BTA, v_BTV)
        return Elbo(
            recon={name: (value.mean(0) * batch.mask).sum(1) for name, value in likelihoods.items()},
            kl={
                name: kl_BT.sum(1) * (n_B if self.paper else 1) if name == "w" else (kl_BT * batch.mask).sum(1)
                for name, kl_BT in kl.items()
            },
            n=n_B,
        )


class MDVAE(Multimodal):
    def __init__(self, width: int = 128, dim: int = 32, **common: Any):
        super().__init__(513, 64 * dim, **common)
        self.eye, self.brush = FaceEncoder(width, dim), FaceDecoder(width, dim)

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        heard_BTF = (batch.need("power", self) + HEARD_FROM).log() / 5 + 1  # about mean 0
        return heard_BTF, self.eye(batch.need("face", self))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        a_KBTA, v_KBTV = self.told(z, context.mask)
        return {"power": ComplexGaussian(a_KBTA), "face": Picture(self.brush(v_KBTV))}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        return {name: p.log_prob(batch.need(name, self)) for name, p in self.decode(z, Context(batch.mask)).items()}
