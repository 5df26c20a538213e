"""AV-DKF: a deep Kalman filter that looks at the lips, in encoder, decoder and in the transition of its latents.

A. Golmakani, M. Sadeghi, R. Serizel, "Audio-visual speech enhancement with a deep Kalman filter generative model",
ICASSP 2023 (arXiv 2211.00988), with raw mouth crops, whose features are brought to mean 0 and variance 1.

    p(x, z | v) = prod_t Nc(x_t; 0, sigma(z_t, v_t)) N(z_t; mu, diag var (z_t-1, v_t))
    q(z | x, v) = prod_t N(z_t; mu, diag var (z_t-1, x_t:T, v_t:T))
    ELBO        L: dynamical_vae.py, everything given v
    modified      alpha L + (1 - alpha) sum_t E_{p(z | v)}[ln p(x_t | z_t, v_t)]
    prior:      DKF's transition of u_t = tanh(A [z_t-1, tanh(B v_t)])

    x_t   speech spectrum           observed_BTF holds |x_t|^2
    v_t   features of the lips      context.video_BTM
    z_t   latent                    z_KBTL
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dkf import DKF, GatedTransition, averaging
from avdvae.models.dynamical_vae import DynamicalVAE, Path
from avdvae.nn.blocks import GaussianHead, LipEncoder, Recurrent, check_same_floor, mlp, shifted, zero_init
from avdvae.probability.distributions import ComplexGaussian, Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class Joined(nn.Module):
    """tanh(A a + B v + c), where a is told of the sound or by the latent, and v of the lips."""

    STRAIGHT = 0.05  # up to here tanh differs from its argument by less than 0.1 %

    def __init__(self, size: int):
        super().__init__()
        self.sound, self.lips = nn.Linear(size, size), nn.Linear(size, size, bias=False)

    def forward(self, a: Float[Tensor, "... H"], v: Float[Tensor, "... H"]) -> Float[Tensor, "... H"]:
        return torch.tanh(self.sound(a) + self.lips(v))

    def pass_on(self, *weights: Tensor) -> None:
        """Let `a` through as it is, and nothing of `v`; `weights` are those of the layers that follow."""
        zero_init(self)
        self.sound.weight.data.fill_diagonal_(self.STRAIGHT)
        for weight in weights:
            weight.data /= self.STRAIGHT


class AVDKF(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        pixels: int = 67 * 67,
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,
        narrow: Sequence[int] = (32, 64, 128, 256),
        dropout: float = 0.3,
        alpha: float = 1.0,
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, floor=floor)
        self.sees = ("power", "lips")
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio-visual"),)
        self.alpha = alpha
        lips = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.look = nn.Sequential(lips, nn.LayerNorm(hidden, elementwise_affine=False), nn.ReLU())
        self.listen, self.watch = mlp([features, wide], nn.Tanh), mlp([hidden, wide], nn.Tanh)
        self.mix = Joined(wide)
        self.hear = Recurrent(wide, hidden, "backward")
        self.recall = mlp([dim, 32, hidden], nn.Tanh)
        self.head = nn.Sequential(*mlp([hidden, 32], nn.Tanh), GaussianHead(32, dim))
        self.expect, self.steer = mlp([hidden, dim], nn.Tanh), Joined(dim)
        self.transition = GatedTransition(dim)
        self.want, self.show = mlp([dim, *narrow], nn.Tanh), mlp([hidden, narrow[-1]], nn.Tanh)
        self.tell, self.speak = Joined(narrow[-1]), nn.Linear(narrow[-1], features)

    def start_from(self, dkf: DKF) -> None:
        """As a DKF whose lips say nothing yet."""
        check_same_floor(self, dkf)
        for name in ("listen", "hear", "recall", "head", "transition"):
            getattr(self, name).load_state_dict(getattr(dkf, name).state_dict())
        self.want.load_state_dict(dkf.speak[:-1].state_dict())
        self.speak.load_state_dict(dkf.speak[-1].state_dict())
        self.mix.pass_on(self.hear.get_parameter("backward_rnn.weight_ih_l0"))
        self.steer.pass_on(*(self.transition.get_parameter(f"{name}.weight") for name in ("gate.0", "new.0", "stay")))
        self.tell.pass_on(self.speak.weight)

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, video=self.look(batch.need("lips", self)))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        seen_BTM = self.mix(self.listen(observed_BTF), self.watch(context.video))
        return averaging(self.head, self.recall, self.hear(seen_BTM[None], context.mask), noise["z"])

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        return {"z": self.transition(self.steer(shifted(z["z"]), self.expect(context.video)))}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        return self.speak(self.tell(self.want(z["z"]), self.show(context.video)))

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """Frame by frame: what is expected of the lips is one look, outside of the loop."""
        expected_BTL = self.expect(context.video)
        path = list(given["z"].expand(k, -1, -1, -1).unbind(2)) if given else []
        z_KBL = path[-1] if path else expected_BTL.new_zeros(k, *expected_BTL[:, 0].shape)
        for expected_BL in expected_BTL[:, len(path) :].unbind(1):
            z_KBL = self.transition(self.steer(z_KBL, expected_BL)).sample()[0]
            path.append(z_KBL)
        return {"z": torch.stack(path, 2)}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        context = self.context(batch)
        elbo = self.elbo(batch, context, schedule)
        if self.alpha == 1:
            return elbo
        drawn = ComplexGaussian(self.output(self.sample_prior(context), context))
        from_lips_BT = drawn.log_prob(batch.need("power", self))[0]
        return elbo.shared_with((from_lips_BT * batch.mask).sum(1), self.alpha, schedule)
