"""Prepare a corpus: from its clips to shards on the disk, in many processes, on many machines, resumable at any time.

Clips, in the order of their ids, go into shards of CLIPS_PER_SHARD. A finished clip waits in staging/ as a shard of its
own; once all of its group are there, the group becomes a shard and the waiting files are deleted. Every file appears
whole under its name or not at all, and its bytes depend on the clips and the settings alone: so a killed run resumes,
and the parts that several machines prepare are those that one would have made.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from avdvae.data.clips import Clip, Corpus, Unreadable
from avdvae.data.poses import PoseFormat
from avdvae.data.prepare_clip import Quality, prepare_clip
from avdvae.data.shard_files import read_header, read_shard, write_manifest, write_shard
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, one_line, reading
from avdvae.files import replacing
from avdvae.parallel import in_parallel
from avdvae.pictures.stills import write_png
from avdvae.signals.faces import find_face_model

CLIPS_PER_SHARD = 64
TABLES = ("quality.csv", "manifest.csv")
OUTPUTS = (*TABLES, "contact_sheet.png", "overlay.png")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_VERSION = 1  # goes up when the same clips and settings give other bytes


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
            raise UserError(f"not one clip was kept; {self.out / 'quality.csv'} gives the reasons")
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

    By default the face `model` is that of `find_face_model`, and there is one worker a core. `shard` (i, n): only every
    n-th group from the i-th, as one task of an array.
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
    """A prepared corpus of this clip alone, in an empty folder; a UserError gives the reason why it cannot be used."""
    job = _Job(clip, out, size, find_face_model() if clip.video else None, face)
    for name in ("staging", "shards"):
        (out / name).mkdir()
    _stage_clip(job)
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
        pictures = self.clip.video or self.clip.lips
        faces = {"face": self.face} if self.face and self.clip.video else {}
        poses = {} if self.clip.pose_format == PoseFormat() else {"poses": str(self.clip.pose_format)}
        return {"size": self.size if pictures else "no pictures", "version": _VERSION} | faces | poses

    @property
    def source(self) -> list[Any]:
        """What differs between this clip and another that was prepared under the same id."""
        lengths = [path.stat().st_size if path.exists() else -1 for path in self.clip.files]
        return [self.clip.id, self.clip.split, self.clip.speaker, *lengths]

    @property
    def staged(self) -> Path:
        key = json.dumps([self.source, self.settings])
        return self.out / "staging" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def _stage_clip(job: _Job) -> float:
    """Write the clip, or the reason why it cannot be kept, into staging; return its frames, or seconds of sound."""
    kept = []
    try:
        clip, quality = prepare_clip(job.clip, job.model, job.size, job.face)
        kept.append(clip)
    except UserError as reason:
        quality = _left_out(job, str(reason))
    except Exception as error:  # whatever a decoder raises concerns its clip alone; missing packages, all
        if isinstance(error, ModuleNotFoundError) or (isinstance(error, OSError) and error.errno in _FULL):
            raise
        quality = _left_out(job, f"damaged: it cannot be prepared ({one_line(error)}): copy it again")
    write_shard(job.staged, kept, {"quality": asdict(quality)})
    return quality.frames or quality.seconds


def _left_out(job: _Job, why_not: str) -> Quality:
    return Quality(job.clip.id, str(job.clip.source), kept="no", why_not=why_not)


def _note_killed(job: _Job) -> float:
    """Write the reason for a clip whose process was killed, the second time alone."""
    why_not = "its process was killed, most likely for want of memory: cut it into shorter or smaller clips"
    write_shard(job.staged, [], {"quality": asdict(_left_out(job, why_not))})
    return 0.0


def _make_shards(groups: dict[str, list[_Job]], out: Path, workers: int) -> float:
    """Prepare the clips that these groups lack; return the speed."""
    todo = {name: jobs for name, jobs in groups.items() if not _is_done(out / "shards" / name, jobs)}
    if todo:  # tables and pictures of the whole corpus are out of date
        (out / "staging").mkdir(exist_ok=True)
        for name in OUTPUTS:
            (out / name).unlink(missing_ok=True)
    missing = {job: name for name, jobs in todo.items() for job in jobs if not job.staged.exists()}
    left = {name: sum(job in missing for job in jobs) for name, jobs in todo.items()}
    for name in [name for name, count in left.items() if count == 0]:
        _merge(out / "shards" / name, todo[name])
    start, amount = time.monotonic(), 0.0
    for job, prepared in in_parallel(_stage_clip, list(missing), workers, "preparing clips", _note_killed):
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
    """Once every shard is there, write the tables and the pictures to check it by."""
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
    films, lips = any(clip.video for clip in clips), any(clip.lips for clip in clips)
    outputs = OUTPUTS if films else OUTPUTS[:-1] if lips else TABLES
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
        from avdvae.data.contact_sheet import contact_sheet, overlay

        write_png(out / "contact_sheet.png", contact_sheet(corpus))
        job = next(job for jobs in groups.values() for job in jobs if job.clip.id == summary.kept[0].id)
        if job.clip.video:
            assert job.model
            write_png(out / "overlay.png", overlay(job.clip.video, job.model, job.size))
    return summary
