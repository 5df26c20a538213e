"""DSAE: one latent for what stays in an utterance and a chain of latents for what moves.

Y. Li, S. Mandt, "Disentangled sequential autoencoder", ICML 2018 (arXiv 1803.02991), its full model; for speech, Girin
et al. (see dynamical_vae.py), section 11.

    p(x, z, v) = N(v; 0, I) prod_t Nc(x_t; 0, sigma(z_t, v)) N(z_t; mu, diag var (z_1:t-1))
    q(z, v | x) = N(v; mu, diag var (x_1:T)) prod_t N(z_t; mu, diag var (x_1:T, v))
    ELBO: dynamical_vae.py, less KL(q(v | x) || N(0, I)) once an utterance

    x_t   speech spectrum     observed_BTF holds |x_t|^2
    z_t   what moves          z_KBTL
    v     what stays          v_KB1L
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dynamical_vae import DynamicalVAE, Path
from avdvae.nn.blocks import GaussianHead, Recurrent, concat_features, final_states, mlp, shifted
from avdvae.probability.distributions import Gaussian
from avdvae.protocols import Context, Latents, Observed


class DSAE(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        hidden: int = 128,
        dim: int = 16,
        dim_v: int = 16,
        narrow: Sequence[int] = (32, 64, 128, 256),
        observes: Observed = "power",
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

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        end_BM = final_states(self.v_encoder_rnn(observed_BTF, context.mask), context.mask)
        q_v = self.v_posterior_head(end_BM[None, :, None])
        v_KB1L = q_v.moved(noise["v"])
        heard_KBTM = self.encoder_rnn(concat_features(observed_BTF[None], v_KB1L), context.mask)
        followed = self.posterior_rnn(heard_KBTM.flatten(end_dim=1))[0]
        q_z = self.posterior_head(followed.unflatten(0, heard_KBTM.shape[:2]))
        return Path({"v": v_KB1L, "z": q_z.moved(noise["z"])}, {"v": q_v, "z": q_z})

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        expected_KBTM = self.prior_rnn(shifted(z["z"]), context.mask)
        return {"v": Gaussian.standard(*z["v"].shape, like=z["v"]), "z": self.prior_head(expected_KBTM)}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.decoder_net(concat_features(z["v"], z["z"]))
