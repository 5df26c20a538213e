"""Enhance noisy recordings with packaged weights or a trained model.

avdvae enhance noisy.wav clean.wav                                        with packaged weights
avdvae enhance clip.mp4 clean.wav                                         the sound of a video
avdvae enhance DIR OUT                                                    every file at any depth
avdvae enhance noisy.wav clean.wav run=RUN video=clip.mp4                 a run; for models with lips
avdvae enhance DIR OUT run=RUN [video=DIR]
avdvae enhance noisy.wav clean.wav enhance.iterations=20 enhance.estep.name=langevin
avdvae enhance - - rate=16000 run=vae-librispeech <noisy.pcm >clean.pcm       as the sound arrives: docs/streaming.md

The first two words are input= and output=. run= is the folder of a run, or one of `avdvae list weights`.
Every channel is enhanced separately, at 16 kHz. The output is a wav with the rate, channels, length and level of the
input; it is silent above 8 kHz, which the models do not cover. It has 16 bits, or 32-bit floats if the input has more.
From a pipe to a pipe, sound is raw: one channel of 16 bits, little-endian, at rate=.
In a folder, a sound and a video of the same name belong together, unless video= names another folder.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avdvae.data.readers.folder import SOUNDS, VIDEOS
from avdvae.enhancement.recordings import Enhancer, Job
from avdvae.errors import UserError
from avdvae.latents.stage import build_enhancer, build_stream
from avdvae.parallel import one_thread
from avdvae.programs.program import Program
from avdvae.progress import progress_bar
from avdvae.protocols import PICTURES
from avdvae.runs import open_run
from avdvae.signals.audio import in_16_bits

PIPE = "-"
PIECE = 4096  # bytes that are read at a time, at most
SHOWN_EVERY = 10  # seconds of sound


def find_jobs(source: Path, video: Path | None, output: Path) -> list[Job]:
    for name, path in (("input", source), ("video", video)):
        if path and not path.exists():
            raise UserError(f"{name}={path} does not exist: give a file or a folder")
    if video and video.is_dir() != source.is_dir():
        raise UserError(f"input={source} and video={video}: give two files or two folders")
    if output.resolve() in [path.resolve() for path in (source, video) if path]:
        raise UserError(f"output={output} would overwrite an input: give another name")
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
        raise UserError(f"input={source} has no sound file: give one with {', '.join(SOUNDS + VIDEOS)}, at any depth")
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
            f"{', '.join(f'{name}=' for name in missing)} missing: give NOISY.wav CLEAN.wav, or two folders"
        )
    if PIPE in (config["input"], config["output"]):
        stream_pipes(config)
        return
    run = open_run(Path(str(config["run"])))
    one_thread(run.device)
    video = Path(str(config["video"])) if config["video"] is not None else None
    jobs = find_jobs(Path(str(config["input"])), video, Path(str(config["output"])))
    model = run.load_enhancing(run.device)
    enhancer = build_enhancer(run, model, config["enhance"], any(job.video for job in jobs), run.device)
    if video and not PICTURES & {*enhancer.model.sees}:
        print(f"note       {type(model).__name__} uses the sound alone; video= is ignored")
    failed = enhance_all(jobs, enhancer)
    if failed and len(jobs) == 1:
        raise UserError(failed[0])
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(jobs)} files could not be enhanced:", *failed]))


def stream_pipes(config: Mapping[str, Any]) -> None:
    """Raw sound of 16 bits through pipes, as it arrives."""
    if not config["input"] == config["output"] == PIPE or config["video"] is not None:
        raise UserError("input=- and output=- belong together, without video=: give both, or two files")
    if type(rate := config["rate"]) is not int:
        raise UserError(f"rate={rate}: raw sound has no rate of its own: give it in Hz, as rate=16000")
    run = open_run(Path(str(config["run"])))
    one_thread(run.device)
    model = run.load_speech_prior(run.device)
    stream = build_stream(run, model, config["enhance"], config["streaming"], rate, run.device)
    print(f"latency    {stream.latency:.0f} ms, without the time of computation", file=sys.stderr, flush=True)
    began, seconds, rest = time.monotonic(), 0.0, b""
    source: Any = sys.stdin.buffer
    try:
        while piece := source.read1(PIECE):
            piece = rest + piece
            whole = len(piece) // 2 * 2
            rest = piece[whole:]
            _write(stream.push(np.frombuffer(piece[:whole], "<i2") / np.float32(2**15)))
            if stream.given >= (seconds + SHOWN_EVERY) * rate:
                seconds = stream.given / rate
                print(f"enhancing  {seconds:.0f} s of sound", file=sys.stderr, flush=True)
        _write(stream.finish())
    except BrokenPipeError as error:
        raise UserError("the program that takes the output has ended") from error
    factor = (time.monotonic() - began) * rate / max(1, stream.given)
    print(f"enhanced   {stream.given / rate:.1f} s of sound in {factor:.2f} times its duration", file=sys.stderr)


def _write(samples: np.ndarray) -> None:
    sys.stdout.buffer.write(in_16_bits(samples).astype("<i2").tobytes())
    sys.stdout.buffer.flush()


def enhance_all(jobs: list[Job], enhancer: Enhancer) -> list[str]:
    """Enhance all; return the failures with their reasons."""
    failed = []
    with progress_bar(percent=True) as progress:
        task = progress.add_task("enhancing", total=len(jobs))
        for number, job in enumerate(jobs):
            began = time.monotonic()
            try:
                seconds = enhancer.run(job, lambda part: progress.advance(task, part))
                factor = (time.monotonic() - began) / seconds
                print(f"enhanced   {seconds:.1f} s of sound, real-time factor {factor:.2f}: {job.output}", flush=True)
            except UserError as error:
                failed.append(f"{job.sound}: {error}")
            except OSError as error:
                failed.append(f"{job.sound}: {job.output} cannot be written ({error.strerror}): choose another output=")
            progress.update(task, completed=number + 1)
    return failed


main = Program(
    "enhance_file", enhance, interrupted="interrupted; finished files are kept", positional=("input", "output")
)

if __name__ == "__main__":
    main()
