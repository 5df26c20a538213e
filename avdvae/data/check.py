"""Whether a corpus is complete, before hours of preparation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import soundfile

from avdvae.data.clips import SPLITS, Clip, Corpus, Extent, Unreadable
from avdvae.data.poses import PoseFormat, read_poses
from avdvae.data.readers.tree import Tree
from avdvae.errors import UserError, one_line


@dataclass(frozen=True)
class Checked:
    clips: list[Clip]
    faults: list[Unreadable]
    seconds: float
    extent: Extent | None  # of the whole corpus; None: not known

    def report(self) -> Iterator[str]:
        """The clips found beside those of the whole corpus, and every fault by name."""
        speakers = len({clip.speaker for clip in self.clips})
        who = "subjects" if any(clip.poses for clip in self.clips) else "speakers"
        for name, found, whole in (
            (who, f"{speakers}", self.extent and self.extent.speakers),
            ("clips", f"{len(self.clips)}", self.extent and self.extent.clips),
            ("hours", f"{self.seconds / 3600:.2f}", self.extent and self.extent.hours),
        ):
            yield f"{name:<10} {found}{f' of {whole}' if whole else ''}"
        splits = Counter(clip.split for clip in self.clips)
        yield f"{'splits':<10} {', '.join(f'{split} {splits[split]}' for split in SPLITS)}"
        for fault in self.faults:
            yield f"{'fault':<10} {fault.path}: {fault.reason}"


def check(corpus: Corpus, workers: int) -> Checked:
    """Check the tree, all poses, and the beginning of every sound and film. Damage further on is found when they are
    prepared."""
    clips, faults = corpus.clips(workers)
    faults, lengths = list(faults), dict[Path, float]()
    measures: dict[Path, Callable[[Path], float | str]] = {
        path: _length for clip in clips for path in (clip.audio, clip.video) if path
    }
    measures |= {clip.poses: partial(_length_of_poses, how=clip.pose_format) for clip in clips if clip.poses}
    with ThreadPoolExecutor(workers) as pool:
        for path, found in zip(measures, pool.map(lambda path: measures[path](path), measures), strict=True):
            if isinstance(found, str):
                faults.append(Unreadable(path, found))
            else:
                lengths[path] = found
    broken = {fault.path for fault in faults}
    sane = [clip for clip in clips if not broken & set(clip.files)]
    seconds = sum(lengths[path] for clip in sane if (path := clip.audio or clip.video or clip.poses))
    return Checked(sane, faults, seconds, corpus.extent if isinstance(corpus, Tree) else None)


def _length_of_poses(path: Path, how: PoseFormat) -> float | str:
    """As _length."""
    try:
        return len(read_poses(path, how)) / how.fps
    except UserError as error:
        return str(error)


def _length(path: Path) -> float | str:
    """In seconds, or what is wrong."""
    if not path.stat().st_size:
        return "is empty"
    try:
        return soundfile.info(path).duration
    except soundfile.SoundFileError:
        import av
        from av.error import FFmpegError
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            streams = container.streams.audio or container.streams.video
            # That it opens is no proof: any file called flac does.
            if not streams or next(container.decode(streams[0]), None) is None:
                return "cannot be read (not one sample or picture)"
            return (container.duration or 0) / av.time_base
    except Exception as error:  # PyAV raises errors of any kind on damaged files
        return f"cannot be read ({error.strerror if isinstance(error, FFmpegError) else one_line(error)})"
