"""MDVAE: separates the static identity of a talker from shared, audio-only and visual-only dynamics.

S. Sadok, S. Leglaive, L. Girin, X. Alameda-Pineda, R. Séguier, "A multimodal dynamical variational autoencoder for
audiovisual speech representation learning", Neural Networks 172, 2024 (arXiv 2305.03582).

    p(a, v, z, w) = N(w; 0, I) prod_t p(a_t | w, z^av_t, z^a_t) p(v_t | w, z^av_t, z^v_t)
                                      prod_i N(z^i_t; mu, diag var (z^i_1:t-1))
    q(z, w | a, v) = q(w | a_1:T, v_1:T) prod_t q(z^av_t | z^av_1:t-1, a_t, v_t, w)
                                                  q(z^a_t | z^a_1:t-1, a_t, z^av_t, w)
                                                  q(z^v_t | z^v_1:t-1, v_t, z^av_t, w)
    ELBO = sum_t E_q[ln p(a_t | .) + ln p(v_t | .)] - KL(q(w) || N(0, I)) - sum_t E_q[KL_av + KL_a + KL_v]

MDVAE models power spectra and faces themselves, as Nc(0, sigma) and Gaussian pixels; for VQ-MDVAE see vq_mdvae.py.

A z that is constant in time costs as little as w and is learned sooner, and then w stays empty. Therefore w is made
easy to learn, and z cannot contain what is static. q(w) is linear in the means and standard deviations of sound and
face over the utterance, and narrow at first; q(z) gets sound and face standardised by them. Likewise, the outputs of
the decoders are standardised over the utterance, and w alone gives their mean and deviation: p(a_t | w, z_1:T),
p(v_t | w, z_1:T). In the first epochs z^v is left out, so that z^av contains what sound and face share; were z^a left
out, too, z^av would contain all of the sound. With `paper` all is as published: q(w) from the final states of a
recurrent network, nothing standardised, all latents from the start, and the KL of w counted once per frame, which is no
bound.

    a_t, v_t        sound and face, or their features    a_BTA, v_BTV; phi_v: features of v
    w               static latent                        w, K B 1 L
    z^i_t           dynamical latents, i = av, a, v      z_av, z_a, z_v, K B T L
    h^i_t           state, from z^i_1:t-1                dynamical.z_i.rnn: h_KBTM
    p(z^i_t | .)    prior                                dynamical.z_i.prior_net
    q(z^i_t | .)    posterior                            dynamical.z_i.posterior_net
    q(w | .)        posterior                            w_posterior, of moments or with `paper` of w_rnn
    p(a_t | .)      likelihood of the sound              decoder_a and w_to_moments: K B T A
    p(v_t | .)      likelihood of the face               decoder_v and w_to_moments: K B T V
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avdvae.errors import UserError
from avdvae.models.dynamical_vae import DynamicalVAE, Path, each_frame, sample_path, stack_frames
from avdvae.models.vqvae import POWER_FLOOR
from avdvae.nn.blocks import (
    FaceDecoder,
    FaceEncoder,
    GaussianHead,
    Recurrent,
    concat_features,
    final_states,
    mlp,
    run_rnn,
    shifted,
    split_net,
)
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.observed import Picture
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class DynamicalLatent(nn.Module):
    """A latent with p(z_t | h_t) and q(z_t | h_t, y_t), where h_t = GRU(h_t-1; z_t-1)."""

    def __init__(self, dim: int, inputs: int, prior_hidden: int, posterior_hidden: Sequence[int], memory: int):
        super().__init__()
        self.rnn = nn.GRU(dim, memory, batch_first=True)
        self.prior_net = nn.Sequential(mlp([memory, prior_hidden], nn.Tanh), GaussianHead(prior_hidden, dim))
        layers = mlp([inputs + memory, *posterior_hidden], nn.Tanh)
        self.posterior_net = nn.Sequential(*layers, GaussianHead(posterior_hidden[-1], dim))

    def recursion(self, y_KBTM: Float[Tensor, "K B T M"], noise_KBTL: Tensor) -> tuple[Tensor, Gaussian, Gaussian]:
        """z, q and p of all frames, as the paper writes them; `posterior` and `prior` compute the same."""
        z, state, frames = torch.zeros_like(noise_KBTL[:, :, :1]), None, []
        for y, epsilon in each_frame(y_KBTM, noise_KBTL):
            h, state = run_rnn(self.rnn, z, state)
            p = self.prior_net(h)  # p(z_t | z_1:t-1)
            q = self.posterior_net(concat_features(y, h))  # q(z_t | z_1:t-1, y_t)
            z = q.moved(epsilon)
            frames.append((z, q, p))
        return stack_frames(frames)

    def prior(self, z_KBTL: Float[Tensor, "K B T L"]) -> Gaussian:
        return self.prior_net(run_rnn(self.rnn, shifted(z_KBTL))[0])

    def posterior(self, y_KBTM: Float[Tensor, "K B T M"], noise_KBTL: Tensor) -> tuple[Tensor, Gaussian]:
        (y_part, finish), weights = split_net(self.posterior_net, y_KBTM), self.rnn.all_weights[0]
        h_NM = noise_KBTL.new_zeros(noise_KBTL.shape[:2].numel(), self.rnn.hidden_size)

        def step(y_part_NM: Tensor, z_before_NL: Tensor) -> Tensor:
            nonlocal h_NM
            h_NM = torch.gru_cell(z_before_NL, h_NM, *weights)
            return finish(y_part_NM, h_NM)

        path = sample_path(y_part, noise_KBTL, step)
        return path.z["z"], path.q["z"]


def mean_over_frames(x: Float[Tensor, "*draws B T M"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "*draws B 1 M"]:
    """Without the frames that pad."""
    return (x * mask_BT[..., None]).sum(-2, keepdim=True) / mask_BT.sum(1)[:, None, None]


class Standardised(NamedTuple):
    """x with mean 0 and variance 1 over each utterance, and its mean and standard deviation."""

    x: Float[Tensor, "*draws B T M"]
    mean: Float[Tensor, "*draws B 1 M"]
    deviation: Float[Tensor, "*draws B 1 M"]

    @classmethod
    def of(cls, x: Float[Tensor, "*draws B T M"], mask_BT: Bool[Tensor, "B T"]) -> Standardised:
        mean = mean_over_frames(x, mask_BT)
        deviation = (mean_over_frames((x - mean).square(), mask_BT) + 1e-2).sqrt()
        return cls((x - mean) / deviation, mean, deviation)


class Multimodal(DynamicalVAE):
    """The base of MDVAE and VQ-MDVAE. `together`: epochs in which z^av is learned without the `delayed` latents."""

    INITIAL_LOG_VAR = -4.0  # of q(w)

    def __init__(
        self,
        size_a: int,
        size_v: int,
        dim_w: int = 84,  # static; then the dynamics: shared, audio-only, visual-only
        dim_av: int = 16,
        dim_a: int = 8,
        dim_v: int = 4,
        size: int = 512,
        memory: int = 128,
        together: int = 4,  # epochs in which the shared latent is learned without those in `delayed`
        delayed: Sequence[str] = ("z_v",),
        paper: bool = False,  # true: as published, see avdvae/models/mdvae.py
    ):
        super().__init__(size_a, dim_av)
        if unknown := set(delayed) - {"z_a", "z_v"}:
            raise UserError(f"model.delayed: {', '.join(sorted(unknown))} cannot be delayed: choose from z_a and z_v")
        self.sees, self.paper = ("power", "face"), paper
        self.together, self.delayed = together, tuple(delayed)
        w, av, a, v = dim_w, dim_av, dim_a, dim_v
        self.latents = (
            LatentSpec("w", w, None, "audio-visual"),
            LatentSpec("z_av", av, 1, "audio-visual"),
            LatentSpec("z_a", a, 1, "audio"),
            LatentSpec("z_v", v, 1, "video"),
        )
        self.phi_v = mlp([size_v, 2 * size, size], nn.ReLU)
        self.w_posterior: nn.Module
        if paper:
            self.w_rnn = Recurrent(size_a + size, size // 2, "both", nn.GRU)
            self.w_posterior = nn.Sequential(mlp([size, size // 2], nn.Tanh), GaussianHead(size // 2, w))
        else:
            self.w_posterior = GaussianHead(2 * (size_a + size), w)
            nn.init.constant_(self.w_posterior.log_var.bias, self.INITIAL_LOG_VAR)
            self.moments = (size_a, size_a, size_v)  # mean of a, logarithm of its deviation, mean of v
            self.w_to_moments = nn.Linear(w, sum(self.moments))
        self.dynamical = nn.ModuleDict(
            {
                "z_av": DynamicalLatent(av, w + size_a + size, 64, (256, 128), memory),
                "z_a": DynamicalLatent(a, w + size_a + av, 32, (128, 32), memory),
                "z_v": DynamicalLatent(v, w + size + av, 64, (256, 128), memory),
            }
        )
        self.decoder_a = nn.Sequential(mlp([a + w + av, 128, 256], nn.Tanh), nn.Linear(256, size_a))
        self.decoder_v = nn.Sequential(mlp([v + w + av, size, 2 * size], nn.ReLU), nn.Linear(2 * size, size_v))

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        """a and v, as the networks take them."""
        raise NotImplementedError

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        """K B T by modality."""
        raise NotImplementedError

    def decoded(self, z: Latents, mask_BT: Tensor) -> tuple[Float[Tensor, "K B T A"], Float[Tensor, "K B T V"]]:
        """Parameters of p(a_t | .) and p(v_t | .)."""
        w_and_av = concat_features(z["w"], z["z_av"])
        a = self.decoder_a(concat_features(z["z_a"], w_and_av))
        v = self.decoder_v(concat_features(z["z_v"], w_and_av))
        if self.paper:
            return a, v
        mean_a, log_deviation_a, mean_v = self.w_to_moments(z["w"]).split(self.moments, -1)
        a = mean_a + log_deviation_a.exp() * Standardised.of(a, mask_BT).x
        return a, mean_v + v - mean_over_frames(v, mask_BT)

    def _draw(self, batch: Batch, context: Context, k: int, mode: str) -> Path:
        return self._path(*self.observed(batch), context, self._noise(context, k, mode))

    def _path(
        self, a_BTA: Tensor, v_BTV: Tensor, context: Context, noise: Latents, without: Sequence[str] = ()
    ) -> Path:
        """Draws and posteriors; the latents named in `without` are 0."""
        v_BTM, mask_BT = self.phi_v(v_BTV), context.mask
        if self.paper:
            of_utterance_BM = final_states(self.w_rnn(torch.cat([a_BTA, v_BTM], -1), mask_BT), mask_BT)
        else:
            a, v = Standardised.of(a_BTA, mask_BT), Standardised.of(v_BTM, mask_BT)
            a_BTA, v_BTM = a.x, v.x
            of_utterance_BM = torch.cat([a.mean, v.mean, a.deviation, v.deviation], -1)[:, 0]
        q: dict[str, Gaussian] = {"w": self.w_posterior(of_utterance_BM[None, :, None])}
        z: dict[str, Tensor] = {"w": q["w"].moved(noise["w"])}
        for name, observed in (("z_av", (a_BTA, v_BTM)), ("z_a", (a_BTA,)), ("z_v", (v_BTM,))):
            if name in without:
                z[name] = torch.zeros_like(noise[name])
            else:
                z_av = () if name == "z_av" else (z["z_av"],)
                y_KBTM = concat_features(z["w"], *(x_BTM[None] for x_BTM in observed), *z_av)
                z[name], q[name] = self.latent(name).posterior(y_KBTM, noise[name])
        return Path(z, q)

    def latent(self, name: str) -> DynamicalLatent:
        return self.dynamical[name]  # type: ignore[return-value]

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        dynamical = {name: self.latent(name).prior(z[name]) for name in self.dynamical}
        return {"w": Gaussian.standard(*z["w"].shape, like=z["w"]), **dynamical}

    def elbo(self, batch: Batch, context: Context, schedule: Schedule) -> Elbo:
        early = self.training and not self.paper and schedule.epoch < self.together
        a_BTA, v_BTV = self.observed(batch)
        noise = self._noise(context, 1, "sample")
        path = self._path(a_BTA, v_BTV, context, noise, without=self.delayed if early else ())
        p, n_B = self.prior(path.z, context), batch.mask.sum(1).float()
        kl = {name: path.q.get(name, p[name]).kl(p[name]).mean(0) for name in p}  # 0 of latents left out
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
        self.face_encoder, self.face_decoder = FaceEncoder(width, dim), FaceDecoder(width, dim)

    def observed(self, batch: Batch) -> tuple[Float[Tensor, "B T A"], Float[Tensor, "B T V"]]:
        a_BTF = (batch.need("power", self) + POWER_FLOOR).log() / 5 + 1  # about mean 0
        return a_BTF, self.face_encoder(batch.need("face", self))

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, Any]:
        a_KBTA, v_KBTV = self.decoded(z, context.mask)
        return {"power": ComplexGaussian(a_KBTA), "face": Picture(self.face_decoder(v_KBTV))}

    def log_likelihood(self, z: Latents, batch: Batch, a_BTA: Tensor, v_BTV: Tensor) -> Mapping[str, Tensor]:
        return {name: p.log_prob(batch.need(name, self)) for name, p in self.decode(z, Context(batch.mask)).items()}
