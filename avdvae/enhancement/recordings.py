"""The speech of recordings in files, of any rate and number of channels.

Every channel is enhanced by itself, at RATE whatever the rate of the input. What is written has the rate, channels,
length and level of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from av.error import FFmpegError
from scipy.io import wavfile
from scipy.signal import resample_poly

from avdvae.data.readers.folder import VIDEOS
from avdvae.enhancement.separation import Pictures, separate_long
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError, one_line
from avdvae.files import replacing
from avdvae.protocols import PICTURES, SpeechPrior, indispensable
from avdvae.signals.audio import Stft
from avdvae.signals.clock import RATE
from avdvae.signals.lips import extract_lips
from avdvae.signals.video import FASTEST_SOUND, SLOWEST_SOUND, probe

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
    face_model: Path | None  # finds the lips and the face; for models conditioned on them
    crop_size: int
    face_size: int | None = None  # for models conditioned on the face

    def run(self, job: Job, progress: Callable[[float], None]) -> float:
        """Write the output; returns the seconds of sound."""
        job.output.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, if it must
        sound = read_sound(job.sound)
        pictures = self._pictures(job, sound) if PICTURES & {*self.model.sees} else None
        channels = sound.samples.shape[1]
        for channel in sound.samples.T:  # views: each is replaced
            clean = separate_long(
                self.model,
                torch.from_numpy(resample_poly(channel, RATE, sound.rate)).to(self.device),
                self.stft,
                self.settings,
                pictures,
                batch_size=self.batch_size,
                progress=lambda part: progress(part / channels),
            )
            channel[:] = resample_poly(clean.cpu().numpy(), sound.rate, RATE)[: len(channel)]
        write_sound(job.output, sound)
        return len(sound.samples) / sound.rate

    def _pictures(self, job: Job, sound: Sound) -> Pictures | None:
        if not job.video:
            if PICTURES & indispensable(self.model):
                raise UserError("it has no video, which the model needs: give one of the same name")
            print(f"note       {job.sound} has no video: it is enhanced from the sound alone", flush=True)
            return None
        assert self.face_model
        try:
            film = probe(job.video)
            track = extract_lips(film, self.face_model, self.crop_size, self.face_size)
        except UserError:
            raise
        except Exception as error:  # a decoder raises many kinds, and they concern this clip alone
            raise UserError(f"{job.video} is damaged: its lips cannot be found ({one_line(error)})") from error
        starts = sound.start - film.start if job.video.samefile(job.sound) else 0.0
        faces = track.face if self.face_size else None
        return Pictures(track.lips, track.confidence, float(track.fps), starts, faces)


def read_sound(path: Path) -> Sound:
    """All channels, as they are."""
    try:
        if path.suffix.lower() in VIDEOS:
            sound = decode_sound(path)
        else:
            with soundfile.SoundFile(path) as file:
                samples = file.read(dtype="float32", always_2d=True)
                sound = Sound(samples, file.samplerate, more_than_16_bits=file.subtype in MORE_THAN_16_BITS)
    except (soundfile.SoundFileError, ValueError, MemoryError) as error:  # as over a damaged header
        if isinstance(error, UserError):
            raise
        sound = decode_sound(path)
    if not len(sound.samples):
        raise UserError("it holds no sound")
    if not SLOWEST_SOUND <= sound.rate <= FASTEST_SOUND:
        raise UserError(f"a sample rate of {sound.rate} Hz: give {SLOWEST_SOUND} to {FASTEST_SOUND} Hz")
    if not np.isfinite(sound.samples).all():
        raise UserError("some of its samples are not finite numbers: look for the step that made them")
    return sound


def decode_sound(path: Path) -> Sound:
    """The sound of a video, or of a file in a format that soundfile does not read."""
    pieces, start, rate = [], 0.0, 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise UserError("it holds no sound")
            resampler = av.AudioResampler(format="fltp")  # the samples' format only
            for frame in container.decode(container.streams.audio[0]):
                if not pieces:
                    start, rate = frame.time or 0.0, frame.sample_rate
                pieces += [piece.to_ndarray().T for piece in resampler.resample(frame)]
    except UserError:
        raise
    except Exception as error:  # PyAV raises many kinds over damaged files
        reason = error.strerror if isinstance(error, FFmpegError) else one_line(error)
        raise UserError(f"it cannot be read as sound ({reason}): give an undamaged sound or video file") from error
    return Sound(np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32), rate, start)


def write_sound(path: Path, sound: Sound) -> None:
    samples = sound.samples
    if not sound.more_than_16_bits:
        scaled = samples * np.float32(2**15)
        np.rint(scaled, out=scaled)
        samples = scaled.clip(-(2**15), 2**15 - 1, out=scaled).astype(np.int16)
    with replacing(path) as new:
        wavfile.write(new, sound.rate, samples)  # soundfile would note the time in files of floats
