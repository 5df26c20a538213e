"""The data that modules exchange, and the contract of a model. Read this first.

Suffixes of tensors give their shape, one letter an axis. Batch first, time second; draws lead: z_KBTL.

    B   utterances            K   draws of latents          C   components of a mixture, codes
    T   STFT frames, steps    L   dimensions of a latent    D   coordinates of a pose or box
    F   frequencies           M   features of a layer       H W   pixels of a crop
    N   samples of sound      G   gates of a layer          S   1 or T: the same for all frames, or not
    I   iterations of an EM   R   draws and components      J   sources in a mixture

Other letters, and those with another meaning in one file, are explained there. To a model without dependence between
frames, T is a second batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float, Int64, UInt8
from torch import Tensor

from avdvae.errors import UserError
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.spectrum import SpeechLikelihood


@dataclass(frozen=True)
class Batch:
    """Utterances, or windows of them, at the frames of the STFT; or poses, or boxes. An absent modality is None.

    ids         B names    of utterances
    mask        B T        true where a frame holds data, false where it pads
    waveform    B N        clean speech
    mixture     B N        the same speech in noise
    power       B T F      |STFT|^2 of the clean speech
    spectrum    B T F      STFT of the clean speech; in enhancement, of the mixture
    noisy       B T F      |STFT|^2 of the mixture
    lips        B T H W    grey mouth crops: for each STFT frame the picture nearest in time to its centre
    confidence  B T        of the lips, in 0..1; 0 where no face was found
    face        B T R C 3  RGB crops of the whole face, of the same pictures
    mouth       B T 2      opening and width of the lips, in distances of the outer corners of the eyes; with faces
    pose        B T D      poses in metres: of each joint right, forward and up of the hips; see data/poses.py
    boxes       B T 4      boxes, in widths and heights of the picture; see data/boxes.py
    lengths     B          samples of waveform and mixture that hold data; the rest pads
    starts      B          index of the first frame in its utterance; None if augmented: do not cache features
    labels      B dicts    speaker, sex, emotion, ... as the corpus has them

    A mixture of several sources has pictures of each: lips B T J H W, confidence B T J, face B T J R C 3.
    """

    ids: tuple[str, ...]
    mask: Bool[Tensor, "B T"]
    waveform: Float[Tensor, "B N"] | None = None
    mixture: Float[Tensor, "B N"] | None = None
    power: Float[Tensor, "B T F"] | None = None
    noisy: Float[Tensor, "B T F"] | None = None
    spectrum: Complex[Tensor, "B T F"] | None = None
    lips: UInt8[Tensor, "B T *J H W"] | None = None
    confidence: Float[Tensor, "B T *J"] | None = None
    face: UInt8[Tensor, "B T *J R C 3"] | None = None
    mouth: Float[Tensor, "B T 2"] | None = None
    pose: Float[Tensor, "B T D"] | None = None
    boxes: Float[Tensor, "B T 4"] | None = None
    lengths: Int64[Tensor, " B"] | None = None
    starts: Int64[Tensor, " B"] | None = None
    labels: tuple[dict[str, Any], ...] = ()

    MODALITIES = (
        *("waveform", "mixture", "power", "noisy", "spectrum", "lips", "confidence", "face", "mouth", "pose", "boxes"),
    )

    @property
    def present(self) -> frozenset[str]:
        return frozenset(name for name in self.MODALITIES if getattr(self, name) is not None)

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
                "lips": "video, for it is conditioned on the lips,",
                "face": "faces, as a corpus prepared with lips.face=64 has,",
                "pose": "poses, as data=gait has,",
                "boxes": "boxes, as data=tracks has,",
            }.get(name, name)
            raise UserError(f"{type(whose).__name__} needs {what} and got none: give it, or choose another model")
        return tensor

    def first(self, frames: int) -> Batch:
        """The first frames of each utterance, without sound in samples: the hop is not known here."""
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
    """One latent variable of a model, by whose name transfer and control address it.

    rate      1: a vector a frame; s: one every s inputs; None: one an utterance
    modality  what it generates: audio, video or both, or motion
    """

    name: str
    dim: int
    rate: int | None
    modality: Literal["audio", "video", "audio-visual", "motion"]


# the modality of which a model has a likelihood
Observed = Literal["power", "spectrum", "pose", "boxes", "waveform", "face"]
Latents = Mapping[str, Tensor]  # z_KBTL by the name of the latent; z_KB1L where the rate is None


@dataclass(frozen=True)
class Context:
    """The conditions of a model, encoded once: an EM run decodes thousands of times and encodes the lips once.

    mask    B T    true where a frame holds data
    video   B T M  features of the lips, for models that are conditioned on them
    switch  B S C  prior of the switch between components, for mixtures; re-estimated in an EM run if `learns`
    temper  B T 1  exponent of a prior that is conditioned on the lips: below 1 it is wider
    typical B T 1  1 for lips like those in training, less for others (LipEncoder)
    past    B T F  for autoregressive models: the observed sequence, or an estimate of it; K B T F if each draw has its
                   own. Where it is None or ends early, the model feeds back its own output (`sample_prior`, `own_past`)
    """

    mask: Bool[Tensor, "B T"]
    video: Float[Tensor, "B T M"] | None = None
    switch: Float[Tensor, "B S C"] | None = None
    learns: bool = True
    temper: float | Float[Tensor, "B T 1"] = 1.0
    typical: float | Float[Tensor, "B T 1"] = 1.0
    past: Float[Tensor, "*draws B _ F"] | None = None

    @property
    def sources(self) -> int:
        """Of a mixture, which the likelihood adds up."""
        return 1

    def tempered(self, exponent: float) -> Context:
        """In enhancement: the less typical a face, the wider its prior."""
        return replace(self, temper=exponent * self.typical)

    def fed_back(self, power: Callable[[int], Float[Tensor, "B T F"]]) -> Context:
        """With the power of the source, `power(0)`, as its past if the model is autoregressive."""
        return self if self.past is None else replace(self, past=power(0))


@dataclass(frozen=True)
class Inferred:
    """Draws from the inference network, with posterior and prior along their path, by the name of the latent."""

    z: Latents
    q: Mapping[str, Gaussian]
    p: Mapping[str, Gaussian]


@runtime_checkable
class Model(Protocol):
    """A model that can be trained. DDP synchronises gradients through `__call__` alone, so the loss is in `forward`."""

    observes: Observed
    sees: tuple[str, ...]  # the modalities of a Batch that inference and decoding take

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo: ...


@runtime_checkable
class LatentModel(Model, Protocol):
    """A model with latents to infer, decode, sample, transfer and control."""

    latents: tuple[LatentSpec, ...]
    can_miss: tuple[str, ...]  # those of `sees` that may be absent, though not all of them

    def context(self, batch: Batch) -> Context: ...

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred: ...

    def decode(self, z: Latents, context: Context, feedback: Tensor | None = None) -> Mapping[str, Any]:
        """The likelihood of each modality, by its name. `feedback` replaces `context.past` of
        autoregressive models."""
        ...

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]: ...

    def sample_prior(self, context: Context, k: int = 1, given: Latents | None = None) -> Latents:
        """Draws for all frames of the context, which begin with the frames that are `given`."""
        ...


@runtime_checkable
class Autoregressive(LatentModel, Protocol):
    """A LatentModel that is conditioned on the past of the observed sequence."""

    def own_past(self, z: Latents, context: Context, own: Sequence[bool] | None = None) -> Float[Tensor, "K B T F"]:
        """The past with the model's own output in the frames that are `own`, by default in all."""
        ...

    def walk(self, z: Latents, context: Context, follow: Callable[[int, Any], Float[Tensor, "K B 1 F"]]) -> None:
        """Frame by frame: `follow` gets t and the likelihood of x_t, and gives the x_t that is fed back."""
        ...


@runtime_checkable
class MixtureModel(LatentModel, Protocol):
    """A LatentModel with a switch between components, whose latents have their names."""

    components: tuple[str, ...]


@runtime_checkable
class Startable(Model, Protocol):
    """A model whose training can start from trained ones; the types of its arguments say from which."""

    def start_from(self, *trained: Any) -> None: ...


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


@runtime_checkable
class Prior(Protocol):
    """What the EM takes of a model of speech. An E-step takes more, of a LatentPrior or of one that Denoises."""

    sees: tuple[str, ...]
    can_miss: tuple[str, ...]

    def context(self, batch: Batch) -> Context: ...


@runtime_checkable
class LatentPrior(Prior, Protocol):
    """What an E-step takes of a SpeechPrior, or of those of several sources together."""

    def infer(self, batch: Batch, k: int = 1, mode: Literal["sample", "mean"] = "sample") -> Inferred: ...

    def decode(
        self, z: Latents, context: Context, feedback: Tensor | None = None
    ) -> Mapping[str, SpeechLikelihood]: ...

    def log_prior(self, z: Latents, context: Context) -> Float[Tensor, "K B T"]: ...


class Denoised(NamedTuple):
    """The posterior of the spectrum s given s with noise: its mean and variance, bin by bin."""

    mean: Complex[Tensor, "K B T F"]
    variance: Float[Tensor, "K B T F"]


@runtime_checkable
class Denoises(Prior, Protocol):
    """A prior of complex spectra, given by their posterior in noise of any level: s + sigma c n, n ~ Nc(0, I).

    scale_F   c, the deviation of the noise of level 1 at each frequency
    """

    scale_F: Tensor

    def denoise(self, noisy_KBTF: Complex[Tensor, "K B T F"], sigma: float, context: Context) -> Denoised: ...


class SpeechPrior(LatentModel, Protocol):
    """A LatentModel with a likelihood of `power`, to which noise can be added; `is_speech_prior` is the test."""

    def decode(
        self, z: Latents, context: Context, feedback: Tensor | None = None
    ) -> Mapping[str, SpeechLikelihood]: ...


def is_speech_prior(model: object) -> TypeGuard[SpeechPrior]:
    """By the modality that it observes: models of poses and of waveforms have the same methods."""
    return isinstance(model, LatentModel) and model.observes == "power"


def why_no_speech_prior(model: Model) -> str | None:
    """Why a model has no latents that power spectra are decoded from, and which models do; None if it has."""
    if is_speech_prior(model):
        return None
    if isinstance(model, Denoises):
        return (
            f"{type(model).__name__} has no latents, which this needs: choose a model that has, "
            "such as exp=vae, cvae or rvae"
        )
    why = {
        "waveform": "is a model of samples",
        "pose": "is a model of poses",
        "boxes": "is a model of boxes",
        "face": "is a model of faces",
        "power": "has no latents to infer",
    }[model.observes]
    return (
        f"{type(model).__name__} cannot enhance, for it {why}, and noise is removed by a likelihood of power spectra: "
        "choose a model that has one, such as exp=vae, cvae or rvae"
    )


def why_not_enhancing(model: Model) -> str | None:
    """Why the EM stage cannot enhance with this model, and which models it can; None if it can."""
    return None if isinstance(model, Denoises) else why_no_speech_prior(model)


PICTURES = frozenset({"lips", "face"})  # modalities that come from films


def indispensable(model: Prior) -> set[str]:
    """The modalities without which `model` infers nothing."""
    return set(model.sees) - set(model.can_miss)
