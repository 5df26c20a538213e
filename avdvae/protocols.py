"""What the parts of the house hand to each other, and what a model must offer. Read this first.

Shapes: B utterances, N samples, T STFT frames, F frequencies, H x W pixels of a crop, D coordinates of a figure's
joints, K draws of L latents.
Batch first, time second, everywhere; draws lead: z_KBTL. A static model is a sequence model without memory: to it T is
a second batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from avdvae.errors import UserError
from avdvae.probability.distributions import Gaussian, SpeechLikelihood
from avdvae.probability.objectives import Elbo, Schedule


@dataclass(frozen=True)
class Batch:
    """Utterances, or windows of them, on the clock of the STFT; sequences of poses on their own. A modality that is
    absent is None.

    ids       B names of utterances
    mask      B T      true where a frame holds data, false where it pads
    waveform  B N      clean speech
    mixture   B N      the same speech in noise
    power     B T F    |STFT|^2 of the clean speech
    noisy     B T F    |STFT|^2 of the mixture
    lips      B T H W  grey mouth crops, each STFT frame with the picture nearest to its centre in time
    sure      B T      confidence of the lips in 0..1; 0 where no face was found
    face      B T R C 3  crops of the whole face in colour, red, green and blue, at the moments of the lips
    mouth     B T 2    opening and width of the lips, in distances of the outer corners of the eyes; beside faces
    pose      B T D    poses in metres: of each joint right, forward and up of the hips; see data/poses.py
    lengths   B        samples of waveform and mixture that hold data; the rest pads
    starts    B        which frame of its utterance is the first; None where what a corpus holds was changed
    labels    B dicts  speaker, sex, emotion, ... as the corpus has them
    """

    ids: tuple[str, ...]
    mask: Bool[Tensor, "B T"]
    waveform: Float[Tensor, "B N"] | None = None
    mixture: Float[Tensor, "B N"] | None = None
    power: Float[Tensor, "B T F"] | None = None
    noisy: Float[Tensor, "B T F"] | None = None
    lips: UInt8[Tensor, "B T H W"] | None = None
    sure: Float[Tensor, "B T"] | None = None
    face: UInt8[Tensor, "B T R C 3"] | None = None
    mouth: Float[Tensor, "B T 2"] | None = None
    pose: Float[Tensor, "B T D"] | None = None
    lengths: Int64[Tensor, " B"] | None = None
    starts: Int64[Tensor, " B"] | None = None
    labels: tuple[dict[str, Any], ...] = ()

    MODALITIES = ("waveform", "mixture", "power", "noisy", "lips", "sure", "face", "mouth", "pose")

    def only(self, *names: str) -> Batch:
        """The same batch with no modality but these: for ablations and missing video."""
        if unknown := set(names) - set(self.MODALITIES):
            given = ", ".join(sorted(unknown))
            raise UserError(f"no modality is called {given}: choose from {', '.join(self.MODALITIES)}")
        return replace(self, **{name: None for name in self.MODALITIES if name not in names})

    def need(self, name: str, whose: object) -> Tensor:
        """A modality that `whose`, a model, cannot do without."""
        if (tensor := getattr(self, name)) is None:
            what = {
                "lips": "video, for it looks at the lips,",
                "face": "faces, as a corpus prepared with lips.face=64 has,",
                "pose": "poses, as data=gait has,",
            }.get(name, name)
            raise UserError(f"{type(whose).__name__} needs {what} and got none: give it, or choose another model")
        return tensor

    def first(self, frames: int) -> Batch:
        """The first frames of each utterance. Sound in samples goes, for how many make a frame is not known here."""
        framed = set(self.MODALITIES) - {"waveform", "mixture"}
        return replace(self.only(*framed), lengths=None, starts=None)._map(lambda tensor: tensor[:, :frames])

    def to(self, device: torch.device | str) -> Batch:
        """Every tensor on `device`; the copy does not block when the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change) -> Batch:
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class LatentSpec:
    """One latent variable of a model: transfer and control find it by its name.

    rate      1: a vector a frame; s: one every s inputs; None: one an utterance
    modality  what it explains: audio, video or both, or motion
    """

    name: str
    dim: int
    rate: int | None
    modality: Literal["audio", "video", "audio-visual", "motion"]


Observed = Literal["power", "pose", "waveform"]  # what a model may explain: speech, motion, or sound, code by code
Latents = Mapping[str, Tensor]  # z_KBTL by the name of the latent; z_KB1L where the rate is None


@dataclass(frozen=True)
class Context:
    """What a model is conditioned on, encoded once: an EM run decodes thousands of times and looks at the lips once.

    mask    B T    true where a frame holds data
    video   B T M  features of the lips, for models that are conditioned on them
    switch  B S C  prior of the switch between components, for mixtures; an EM run `learns` it anew, or does not
    temper  exponent of a prior that is conditioned on the lips, in (0, 1]: below 1 it is wider
    past    B T F  for models that hear the past of what they explain: that itself, or what is taken for it;
                   K B T F where each draw has a past of its own; fewer frames, or None, where what the model says
                   itself is to stand for the others (`sample_prior`, `own_past`)
    """

    mask: Bool[Tensor, "B T"]
    video: Float[Tensor, "B T M"] | None = None
    switch: Float[Tensor, "B S C"] | None = None
    learns: bool = True
    temper: float = 1.0
    past: Float[Tensor, "*draws B _ F"] | None = None


@dataclass(frozen=True)
class Inferred:
    """One pass through the inference network: draws, and posterior and prior on the path of these draws, by name."""

    z: Latents
    q: Mapping[str, Gaussian]
    p: Mapping[str, Gaussian]


@runtime_checkable
class Model(Protocol):
    """What can be trained. `forward` it must be: DDP synchronises gradients through `__call__` alone."""

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo: ...


@runtime_checkable
class LatentModel(Model, Protocol):
    """What can be inferred, decoded, sampled, transferred and controlled."""

    observes: Observed  # what it explains
    latents: tuple[LatentSpec, ...]
    sees: tuple[str, ...]  # the modalities of a Batch that inference and decoding need

    def context(self, batch: Batch) -> Context: ...

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred: ...

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Mapping[str, Any]:
        """The likelihood of each modality, by the modality's name. Models that are autoregressive in the sound hear
        the past from `feedback`, a power spectrum B T F."""
        ...

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]: ...

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """Draws for every frame of the context, which begin with the frames that are `given`."""
        ...


@runtime_checkable
class Autoregressive(LatentModel, Protocol):
    """A LatentModel that hears the past of what it explains."""

    def own_past(self, z: Latents, context: Context, own: Sequence[bool] | None = None) -> Float[Tensor, "K B T F"]:
        """What stands for the past when x_t is what the model says itself, in the frames that are its `own`, or all."""
        ...


@runtime_checkable
class WaveformModel(Model, Protocol):
    """A Model of 16-bit samples, in steps of `stride` of them; one with latents is a LatentModel, too.

    causal   whether the bound of a piece depends on earlier samples alone. If so, `carry` takes an utterance in pieces
             of whole steps, one after another; if not, as a whole
    """

    observes: Observed
    stride: int
    causal: bool

    def carry(self, batch: Batch, schedule: Schedule, state: Any) -> tuple[Elbo, Any]:
        """The bound of a piece, given the state after the pieces before it (None at first); and the state after it."""
        ...

    def generate(self, waveform: Float[Tensor, "B N"], samples: int) -> Float[Tensor, "B n"]:
        """A draw of the samples that follow a waveform of whole steps, or of none."""
        ...


def why_not_enhancing(model: object) -> str | None:
    """What keeps the EM stage from enhancing with this model, and which models qualify; None: nothing."""
    if is_speech_prior(model):
        return None
    what = {"waveform": "samples code by code", "pose": "poses"}.get(getattr(model, "observes", "power"))
    why = f"explains {what}" if what else "has no latents to infer"
    return (
        f"{type(model).__name__} cannot enhance, for it {why}, and noise is taken off by a likelihood of power "
        "spectra: choose a model that has one, such as exp=vae, cvae or rvae"
    )


PICTURES = frozenset({"lips", "face"})  # what is seen of a talker


def indispensable(model: LatentModel) -> set[str]:
    """What `model` cannot do without: what it sees, but for what it says it `can_miss`."""
    return set(model.sees) - set(getattr(model, "can_miss", ()))


class SpeechPrior(LatentModel, Protocol):
    """A LatentModel whose likelihood of `power` can take noise, and so can enhance speech: see `is_speech_prior`."""

    def decode(
        self, z: Latents, context: Context, feedback: Tensor | None = None
    ) -> Mapping[str, SpeechLikelihood]: ...


def is_speech_prior(model: object) -> TypeGuard[SpeechPrior]:
    """What a model explains decides, for the verbs are those of all models with latents."""
    return isinstance(model, LatentModel) and model.observes == "power"
