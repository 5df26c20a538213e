"""One clip, decoded: its arrays for a shard and its row of quality.csv."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdvae.data.boxes import FPS as BOXES_PER_SECOND
from avdvae.data.boxes import read_boxes
from avdvae.data.clips import Clip
from avdvae.data.poses import read_poses
from avdvae.data.precropped import FPS, read_lips
from avdvae.data.shard_files import PreparedClip
from avdvae.errors import UserError
from avdvae.signals.audio import read_16_bits
from avdvae.signals.clock import RATE

if TYPE_CHECKING:
    from avdvae.signals.video import ClipSound

MIN_SECONDS = 0.25  # of a clip that has only sound
MIN_PEAK = 33  # of it, -60 dB of full scale: a loader would amplify less than that to noise of full scale


@dataclass(frozen=True)
class Quality:
    """A row of quality.csv: whether a clip was kept, and what it contains. A clip that could not be read has zeros."""

    id: str
    source: str
    kept: str  # yes or no
    why_not: str = ""
    frames: int = 0
    faces_found: int = 0
    interpolated: int = 0
    mean_jitter: float = 0.0  # crop pixels between the lips' centre and its smoothed path
    seconds: float = 0.0
    fps: float = 0.0
    sound_starts_late_ms: float = 0.0  # negative: early
    sound_ends_late_ms: float = 0.0
    joints: int = 0  # of a figure, whose poses are then the frames
    boxes: int = 0  # of each frame
    flags: str = ""  # of a clip that is kept: what to check, such as a second face that is as large


def prepare_clip(clip: Clip, model: Path | None, size: int, face: int | None) -> tuple[PreparedClip, Quality]:
    """Decode a clip; a UserError gives the reason why it cannot be kept.

    Mouths are cropped at `size` pixels a side and faces at `face`, if not None; a video needs the face `model`.
    """
    if clip.video:
        assert model
        return _film(clip, model, size, face)
    if clip.lips:
        return _cropped(clip, clip.lips, size)
    if clip.boxes:
        return _scene(clip, clip.boxes)
    return _figure(clip, clip.poses) if clip.poses else _recording(clip)


def _film(clip: Clip, model: Path, size: int, face: int | None) -> tuple[PreparedClip, Quality]:
    from avdvae.signals.lips import extract_lips
    from avdvae.signals.video import clip_sound, probe

    film = probe(clip.source, sound=not clip.audio)
    sound = clip_sound(film, clip.audio)
    track = extract_lips(film, model, size, face)
    prepared, quality = _audio_visual(clip, sound, track.lips, track.confidence, track.found, track.fps)
    if face:
        frames = len(prepared.lips)
        prepared = replace(prepared, face=track.face[:frames], mouth=track.mouth[:frames])
    return prepared, replace(quality, mean_jitter=round(track.jitter, 4), flags="; ".join(track.flags))


def _cropped(clip: Clip, path: Path, size: int) -> tuple[PreparedClip, Quality]:
    from avdvae.signals.video import ClipSound

    assert clip.audio
    lips = read_lips(path, size)
    samples = _samples(clip.audio)
    drift = len(samples) / RATE - float(len(lips) / FPS)
    confidence = np.full(len(lips), 255, np.uint8)
    return _audio_visual(clip, ClipSound(samples, 0.0, 1000 * drift), lips, confidence, confidence > 0, FPS)


def _figure(clip: Clip, path: Path) -> tuple[PreparedClip, Quality]:
    poses = read_poses(path, clip.pose_format)
    fps, (frames, joints, _) = float(clip.pose_format.fps), poses.shape
    prepared = PreparedClip(clip.id, clip.corpus, clip.split, clip.speaker, clip.labels, pose=poses, fps=fps)
    quality = Quality(clip.id, str(clip.source), kept="yes", frames=frames, fps=fps, joints=joints)
    return prepared, replace(quality, seconds=round(frames / fps, 3))


def _scene(clip: Clip, path: Path) -> tuple[PreparedClip, Quality]:
    boxes = read_boxes(path)
    fps, (frames, columns, _) = float(BOXES_PER_SECOND), boxes.shape
    prepared = PreparedClip(clip.id, clip.corpus, clip.split, clip.speaker, clip.labels | {"boxes": columns})
    prepared = replace(prepared, boxes=boxes.reshape(-1, 4), fps=fps * columns)
    quality = Quality(clip.id, str(clip.source), kept="yes", frames=frames, fps=fps, boxes=columns)
    return prepared, replace(quality, seconds=round(frames / fps, 3))


def _recording(clip: Clip) -> tuple[PreparedClip, Quality]:
    samples = _samples(clip.source)
    if len(samples) < MIN_SECONDS * RATE:
        raise UserError(f"{len(samples) / RATE:.2f} s of sound: at least {MIN_SECONDS} s are needed")
    if (peak := np.abs(samples.astype(np.int32)).max()) < MIN_PEAK:
        raise UserError(f"silence: its loudest sample is {peak} of 32768, and at least {MIN_PEAK} are needed")
    return _sound_alone(clip, samples)


def _samples(path: Path) -> np.ndarray:
    """The sound of a file as int16, mono, at RATE. Without PyAV, soundfile reads it: sounds of 16 bits at RATE are the
    same, others differ by the filter that resamples them."""
    try:
        from avdvae.signals.video import read_mono
    except ModuleNotFoundError as missing:
        samples = read_16_bits(path)
        if samples is None:
            raise missing
        return samples
    return read_mono(path)[0]


def _audio_visual(
    clip: Clip, sound: ClipSound, lips: np.ndarray, confidence: np.ndarray, found: np.ndarray, fps: Fraction
) -> tuple[PreparedClip, Quality]:
    """The part of the clip in which there are both sound and pictures."""
    from avdvae.signals.lips import MIN_PICTURES

    seconds = min(len(sound.samples) / RATE, len(lips) / fps)
    frames, samples = round(seconds * fps), round(seconds * RATE)
    if frames < MIN_PICTURES:
        raise UserError(f"sound and picture share {float(seconds):.2f} s: at least {MIN_PICTURES} pictures are needed")
    prepared, quality = _sound_alone(clip, sound.samples[:samples])
    prepared = replace(
        prepared,
        lips=lips[:frames],
        confidence=confidence[:frames],
        fps=float(fps),
        face_rate=round(float(found[:frames].mean()), 4),
    )
    quality = replace(
        quality,
        frames=frames,
        faces_found=int(found[:frames].sum()),
        interpolated=int((~found[:frames]).sum()),
        seconds=round(float(seconds), 3),
        fps=round(float(fps), 4),
        sound_starts_late_ms=round(sound.offset_ms, 2),
        sound_ends_late_ms=round(sound.drift_ms, 2),
    )
    return prepared, quality


def _sound_alone(clip: Clip, samples: np.ndarray) -> tuple[PreparedClip, Quality]:
    prepared = PreparedClip(clip.id, clip.corpus, clip.split, clip.speaker, clip.labels, audio=samples, rate=RATE)
    return prepared, Quality(clip.id, str(clip.source), kept="yes", seconds=round(len(samples) / RATE, 3))
