"""Take the noise out of recordings with a trained model.

python experiments/enhance.py run=RUN input=noisy.wav output=clean.wav
python experiments/enhance.py run=RUN input=noisy.wav video=clip.mp4 output=clean.wav    for models that see lips
python experiments/enhance.py run=RUN input=clip.mp4 output=clean.wav                    the sound of a video
python experiments/enhance.py run=RUN input=DIR [video=DIR] output=DIR                   every file at any depth
python experiments/enhance.py run=RUN ... enhance.iterations=20 enhance.estep.name=langevin

Every channel is enhanced by itself, at 16 kHz whatever the rate of the input. The output is a wav with the rate,
channels, length and level of the input; above 8 kHz it is silent, for models know nothing of what is there. It has 16
bits, or floats of 32 where the input has more than 16. In a folder, a video beside a sound of the same name shows its
talker, unless video= names another folder.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import hydra
import numpy as np
import soundfile
import torch
from av.error import FFmpegError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy.io import wavfile
from scipy.signal import resample_poly

from avdvae.audio import Stft
from avdvae.data.readers.folder import SOUNDS, VIDEOS
from avdvae.data.shards import replacing
from avdvae.errors import UserError
from avdvae.faces import find_face_model
from avdvae.inference.separation import RATE, Pictures, separate_long
from avdvae.inference.vem import Vem
from avdvae.lips import extract_lips
from avdvae.protocols import SpeechPrior, indispensable
from avdvae.runs import build_vem, changed, open_run

MORE_THAN_16_BITS = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Job:
    sound: Path
    video: Path | None
    output: Path


@dataclass(frozen=True)
class Sound:
    samples: np.ndarray  # float32 (samples, channels)
    rate: int
    start: float = 0.0  # seconds on the clock of the file
    more_than_16_bits: bool = False


@dataclass(frozen=True)
class Enhancer:
    model: SpeechPrior
    stft: Stft
    settings: Vem
    batch_size: int
    device: str
    face_model: Path | None  # for models that look at the lips
    crop_size: int

    def run(self, job: Job, progress: Callable[[float], None]) -> float:
        """Write the output; returns the seconds of sound."""
        job.output.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, if it must
        sound = read_sound(job.sound)
        pictures = self.look(job, sound) if "lips" in self.model.sees else None
        channels = sound.samples.shape[1]
        for channel in sound.samples.T:  # views: each is replaced
            clean = separate_long(
                self.model,
                torch.from_numpy(resample_poly(channel, RATE, sound.rate)).to(self.device),
                self.stft,
                self.settings,
                pictures,
                batch_size=self.batch_size,
                progress=lambda share: progress(share / channels),
            )
            channel[:] = resample_poly(clean.cpu().numpy(), sound.rate, RATE)[: len(channel)]
        write_sound(job.output, sound)
        return len(sound.samples) / sound.rate

    def look(self, job: Job, sound: Sound) -> Pictures | None:
        if not job.video:
            if "lips" in indispensable(self.model):
                raise UserError("no video of this name shows its talker")
            print(f"note       no video shows the talker of {job.sound}: it is enhanced by ear", flush=True)
            return None
        assert self.face_model
        lips = extract_lips(job.video, self.face_model, self.crop_size)
        starts = sound.start - lips.info.start if job.video.samefile(job.sound) else 0.0
        return Pictures(lips.crops, lips.confidence, float(lips.fps), starts)


def read_sound(path: Path) -> Sound:
    """All channels, as they are."""
    try:
        if path.suffix.lower() in VIDEOS:
            sound = decode_sound(path)
        else:
            with soundfile.SoundFile(path) as file:
                samples = file.read(dtype="float32", always_2d=True)
                sound = Sound(samples, file.samplerate, more_than_16_bits=file.subtype in MORE_THAN_16_BITS)
    except soundfile.LibsndfileError:
        sound = decode_sound(path)
    if not len(sound.samples):
        raise UserError("it holds no sound")
    if not np.isfinite(sound.samples).all():
        raise UserError("some of its samples are not finite numbers: look for the step that made them")
    return sound


def decode_sound(path: Path) -> Sound:
    """The sound of a video, or of a file in a format that soundfile does not know."""
    pieces, start, rate = [], 0.0, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError("it holds no sound")
            resampler = av.AudioResampler(format="fltp")  # the samples' format only
            for frame in container.decode(container.streams.audio[0]):
                if not pieces:
                    start, rate = frame.time or 0.0, frame.sample_rate
                pieces += [piece.to_ndarray().T for piece in resampler.resample(frame)]
    except FFmpegError as error:
        raise UserError(
            f"it cannot be read as sound ({error.strerror}): give an undamaged sound or video file"
        ) from error
    return Sound(np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32), rate, start)


def write_sound(path: Path, sound: Sound) -> None:
    samples = sound.samples
    if not sound.more_than_16_bits:
        scaled = samples * np.float32(2**15)
        np.rint(scaled, out=scaled)
        samples = scaled.clip(-(2**15), 2**15 - 1, out=scaled).astype(np.int16)
    with replacing(path) as new:
        wavfile.write(new, sound.rate, samples)  # soundfile would note the time in files of floats


def find_jobs(source: Path, video: Path | None, output: Path) -> list[Job]:
    for name, path in (("input", source), ("video", video)):
        if path and not path.exists():
            raise UserError(f"{name}={path} does not exist: give a file or a folder")
    if video and video.is_dir() != source.is_dir():
        raise UserError(f"input={source} and video={video}: give two files or two folders")
    if output.resolve() in [path.resolve() for path in (source, video) if path]:
        raise UserError(f"output={output} would overwrite what it is made from: give another name")
    if source.is_dir():
        return _jobs_of_folder(source, video, output)
    if output.suffix.lower() != ".wav" or output.is_dir():
        raise UserError(f"output={output}: give the name of a wav file")
    return [Job(source, video or (source if source.suffix.lower() in VIDEOS else None), output)]


def _jobs_of_folder(source: Path, video: Path | None, output: Path) -> list[Job]:
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder, as for input=")

    def names(root: Path, suffixes: Iterable[str]) -> list[Path]:
        paths = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in suffixes and path.is_file())
        return [
            path.relative_to(root)
            for path in paths
            if not path.name.startswith(".") and output.resolve() not in path.resolve().parents
        ]

    films = {name.with_suffix(""): (video or source) / name for name in names(video or source, VIDEOS)}
    sounds = names(source, SOUNDS)
    with_sound = {name.with_suffix("") for name in sounds}
    sounds += [name for name in names(source, VIDEOS) if name.with_suffix("") not in with_sound]
    if not sounds:
        raise UserError(f"input={source} holds no sound: looked for {', '.join(SOUNDS + VIDEOS)} at any depth")
    namesakes = Counter(name.with_suffix("") for name in sounds)
    jobs = []
    for name in sorted(sounds):
        stem = name.with_suffix("")
        own = source / name if name.suffix.lower() in VIDEOS else None
        named = stem if namesakes[stem] == 1 else name
        jobs.append(Job(source / name, films.get(stem, own), output / f"{named}.wav"))
    return jobs


def enhance(config: Mapping[str, Any]) -> None:
    if missing := [name for name in ("run", "input", "output") if config[name] is None]:
        raise UserError(
            f"{', '.join(f'{name}=' for name in missing)} missing: give run=RUN input=FILE output=CLEAN.wav"
        )
    run = open_run(Path(str(config["run"])))
    if isinstance(estep := config["enhance"]["estep"], str):
        raise UserError(f"enhance.estep={estep}: write enhance.estep.name={estep}")
    settings = changed(run.config["enhance"], config["enhance"])
    vem = build_vem(settings)
    video = Path(str(config["video"])) if config["video"] is not None else None
    jobs = find_jobs(Path(str(config["input"])), video, Path(str(config["output"])))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = run.load_speech_prior(device)
    name = type(model).__name__
    looks, films = "lips" in model.sees, any(job.video for job in jobs)
    if "lips" in indispensable(model) and not films:
        raise UserError(
            f"{name} looks at the lips and there is no video: give video=, or a run of a model of sound alone"
        )
    if video and not looks:
        print(f"note       {name} works from the sound alone; video= is not looked at")
    enhancer = Enhancer(
        model,
        run.stft,
        vem,
        settings["batch_size"],
        device,
        find_face_model() if looks and films else None,
        run.config["lips"]["size"],
    )
    failed = enhance_all(jobs, enhancer)
    if failed and len(jobs) == 1:
        raise UserError(failed[0])
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(jobs)} files could not be enhanced:", *failed]))


def enhance_all(jobs: list[Job], enhancer: Enhancer) -> list[str]:
    """What could not be enhanced, with reasons."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    failed = []
    with Progress(*columns) as progress:
        task = progress.add_task("enhancing", total=len(jobs))
        for number, job in enumerate(jobs):
            began = time.monotonic()
            try:
                seconds = enhancer.run(job, lambda share: progress.advance(task, share))
                factor = (time.monotonic() - began) / seconds
                print(f"enhanced   {seconds:.1f} s of sound, real-time factor {factor:.2f}: {job.output}", flush=True)
            except (UserError, FFmpegError) as error:
                failed.append(f"{job.sound}: {error}")
            except OSError as error:
                failed.append(f"{job.sound}: {job.output} cannot be written ({error.strerror}): choose another output=")
            progress.update(task, completed=number + 1)
    return failed


@hydra.main(version_base="1.3", config_path="../configs", config_name="enhance_file")
def main(config: DictConfig) -> None:
    sys.path.insert(0, str(Path.cwd()))  # where a model of the user's own may lie
    try:
        given: Any = OmegaConf.to_container(config, resolve=True)
        enhance(given)
    except (UserError, OmegaConfBaseException) as error:
        sys.exit(f"enhance.py: {error}")
    except KeyboardInterrupt:
        sys.exit("enhance.py: interrupted; what is finished stays")


if __name__ == "__main__":
    main()
