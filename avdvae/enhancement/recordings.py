"""The speech of recordings in files, of any rate and number of channels.

Every channel is enhanced by itself, at RATE whatever the rate of the input. What is written has the rate, channels,
length and level of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from avdvae.data.readers.folder import VIDEOS
from avdvae.enhancement.separation import Pictures, PicturesOfSources, separate_long
from avdvae.enhancement.sources import Assignment
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError, naming_extras, one_line
from avdvae.files import replacing
from avdvae.protocols import PICTURES, Prior, indispensable
from avdvae.signals.audio import Stft, in_16_bits
from avdvae.signals.clock import FASTEST_SOUND, RATE, SLOWEST_SOUND

MORE_THAN_16_BITS = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Job:
    sound: Path
    video: Path | None
    output: Path


@dataclass(frozen=True)
class Recording:
    samples: np.ndarray  # float32 (samples, channels)
    rate: int
    start: float = 0.0  # seconds on the clock of the file
    more_than_16_bits: bool = False

    def checked(self) -> Recording:
        """The same; an error if it cannot be enhanced."""
        if not len(self.samples):
            raise UserError("it holds no sound")
        if not SLOWEST_SOUND <= self.rate <= FASTEST_SOUND:
            raise UserError(f"a sample rate of {self.rate} Hz: give {SLOWEST_SOUND} to {FASTEST_SOUND} Hz")
        if not np.isfinite(self.samples).all():
            raise UserError("some of its samples are not finite numbers: look for the step that made them")
        return self


@dataclass(frozen=True)
class Enhancer:
    model: Prior
    stft: Stft
    settings: Vem | Assignment
    batch_size: int
    device: str
    face_model: Path | None  # finds the lips and the face; for models conditioned on them
    crop_size: int
    face_size: int | None = None  # for models conditioned on the face

    def run(self, job: Job, progress: Callable[[float], None]) -> float:
        """Write the output; returns the seconds of sound."""
        job.output.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, if it must
        recording = self.enhance_file(job.sound, job.video, progress)
        write_sound(job.output, recording)
        return len(recording.samples) / recording.rate

    @naming_extras()
    def enhance_file(self, path: Path, video: Path | None, progress: Callable[[float], None]) -> Recording:
        """The speech in a file of sound or video, by the pictures of `video`, which may be the same file."""
        recording = read_sound(path)
        if not video and PICTURES & {*self.model.sees}:
            if PICTURES & indispensable(self.model):
                raise UserError("it has no video, which the model needs: give one of the same name")
            print(f"note       {path} has no video: it is enhanced from the sound alone", flush=True)
        one_file = video is not None and video.samefile(path)
        pictures = self.pictures(video, recording.start if one_file else None) if video else None
        self.enhance(recording, pictures, progress)
        return recording

    def enhance(self, recording: Recording, pictures: Pictures | None, progress: Callable[[float], None]) -> None:
        """Replace the samples of a recording by its speech; `progress` gets shares of the work that add up to 1."""
        for channel, (clean,) in self._separated(recording, pictures, progress):
            channel[:] = clean

    def sources(
        self, recording: Recording, pictures: PicturesOfSources, progress: Callable[[float], None]
    ) -> list[Recording]:
        """The sources of a recording."""
        channels = [sources for _, sources in self._separated(recording, pictures, progress)]
        each = [np.stack(channels_of_one, 1) for channels_of_one in zip(*channels, strict=True)]
        return [replace(recording, samples=samples.astype(np.float32)) for samples in each]

    def _separated(
        self, recording: Recording, pictures: Pictures | PicturesOfSources | None, progress: Callable[[float], None]
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Each channel, a view, and its sources."""
        channels = recording.samples.shape[1]
        for channel in recording.samples.T:
            sources_JN = separate_long(
                self.model,
                torch.from_numpy(resample_poly(channel, RATE, recording.rate)).to(self.device),
                self.stft,
                self.settings,
                pictures,
                batch_size=self.batch_size,
                progress=lambda part: progress(part / channels),
            ).cpu()
            yield channel, [resample_poly(s.numpy(), recording.rate, RATE)[: len(channel)] for s in sources_JN]

    def pictures(self, video: Path, sound_starts: float | None = None) -> Pictures | None:
        """The crops that the model takes, if any. The sound starts with the first picture, or at `sound_starts` seconds
        on the clock of the film."""
        if not PICTURES & {*self.model.sees}:
            return None
        from avdvae.signals.lips import extract_lips
        from avdvae.signals.video import probe

        assert self.face_model
        try:
            film = probe(video)
            track = extract_lips(film, self.face_model, self.crop_size, self.face_size)
        except (UserError, ModuleNotFoundError):
            raise
        except Exception as error:  # a decoder raises many kinds, and they concern this clip alone
            raise UserError(f"{video} is damaged: its lips cannot be found ({one_line(error)})") from error
        starts = 0.0 if sound_starts is None else sound_starts - film.start
        faces = track.face if self.face_size else None
        return Pictures(track.lips, track.confidence, float(track.fps), starts, faces)


def read_sound(path: Path) -> Recording:
    """All channels, as they are."""
    try:
        if path.suffix.lower() in VIDEOS:
            sound = decode_sound(path)
        else:
            with soundfile.SoundFile(path) as file:
                samples = file.read(dtype="float32", always_2d=True)
                sound = Recording(samples, file.samplerate, more_than_16_bits=file.subtype in MORE_THAN_16_BITS)
    except (soundfile.SoundFileError, ValueError, MemoryError) as error:  # as over a damaged header
        if isinstance(error, UserError):
            raise
        sound = decode_sound(path)
    return sound.checked()


def decode_sound(path: Path) -> Recording:
    """The sound of a video, or of a file in a format that soundfile does not read."""
    import av
    from av.error import FFmpegError

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
    return Recording(np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32), rate, start)


def write_sound(path: Path, sound: Recording) -> None:
    samples = sound.samples if sound.more_than_16_bits else in_16_bits(sound.samples)
    with replacing(path) as new:
        wavfile.write(new, sound.rate, samples)  # soundfile would note the time in files of floats
