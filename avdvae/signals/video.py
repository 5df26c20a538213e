"""Films and sound in files: decoding, the constant clock, writing mp4.

What cannot be read raises a UserError with what is wrong with the file; the caller adds its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.reformatter import ColorRange

from avdvae.errors import UserError, one_line
from avdvae.signals.clock import FASTEST, FASTEST_SOUND, RATE, SLOWEST, SLOWEST_SOUND

# From the 16..235 in which most video keeps its luma.
WIDEN = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)

KEY_PICTURES = 8  # of a film in which faces are counted
# Longer side of the pictures given to the landmarker, in pixels. It finds no face narrower than a sixth of the picture,
# which it scales to 256 x 256 pixels; on drawn faces in 1080 lines more than this improved nothing.
LONGEST = 640
LARGEST = 8192 * 8192  # pixels of a picture


@dataclass(frozen=True)
class Film:
    """What `probe` reads of a film; times in seconds on the file's own clock."""

    path: Path
    start: float  # when the first picture is shown
    end: float  # when the last one is taken away
    fps: Fraction  # of the constant clock
    announced: int  # pictures that should be there
    key_pictures: tuple[np.ndarray, ...]  # RGB, upright, of LONGEST pixels at most
    sound: tuple[np.ndarray, float] | None  # as of `read_mono`; None: not asked for


class ClipSound(NamedTuple):
    """Sound whose sample 0 coincides with the first picture."""

    samples: np.ndarray  # int16, mono
    offset_ms: float  # how much later than the picture the sound started in the file
    drift_ms: float  # how much later than the picture the sound ends


def probe(path: Path, sound: bool = False) -> Film:
    """Read a film once: when its pictures are shown, its first key pictures and, with `sound`, its sound.

    Key pictures need no others to be decoded, so that these few take little time.
    """
    with _opened(path) as container:
        pictures, tracks = _pictures(container), [_sound(container)] if sound else []
        pictures.codec_context.thread_count, pictures.codec_context.skip_frame = 1, "NONKEY"
        stamps, keys, packets, decodes = [], [], [], True
        for packet in container.demux(pictures, *tracks):
            if packet.stream is not pictures:
                packets.append(packet)
                continue
            if packet.size and not packet.is_discard:
                stamps.append(packet.pts)
            try:
                keys += [to_rgb(frame, LONGEST) for frame in pictures.decode(packet)] if decodes else []
            except FFmpegError:
                decodes = False
            decodes = decodes and len(keys) < KEY_PICTURES
        times = np.sort(np.array(stamps, float)) * float(pictures.time_base or 1)
        listed = pictures.frames and sum(not entry.is_discard for entry in pictures.index_entries)
        announced = max(len(times), listed)
        if not len(times):
            raise _truncated(0, announced)
        if np.isnan(times).any():
            raise UserError("its pictures carry no times: put it into an mp4 of known rate with ffmpeg")
        rates = [rate for rate in (pictures.guessed_rate, pictures.average_rate, pictures.base_rate) if rate]
        fps = constant_rate(times, rates)
        if not SLOWEST <= fps <= FASTEST:
            raise UserError(f"it shows {float(fps):.3g} pictures a second: {SLOWEST} to {FASTEST} are allowed")
        frames = (frame for track in tracks for packet in packets for frame in track.decode(packet))
        samples = _resampled(frames, RATE) if sound else None
    return Film(path, times[0], times[-1] + float(1 / fps), fps, announced, tuple(keys[:KEY_PICTURES]), samples)


def constant_rate(times: np.ndarray, named: Iterable[Fraction] = ()) -> Fraction:
    """The rate of the constant clock for pictures shown at `times`.

    It is the first of the rates `named` by the file to which all pictures keep within a quarter of their duration, none
    but one in ten left out; so 30000/1001 stays exact. Where there is none, the rate varies and the clock runs at the
    average.
    """
    for rate in named:
        places = (times - times[0]) * float(rate)
        if np.all(np.abs(places - np.rint(places)) < 0.25) and len(times) > 0.9 * places[-1]:
            return rate
    span = times[-1] - times[0]
    return Fraction((len(times) - 1) / span).limit_denominator(1001) if span > 0 else Fraction(25)


def shown(times: np.ndarray, fps: Fraction) -> np.ndarray:
    """For each tick of the constant clock, the index of the picture nearest in time; constant rates map 1:1."""
    ticks = times[0] + np.arange(1 + round((times[-1] - times[0]) * fps)) / float(fps)
    after = np.clip(np.searchsorted(times, ticks), 1, max(len(times) - 1, 1))
    return after - (ticks - times[after - 1] <= times[after % len(times)] - ticks)


def read_frames(path: Path) -> Iterator[av.VideoFrame]:
    """Decoded frames up to the first that cannot be; one thread, since clips are prepared in parallel."""
    with _opened(path) as container:
        stream = _pictures(container)
        stream.codec_context.thread_count = 1
        try:
            yield from container.decode(stream)
        except FFmpegError:
            return


def to_rgb(frame: av.VideoFrame, longest: int) -> np.ndarray:
    """The upright picture of a frame, reduced to `longest` pixels if it is larger."""
    if frame.width * frame.height > LARGEST:
        raise UserError(f"its pictures have {frame.width} x {frame.height} pixels: reduce them to {LARGEST:,} or fewer")
    shrink = min(1.0, longest / max(frame.width, frame.height))
    width, height = round(frame.width * shrink), round(frame.height * shrink)
    return _upright(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA"), frame.rotation)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height of the upright picture."""
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


def read_pictures(path: Path, longest: int) -> Iterator[tuple[float, np.ndarray]]:
    """Upright RGB pictures, each with its time in seconds."""
    for frame in read_frames(path):
        yield frame.time, to_rgb(frame, longest)


def read_grey(path: Path) -> Iterator[np.ndarray]:
    """Upright grey pictures of full size, 0 for black and 255 for white."""
    return map(to_grey, read_frames(path))


def to_grey(frame: av.VideoFrame) -> np.ndarray:
    """The upright picture of a frame, 0 for black and 255 for white."""
    # Grey is the luma plane as it lies in memory: five times faster than a conversion of the picture.
    planar = frame if frame.format.name in ("yuv420p", "yuvj420p", "yuv422p") else frame.reformat(format="yuv420p")
    luma = np.frombuffer(memoryview(planar.planes[0]), np.uint8).reshape(-1, planar.planes[0].line_size)
    full_range = planar.format.name == "yuvj420p" or planar.color_range == ColorRange.JPEG
    luma = luma[: frame.height, : frame.width]
    return _upright(luma.copy() if full_range else cv2.LUT(luma, WIDEN), frame.rotation)


def check_complete(decoded: int, film: Film) -> None:
    """Refuse a film when fewer than nine in ten of its announced pictures could be decoded."""
    if decoded < 0.9 * film.announced:
        raise _truncated(decoded, film.announced)


def lasts(path: Path) -> float:
    """The duration in seconds that a file of sound or video gives; infinite where it gives none."""
    with _opened(path) as container:
        return float("inf") if container.duration is None else container.duration / 1_000_000


def read_mono(path: Path, rate: int = RATE) -> tuple[np.ndarray, float]:
    """The sound of any file as int16 mono samples at `rate`, and the time in seconds at which it starts."""
    with _opened(path) as container:
        return _resampled(container.decode(_sound(container)), rate)


def _resampled(frames: Iterable[av.AudioFrame], rate: int) -> tuple[np.ndarray, float]:
    # A longer filter than the default's, and channels averaged: by default stereo would come out 3 dB louder.
    options = {"filter_size": "64", "cutoff": "0.98", "rematrix_maxval": "1"}
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate, options=options)
    pieces, start = [], None
    try:
        for frame in frames:
            if not SLOWEST_SOUND <= frame.sample_rate <= FASTEST_SOUND:
                limits = f"{SLOWEST_SOUND} to {FASTEST_SOUND} Hz"
                raise UserError(f"its sound has a sample rate of {frame.sample_rate} Hz: give {limits}")
            start = (frame.time or 0.0) if start is None else start  # frames of some formats carry no times
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    except FFmpegError as error:
        seconds = sum(map(len, pieces)) / rate
        raise UserError(f"truncated: its sound breaks off after {seconds:.1f} s ({error.strerror})") from error
    if start is None:
        raise UserError("its sound is empty: not one sample can be read")
    pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    return np.concatenate(pieces), start


def clip_sound(film: Film, audio: Path | None) -> ClipSound:
    """The sound of a clip from zero at its first picture, with which a file of its own, `audio`, is taken to start."""
    if audio:
        samples, start = read_mono(audio)[0], film.start
    else:
        assert film.sound, "probe the film with its sound"
        samples, start = film.sound
    offset, seconds = start - film.start, film.end - film.start
    end = offset + len(samples) / RATE
    if offset >= seconds or end <= 0:
        raise UserError(
            f"its sound lasts from {offset:.2f} s to {end:.2f} s, and its pictures begin at 0 s and end at "
            f"{seconds:.2f} s: give a clip in which both go together"
        )
    missing = round(offset * RATE)
    samples = np.pad(samples, (missing, 0)) if missing > 0 else samples[-missing:]
    return ClipSound(samples, 1000 * offset, 1000 * (end - seconds))


def write_mp4(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    lossless: bool = False,
) -> None:
    """Write RGB pictures (height, width, 3; even sizes) and int16 mono sound as H.264 and AAC, both from time zero.

    `lossless`: of any size, and exact where FFmpeg reads them; browsers show no such film.

    One encoder thread, so that the same pictures give the same bytes. The file appears under its name when complete.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            codec, quality = ("libx264rgb", {"qp": "0"}) if lossless else ("libx264", {"crf": "18"})
            pictures = container.add_stream(codec, rate=fps, options={**quality, "preset": "veryfast"})
            pictures.thread_count = 1
            pictures.pix_fmt = "rgb24" if lossless else "yuv420p"
            voice = None if sound is None else container.add_stream("aac", rate=rate, layout="mono")
            chunks = _in_step(np.empty(0, np.int16) if sound is None else sound, fps, rate)
            for number, picture in enumerate(frames):
                if number == 0:
                    pictures.height, pictures.width = picture.shape[:2]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, 1 / fps
                container.mux(pictures.encode(frame))
                if voice and (chunk := next(chunks, None)):
                    container.mux(voice.encode(chunk))
            container.mux(pictures.encode(None))
            if voice:
                for chunk in chunks:
                    container.mux(voice.encode(chunk))
                container.mux(voice.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_step(sound: np.ndarray, fps: Fraction, rate: int) -> Iterator[av.AudioFrame]:
    """The sound of each picture in turn, so that the muxer never buffers much of either stream."""
    start, number = 0, 0
    while start < len(sound):
        number += 1
        until = round(number * rate / fps)
        frame = av.AudioFrame.from_ndarray(sound[None, start:until], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame
        start = until


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """An open file; any error of opening or reading it becomes a UserError."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
        if not start:
            raise UserError("the file is empty (0 bytes): copy it again")
        # Raw G.722 has no header, and may be taken for other formats.
        kind = "g722" if path.suffix.lower() == ".g722" else None
        container = av.open(str(path), format=kind, metadata_errors="replace")  # titles in other encodings
    except UserError:
        raise
    except InvalidDataError as error:
        if start[4:8] == b"ftyp":
            raise UserError("truncated: its index (moov) is missing, so nothing can be read: copy it again") from error
        raise UserError("it is neither a video nor a sound file, whatever its name says") from error
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    except Exception as error:  # PyAV raises errors of any kind on damaged files
        raise UserError(f"damaged: it cannot be opened ({one_line(error)}): copy it again") from error
    with container:
        if not container.streams.video and not container.streams.audio:
            raise UserError("it is neither a video nor a sound file, whatever its name says")
        try:
            yield container
        except UserError:
            raise
        except Exception as error:
            said = error.strerror if isinstance(error, FFmpegError) else one_line(error)
            raise UserError(f"damaged: it cannot be read to its end ({said}): copy it again") from error


def _pictures(container: InputContainer) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no film
            return stream
    raise UserError("it has sound but no picture: give a video")


def _sound(container: InputContainer) -> av.AudioStream:
    if not container.streams.audio:
        raise UserError("it has pictures but no sound: give a video with sound, or a wav of the same name beside it")
    return container.streams.audio[0]


def _truncated(decoded: int, announced: int) -> UserError:
    return UserError(f"truncated: {decoded} of {announced} frames can be read: copy it again")


def _upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Contiguous: rows of some widths are padded, and MediaPipe finds no face in padded rows."""
    return np.ascontiguousarray(np.rot90(picture, round(rotation / 90)))
