"""From a corpus's clips to a prepared corpus on disk, in many processes, on many machines, resumable at any moment.

Clips, in the order of their ids, go into shards of CLIPS_PER_SHARD. A finished clip waits in staging/ as a shard of its
own; when the last of its group is there, the group becomes a shard and the waiting files go. Every file appears whole
under its name or not at all, and its bytes depend on the clips and the settings alone: so a killed run goes on where it
was, and the parts that several machines prepare make what one would have made.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avdvae.data.clips import Clip, Corpus, Unreadable
from avdvae.data.contact_sheet import contact_sheet
from avdvae.data.crops import FPS, read_crops
from avdvae.data.poses import FPS as POSES_PER_SECOND
from avdvae.data.poses import read_poses
from avdvae.data.shards import (
    PreparedClip,
    PreparedCorpus,
    read_header,
    read_shard,
    replacing,
    write_manifest,
    write_shard,
)
from avdvae.errors import UserError, one_line, reading
from avdvae.parallel import in_parallel
from avdvae.pictures.stills import write_png
from avdvae.signals.clock import RATE
from avdvae.signals.faces import find_face_model
from avdvae.signals.lips import MIN_PICTURES, draw_overlay, extract_lips
from avdvae.signals.video import ClipSound, clip_sound, probe, read_frames, read_sound, to_rgb

CLIPS_PER_SHARD = 64
TABLES = ("quality.csv", "manifest.csv")
OUTPUTS = (*TABLES, "contact_sheet.png", "overlay.png")
MIN_SECONDS = 0.25  # of a clip that has only sound
MIN_PEAK = 33  # of it, -60 dB of full scale: a loader would make noise of full scale out of less
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_VERSION = 1  # goes up when the same clips and settings give other bytes


@dataclass(frozen=True)
class Quality:
    """A row of quality.csv: what became of a clip. A clip that could not be read has zeros."""

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
    flags: str = ""  # of a clip that is kept: what to look at, as a second face that is as large


@dataclass(frozen=True)
class Summary:
    out: Path
    quality: tuple[Quality, ...]
    speed: float  # of this run: frames a second, or seconds of sound where there is only sound; 0: all was there
    complete: bool  # false while shards of other tasks of the array are missing

    @property
    def kept(self) -> list[Quality]:
        return [row for row in self.quality if row.kept == "yes"]

    def usable(self) -> Path:
        """The folder, unless nothing in the whole corpus could be kept."""
        if self.complete and not self.kept:
            raise UserError(f"not one clip was kept; {self.out / 'quality.csv'} says why")
        return self.out


def prepare(
    corpus: Corpus,
    out: Path,
    model: Path | None = None,
    size: int = 67,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    face: int | None = None,
) -> Summary:
    """Make `out` the prepared corpus, of mouths of `size` pixels a side and, where given, faces of `face`.

    The face `model` is looked for in the usual places, and `workers` are one a core, where not given. `shard` (i, n):
    only every n-th group from the i-th, as one task of an array.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if type(size) is not int or size < 16:
        raise UserError(f"size={size}: a mouth crop has 16 pixels a side or more")
    if face is not None and (type(face) is not int or face < 16):
        raise UserError(f"face={face}: a picture of a face has 16 pixels a side or more, or is null for none")
    if workers < 1:
        raise UserError(f"workers={workers}: give 1 or more")
    index, count = shard
    if not (type(index) is type(count) is int and 0 <= index < count):
        raise UserError(f"shard={index} of shards={count}: count from 0 to one less than there are")
    clips, unreadable = corpus.clips(workers)
    if model is None and any(clip.video for clip in clips):
        model = find_face_model()
    groups = {
        f"{number:05d}.safetensors": [
            _Job(clip, out, size, model, face)
            for clip in clips[number * CLIPS_PER_SHARD : (number + 1) * CLIPS_PER_SHARD]
        ]
        for number in range(-(-len(clips) // CLIPS_PER_SHARD))
    }
    try:
        if out.exists() and not (out / "shards").is_dir() and any(out.iterdir()):
            raise UserError(f"out={out} has files but no prepared corpus in it: choose a new or an empty folder")
        (out / "shards").mkdir(parents=True, exist_ok=True)
        speed = _make_shards(dict(list(groups.items())[index::count]), out, workers)
        return _finish(groups, unreadable, out, speed)
    except OSError as error:
        raise UserError(
            f"cannot write to out={out} ({error.strerror}): free space there, or choose another out="
        ) from error


def prepare_alone(clip: Clip, out: Path, size: int = 67, face: int | None = None) -> PreparedCorpus:
    """A prepared corpus, in an empty folder, of this clip and nothing else; a UserError says why it cannot be used."""
    job = _Job(clip, out, size, find_face_model() if clip.video else None, face)
    for name in ("staging", "shards"):
        (out / name).mkdir()
    _prepare_clip(job)
    rows, notes = read_header(job.staged)
    if not rows:
        raise UserError(notes["quality"]["why_not"])
    job.staged.rename(out / "shards" / rows[0].shard)
    write_manifest(out / "manifest.csv", rows)
    return PreparedCorpus(out, verify=False)


@dataclass(frozen=True, eq=False)
class _Job:
    """One clip to prepare, and how."""

    clip: Clip
    out: Path
    size: int
    model: Path | None  # found, where the clip has a video
    face: int | None = None  # pixels a side; None: no faces

    @property
    def settings(self) -> dict[str, int | str]:
        seen = self.clip.video or self.clip.crops
        faces = {"face": self.face} if self.face and self.clip.video else {}
        return {"size": self.size if seen else "no pictures", "version": _VERSION} | faces

    @property
    def source(self) -> list[Any]:
        """Tells a clip from another that was prepared under its id before."""
        lengths = [path.stat().st_size if path.exists() else -1 for path in self.clip.files]
        return [self.clip.id, self.clip.split, self.clip.speaker, *lengths]

    @property
    def staged(self) -> Path:
        key = json.dumps([self.source, self.settings])
        return self.out / "staging" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def _prepare_clip(job: _Job) -> float:
    """Leave the clip, or the reason why it cannot be kept, in staging; return its frames, or seconds of sound."""
    kept = []
    try:
        kinds = {"video": _film, "crops": _cropped, "poses": _figure, "audio": _recording}
        clip, quality = next(make for kind, make in kinds.items() if getattr(job.clip, kind))(job)
        kept.append(clip)
    except UserError as reason:
        quality = _left_out(job, str(reason))
    except Exception as error:  # whatever a decoder raises concerns its clip alone, but for a machine that is full
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        quality = _left_out(job, f"damaged: it cannot be prepared ({one_line(error)}): copy it again")
    write_shard(job.staged, kept, {"quality": asdict(quality)})
    return quality.frames or quality.seconds


def _left_out(job: _Job, why_not: str) -> Quality:
    return Quality(job.clip.id, str(job.clip.source), kept="no", why_not=why_not)


def _note_killed(job: _Job) -> float:
    """What is left of a clip whose process was killed, the second time alone."""
    why_not = "its process was killed, most likely for want of memory: cut it into shorter or smaller clips"
    write_shard(job.staged, [], {"quality": asdict(_left_out(job, why_not))})
    return 0.0


def _recording(job: _Job) -> tuple[PreparedClip, Quality]:
    samples, _ = read_sound(job.clip.source, RATE)
    if len(samples) < MIN_SECONDS * RATE:
        raise UserError(f"{len(samples) / RATE:.2f} s of sound: at least {MIN_SECONDS} s are needed")
    if (peak := np.abs(samples.astype(np.int32)).max()) < MIN_PEAK:
        raise UserError(f"silence: its loudest sample is {peak} of 32768, and at least {MIN_PEAK} are needed")
    return _sounding(job.clip, samples)


def _film(job: _Job) -> tuple[PreparedClip, Quality]:
    assert job.model
    film = probe(job.clip.source, sound=not job.clip.audio)
    sound = clip_sound(film, job.clip.audio)
    lips = extract_lips(film, job.model, job.size, job.face)
    clip, quality = _speaking(job.clip, sound, lips.crops, lips.confidence, lips.found, lips.fps)
    if job.face:
        frames = len(clip.lips)
        clip = replace(clip, face=lips.faces[:frames], mouth=lips.geometry[:frames])
    return clip, replace(quality, mean_jitter=round(lips.jitter, 4), flags="; ".join(lips.flags))


def _cropped(job: _Job) -> tuple[PreparedClip, Quality]:
    assert job.clip.crops and job.clip.audio
    crops = read_crops(job.clip.crops, job.size)
    samples, _ = read_sound(job.clip.audio, RATE)
    drift = len(samples) / RATE - float(len(crops) / FPS)
    sure = np.full(len(crops), 255, np.uint8)
    return _speaking(job.clip, ClipSound(samples, 0.0, 1000 * drift), crops, sure, sure > 0, FPS)


def _figure(job: _Job) -> tuple[PreparedClip, Quality]:
    clip, poses = job.clip, read_poses(job.clip.source)
    fps, (frames, joints, _) = float(POSES_PER_SECOND), poses.shape
    prepared = PreparedClip(clip.id, clip.corpus, clip.split, clip.speaker, clip.labels, pose=poses, fps=fps)
    quality = Quality(clip.id, str(clip.source), kept="yes", frames=frames, fps=fps, joints=joints)
    return prepared, replace(quality, seconds=round(frames / fps, 3))


def _speaking(
    clip: Clip, sound: ClipSound, crops: np.ndarray, confidence: np.ndarray, found: np.ndarray, fps: Fraction
) -> tuple[PreparedClip, Quality]:
    """What sound and pictures share."""
    seconds = min(len(sound.samples) / RATE, len(crops) / fps)
    frames, samples = round(seconds * fps), round(seconds * RATE)
    if frames < MIN_PICTURES:
        raise UserError(f"sound and picture share {float(seconds):.2f} s: at least {MIN_PICTURES} pictures are needed")
    prepared, quality = _sounding(clip, sound.samples[:samples])
    prepared = replace(
        prepared,
        lips=crops[:frames],
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


def _sounding(clip: Clip, samples: np.ndarray) -> tuple[PreparedClip, Quality]:
    """A clip of which nothing is seen yet."""
    prepared = PreparedClip(clip.id, clip.corpus, clip.split, clip.speaker, clip.labels, audio=samples, rate=RATE)
    return prepared, Quality(clip.id, str(clip.source), kept="yes", seconds=round(len(samples) / RATE, 3))


def _make_shards(groups: dict[str, list[_Job]], out: Path, workers: int) -> float:
    """Prepare what is missing of these groups; return the speed."""
    todo = {name: jobs for name, jobs in groups.items() if not _is_done(out / "shards" / name, jobs)}
    if todo:  # what told of the whole corpus does so no more
        (out / "staging").mkdir(exist_ok=True)
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
    missing = {job: name for name, jobs in todo.items() for job in jobs if not job.staged.exists()}
    left = {name: sum(job in missing for job in jobs) for name, jobs in todo.items()}
    for name in [name for name, count in left.items() if count == 0]:
        _merge(out / "shards" / name, todo[name])
    start, amount = time.monotonic(), 0.0
    for job, prepared in in_parallel(_prepare_clip, list(missing), workers, "preparing clips", _note_killed):
        amount += prepared
        name = missing[job]
        left[name] -= 1
        if left[name] == 0:
            _merge(out / "shards" / name, todo[name])
    return amount / (time.monotonic() - start)


def _is_done(shard: Path, jobs: list[_Job]) -> bool:
    if not shard.exists():
        return False
    _, notes = read_header(shard)
    settings = jobs[0].settings
    with reading(shard, "shard of this corpus", "delete it and run the same command again"):
        found, sources = dict(notes["settings"]), list(notes["sources"])
    if found != settings:
        given, there = (", ".join(f"{k}={v}" for k, v in s.items()) for s in (settings, found))
        raise UserError(
            f"{shard.parent.parent} was prepared with {there}, not {given}: choose another out=, or delete it"
        )
    return sources == [job.source for job in jobs]


def _merge(shard: Path, jobs: list[_Job]) -> None:
    staged = [read_shard(job.staged) for job in jobs]
    with reading(jobs[0].staged.parent, "folder of prepared clips", "delete it and run the same command again"):
        quality = [asdict(Quality(**notes["quality"])) for _, notes in staged]
    notes = {"settings": jobs[0].settings, "sources": [job.source for job in jobs], "quality": quality}
    write_shard(shard, [clip for clips, _ in staged for clip in clips], notes)
    for job in jobs:
        job.staged.unlink()


def _finish(groups: dict[str, list[_Job]], unreadable: list[Unreadable], out: Path, speed: float) -> Summary:
    """Once every shard is there: the tables, and pictures to look at."""
    shards = [out / "shards" / name for name in groups]
    headers = [read_header(path) for path in shards if path.exists()]
    quality = []
    for path, (_, notes) in zip([path for path in shards if path.exists()], headers, strict=True):
        with reading(path, "shard of this corpus", "delete it and run the same command again"):
            quality += [Quality(**row) for row in notes["quality"]]
    quality += [Quality(str(p.path), str(p.path), kept="no", why_not=p.reason) for p in unreadable]
    summary = Summary(out, tuple(quality), speed, complete=len(headers) == len(shards))
    # Shards of clips that are gone, and what a kill left half-written.
    stale = {*(out / "shards").iterdir(), *(p for name in OUTPUTS for p in out.glob(f".{name}.*"))} - set(shards)
    clips = [job.clip for jobs in groups.values() for job in jobs]
    seen, filmed = (any(getattr(clip, name) for clip in clips) for name in ("crops", "video"))
    outputs = OUTPUTS if filmed else OUTPUTS[:-1] if seen else TABLES
    if not summary.complete or (not stale and all((out / name).exists() for name in outputs)):
        return summary

    for path in stale:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / "staging", ignore_errors=True)  # another task may be doing the same
    with replacing(out / "quality.csv") as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Quality)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in quality)
    write_manifest(out / "manifest.csv", [row for rows, _ in headers for row in rows])
    if summary.kept and (corpus := PreparedCorpus(out, verify=False)).has_lips:
        write_png(out / "contact_sheet.png", contact_sheet(corpus))
        job = next(job for jobs in groups.values() for job in jobs if job.clip.id == summary.kept[0].id)
        if job.clip.video:
            write_png(out / "overlay.png", _overlay(job))
    return summary


def _overlay(job: _Job):
    """The middle picture of a clip with its landmarks and the outline of its crop."""
    assert job.model
    film = probe(job.clip.source)
    lips = extract_lips(film, job.model, job.size)
    middle = len(lips.crops) // 2
    seconds = film.start + middle / float(film.fps)
    frame = min(read_frames(film.path), key=lambda frame: abs((frame.time or 0.0) - seconds))
    picture = to_rgb(frame, max(frame.width, frame.height))
    return draw_overlay(picture, lips.landmarks[middle], lips.matrices[middle], job.size)
