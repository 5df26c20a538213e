"""DSAE: one static latent of an utterance and a chain of dynamic latents.

Y. Li, S. Mandt, "Disentangled sequential autoencoder", ICML 2018 (arXiv 1803.02991), its full model; for speech, Girin
et al. (see dynamical_vae.py), section 11.

    p(x, z, v) = N(v; 0, I) prod_t Nc(x_t; 0, sigma(z_t, v)) N(z_t; mu, diag var (z_1:t-1))
    q(z, v | x) = N(v; mu, diag var (x_1:T)) prod_t N(z_t; mu, diag var (x_1:T, v))
    ELBO: dynamical_vae.py, less KL(q(v | x) || N(0, I)) once an utterance

    x_t      speech spectrum             observed_BTF holds |x_t|^2
    z_t      dynamic latent              z_KBTL
    v        static latent               v_KB1L
    q(v)     posterior                   v_posterior_head of the final states of v_encoder_rnn
    g_t      features of x_1:T, v        encoder_rnn, g_KBTM
    q(z_t)   posterior                   posterior_head of posterior_rnn of g_1:t
    p(z_t)   prior                       prior_head of prior_rnn of z_1:t-1
    sigma    variances of x_t            decoder_net of v, z_t gives their logarithms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import DynamicalVAE, Path, Recursion, each_frame, stack_frames
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, final_states, mlp, run_rnn, shifted
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Context, Latents, Observed


class DSAE(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        dim_v: int = 16,  # of the latent of the whole utterance
        narrow: Sequence[int] = (32, 64, 128, 256),  # of decoder_net
        observes: Observed = "power",  # or pose
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, observes, floor)
        self.latents = (replace(self.latents[0], name="v", dim=dim_v, rate=None), *self.latents)
        self.v_encoder_rnn = Recurrent(features, hidden, "both")
        self.v_posterior_head = GaussianHead(2 * hidden, dim_v)
        self.encoder_rnn = Recurrent(features + dim_v, hidden, "both")
        self.posterior_rnn = nn.RNN(2 * hidden, hidden, batch_first=True)
        self.posterior_head = GaussianHead(hidden, dim)
        self.prior_rnn = Recurrent(dim, hidden)
        self.prior_head = GaussianHead(hidden, dim)
        self.decoder_net = nn.Sequential(*mlp([dim_v + dim, *narrow], nn.Tanh), nn.Linear(narrow[-1], features))

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        v = self.static_posterior(observed_BTF, context).moved(noise["v"])
        g_KBTM = self.encoder_rnn(concat_features(observed_BTF[None], v), context.mask)
        z, state_q, state_p, frames = torch.zeros_like(noise["z"][:, :, :1]), None, None, []
        for g, epsilon in each_frame(g_KBTM, noise["z"]):
            h_p, state_p = run_rnn(self.prior_rnn.forward_rnn, z, state_p)
            p = self.prior_head(h_p)  # p(z_t | z_1:t-1)
            h_q, state_q = run_rnn(self.posterior_rnn, g, state_q)
            q = self.posterior_head(h_q)  # q(z_t | x_1:T, v)
            z = q.moved(epsilon)
            frames.append((z, q, p, self.decoder_net(concat_features(v, z))))  # p(x_t | z_t, v)
        return stack_frames(frames)

    def static_posterior(self, observed_BTF: Tensor, context: Context) -> Gaussian:
        final_BM = final_states(self.v_encoder_rnn(observed_BTF, context.mask), context.mask)
        return self.v_posterior_head(final_BM[None, :, None])

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        q_v = self.static_posterior(observed_BTF, context)
        v_KB1L = q_v.moved(noise["v"])
        g_KBTM = self.encoder_rnn(concat_features(observed_BTF[None], v_KB1L), context.mask)
        q_z = self.posterior_head(run_rnn(self.posterior_rnn, g_KBTM)[0])
        return Path({"v": v_KB1L, "z": q_z.moved(noise["z"])}, {"v": q_v, "z": q_z})

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        h_KBTM = self.prior_rnn(shifted(z["z"]), context.mask)
        return {"v": Gaussian.standard(*z["v"].shape, like=z["v"]), "z": self.prior_head(h_KBTM)}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(z["v"], z["z"]))
