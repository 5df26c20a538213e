"""The reader of any folder of videos, or of sound files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avdvae.data.clips import SPLITS, Clip, Split, Unreadable, files_below
from avdvae.errors import UserError

VIDEOS = (
    *(".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".vob", ".ogv", ".ogm", ".mxf", ".dv", ".dif", ".rm", ".rmvb", ".divx", ".qt"),
    *(".mpe", ".mpv", ".m1v", ".m2v", ".mj2", ".nut", ".gxf", ".wtv", ".amv", ".mk3d", ".nsv", ".ivf", ".roq"),
)  # of films with sound, and of what FFmpeg reads beside
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".wma", ".sph", ".g722")
SHOWN = 5  # names of files that are passed over


@dataclass(frozen=True)
class Folder:
    """Any folder of videos, at any depth; a wav beside a video, with the same stem, is its sound. Where `modalities`
    is audio alone, any folder of sound files. Files with other suffixes are passed over, and named.

    The first folder below the root names the speaker, unless the folders there are train, valid and test: then they are
    the splits and the speakers come below. `valid` and `test` name the speakers of those splits otherwise.
    """

    root: Path
    valid: Sequence[str] = ()
    test: Sequence[str] = ()
    modalities: Sequence[str] = ("audio", "lips")

    def __post_init__(self) -> None:
        if sorted(self.modalities) not in (["audio"], ["audio", "lips"]):
            raise UserError(
                f"data.modalities=[{','.join(self.modalities)}]: give [audio,lips] for videos, [audio] for sound files"
            )

    @property
    def has_lips(self) -> bool:
        return "lips" in self.modalities

    @property
    def suffixes(self) -> tuple[str, ...]:
        return VIDEOS if self.has_lips else SOUNDS

    @property
    def key(self) -> str:
        """Two folders of one name have two keys, and so have the videos and the sounds of one folder."""
        name = self.root.resolve().name + ("" if self.has_lips else "-audio")
        return f"{name}-{hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]}"

    def clips(self, workers: int) -> tuple[list[Clip], list[Unreadable]]:
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder: give one with {', '.join(self.suffixes)} files")
        unreadable: list[Unreadable] = []
        sources, wavs, _ = self._files(unreadable)
        if not sources and not unreadable:
            kind, instead = (
                ("video", "[audio] reads sounds") if self.has_lips else ("sound", "[audio,lips] reads videos")
            )
            raise UserError(
                f"data.root={self.root} has no {kind}: searched for {', '.join(self.suffixes)} at any depth; "
                f"data.modalities={instead}"
            )

        namesakes = Counter(source.with_suffix("") for source in sources)
        clips = []
        for source in sources:
            stem = source.with_suffix("")
            named = (stem if namesakes[stem] == 1 else source).relative_to(self.root)
            *folders, _ = named.parts
            split: Split | None = next((s for s in SPLITS if folders[:1] == [s]), None)
            below = folders[1:] if split else folders
            speaker = below[0] if below else self.root.resolve().name
            split = split or ("test" if speaker in self.test else "valid" if speaker in self.valid else "train")
            files = (source, wavs.get(stem)) if self.has_lips else (None, source)
            clips.append(Clip(named.as_posix(), "folder", split, speaker, *files))
        if strangers := {*self.valid, *self.test} - {clip.speaker for clip in clips}:
            raise UserError(
                f"no speaker is called {', '.join(sorted(strangers))} in {self.root}: "
                f"data.valid and data.test choose from {', '.join(sorted({clip.speaker for clip in clips}))}"
            )
        return sorted(clips, key=lambda clip: clip.id), unreadable

    def _files(self, unreadable: list[Unreadable]) -> tuple[list[Path], dict[Path, Path], list[Path]]:
        """The files that become clips; the wavs by their paths without suffix; and the files that are neither clips nor
        the sound of clips."""
        paths = list(files_below(self.root, unreadable))
        sources = [path for path in paths if path.suffix.lower() in self.suffixes]
        wavs = {path.with_suffix(""): path for path in paths if path.suffix.lower() == ".wav"}
        used = {*sources, *(wavs.get(source.with_suffix("")) for source in sources)}
        return sources, wavs, [path for path in paths if path not in used]

    def passed_over(self) -> str:
        """How many files are passed over for their names, by suffix, and which; empty where there is none."""
        _, _, paths = self._files([])
        if not paths:
            return ""
        kinds = Counter(path.suffix.lower() or "without suffix" for path in paths).most_common()
        names = [path.relative_to(self.root).as_posix() for path in paths]
        some, more = ", ".join(names[:SHOWN]), f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        what = "videos" if self.has_lips else "sounds"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        return f"{len(paths)} files that are no {what} by their names ({counts}): {some}{more}"
