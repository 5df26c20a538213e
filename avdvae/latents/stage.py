"""Clips as inputs of a run's model, and rendering of what it decodes.

A clip is one of the run's prepared corpus, or a sound or video file, prepared like a corpus. A scene is the sound and
the pictures of one, original or decoded. Scenes are written as wavs, a strip of pictures (strip.png) and a film
(film.mp4) that shows them side by side, with the sound of the last.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8

from avdvae.data.clips import Clip
from avdvae.data.corpora import find_corpus
from avdvae.data.loader import Loader, seen_by
from avdvae.data.poses import skeleton_of
from avdvae.data.prepare import prepare_alone
from avdvae.data.readers.folder import SOUNDS, VIDEOS
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.contract import RandomNumbers
from avdvae.enhancement.denoising import DRAWING
from avdvae.enhancement.recordings import Enhancer
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError, in_file, known_settings
from avdvae.latents.resynthesis import reconstruct_poses, resynthesise
from avdvae.latents.transfer import Decoded, find_latents, generate, require_latents, transfer
from avdvae.pictures.stills import pose_strip, triptych, write_png
from avdvae.protocols import PICTURES, Batch, Denoises, Model, indispensable, is_speech_prior, why_not_enhancing
from avdvae.randomness import seeded
from avdvae.runs import Run, build_vem, changed, utterances_at_a_time
from avdvae.signals.audio import write_wav
from avdvae.signals.clock import RATE
from avdvae.signals.faces import find_face_model

PHASES = ("griffin_lim", "source")
FILM_FPS = 30  # about: a film has every picture of its clips, or every n-th


@dataclass(frozen=True)
class Scene:
    """sound at RATE, and pictures, one a frame of the model; or poses"""

    sound: Float[np.ndarray, " N"] | None = None
    pictures: UInt8[np.ndarray, "T H W 3"] | None = None
    poses: Float[np.ndarray, "T J 3"] | None = None
    rate: int = RATE


Scenes = Mapping[str, Scene]


class Stage:
    """A run's model, its clips, and the writer of scenes."""

    def __init__(self, run: Run, device: str | None = None):
        self.run, self.stft, self.device = run, run.stft, device or run.device
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device={self.device} cannot be used: give cpu, or cuda where there is a GPU") from error
        model = run.load_model(self.device)
        self.model = model if isinstance(model, Denoises) else require_latents(model)
        if self.model.observes == "boxes":
            raise UserError(f"{type(self.model).__name__} is a model of boxes: track with it, or give another run")
        self.of_poses, self.of_waveforms = (self.model.observes == kind for kind in ("pose", "waveform"))

    @cached_property
    def frame_rate(self) -> float:
        return self.corpus.utterances[0].fps if self.of_poses else RATE / self.stft.hop

    @cached_property
    def corpus(self) -> PreparedCorpus:
        """All clips of the run's prepared corpus."""
        return PreparedCorpus(find_corpus(self.run.config), verify=False)

    def clip(self, role: str, name: str, video: Path | None = None) -> Batch:
        """A clip of the corpus by its id, or a file, as a batch of one; `role` is the user's name for it."""
        if not (path := Path(name)).is_file():
            if video:
                raise UserError(f"{role}={name} is no file, and clips of the corpus have their pictures: give no video")
            return self._load(self._find(role, name))
        try:
            return self.own_clip(path, video)
        except UserError as error:
            raise UserError(f"{role}={name}: {error}") from error

    def own_clip(self, path: Path, video: Path | None = None) -> Batch:
        """A file as a batch of one; `video`: of its talker, where that is another file."""
        with tempfile.TemporaryDirectory() as folder:
            return self._load(self._prepare(path, video, Path(folder)))

    def pair(self, source: str, target: str, latents: Sequence[str], phase: str) -> tuple[Batch, Batch]:
        """The clips of a transfer."""
        self.check_transfer(latents, phase)
        return self.clip("source", source), self.clip("target", target)

    def check_transfer(self, latents: Sequence[str], phase: str) -> None:
        find_latents(require_latents(self.model), latents)
        if phase not in PHASES:
            raise UserError(f"phase={phase}: choose from {', '.join(PHASES)}")

    def _find(self, role: str, name: str) -> PreparedCorpus:
        ids = [utterance.id for utterance in self.corpus.utterances]
        if name not in ids:
            like = get_close_matches(name, ids, 3, 0) or ids[:3]
            raise UserError(
                f"{role}={name} is neither a file nor a clip of {self.corpus.root}: its {len(ids)} clips have ids "
                f"such as {', '.join(like)}"
            )
        chosen = self.corpus.only([self.corpus.utterances[ids.index(name)]])
        chosen.verify()
        return chosen

    def _prepare(self, path: Path, video: Path | None, folder: Path) -> PreparedCorpus:
        suffix, pictures = path.suffix.lower(), PICTURES & set(self.model.sees)
        if self.of_poses:
            raise UserError("a model of motion takes ids of its corpus, and no files")
        if suffix not in SOUNDS + VIDEOS:
            raise UserError(f"neither sound nor video by its name: give {', '.join(SOUNDS + VIDEOS)}")
        film = (video or (path if suffix in VIDEOS else None)) if pictures else None
        clip = Clip(path.stem, "own", "test", "own", film, None if film == path else path)
        lips = self.run.config["lips"]
        return prepare_alone(clip, folder, lips["size"], lips.get("face"))

    def _load(self, corpus: PreparedCorpus) -> Batch:
        how = {**seen_by(cast(Model, self.model)), "lips": True}  # shown beside all models
        trim_db = self.run.config["train"]["trim_db"]
        loader = Loader(corpus, self.stft, None, 1, 0, shuffle=False, trim_db=trim_db, device=self.device, **how)
        return next(iter(loader))

    def transfer(self, source: Batch, target: Batch, latents: Sequence[str], share: float, phase: str) -> Scene:
        """The source with these latents of the target, or interpolated so far towards them."""
        return self.render(transfer(require_latents(self.model), source, target, latents, share), source, phase)

    def resynthesise(self, source: Batch, seed: int) -> Scene:
        """The latents of a clip, drawn and decoded; a sound keeps its phase."""
        model = require_latents(self.model)
        with seeded(seed):
            if self.of_poses:
                return Scene(poses=_figure(reconstruct_poses(model, source)[0]))
            if not is_speech_prior(model):
                name = type(model).__name__
                raise UserError(f"{name} decodes neither power spectra nor poses: choose a model that does, as a VAE")
            return Scene(resynthesise(model, source, self.stft)[0].cpu().numpy())

    def generate(
        self, source: Batch | None, analysis: float, seconds: float | None, draws: int, seed: int
    ) -> list[Scene]:
        """Draws that continue the first `analysis` seconds of a clip or, without one, whole sequences."""
        for asked, value in (("analysis", analysis), ("seconds", seconds)):
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 60):
                raise UserError(f"{asked}={value}: give 0 to 60 seconds")
        if not (type(draws) is int and 1 <= draws <= 20):
            raise UserError(f"draws={draws}: give 1 to 20")
        with seeded(seed):
            return self._generate(source, analysis, seconds, draws, seed)

    def _generate(
        self, source: Batch | None, analysis: float, seconds: float | None, draws: int, seed: int
    ) -> list[Scene]:
        name, needs_lips = type(self.model).__name__, "lips" in self.model.sees
        if isinstance(self.model, Denoises):  # lips may be missing there
            needs_lips = source is not None and source.lips is not None
        lasts = 0.0 if source is None else source.mask.shape[1] / self.frame_rate
        if needs_lips and source is None:
            raise UserError(f"{name} is conditioned on lips, in generation, too: give source=")
        seconds = seconds or (lasts if needs_lips else 2.5)
        if needs_lips and seconds > lasts:
            raise UserError(
                f"seconds={seconds:g}: {name} is conditioned on lips, which the source has for {lasts:.2f} s"
            )
        if source and analysis > lasts:
            raise UserError(f"analysis={analysis:g}: the source lasts {lasts:.2f} s, so give less")
        frames, analysed = (round(length * self.frame_rate) for length in (seconds, analysis if source else 0))
        if frames < 1 or analysed >= frames:
            raise UserError(f"seconds={seconds:g}, analysis={analysis:g}: the whole must be longer than its analysis")
        if self.of_waveforms:
            return self._continue(source, analysis if source else 0.0, seconds, draws)
        begun = source.first(analysed) if source and analysed else None
        if needs_lips and source:
            around = source.first(frames).only("lips", "confidence")
        else:
            around = Batch(("free",), torch.ones(1, frames, dtype=torch.bool)).to(self.device)
        if isinstance(self.model, Denoises):
            return self._denoised(self.model, around, begun, draws, seed)
        decoded = generate(require_latents(self.model), around, begun, draws)
        return [self.render(decoded, draw=draw) for draw in range(draws)]

    @torch.no_grad()
    def _denoised(self, model: Denoises, around: Batch, begun: Batch | None, draws: int, seed: int) -> list[Scene]:
        """By annealing from noise; frames of `begun` are kept."""
        frames, scenes = around.mask.shape[1], []
        known_1TF = torch.zeros(1, frames, len(model.scale_F), dtype=torch.complex64, device=self.device)
        hidden_T = torch.ones(frames, dtype=torch.bool, device=self.device)
        if begun is not None:
            spectrum_1TF = begun.need("spectrum", model)
            known_1TF[:, : spectrum_1TF.shape[1]], hidden_T[: spectrum_1TF.shape[1]] = spectrum_1TF, False
        for draw in range(draws):
            random = RandomNumbers.seeded([f"draw {draw}"], [frames], seed)
            filled_1TF = DRAWING.fill(model, known_1TF, hidden_T, model.context(around), random)
            sound_1N = self.stft.synthesise(filled_1TF, frames * self.stft.hop - 1)
            scenes.append(Scene(sound_1N[0].cpu().numpy()))
        return scenes

    def _continue(self, source: Batch | None, analysis: float, seconds: float, draws: int) -> list[Scene]:
        """By a model of waveforms: whole stacks of the clip's samples, then generated samples."""
        model: Any = self.model
        given_KN = torch.zeros(draws, 0, device=self.device)
        if source is not None:
            given_KN = source.need("waveform", model)[:, : round(analysis * RATE) // model.stride * model.stride]
            given_KN = given_KN.expand(draws, -1)
        generated_KN = model.generate(given_KN, round(seconds * RATE) - given_KN.shape[1])
        return [Scene(sound_N.cpu().numpy()) for sound_N in torch.cat([given_KN, generated_KN], 1)]

    def original(self, batch: Batch) -> Scene:
        if batch.pose is not None:
            return Scene(poses=_figure(batch.pose[0]))
        if batch.waveform is None:
            raise UserError(f"{batch.ids[0]} has neither sound nor poses: choose another clip")
        lips = None if batch.lips is None else batch.lips[..., None].expand(-1, -1, -1, -1, 3)
        shown = batch.face if batch.face is not None else lips
        return Scene(batch.waveform[0].cpu().numpy(), None if shown is None else shown[0].cpu().numpy())

    def render(self, decoded: Decoded, source: Batch | None = None, phase: str = "griffin_lim", draw: int = 0) -> Scene:
        """Sound and pictures of a draw. With phase="source", the frames are those of the source."""
        if "pose" in decoded.likelihoods:
            return Scene(poses=_figure(decoded.likelihoods["pose"].expected[draw, 0]))
        if "power" not in decoded.likelihoods:
            modalities = ", ".join(decoded.likelihoods)
            raise UserError(
                f"{type(self.model).__name__} decodes {modalities}, which cannot be rendered: choose a model of "
                "power spectra or poses"
            )
        power_1TF = decoded.likelihoods["power"].expected[draw]
        samples = power_1TF.shape[1] * self.stft.hop - 1
        if phase == "source":
            assert source is not None and source.waveform is not None
            waveform_1N = source.waveform[:, :samples]
            sound_1N = self.stft.with_phase(power_1TF, self.stft.analyse(waveform_1N).angle(), waveform_1N.shape[1])
        else:
            ends = [source.waveform.shape[1]] if source and source.waveform is not None else []
            sound_1N = self.stft.griffin_lim(power_1TF, min(samples, *ends) if ends else samples)
        face = decoded.likelihoods.get("face")
        pictures = None if face is None else (255 * face.expected[draw, 0].clamp(0, 1)).round().byte().cpu().numpy()
        return Scene(sound_1N[0].cpu().numpy(), pictures)

    def write(self, out: Path, takes: Sequence[Scenes], begun: float | None = None) -> list[Path]:
        """The scenes of several takes, whose films are joined; `begun`: a time in seconds that is marked."""
        if out.exists() and not out.is_dir():
            raise UserError(f"out={out} is a file: give a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as folder:
            (self._write_figures if self.of_poses else self._write_sounds)(Path(folder), takes, begun)
            out.mkdir(exist_ok=True)
            return [file.replace(out / file.name) for file in sorted(Path(folder).iterdir())]

    def _write_figures(self, folder: Path, takes: Sequence[Scenes], begun: float | None) -> None:
        from avdvae.pictures.films import stick_figures
        from avdvae.signals.video import write_mp4

        films = []
        for take in takes:
            poses = {name: scene.poses for name, scene in take.items() if scene.poses is not None}
            *_, last = poses.values()
            skeleton = skeleton_of(last.shape[1])
            figures = {name: _held(figure, len(last)) for name, figure in poses.items()}
            films.append(stick_figures(figures, skeleton.joints, skeleton.bones))
        write_mp4(folder / "film.mp4", chain(*films), Fraction(self.frame_rate))
        write_png(folder / "strip.png", np.concatenate([pose_strip(film) for film in films]))

    def _write_sounds(self, folder: Path, takes: Sequence[Scenes], begun: float | None) -> None:
        from avdvae.pictures.films import film_of_clips
        from avdvae.signals.video import write_mp4

        scenes = {name: scene for take in takes for name, scene in take.items()}
        sounds = {name: scene.sound for name, scene in scenes.items() if scene.sound is not None}
        scale = 0.9 / max(float(np.abs(sound).max()) for sound in sounds.values())
        sounds = {name: sound * np.float32(scale) for name, sound in sounds.items()}
        for name, sound in sounds.items():
            write_wav(folder / f"{_file_name(name)}.wav", torch.from_numpy(sound), RATE)
        pictures = {name: scene.pictures for name, scene in scenes.items()}
        strips = {name: shown for name, shown in pictures.items() if shown is not None}
        figure = triptych(sounds, RATE, self.stft.hop, strips=strips, mark=begun)
        figure.savefig(folder / "strip.png", dpi=100)
        every = max(1, round(self.frame_rate / FILM_FPS))
        powers = {n: self.stft.power(torch.from_numpy(sound[None]))[0].numpy() for n, sound in sounds.items()}
        films, tracks = [], []
        for take in takes:
            columns = {name: (pictures[name], powers[name]) for name in take}
            films.append(film_of_clips(columns, every, None if begun is None else begun * self.frame_rate))
            *_, last = take
            shown = -(-len(powers[last]) // every) * every * self.stft.hop  # samples: the next film begins there
            tracks.append(np.pad(sounds[last], (0, max(0, shown - len(sounds[last]))))[:shown])
        sound = np.rint(np.concatenate(tracks) * 32767).astype(np.int16)
        write_mp4(folder / "film.mp4", chain(*films), Fraction(RATE, self.stft.hop * every), sound, RATE)


def build_enhancer(run: Run, model: Any, changes: Mapping[str, Any], films: bool, device: str) -> Enhancer:
    """A run's model, on `device`, as an enhancer of recordings. `changes` to the run's settings; `films`: whether there
    are videos."""
    if reason := why_not_enhancing(model):
        raise UserError(reason)
    if isinstance(estep := changes.get("estep"), str):
        raise UserError(f"enhance.estep={estep}: write enhance.estep.name={estep}")
    with in_file(run.path / "config.yaml"):
        build_vem(run.config["enhance"])
    settings = changed(run.config["enhance"], changes)
    vem, pictures = build_vem(settings, run), PICTURES & {*model.sees}
    if (needed := PICTURES & indispensable(model)) and not films:
        what, name = " and the ".join(needed), type(model).__name__
        raise UserError(f"{name} needs the {what} and there is no video: give video=, or a run of a model of sound")
    face_model = find_face_model() if films and pictures else None
    size, face = run.config["lips"]["size"], run.config["lips"].get("face") if "face" in model.sees else None
    at_a_time = utterances_at_a_time(settings, device)
    return Enhancer(model, run.stft, vem, at_a_time, device, face_model, size, face)


def build_stream(
    run: Run,
    model: Model,
    changes: Mapping[str, Any],
    streaming: Mapping[str, Any],
    rate: int,
    device: str,
) -> Stream:
    """A run's model, on `device`, as an enhancer of sound that arrives; `changes` to the run's settings."""
    enhancer = build_enhancer(run, model, changes, False, device)
    assert isinstance(enhancer.settings, Vem) and is_speech_prior(enhancer.model)
    settings = known_settings(Streaming, "streaming", **streaming)
    return Stream(enhancer.model, run.stft, enhancer.settings, settings, rate, device=device)


def _figure(pose_TD: torch.Tensor) -> Float[np.ndarray, "T J 3"]:
    return pose_TD.unflatten(-1, (-1, 3)).cpu().numpy()


def _held(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames; a shorter sequence repeats its last."""
    return frames[np.arange(count).clip(max=len(frames) - 1)]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name).strip("_")
