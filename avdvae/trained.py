"""A trained model in Python: what the programs of experiments/ do, with arrays, tensors and files.

A sound is the path of a file of sound or video, the id of a clip of the run's corpus (but for `enhance`), a `Sound`, or
an array or tensor with its `rate` in Hz: floats, or int16, of shape (samples,) or (samples, channels).

A video is the path of a file, or uint8 pictures (T, H, W) or (T, H, W, 3) with their rate `fps`, of which the first is
shown as the sound starts. A file of a video is its own; models of sound alone ignore videos.

A mistake raises a UserError: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from avdvae.data.readers.folder import VIDEOS
from avdvae.enhancement.recordings import Recording, write_sound
from avdvae.errors import UserError, in_file, naming_extras
from avdvae.latents.stage import Scene, Stage, build_enhancer
from avdvae.latents.transfer import require_latents
from avdvae.protocols import Batch, Denoises
from avdvae.randomness import seeded
from avdvae.runs import Run
from avdvae.signals.audio import in_16_bits
from avdvae.signals.clock import FASTEST, SLOWEST


class Sound(NamedTuple):
    """Samples as soundfile gives them, (samples,) or (samples, channels), and their rate in Hz."""

    samples: np.ndarray
    rate: int


Given = str | Path | Sound | np.ndarray | Tensor
Video = str | Path | np.ndarray | Tensor
InMemory = TypeVar("InMemory", Sound, np.ndarray, Tensor)


class TrainedModel:
    """A model and the settings of its run; `avdvae.load` gives one."""

    def __init__(self, run: Run, device: str | None = None):
        self.stage = Stage(run, device)

    def __repr__(self) -> str:
        model = self.stage.model
        latents = () if isinstance(model, Denoises) else model.latents
        names = ", ".join(spec.name for spec in latents) or "none"
        name, takes = type(model).__name__, " and ".join(model.sees)
        return f"TrainedModel({name} of {self.stage.run.name}, takes {takes}, latents {names})"

    @overload
    def enhance(
        self,
        sound: str | Path,
        rate: None = None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
        progress: Callable[[float], Any] | None = None,
        **settings: Any,
    ) -> Sound: ...

    @overload
    def enhance(
        self,
        sound: InMemory,
        rate: int | None = None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
        progress: Callable[[float], Any] | None = None,
        **settings: Any,
    ) -> InMemory: ...

    @overload
    def enhance(
        self,
        sound: list[Any],
        rate: int | None = None,
        video: list[Any] | None = None,
        fps: float | Fraction | None = None,
        progress: Callable[[float], Any] | None = None,
        **settings: Any,
    ) -> list[Any]: ...

    @naming_extras()
    def enhance(
        self,
        sound: Any,
        rate: int | None = None,
        video: Any = None,
        fps: float | Fraction | None = None,
        progress: Callable[[float], Any] | None = None,
        **settings: Any,
    ) -> Any:
        """The speech in a noisy recording, of any rate, channels and length.

        An array, tensor or Sound gives the same kind, shape, type, rate and level; a path gives a Sound; a list, with a
        list of videos or none, gives a list. `progress` is called with the share of the work that is done, 0 to 1.
        `settings` replace those of the run: iterations=20, estep="langevin".

        >>> model = avdvae.load("runs/cvae")
        >>> clean = model.enhance("noisy.wav", video="hello.mp4")
        >>> soundfile.write("clean.wav", clean.samples, clean.rate)
        """
        if isinstance(sound, list):
            videos = [None] * len(sound) if video is None else video
            if not isinstance(videos, list) or len(videos) != len(sound):
                raise UserError(f"a list of {len(sound)} sounds: give a list of as many videos, or none")
            return [
                self.enhance(one, rate, its, fps, _part(progress, number, len(sound)), **settings)  # type: ignore[call-overload]
                for number, (one, its) in enumerate(zip(sound, videos, strict=True))
            ]
        if isinstance(settings.get("estep"), str):
            settings["estep"] = {"name": settings["estep"]}
        recording, path = (
            (None, _file(sound, rate)) if isinstance(sound, str | Path) else (_recording(sound, rate), None)
        )
        own = path if path and path.suffix.lower() in VIDEOS else None
        films, stage, advance = own is not None or video is not None, self.stage, _adding_up(progress)
        enhancer = build_enhancer(stage.run, stage.model, settings, films, stage.device)
        with _film(video, fps) as film:
            if path:
                with in_file(path):
                    clean = enhancer.enhance_file(path, film or own, advance)
                return Sound(_flat(clean.samples), clean.rate)
            assert recording
            enhancer.enhance(recording, enhancer.pictures(film) if film else None, advance)
            return _like(recording.samples, sound)

    @naming_extras()
    def latents(
        self,
        sound: Given,
        rate: int | None = None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
    ) -> dict[str, np.ndarray]:
        """The means of the posterior by the name of the latent: a row a frame, or one row for the whole utterance.

        Silence is cut off both ends as in training, by `train.trim_db`.

        >>> model = avdvae.load("runs/cvae")
        >>> {name: z.shape for name, z in model.latents("hello.mp4").items()}
        {'z': (64, 32)}
        """
        model, batch = require_latents(self.stage.model), self._clip("sound", sound, rate, video, fps)
        with seeded(0), torch.no_grad():
            z = model.infer(batch, 1, "mean").z
        return {name: values_KBTL[0, 0].cpu().numpy() for name, values_KBTL in z.items()}

    @naming_extras()
    def resynthesise(
        self,
        sound: Given,
        rate: int | None = None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
        seed: int = 0,
    ) -> Scene:
        """What passes through the latents: a draw of them decoded, with the phase of the original.

        A Scene holds `sound`, mono at `rate`, 16 kHz, or the `poses` of a model of motion.

        >>> model = avdvae.load("runs/cvae")
        >>> again = model.resynthesise("hello.mp4")
        >>> again.sound.shape, again.rate
        ((34048,), 16000)
        """
        return self.stage.resynthesise(self._clip("sound", sound, rate, video, fps), seed)

    @naming_extras()
    def transfer(
        self,
        source: Given,
        target: Given,
        latents: str | Sequence[str],
        share: float = 1.0,
        phase: str = "griffin_lim",
        rate: int | None = None,
        source_video: Video | None = None,
        target_video: Video | None = None,
        fps: float | Fraction | None = None,
    ) -> Scene:
        """The source with the named latents of the target; with a `share` below 1, interpolated so far towards them.

        `rate` and `fps` are those of the arrays among the sounds and videos. `phase` is "griffin_lim", or "source" for
        that of the source. A Scene holds `sound`, mono at `rate`, 16 kHz, the `pictures` of models of faces, or the
        `poses` of models of motion.

        >>> model = avdvae.load("runs/cvae")
        >>> swapped = model.transfer("hello.mp4", "other.mp4", latents=["z"])
        >>> swapped.sound.ndim, swapped.rate
        (1, 16000)
        """
        names, stage = [latents] if isinstance(latents, str) else [*latents], self.stage
        stage.check_transfer(names, phase)
        begin, end = (
            self._clip(role, given, None if _is_path(given) else rate, video, None if _is_path(video) else fps)
            for role, given, video in (("source", source, source_video), ("target", target, target_video))
        )
        return stage.transfer(begin, end, names, share, phase)

    @naming_extras()
    def generate(
        self,
        seconds: float | None = None,
        source: Given | None = None,
        analysis: float = 1.0,
        seed: int = 0,
        rate: int | None = None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
    ) -> Scene:
        """A draw from the prior, or what follows the first `analysis` seconds of a source, `seconds` in all.

        A model that is conditioned on lips needs a source, and takes its lips.

        >>> model = avdvae.load("runs/vae")
        >>> model.generate(seconds=2.0, seed=0).sound.shape
        (31979,)
        """
        begun = None if source is None else self._clip("source", source, rate, video, fps)
        return self.stage.generate(begun, analysis, seconds, 1, seed)[0]

    def _clip(
        self,
        role: str,
        sound: Given,
        rate: int | None,
        video: Video | None = None,
        fps: float | Fraction | None = None,
    ) -> Batch:
        with _film(video, fps) as film:
            if isinstance(sound, str | Path):
                _without_rate(sound, rate)
                return self.stage.clip(role, str(sound), film)
            recording = _recording(sound, rate)
            peak = np.abs(recording.samples).max()
            scaled = recording.samples / max(1, peak)  # 16 bits hold no more, and the level does not matter
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "sound.wav"
                write_sound(path, replace(recording, samples=scaled, more_than_16_bits=True))
                try:
                    return self.stage.own_clip(path, film)
                except UserError as error:
                    raise UserError(f"{role}: {error}") from error


def _is_path(given: Given | Video | None) -> bool:
    """Of a file, which has a rate of its own; also where nothing is given."""
    return given is None or isinstance(given, str | Path)


def _file(sound: str | Path, rate: int | None) -> Path:
    _without_rate(sound, rate)
    if not (path := Path(sound)).is_file():
        raise UserError(f"sound={path} is no file: give a file of sound or video, or an array with its rate")
    return path


def _without_rate(sound: str | Path, rate: int | None) -> None:
    if rate is not None:
        raise UserError(f"rate={rate}: {sound} has a rate of its own: give rate= with arrays alone")


def _recording(sound: Any, rate: int | None) -> Recording:
    """A copy of samples in memory."""
    if isinstance(sound, Sound):
        if rate not in (None, sound.rate):
            raise UserError(f"rate={rate}: a Sound of {sound.rate} Hz has a rate of its own: leave rate= out")
        sound, rate = sound
    if not isinstance(sound, np.ndarray | Tensor):
        raise UserError(f"a sound of type {type(sound).__name__}: give a path, an array, a tensor, a Sound or a list")
    kind = str(sound.dtype).removeprefix("torch.")
    if "float" not in kind and kind != "int16":
        raise UserError(f"samples of type {kind}: give floats of -1 to 1, or int16")
    shape = tuple(sound.shape)
    if len(shape) not in (1, 2) or shape[1:] == (0,):
        raise UserError(f"a sound of shape {shape}: give (samples,) or (samples, channels)")
    if len(shape) == 2 and 0 < shape[0] < shape[1]:
        raise UserError(f"a sound of shape {shape}: channels come last, so give (samples, channels), as sound.T is")
    if rate is None:
        raise UserError("rate= is missing, for an array has no sample rate of its own: give it in Hz, as rate=16000")
    try:
        hertz = operator.index(rate)
    except TypeError as error:
        raise UserError(f"rate={rate}: give a whole number of Hz, such as 16000") from error
    values = sound.detach().cpu().float().numpy() if isinstance(sound, Tensor) else sound
    with np.errstate(over="ignore"):  # what float32 does not hold is refused as not finite
        samples = np.array(values, np.float32)
    if kind == "int16":
        samples /= 2**15
    return Recording(samples[:, None] if samples.ndim == 1 else samples, hertz).checked()


def _like(samples: np.ndarray, given: Any) -> Any:
    """Samples of the kind, shape and type of those that were given."""
    if isinstance(given, Sound):
        return Sound(_like(samples, given.samples), given.rate)
    shaped = samples.reshape(tuple(given.shape))
    if isinstance(given, Tensor):
        shaped = in_16_bits(shaped) if given.dtype == torch.int16 else shaped
        return torch.from_numpy(shaped).to(given.device, given.dtype)
    return in_16_bits(shaped) if given.dtype == np.int16 else shaped.astype(given.dtype)


def _flat(samples: np.ndarray) -> np.ndarray:
    return samples[:, 0] if samples.shape[1] == 1 else samples


@contextmanager
def _film(video: Any, fps: float | Fraction | None) -> Iterator[Path | None]:
    """A video as a file, into which pictures are written for a while."""
    if video is None or isinstance(video, str | Path):
        if fps is not None:
            raise UserError(f"fps={fps}: a file has a rate of its own: give fps= with an array of pictures alone")
        if video is not None and not Path(video).is_file():
            raise UserError(f"video={video} is no file: give a video, or an array of its pictures with fps=")
        yield None if video is None else Path(video)
        return
    pictures = video.detach().cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[3:] not in ((), (3,)):
        given = f"shape {pictures.shape} and type {pictures.dtype}"
        raise UserError(f"a video of {given}: give uint8 pictures (T, H, W) or (T, H, W, 3), or the path of a file")
    if not pictures.size:
        raise UserError(f"a video of shape {pictures.shape} holds no pictures: give some, or leave video= out")
    if fps is None:
        raise UserError("fps= is missing, for an array has no rate of its own: give pictures a second, as fps=25")
    if not SLOWEST <= fps <= FASTEST:
        raise UserError(f"fps={fps}: give {SLOWEST} to {FASTEST} pictures a second")
    from avdvae.signals.video import write_mp4

    coloured = pictures if pictures.ndim == 4 else np.broadcast_to(pictures[..., None], (*pictures.shape, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        exact = Fraction(fps).limit_denominator(1001)
        write_mp4(path, map(np.ascontiguousarray, coloured), exact, lossless=True)
        yield path


def _adding_up(progress: Callable[[float], Any] | None) -> Callable[[float], None]:
    """From parts of the work to the share that is done."""
    done = 0.0

    def advance(part: float) -> None:
        nonlocal done
        done = min(done + part, 1.0)
        if progress:
            progress(done)

    return advance


def _part(progress: Callable[[float], Any] | None, number: int, count: int) -> Callable[[float], Any] | None:
    """The progress of one of several works."""
    return progress and (lambda share: progress((number + share) / count))
