"""Clockwork VAE of waveforms: levels of latents, each with longer steps than the level below, which it conditions.

V. Saxena, J. Ba, D. Hafner, "Clockwork variational autoencoders", NeurIPS 2021 (arXiv 2102.09532); for speech, J. D.
Havtorn et al., "Benchmarking generative latent variable models for speech", 2022 (arXiv 2202.12707).

    h_t = GRU(h_t-1; z_t-1, c_t),  z_0 = h_0 = 0                  at each level; c_t = up([z, h] of the level above)
    p(z | above) = prod_t N(z_t; mu_p, diag var_p (h_t))
    q(z | above, x) = prod_t N(z_t; mu, diag var (h_t, e_t)) N(z_t; mu_p, diag var_p), normalised
    p(x | z) = prod_n DMoL(x_n; up([z, h] of level 1))            e: convolutions of x, a ladder over the levels
    ELBO = E_q[ln p(x | z)] - sum over levels and t of KL(q || p), along one draw

    z        latent, every s samples; at level l, every 8^(l-1) s    z_KBTL; z_NTL, draws and utterances in one axis
    h        state                                                   h_NTM; levels[l].cell: rnn_in, rnn
    p(z_t)   prior                                                   levels[l].cell.prior_net of h_t
    q(z_t)   posterior, p(z_t) times another factor                  levels[l].cell.posterior_net of h_t, e_t
    e        features of x, of later samples too                     e_BTM; audio_in, levels[l].encoder
    c, up    features of the level above, at no later step           c_NTM; levels[l].latent_in, levels[l].decoder
    x        samples                                                 waveform_BN
    DMoL     likelihood                                              decoder_net, after the decoder of level 1

Encoders and decoders have finite reach, so both compute a long waveform in pieces. The published code normalises each
channel over time, where padding and the rest of the utterance would change a piece; see nn/ladder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from avdvae.errors import UserError
from avdvae.models.waveform import CodeHead, Waveforms
from avdvae.nn.blocks import GaussianHead, concat_features, mlp, shifted
from avdvae.nn.fused_path import fused_path
from avdvae.nn.ladder import BLOCKS, Ladder
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.pcm import DMoL
from avdvae.protocols import Batch, Context, Inferred, Latents, LatentSpec

SLOWER = 8  # steps of a level to one of the level above


class LevelPath(NamedTuple):
    """A level along its draws; q is p in steps without e."""

    z: Float[Tensor, "N T L"]
    h: Float[Tensor, "N T M"]
    q: Gaussian
    p: Gaussian


class Cell(nn.Module):
    """The recursion of a level."""

    def __init__(self, hidden: int, dim: int, context: int):
        super().__init__()
        self.rnn_in = nn.Linear(dim + context, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.prior_net = nn.Sequential(*mlp([hidden] * 4, nn.ReLU), GaussianHead(hidden, dim))
        self.posterior_net = nn.Sequential(
            *mlp([2 * hidden, hidden, hidden, hidden], nn.ReLU), GaussianHead(hidden, dim)
        )

    def recursion(
        self,
        c_NTM: Float[Tensor, "N T M"] | None,
        e_NTM: Float[Tensor, "N t M"],
        noise_NTL: Float[Tensor, "N T L"],
        given_NTL: Float[Tensor, "N _ L"] | None = None,
    ) -> LevelPath:
        """z_t as given in the first steps, else drawn: from q in steps with e, from p after them. See `draw`."""
        given = () if given_NTL is None else given_NTL.unbind(1)
        z_NL, h_1NM, path = torch.zeros_like(noise_NTL[:, 0]), None, []
        for t, noise_NL in enumerate(noise_NTL.unbind(1)):
            inputs_NM = z_NL if c_NTM is None else torch.cat([z_NL, c_NTM[:, t]], -1)
            _, h_1NM = self.rnn(torch.relu(self.rnn_in(inputs_NM))[:, None], h_1NM)
            p = q = self.prior_net(h_1NM[0])
            if t < e_NTM.shape[1]:
                q = self.posterior_net(torch.cat([h_1NM[0], e_NTM[:, t]], -1)).times(p)
            z_NL = given[t] if t < len(given) else q.moved(noise_NL)
            path.append((z_NL, h_1NM[0], q.mean, q.log_var, p.mean, p.log_var))
        z_NTL, h_NTM, q_mean, q_log_var, p_mean, p_log_var = (torch.stack(part, 1) for part in zip(*path, strict=True))
        return LevelPath(z_NTL, h_NTM, Gaussian(q_mean, q_log_var), Gaussian(p_mean, p_log_var))

    def draw(
        self, c_NTM: Tensor | None, e_NTM: Tensor, noise_NTL: Tensor, given_NTL: Tensor | None = None
    ) -> LevelPath:
        """The path of `recursion`, in less time."""
        layers = self.rnn_in, self.rnn, self.prior_net, self.posterior_net
        return LevelPath(*fused_path(*layers, c_NTM, e_NTM, noise_NTL, given_NTL))

    def follow(self, z_NTL: Float[Tensor, "N T L"], c_NTM: Tensor | None) -> tuple[Float[Tensor, "N T M"], Gaussian]:
        """States and priors along given latents."""
        z_before_NTL = shifted(z_NTL)
        inputs_NTM = z_before_NTL if c_NTM is None else concat_features(z_before_NTL, c_NTM)
        h_NTM = self.rnn(torch.relu(self.rnn_in(inputs_NTM)))[0]
        return h_NTM, self.prior_net(h_NTM)


class Level(nn.Module):
    def __init__(self, hidden: int, dim: int, stride: int, context: int):
        super().__init__()
        self.encoder = Ladder(hidden, stride, rises=False)
        self.cell = Cell(hidden, dim, context)
        self.latent_in, self.decoder = nn.Linear(dim + hidden, hidden), Ladder(hidden, stride, rises=True)
        self.lookback = (self.encoder.reach - 1) // stride  # earlier steps that an output of `decoder` depends on

    def decoded(self, z_NTL: Tensor, h_NTM: Tensor) -> Float[Tensor, "N t M"]:
        return self.decoder(torch.relu(self.latent_in(concat_features(z_NTL, h_NTM))))


class CWVAE(Waveforms):
    def __init__(
        self,
        stride: int = 64,  # samples of a step of level 1, a power of 2; steps of each level above are 8 times as long
        layers: int = 2,  # levels
        channels: int = 96,
        dim: int | Sequence[int] = 96,  # of each level, or of one after another
        coding: str = "mu-law",  # or linear: of samples, as inputs and in the likelihood
        scoring: str = "exact",  # or paper: as published, whose bits are not a code length
        piece: int = 131_072,  # samples that the layers of a high rate take at a time where nothing is trained
    ):
        super().__init__()
        self.set_coding(stride, coding, scoring)
        dims = [dim] * layers if isinstance(dim, int) else list(dim)
        if len(dims) != layers or stride & (stride - 1) or not 2 <= stride <= 2**BLOCKS:
            raise UserError(
                f"model.stride={stride}, model.layers={layers}, model.dim={dim}: the stride is a power of 2, at most "
                f"{2**BLOCKS}, and dim is a number or one for each layer"
            )
        self.rates = [stride * SLOWER**level for level in range(layers)]
        self.latents = tuple(
            LatentSpec(f"z{level}", size, rate, "audio")
            for level, (size, rate) in enumerate(zip(dims, self.rates, strict=True), start=1)
        )
        self.channels = channels
        self.audio_in = nn.Linear(1, channels)
        self.levels = nn.ModuleList(
            Level(channels, size, SLOWER if level else stride, channels if level < layers - 1 else 0)
            for level, size in enumerate(dims)
        )
        self.decoder_net = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), CodeHead(channels))
        self.piece = piece // stride  # in steps of level 1

    def _level(self, number: int) -> Level:
        level = self.levels[number]
        assert isinstance(level, Level)
        return level

    def _masks(self, mask_BT: Bool[Tensor, "B T"]) -> list[Bool[Tensor, "B _"]]:
        return [mask_BT[:, :: SLOWER**level] for level in range(len(self.rates))]

    def _pieces(self, steps: int, stride: int) -> Iterator[tuple[int, int]]:
        """(from, to), in steps of a level whose inputs are `stride` times as many."""
        size = steps if self.training else max(1, self.piece * self.stride // stride)
        return ((first, min(first + size, steps)) for first in range(0, steps, size))

    def encode(self, batch: Batch, mask_BT: Bool[Tensor, "B T"]) -> list[Float[Tensor, "B _ M"]]:
        """e of every level; padding is 0 at the input of each."""
        waveform_BN = batch.need("waveform", self)
        assert batch.lengths is not None
        holds_data_BN = torch.arange(waveform_BN.shape[1], device=waveform_BN.device) < batch.lengths[:, None]
        e_BTM, es = self.stacks(waveform_BN * holds_data_BN).flatten(1)[..., None], []
        for number, mask in enumerate(self._masks(mask_BT)):
            encoder, steps = self._level(number).encoder, mask.shape[1]
            s, reach = encoder.stride, encoder.reach
            padded = pad(e_BTM, (0, 0, 0, max(0, (steps - 1) * s + reach - e_BTM.shape[1])))
            pieces = []
            for first, last in self._pieces(steps, s):
                part = padded[:, first * s : (last - 1) * s + reach]
                pieces.append(encoder(part if number else torch.relu(self.audio_in(part))))
            e_BTM = torch.cat(pieces, 1) * mask[..., None]
            es.append(e_BTM)
        return es

    def _top_down(
        self, masks: Sequence[Tensor], path_of: Callable[[int, Tensor | None], LevelPath]
    ) -> dict[str, LevelPath]:
        """The path of each level by the name of its latent: `path_of`(number, c), with c from the level above."""
        paths: dict[str, LevelPath] = {}
        c_NTM = None
        for number in reversed(range(len(masks))):
            path = paths[self.latents[number].name] = path_of(number, c_NTM)
            if number:
                c_NTM = self._level(number).decoded(path.z, path.h)[:, : masks[number - 1].shape[1]]
        return paths

    def _draw(
        self, mask_BT: Tensor, es: Sequence[Tensor], k: int, noise_like: Any, given: Latents | None = None
    ) -> dict[str, LevelPath]:
        """K paths, with `noise_like` torch.randn or torch.zeros; es are e of every level, shorter where z is not
        inferred but drawn from the prior."""
        masks, device = self._masks(mask_BT), mask_BT.device
        noises = [
            noise_like((k * len(mask), mask.shape[1], spec.dim), device=device)
            for spec, mask in zip(self.latents, masks, strict=True)
        ]
        known = {name: z.expand(k, -1, -1, -1).flatten(0, 1) for name, z in (given or {}).items()}

        def path_of(number: int, c_NTM: Tensor | None) -> LevelPath:
            e_NTM, given_NTL = es[number].repeat(k, 1, 1), known.get(self.latents[number].name)
            return self._level(number).cell.draw(c_NTM, e_NTM, noises[number], given_NTL)

        return self._top_down(masks, path_of)

    def _follow(self, z: Latents, mask_BT: Tensor) -> dict[str, LevelPath]:
        def path_of(number: int, c_NTM: Tensor | None) -> LevelPath:
            z_NTL = z[self.latents[number].name].flatten(0, 1)
            h_NTM, p = self._level(number).cell.follow(z_NTL, c_NTM)
            return LevelPath(z_NTL, h_NTM, p, p)

        return self._top_down(self._masks(mask_BT), path_of)

    def _likelihood(self, path: LevelPath, k: int) -> DMoL:
        """Of samples, from level 1, in pieces, each with the few steps before it that its outputs depend on."""
        level, outputs = self._level(0), []
        for first, last in self._pieces(path.z.shape[1], self.stride):
            earlier = min(first, level.lookback)
            part = slice(first - earlier, last)
            decoded = level.decoded(path.z[:, part], path.h[:, part])[:, earlier * self.stride :]
            outputs.append(self.decoder_net(decoded))
        return self.likelihood(torch.cat(outputs, 1).unflatten(0, (k, -1)))

    def _without_e(self, mask_BT: Tensor) -> list[Float[Tensor, "B 0 M"]]:
        return [torch.zeros(len(mask_BT), 0, self.channels, device=mask_BT.device)] * len(self.rates)

    def context(self, batch: Batch) -> Context:
        return Context(self.steps(batch))

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred:
        mask_BT = self.steps(batch)
        paths = self._draw(mask_BT, self.encode(batch, mask_BT), k, torch.randn if mode == "sample" else torch.zeros)
        return Inferred(
            {name: path.z.unflatten(0, (k, -1)) for name, path in paths.items()},
            {name: _with_draws(path.q, k) for name, path in paths.items()},
            {name: _with_draws(path.p, k) for name, path in paths.items()},
        )

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> dict[str, DMoL]:
        return {"waveform": self._likelihood(self._follow(z, context.mask)["z1"], len(z["z1"]))}

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]:
        """At the steps of level 1, over which those of the others are spread evenly."""
        total, paths = torch.zeros_like(z["z1"][..., 0]), self._follow(z, context.mask)
        for level, spec in enumerate(self.latents):
            path, steps = paths[spec.name], SLOWER**level
            log_p = path.p.log_prob(path.z).unflatten(0, z[spec.name].shape[:2])
            held_BT = pad(context.mask, (0, -context.mask.shape[1] % steps)).unflatten(1, (-1, steps))
            first_BT = torch.arange(steps, device=held_BT.device).expand_as(held_BT) == 0
            held_BT = torch.where(held_BT.any(-1, keepdim=True), held_BT, first_BT)
            weight = held_BT / held_BT.sum(-1, keepdim=True)
            total = total + (log_p[..., None] * weight).flatten(-2)[..., : total.shape[-1]]
        return total

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        paths = self._draw(context.mask, self._without_e(context.mask), k, torch.randn, given)
        return {name: path.z.unflatten(0, (k, -1)) for name, path in paths.items()}

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        mask_BT = self.steps(batch)
        paths = self._draw(mask_BT, self.encode(batch, mask_BT), 1, torch.randn)
        masks = {spec.name: mask for spec, mask in zip(self.latents, self._masks(mask_BT), strict=True)}
        free_scale = {spec.name: rate / self.stride for spec, rate in zip(self.latents, self.rates, strict=True)}
        q = {name: _with_draws(path.q, 1) for name, path in paths.items()}
        p = {name: _with_draws(path.p, 1) for name, path in paths.items()}
        return self.bound(self._likelihood(paths["z1"], 1), batch, schedule, q, p, masks, free_scale)

    @torch.no_grad()
    def generate(self, waveform_BN: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """See protocols.WaveformModel; of a waveform of any length. Steps of which all samples are given have latents
        inferred as if silence followed; the prior gives the others."""
        total = waveform_BN.shape[1] + samples
        mask_BT = torch.ones(len(waveform_BN), -(-total // self.stride), dtype=torch.bool, device=waveform_BN.device)
        es = self._without_e(mask_BT)
        if waveform_BN.shape[1]:
            lengths = torch.full((len(waveform_BN),), waveform_BN.shape[1], device=waveform_BN.device)
            batch = Batch(("",) * len(waveform_BN), mask_BT, waveform=waveform_BN, lengths=lengths)
            encoded = self.encode(batch, self.steps(batch))
            es = [e_BTM[:, : waveform_BN.shape[1] // rate] for e_BTM, rate in zip(encoded, self.rates, strict=True)]
        paths = self._draw(mask_BT, es, 1, torch.randn)
        return self._likelihood(paths["z1"], 1).sample()[0, :, waveform_BN.shape[1] : total]


def _with_draws(gaussian: Gaussian, k: int) -> Gaussian:
    return Gaussian(gaussian.mean.unflatten(0, (k, -1)), gaussian.log_var.unflatten(0, (k, -1)))
