"""AV-DKF: a deep Kalman filter whose encoder, transition and emitter are conditioned on the lips.

A. Golmakani, M. Sadeghi, R. Serizel, "Audio-visual speech enhancement with a deep Kalman filter generative model",
ICASSP 2023 (arXiv 2211.00988), with raw mouth crops, whose features are normalised to mean 0 and variance 1.

    p(x, z | v) = prod_t Nc(x_t; 0, sigma(z_t, v_t)) N(z_t; mu, diag var (z_t-1, v_t))
    q(z | x, v) = prod_t N(z_t; mu, diag var (z_t-1, x_t:T, v_t:T))
    ELBO        L: dynamical_vae.py, everything given v
    modified      alpha L + (1 - alpha) sum_t E_{p(z | v)}[ln p(x_t | z_t, v_t)]

    x_t        speech spectrum                    observed_BTF holds |x_t|^2
    v_t        features of the lips               lip_encoder, context.video_BTM
    z_t        latent                             z_KBTL
    g_t        features of x_t:T and v_t:T        encoder_rnn of encoder_fusion(phi_x, lips_to_encoder), g_1BTM
    p(z_t)     DKF's of a fusion of z_t-1 and v   transition of transition_fusion(z_t-1, lips_to_transition)
    q(z_t)     DKF's of z_t-1 and g_t             combiner
    sigma      variances of x_t                   emitter_head of emitter_fusion(phi_z, lips_to_emitter): logarithms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avdvae.models.dkf import DKF, Combiner, GatedTransition
from avdvae.models.dynamical_vae import DynamicalVAE, Path, Recursion, each_frame, stack_frames
from avdvae.nn.blocks import LipEncoder, Recurrent, check_same_floor, mlp, shifted, zero_init
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Latents, LatentSpec


class Fusion(nn.Module):
    """tanh(A a + B v + c) of features a, of the sound or of the latent, and features v of the lips."""

    LINEAR = 0.05  # up to here tanh differs from its argument by less than 0.1 %

    def __init__(self, size: int):
        super().__init__()
        self.main_in, self.lips_in = nn.Linear(size, size), nn.Linear(size, size, bias=False)

    def forward(self, a: Float[Tensor, "... M"], v: Float[Tensor, "... M"]) -> Float[Tensor, "... M"]:
        return torch.tanh(self.main_in(a) + self.lips_in(v))

    def start_as_identity(self, *weights: Tensor) -> None:
        """The output is LINEAR a at first, whatever v; `weights`, of the layers that follow, undo the factor."""
        zero_init(self)
        self.main_in.weight.data.fill_diagonal_(self.LINEAR)
        for weight in weights:
            weight.data /= self.LINEAR


class AVDKF(DynamicalVAE):
    def __init__(
        self,
        features: int = 513,
        pixels: int = 67 * 67,  # of a mouth crop, 67 x 67
        hidden: int = 128,
        dim: int = 16,
        wide: int = 256,  # of phi_x and lips_to_encoder
        narrow: Sequence[int] = (32, 64, 128, 256),  # of phi_z
        dropout: float = 0.3,  # of the hidden units of lip_encoder
        alpha: float = 1.0,  # weight of the ELBO; 1 - alpha, published 0.01, weighs the likelihood given z of the prior
        floor: float | None = None,  # of the power, for `encoder_input`
    ):
        super().__init__(features, dim, floor=floor)
        self.sees = ("power", "lips")
        self.latents = (LatentSpec("z", dim, rate=1, modality="audio-visual"),)
        self.alpha = alpha
        lips = LipEncoder(pixels, features=hidden, dropout=dropout)
        self.lip_encoder = nn.Sequential(lips, nn.LayerNorm(hidden, elementwise_affine=False), nn.ReLU())
        self.phi_x, self.lips_to_encoder = mlp([features, wide], nn.Tanh), mlp([hidden, wide], nn.Tanh)
        self.encoder_fusion = Fusion(wide)
        self.encoder_rnn = Recurrent(wide, hidden, "backward")
        self.combiner = Combiner(hidden, dim, recall=32)
        self.lips_to_transition, self.transition_fusion = mlp([hidden, dim], nn.Tanh), Fusion(dim)
        self.transition = GatedTransition(dim)
        self.phi_z, self.lips_to_emitter = mlp([dim, *narrow], nn.Tanh), mlp([hidden, narrow[-1]], nn.Tanh)
        self.emitter_fusion, self.emitter_head = Fusion(narrow[-1]), nn.Linear(narrow[-1], features)

    def start_from(self, dkf: DKF) -> None:
        """The layers of a DKF, which the lips do not change yet."""
        check_same_floor(self, dkf)
        for own, trained in (
            (self.phi_x, dkf.phi_x),
            (self.encoder_rnn, dkf.encoder_rnn),
            (self.combiner, dkf.combiner),
            (self.transition, dkf.transition),
            (self.phi_z, dkf.emitter[:-1]),
            (self.emitter_head, dkf.emitter[-1]),
        ):
            own.load_state_dict(trained.state_dict())
        self.encoder_fusion.start_as_identity(self.encoder_rnn.get_parameter("backward_rnn.weight_ih_l0"))
        first_layers = ("gate.0", "proposed_mean.0", "z_to_loc")
        self.transition_fusion.start_as_identity(
            *(self.transition.get_parameter(f"{name}.weight") for name in first_layers)
        )
        self.emitter_fusion.start_as_identity(self.emitter_head.weight)

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask, video=self.lip_encoder(batch.need("lips", self)))

    def recursion(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Recursion:
        g_1BTM = self.encoder_states(observed_BTF, context)
        assert context.video is not None
        z, frames = torch.zeros_like(noise["z"][:, :, :1]), []
        for g, v, epsilon in each_frame(g_1BTM, context.video, noise["z"]):
            p = self.transition_at(z, v)  # p(z_t | z_t-1, v_t)
            q = self.combiner(z, g)  # q(z_t | z_t-1, x_t:T, v_t:T)
            z = q.moved(epsilon)
            frames.append((z, q, p, self.emitter(z, v)))  # p(x_t | z_t, v_t)
        return stack_frames(frames)

    def encoder_states(self, observed_BTF: Tensor, context: Context) -> Float[Tensor, "1 B T M"]:
        fused_BTM = self.encoder_fusion(self.phi_x(observed_BTF), self.lips_to_encoder(context.video))
        return self.encoder_rnn(fused_BTM[None], context.mask)

    def transition_at(self, z_before: Float[Tensor, "K B T L"], v_BTM: Tensor) -> Gaussian:
        return self.transition(self.transition_fusion(z_before, self.lips_to_transition(v_BTM)))

    def emitter(self, z_KBTL: Tensor, v_BTM: Tensor) -> Float[Tensor, "K B T F"]:
        return self.emitter_head(self.emitter_fusion(self.phi_z(z_KBTL), self.lips_to_emitter(v_BTM)))

    def posterior(self, observed_BTF: Tensor, context: Context, noise: Latents) -> Path:
        return self.combiner.path(self.encoder_states(observed_BTF, context), noise["z"])

    def prior(self, z: Latents, context: Context) -> Mapping[str, Gaussian]:
        assert context.video is not None
        return {"z": self.transition_at(shifted(z["z"]), context.video)}

    def output(self, z: Latents, context: Context) -> Float[Tensor, "K B T F"]:
        assert context.video is not None
        return self.emitter(z["z"], context.video)

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """Frame by frame; features of the lips are computed once, before the loop."""
        lips_BTL = self.lips_to_transition(context.video)
        path = list(given["z"].expand(k, -1, -1, -1).unbind(2)) if given else []
        z_KBL = path[-1] if path else lips_BTL.new_zeros(k, *lips_BTL[:, 0].shape)
        for lips_BL in lips_BTL[:, len(path) :].unbind(1):
            z_KBL = self.transition(self.transition_fusion(z_KBL, lips_BL)).sample()[0]
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
