"""Source-filter control: pitch and formants of speech are moved in the latent space of a model.

The method of Sadok et al., 2023, in the subspaces U_i, g_i of subspaces.py:

    move     the z~ nearest to z with U_i^T (z~ - m_i) = g_i(y_i) for each factor i that moves, frame by frame;
             of one factor: z~ = z - U (U^T (z - m) - g(y))
    whisper  z~ = z - U_0 U_0^T (z - m_0)
    f0       argmin_y |U_0^T (z - m_0) - g_0(y)|;    voiced if that distance is short and the frame not quiet

It uses `infer` and `decode` alone, so it works for any model with a latent per frame.

Latents also encode the level of the sound, and the published vowels have one level. Here the subspaces are fitted to
vowels at each of LEVELS, and a recording is moved in those of its own level, to within 1 dB.

`method=discriminants`, of this suite, has discriminants A_i in place of U_i (subspaces.py), of vowels in many settings,
voices and levels, and so one space for all levels. c_i is the mean latent of vowels along a factor, w that of whispers:

    y^_i     argmin_y |A_i^T (z - c_i(y))|
    move     z~ = z + sum_i c_i(y_i) - c_i(y^_i)
    whisper  z~ = z + w - c_0(y^_0)

So what other factors contribute to z stays as it is, where a subspace replaces all of z within U_i. Whether a frame is
voiced, and f0, still follow from the subspaces: in units of W_0, most frames of speech lie beyond the bound between
artificial vowels and whispers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from avdvae.data.talker.vowels import GRIDS, SETTINGS, draw_settings, sound, trajectory, whispered
from avdvae.errors import UserError
from avdvae.latents.subspaces import Subspace, fit_discriminants, fit_subspace, nearest
from avdvae.protocols import Autoregressive, Batch, LatentModel, Latents
from avdvae.signals.audio import MARGIN, SILENCE, Stft

METHODS = ("components", "discriminants")
SHARES = {"f0": 0.9, "f1": 0.8, "f2": 0.9, "f3": 0.9}  # of a factor's variance that its subspace contains
DIRECTIONS = {"f0": 8, "f1": 2, "f2": 3, "f3": 2}  # discriminants of a factor, chosen on validation speakers
DRAWN = 96  # settings and voices for the discriminants of a factor
VALUES = {"f0": 101, "f1": 34, "f2": 34, "f3": 34}  # of a factor in each of these
FRAMES = 8  # of an artificial vowel
LEVEL = 0.2  # root mean square of an artificial vowel without a recording
LEVELS = [LEVEL * 10 ** (db / 20) for db in range(-16, 7, 2)]  # 0.03 to 0.4: speech that peaks at 1
FEW_LEVELS = LEVELS[2::3]
LOUD = 1e-2  # of the loudest frame's power: frames above it determine the level of a recording
QUIET = 1e-3  # of the loudest frame's power: frames below it are unvoiced


def vowels_of(model: LatentModel, stft: Stft, vowels: Sequence[Float[np.ndarray, " N"]]) -> Float[Tensor, "V T F"]:
    """Their power spectra, at a root mean square of 1."""
    return stft.power(torch.from_numpy(np.stack(vowels)).to(_device(model)), centred=False)


def latents_of(model: LatentModel, power_VTF: Float[Tensor, "V T F"], level: float) -> Float[Tensor, "V L"]:
    """The latent mean over each vowel's frames, at this root mean square."""
    return _infer(model, level**2 * power_VTF)[frame_latent(model)][0].mean(1)


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


def encode_drawn(model: LatentModel, stft: Stft) -> tuple[dict[str, Tensor], Tensor]:
    """The latents of vowels along each factor's grid, S J L for drawn settings and each of FEW_LEVELS; and of whispers
    in those of f0, W L."""
    rng, samples, encoded, whispers = np.random.default_rng(0), 2 * MARGIN + stft.hop, {}, []
    for factor, count in VALUES.items():
        values = np.linspace(GRIDS[factor][0], GRIDS[factor][-1], count).tolist()
        settings, found = draw_settings(factor, DRAWN, rng), []
        for setting in settings:
            power_JTF = vowels_of(model, stft, [sound(replace(setting, **{factor: y}), samples) for y in values])
            found += [latents_of(model, power_JTF, level) for level in FEW_LEVELS]
        encoded[factor] = torch.stack(found)
        if factor == "f0":
            whispers = [whispered(setting, samples, rng) for setting in settings for _ in range(4)]
    power_VTF = vowels_of(model, stft, whispers)
    return encoded, torch.cat([latents_of(model, power_VTF, level) for level in FEW_LEVELS])


@torch.no_grad()
def _infer(model: LatentModel, power_BTF: Float[Tensor, "B T F"]) -> Latents:
    """Mean latents."""
    mask_BT = torch.ones(power_BTF.shape[:2], dtype=torch.bool, device=power_BTF.device)
    batch = Batch(ids=tuple(map(str, range(len(power_BTF)))), mask=mask_BT, power=power_BTF)
    return model.infer(batch, mode="mean").z


def frame_latent(model: LatentModel) -> str:
    """The name of the model's latent with one vector per frame."""
    if names := [spec.name for spec in model.latents if spec.rate == 1 and spec.modality != "motion"]:
        return names[0]
    raise UserError(f"{type(model).__name__} has no latent of sound with one vector per frame: choose another model")


def _device(model: LatentModel) -> torch.device:
    return next(model.parameters()).device  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Encoded:
    """Latents to be moved, of a recording or generated.

    level    root mean square of the loud frames of the recording scaled to peak at 1
    others   the model's other latents, as inferred; None: draws from their prior
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
    """The subspaces for sounds of one `level`. Targets are in Hz, one per frame; nan: the factor is unchanged.

    voiced_within   largest distance of a voiced frame from the trajectory of f0
    """

    level: float
    subspaces: Mapping[str, Subspace]
    voiced_within: float

    def move(self, z_TL: Float[Tensor, "T L"], targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Each factor moved to its target; a target of 0 sets g to 0, which makes f0 a whisper."""
        moved_TL = z_TL.clone()
        unchanged = torch.stack([target.isnan() for target in targets.values()], -1)
        for pattern in unchanged.unique(dim=0):
            here = (unchanged == pattern).all(-1)
            moving = {n: y[here] for (n, y), still in zip(targets.items(), pattern.tolist(), strict=True) if not still}
            if moving:
                moved_TL[here] = self._move_all(z_TL[here], moving)
        return moved_TL

    def generate(self, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """All factors moved to their targets from the middle of the vowels."""
        return self.move(self.middle_L.expand(len(next(iter(targets.values()))), -1), targets)

    @property
    def middle_L(self) -> Float[Tensor, " L"]:
        return torch.stack([subspace.mean_L for subspace in self.subspaces.values()]).mean(0)

    def _move_all(self, z_TL: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        bases, steps = [], []
        for factor, hertz_T in targets.items():
            subspace = self.subspaces[factor]
            target_TM = torch.zeros(len(z_TL), subspace.basis_LM.shape[1], device=z_TL.device)
            target_TM[hertz_T != 0] = subspace.at(hertz_T[hertz_T != 0])
            bases.append(subspace.basis_LM)
            steps.append(target_TM - subspace.of(z_TL))
        return z_TL + torch.cat(steps, -1) @ torch.linalg.pinv(torch.cat(bases, -1))


@dataclass(frozen=True)
class Discriminants(Space):
    """The same by discriminants, for sounds of any level. They do not determine voicing."""

    whisper_L: Float[Tensor, " L"]

    def generate(self, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """The middle of the vowels has no value of a factor to be read."""
        return self.middle_L + sum(self._at(factor, y) - self.subspaces[factor].mean_L for factor, y in targets.items())

    def _move_all(self, z_TL: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        steps = []
        for factor, hertz_T in targets.items():
            subspace = self.subspaces[factor]
            steps.append(self._at(factor, hertz_T) - subspace.mean_at(nearest(subspace, z_TL)[0]))
        return z_TL + torch.stack(steps).sum(0)

    def _at(self, factor: str, hertz_T: Tensor) -> Tensor:
        """c, or w where the target is 0."""
        at_TL = self.whisper_L.repeat(len(hertz_T), 1)
        at_TL[hertz_T != 0] = self.subspaces[factor].mean_at(hertz_T[hertz_T != 0])
        return at_TL


def _voicing_bound(f0: Subspace, spoken_VL: Float[Tensor, "V L"], whispers_WL: Float[Tensor, "W L"]) -> float:
    """The distance with equal error rates: as many spoken vowels beyond it as whispers within, in relative numbers."""
    spoken, whispers = (nearest(f0, z)[1].sort().values for z in (spoken_VL, whispers_WL))
    bounds = torch.cat([spoken, whispers]).sort().values
    beyond = 1 - torch.searchsorted(spoken, bounds, right=True) / len(spoken)
    within = torch.searchsorted(whispers, bounds, right=True) / len(whispers)
    return bounds[(beyond - within).abs().argmin()].item()


@dataclass(frozen=True)
class Controller:
    """A model with the subspaces of its factors, at several levels, or with their discriminants."""

    model: LatentModel
    stft: Stft
    spaces: Sequence[Space]
    discriminants: Discriminants | None = None

    @classmethod
    def of(cls, model: LatentModel, stft: Stft, share: float | None = None, method: str = METHODS[0]) -> Controller:
        """Fitted to artificial vowels, spoken and whispered; `share` replaces SHARES of components for all factors."""
        if method not in METHODS:
            raise UserError(f"method={method}: choose from {', '.join(METHODS)}")
        if share is not None and method != METHODS[0]:
            raise UserError(f"share={share} is a setting of method=components: leave it out, or that method={method}")
        if others := set(model.sees) - {"power"}:
            raise UserError(
                f"{type(model).__name__} also requires {', '.join(others)}, and vowels are sound alone: choose another"
            )
        if method == "discriminants":
            drawn, whispers_WL = encode_drawn(model, stft)
            found = {name: fit_discriminants(name, z_SJL, DIRECTIONS[name]) for name, z_SJL in drawn.items()}
            discriminants = Discriminants(LEVEL, found, math.inf, whispers_WL.mean(0))
            return replace(cls.of(model, stft), discriminants=discriminants)
        rng, samples = np.random.default_rng(0), 2 * MARGIN + (FRAMES - 1) * stft.hop
        whispers = [whispered(setting, samples, rng) for setting in SETTINGS["f0"] for _ in range(25)]
        whispers_VTF, spaces = vowels_of(model, stft, whispers), []
        for level, encoded in zip(LEVELS, encode_factors(model, stft, LEVELS), strict=True):
            subspaces = {name: fit_subspace(name, mu_SNL, share or SHARES[name]) for name, mu_SNL in encoded.items()}
            spoken_VL, whispers_WL = encoded["f0"].flatten(end_dim=1), latents_of(model, whispers_VTF, level)
            spaces.append(Space(level, subspaces, _voicing_bound(subspaces["f0"], spoken_VL, whispers_WL)))
        return cls(model, stft, spaces)

    def space(self, level: float = LEVEL) -> Space:
        """The one of subspaces with the nearest level."""
        return min(self.spaces, key=lambda space: abs(math.log(space.level / level)))

    def space_to_move_in(self, level: float = LEVEL) -> Space:
        return self.discriminants or self.space(level)

    def encode(self, waveform_N: Float[Tensor, " N"]) -> Encoded:
        peak = waveform_N.abs().max().clamp_min(SILENCE).item()
        spectrum_TF = self.stft.analyse(waveform_N[None] / peak)[0]
        power_1TF, name = spectrum_TF.abs().square()[None], frame_latent(self.model)
        others = {**_infer(self.model, power_1TF)}
        z_TL, power_T = others.pop(name)[0, 0], power_1TF[0].sum(-1) / MARGIN**2  # Parseval, of the sine window
        loud_T = power_T >= LOUD * power_T.max()
        level = power_T[loud_T].mean().clamp_min(SILENCE).sqrt().item()
        return Encoded(z_TL, level, others, spectrum_TF.angle(), len(waveform_N), peak)

    def pitch(self, encoded: Encoded) -> Float[Tensor, " T"]:
        """f0, and 0 in unvoiced frames."""
        space = self.space(encoded.level)
        hertz_T, distance_T = nearest(space.subspaces["f0"], encoded.z)
        power_T = self.decode(encoded.z, encoded.others).sum(-1)
        return hertz_T * (distance_T <= space.voiced_within) * (power_T >= QUIET * power_T.max())

    def move(self, encoded: Encoded, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Each factor moved to its target, in the space of the recording's level."""
        return self.space_to_move_in(encoded.level).move(encoded.z, targets)

    def translate(
        self, encoded: Encoded, factor: str, source_T: Float[Tensor, " T"], target_T: Float[Tensor, " T"]
    ) -> Float[Tensor, "T L"]:
        """z - mu(source) + mu(target), where the target is not nan."""
        moved_TL, here = encoded.z.clone(), ~target_T.isnan()
        subspace = self.space(encoded.level).subspaces[factor]
        moved_TL[here] = subspace.translated(encoded.z[here], source_T[here], target_T[here])
        return moved_TL

    def generate(self, targets: Mapping[str, Float[Tensor, " T"]]) -> Float[Tensor, "T L"]:
        """Latents of speech from trajectories of the factors alone."""
        return self.space_to_move_in().generate(targets)

    @torch.no_grad()
    def decode(self, z_TL: Float[Tensor, "T L"], others: Latents | None = None) -> Float[Tensor, "T F"]:
        """The decoded power; `others` are the model's other latents, draws from their prior where None."""
        mask_1T = torch.ones(1, len(z_TL), dtype=torch.bool, device=z_TL.device)
        zeros_1TF = torch.zeros(1, len(z_TL), 2 * MARGIN // 2 + 1, device=z_TL.device)
        context = self.model.context(Batch(ids=("",), mask=mask_1T, power=zeros_1TF))
        rest = self.model.sample_prior(context) if others is None else others
        z = {**rest, frame_latent(self.model): z_TL[None, None]}
        past = self.model.own_past(z, context) if isinstance(self.model, Autoregressive) else None
        return self.model.decode(z, context, feedback=past)["power"].components(zeros_1TF).mean()[0]

    def synthesise(
        self, z_TL: Float[Tensor, "T L"], encoded: Encoded | None = None, griffin_lim: bool = True
    ) -> Float[Tensor, " N"]:
        """The waveform of latents, with the length and level of the recording that was `encoded`. Without
        `griffin_lim`, it has the phase of the recording, which fits if neither pitch nor voicing have changed."""
        power_1TF = self.decode(z_TL, None if encoded is None else encoded.others)[None]
        if encoded is None:
            return self.stft.griffin_lim(power_1TF, (len(z_TL) - 1) * self.stft.hop)[0]
        if griffin_lim:
            return encoded.peak * self.stft.griffin_lim(power_1TF, encoded.samples)[0]
        assert encoded.phase is not None
        return encoded.peak * self.stft.with_phase(power_1TF, encoded.phase[None], encoded.samples)[0]
