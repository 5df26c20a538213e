"""Source-filter control: where pitch and formants lie in a model's latent space, and how to move one of them.

S. Sadok, S. Leglaive, L. Girin, X. Alameda-Pineda, R. Seguier, "Learning and controlling the source-filter
representation of speech with a variational autoencoder", Speech Communication 148, 2023 (arXiv 2204.07075).

Vowels in which factor i alone moves, the others at settings s, give posteriors N(mu_n, diag v_n) of its values y_n:

    S_i      mean_n[(mu_n - m_s)(mu_n - m_s)^T];    U_i: its first eigenvectors, to 90 % of the variance
    g_i(y)   lines from knot to knot, the least-squares fit to U_i^T (mu_n - m_s)
    move     the z~ nearest to z with U_i^T (z~ - m_i) = g_i(y_i) for each i that moves, frame by frame;
             of one factor: z~ = z - U (U^T (z - m) - g(y))
    whisper  z~ = z - U_0 U_0^T (z - m_0)
    f0       argmin_y |U_0^T (z - m_0) - g_0(y)|;    voiced where that distance is short, and the frame not quiet

It takes `infer` and `decode` alone, so any model with a latent a frame will do. The published method has one setting a
factor; with several, what differs between the settings is no part of the factor. It also adds mean_n diag v_n to S_i:
but a dimension that no sound moves has v = 1, which is more than a factor moves the others, and would lead U_i; and it
stops at 80 % for all factors, by which some of the pitch that was there stays, an octave off at times. For F1 more than
80 % takes in dimensions in which the settings differ by more than F1 moves them.

Latents hold the level of the sound, too, and published vowels have one level alone. Here a recording moves in the
subspaces of vowels at its own level, to within 1 dB: all of the above is found at each of LEVELS.

    y_n      value of a factor in Hz     hertz_N
    z        latent, its mean            z_TL
    m_i      mean of m_s                 mean_L
    U_i      basis of a subspace         basis_LM
    g_i      trajectory in it            knots_J, coordinates_JM
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.data.talker.vowels import GRIDS, SETTINGS, sound, trajectory, whispered
from avdvae.errors import UserError
from avdvae.protocols import Autoregressive, Batch, LatentModel, Latents
from avdvae.signals.audio import MARGIN, SILENCE, Stft

SHARES = {"f0": 0.9, "f1": 0.8, "f2": 0.9, "f3": 0.9}  # of a factor's variance that its subspace holds
PUBLISHED_SHARE = 0.8
SEGMENTS = 100  # of a trajectory; published: 20, but that of f0 winds once in each 16 Hz, the width of a bin
FRAMES = 8  # of an artificial vowel
LEVEL = 0.2  # its root mean square, where there is no recording that has one
LEVELS = [LEVEL * 10 ** (db / 20) for db in range(-16, 7, 2)]  # 0.03 to 0.4: speech that peaks at 1
LOUD = 1e-2  # of the loudest frame's power: frames above it make the level of a recording
QUIET = 1e-3  # of the loudest frame's power: below, nothing is voiced


@dataclass(frozen=True)
class Subspace:
    """Where a factor lies."""

    factor: str
    mean_L: Float[Tensor, " L"]
    basis_LM: Float[Tensor, "L M"]
    shares_L: Float[Tensor, " L"]  # of the variance, in the first 1, 2, ... eigenvectors
    knots_J: Float[Tensor, " J"]
    coordinates_JM: Float[Tensor, "J M"]
    hertz_N: Float[Tensor, " N"]
    along_NL: Float[Tensor, "N L"]  # mean latents of these values

    @property
    def range(self) -> tuple[float, float]:
        return self.knots_J[0].item(), self.knots_J[-1].item()

    def of(self, z_TL: Float[Tensor, "*draws L"]) -> Float[Tensor, "*draws M"]:
        """U^T (z - m)"""
        return (z_TL - self.mean_L) @ self.basis_LM

    def at(self, hertz_T: Float[Tensor, " T"]) -> Float[Tensor, "T M"]:
        """g"""
        low, high = self.range
        if len(wrong := hertz_T[~((hertz_T >= low) & (hertz_T <= high))]):
            given = " to ".join(f"{value:.0f}" for value in dict.fromkeys((wrong.min().item(), wrong.max().item())))
            raise UserError(f"{self.factor} would be {given} Hz: it moves between {low:g} and {high:g} Hz")
        return hats(hertz_T, self.knots_J) @ self.coordinates_JM

    def translated(
        self, z_TL: Float[Tensor, "T L"], source_T: Float[Tensor, " T"], target_T: Float[Tensor, " T"]
    ) -> Float[Tensor, "T L"]:
        """z - mu(source) + mu(target), what was done before there were subspaces."""
        source, target = ((hertz_T[:, None] - self.hertz_N).abs().argmin(1) for hertz_T in (source_T, target_T))
        return z_TL - self.along_NL[source] + self.along_NL[target]


def hats(hertz_N: Float[Tensor, " N"], knots_J: Float[Tensor, " J"]) -> Float[Tensor, "N J"]:
    """Functions that are 1 at one knot, 0 at the others and straight between: any lines from knot to knot are their
    weighted sum."""
    return (1 - (hertz_N[:, None] - knots_J).abs() / (knots_J[1] - knots_J[0])).clamp_min(0)


def fit_subspace(factor: str, mu_SNL: Float[Tensor, "S N L"], share: float) -> Subspace:
    """From the mean latents along the factor's grid, in each setting."""
    hertz_N = torch.from_numpy(GRIDS[factor]).float().to(mu_SNL.device)
    moved_SNL = mu_SNL - mu_SNL.mean(1, keepdim=True)
    moments_LL = torch.einsum("snl,snm->lm", moved_SNL, moved_SNL) / moved_SNL[..., 0].numel()
    values_L, vectors_LL = torch.linalg.eigh(moments_LL)
    shares_L = values_L.flip(0).cumsum(0) / values_L.sum()
    basis_LM = vectors_LL.flip(1)[:, : int((shares_L < share).sum()) + 1]
    knots_J = torch.linspace(hertz_N[0].item(), hertz_N[-1].item(), SEGMENTS + 1, device=hertz_N.device)
    coordinates_JM = torch.linalg.lstsq(hats(hertz_N, knots_J), moved_SNL.mean(0) @ basis_LM).solution
    mean_L, along_NL = mu_SNL.mean((0, 1)), mu_SNL.mean(0)
    return Subspace(factor, mean_L, basis_LM, shares_L, knots_J, coordinates_JM, hertz_N, along_NL)


def principal_angles(one: Subspace, other: Subspace) -> Float[Tensor, " M"]:
    """Between two subspaces, in degrees, the smallest first."""
    return torch.linalg.svdvals(one.basis_LM.T @ other.basis_LM).clamp(max=1).acos().rad2deg()


class Relation(NamedTuple):
    """Of two factors: the smallest principal angle between their subspaces in degrees, and the largest cosine between
    vectors of their bases; each with the middle 95 % of what other choices of settings give."""

    angle: tuple[float, float, float]
    cosine: tuple[float, float, float]


def relations(encoded: Mapping[str, Float[Tensor, "S N L"]], draws: int = 50) -> dict[tuple[str, str], Relation]:
    """Of all pairs, in subspaces of the published size. The settings of each factor are drawn anew, with replacement,
    in each of the `draws`."""
    rng = np.random.default_rng(0)

    def measure(chosen: Mapping[str, Tensor]) -> list[tuple[float, float]]:
        fitted = [fit_subspace(factor, mu_SNL, PUBLISHED_SHARE) for factor, mu_SNL in chosen.items()]
        return [
            (principal_angles(a, b)[0].item(), (a.basis_LM.T @ b.basis_LM).abs().max().item())
            for a, b in combinations(fitted, 2)
        ]

    drawn = [
        measure({factor: mu_SNL[rng.integers(len(mu_SNL), size=len(mu_SNL))] for factor, mu_SNL in encoded.items()})
        for _ in range(draws)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0).tolist()
    return {
        pair: Relation(*zip(value, below, above, strict=True))
        for pair, value, below, above in zip(combinations(encoded, 2), measure(encoded), low, high, strict=True)
    }


def vowels_of(model: LatentModel, stft: Stft, vowels: Sequence[Float[np.ndarray, " N"]]) -> Float[Tensor, "V T F"]:
    """Their power, where the root mean square is 1."""
    return stft.power(torch.from_numpy(np.stack(vowels)).to(_device(model)), centred=False)


def latents_of(model: LatentModel, power_VTF: Float[Tensor, "V T F"], level: float) -> Float[Tensor, "V L"]:
    """The mean latent of each vowel's frames, at this root mean square."""
    return _infer(model, level**2 * power_VTF)[latent_a_frame(model)][0].mean(1)


def encode_factors(model: LatentModel, stft: Stft, levels: Sequence[float]) -> list[dict[str, Tensor]]:
    """The latents of the vowels along each factor's grid, S N L for its settings, at each level."""
    samples, encoded = 2 * MARGIN + (FRAMES - 1) * stft.hop, [dict[str, Tensor]() for _ in levels]
    for factor, settings in SETTINGS.items():
        powers = [
            vowels_of(model, stft, [sound(vowel, samples) for vowel in trajectory(factor, setting)])
            for setting in settings
        ]
        for level, found in zip(levels, encoded, strict=True):
            found[factor] = torch.stack([latents_of(model, power_NTF, level) for power_NTF in powers])
    return encoded


@torch.no_grad()
def _infer(model: LatentModel, power_BTF: Float[Tensor, "B T F"]) -> Latents:
    """Mean latents."""
    mask_BT = torch.ones(power_BTF.shape[:2], dtype=torch.bool, device=power_BTF.device)
    batch = Batch(ids=tuple(map(str, range(len(power_BTF)))), mask=mask_BT, power=power_BTF)
    return model.infer(batch, mode="mean").z


def latent_a_frame(model: LatentModel) -> str:
    """Its name."""
    if names := [spec.name for spec in model.latents if spec.rate == 1 and spec.modality != "motion"]:
        return names[0]
    raise UserError(f"{type(model).__name__} has no latent of sound that has a vector a frame: choose another model")


def _device(model: LatentModel) -> torch.device:
    return next(model.parameters()).device  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Encoded:
    """Latents to be moved, those of a recording or others.

    level    root mean square of the loud frames, where the recording peaks at 1
    others   the model's other latents, as they were inferred; where None, draws from their prior
    phase, samples, peak   of the recording
    """

    z: Float[Tensor, "T L"]
    level: float = LEVEL
    others: Latents | None = None
    phase: Float[Tensor, "T F"] | None = None
    samples: int = 0
    peak: float = 1.0


@dataclass(frozen=True)
class Space:
    """Where the factors lie in sounds of one `level`. Targets are given frame by frame, in Hz; nan: the factor stays.

    voiced_within   how far from the trajectory of f0 a voiced frame may lie
    """

    level: float
    subspaces: Mapping[str, Subspace]
    voiced_within: float

    def move(self, z_TL: Float[Tensor, "T L"], targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Each factor to its target; a target of 0 is where g would be 0, which takes the voice out of f0."""
        moved_TL = z_TL.clone()
        ways = torch.stack([target.isnan() for target in targets.values()], -1)
        for stays in ways.unique(dim=0):
            here = (ways == stays).all(-1)
            moving = {n: y[here] for (n, y), still in zip(targets.items(), stays.tolist(), strict=True) if not still}
            if moving:
                moved_TL[here] = self._move_all(z_TL[here], moving)
        return moved_TL

    def _move_all(self, z_TL: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        bases, missing = [], []
        for factor, hertz_T in targets.items():
            subspace = self.subspaces[factor]
            aim_TM = torch.zeros(len(z_TL), subspace.basis_LM.shape[1], device=z_TL.device)
            aim_TM[hertz_T != 0] = subspace.at(hertz_T[hertz_T != 0])
            bases.append(subspace.basis_LM)
            missing.append(aim_TM - subspace.of(z_TL))
        return z_TL + torch.cat(missing, -1) @ torch.linalg.pinv(torch.cat(bases, -1))


@dataclass(frozen=True)
class Controller:
    """A model, and where in it the factors lie, at several levels."""

    model: LatentModel
    stft: Stft
    spaces: Sequence[Space]

    @classmethod
    def of(cls, model: LatentModel, stft: Stft, share: float | None = None) -> Controller:
        """Found by artificial vowels, spoken and whispered; `share` of all factors in place of SHARES."""
        if blind := set(model.sees) - {"power"}:
            raise UserError(
                f"{type(model).__name__} sees {', '.join(blind)} and vowels are sound alone: choose another"
            )
        rng, samples = np.random.default_rng(0), 2 * MARGIN + (FRAMES - 1) * stft.hop
        breaths = [whispered(setting, samples, rng) for setting in SETTINGS["f0"] for _ in range(25)]
        breaths_VTF, spaces = vowels_of(model, stft, breaths), []
        for level, encoded in zip(LEVELS, encode_factors(model, stft, LEVELS), strict=True):
            subspaces = {name: fit_subspace(name, mu_SNL, share or SHARES[name]) for name, mu_SNL in encoded.items()}
            spoken = nearest(subspaces["f0"], encoded["f0"].flatten(end_dim=1))[1]
            breathed = nearest(subspaces["f0"], latents_of(model, breaths_VTF, level))[1]
            # Where as large a share of the spoken lies beyond as of the whispered lies within.
            bounds = torch.cat([spoken, breathed]).sort().values
            wrong = (spoken > bounds[:, None]).float().mean(1) - (breathed <= bounds[:, None]).float().mean(1)
            spaces.append(Space(level, subspaces, bounds[wrong.abs().argmin()].item()))
        return cls(model, stft, spaces)

    def space(self, level: float = LEVEL) -> Space:
        """The one whose level is nearest."""
        return min(self.spaces, key=lambda space: abs(math.log(space.level / level)))

    def encode(self, waveform_N: Float[Tensor, " N"]) -> Encoded:
        peak = waveform_N.abs().max().clamp_min(SILENCE).item()
        spectrum_TF = self.stft.analyse(waveform_N[None] / peak)[0]
        power_1TF, name = spectrum_TF.abs().square()[None], latent_a_frame(self.model)
        others = {**_infer(self.model, power_1TF)}
        z_TL, power_T = others.pop(name)[0, 0], power_1TF[0].sum(-1) / MARGIN**2  # Parseval, of the sine window
        loud_T = power_T >= LOUD * power_T.max()
        level = power_T[loud_T].mean().clamp_min(SILENCE).sqrt().item()
        return Encoded(z_TL, level, others, spectrum_TF.angle(), len(waveform_N), peak)

    def pitch(self, encoded: Encoded) -> Float[Tensor, " T"]:
        """f0, and 0 where nothing is voiced."""
        space = self.space(encoded.level)
        hertz_T, distance_T = nearest(space.subspaces["f0"], encoded.z)
        power_T = self.decode(encoded.z, encoded.others).sum(-1)
        return hertz_T * (distance_T <= space.voiced_within) * (power_T >= QUIET * power_T.max())

    def move(self, encoded: Encoded, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Each factor to its target, in the space of the recording's level."""
        return self.space(encoded.level).move(encoded.z, targets)

    def translate(
        self, encoded: Encoded, factor: str, source_T: Float[Tensor, " T"], target_T: Float[Tensor, " T"]
    ) -> Float[Tensor, "T L"]:
        """z - mu(source) + mu(target), where the target is not nan."""
        moved_TL, here = encoded.z.clone(), ~target_T.isnan()
        subspace = self.space(encoded.level).subspaces[factor]
        moved_TL[here] = subspace.translated(encoded.z[here], source_T[here], target_T[here])
        return moved_TL

    def generate(self, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Speech out of nothing but trajectories of factors."""
        space = self.space()
        middle_L = torch.stack([subspace.mean_L for subspace in space.subspaces.values()]).mean(0)
        return space.move(middle_L.expand(len(next(iter(targets.values()))), -1), targets)

    @torch.no_grad()
    def decode(self, z_TL: Float[Tensor, "T L"], others: Latents | None = None) -> Float[Tensor, "T F"]:
        """The power that the model expects; `others` are its other latents, draws from their prior where None."""
        mask_1T = torch.ones(1, len(z_TL), dtype=torch.bool, device=z_TL.device)
        nothing_1TF = torch.zeros(1, len(z_TL), 2 * MARGIN // 2 + 1, device=z_TL.device)
        context = self.model.context(Batch(ids=("",), mask=mask_1T, power=nothing_1TF))
        rest = self.model.sample_prior(context) if others is None else others
        z = {**rest, latent_a_frame(self.model): z_TL[None, None]}
        past = self.model.own_past(z, context) if isinstance(self.model, Autoregressive) else None
        return self.model.decode(z, context, feedback=past)["power"].components(nothing_1TF).mean()[0]

    def say(
        self, z_TL: Float[Tensor, "T L"], encoded: Encoded | None = None, griffin_lim: bool = True
    ) -> Float[Tensor, " N"]:
        """The sound of latents, as long and as loud as what was `encoded`. The original's phase, which fits where
        neither pitch nor voice have changed, is taken where that of Griffin and Lim is not asked for."""
        power_1TF = self.decode(z_TL, None if encoded is None else encoded.others)[None]
        if encoded is None:
            return self.stft.griffin_lim(power_1TF, (len(z_TL) - 1) * self.stft.hop)[0]
        if griffin_lim:
            return encoded.peak * self.stft.griffin_lim(power_1TF, encoded.samples)[0]
        assert encoded.phase is not None
        return encoded.peak * self.stft.with_phase(power_1TF, encoded.phase[None], encoded.samples)[0]


def nearest(
    subspace: Subspace, z_TL: Float[Tensor, "T L"], step: float = 1.0
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """The value on the trajectory, in steps of as many Hz, that is nearest to each frame; and how far off it is."""
    low, high = subspace.range
    grid = torch.arange(low, high + step / 2, step, device=z_TL.device)
    distance_T, index_T = torch.cdist(subspace.of(z_TL), subspace.at(grid)).min(-1)
    return grid[index_T], distance_T
