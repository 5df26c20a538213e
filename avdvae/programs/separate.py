"""Separate the sources of a recording, such as two talkers, each by a trained model of its own.

avdvae separate runs=[A,B] input=mix.wav output=FOLDER
avdvae separate runs=[A,A] input=mix.wav videos=[a.mp4,b.mp4] output=FOLDER    two talkers, each by their own lips
avdvae separate runs=[A,B] input=mix.wav videos=[a.mp4,null] output=FOLDER     B takes no pictures
avdvae separate runs=[A,B] input=mix.wav output=FOLDER mixing=assignment       after MixDVAE

The sources are 1.wav, 2.wav, ... in the order of the runs, with the rate, channels and length of the input. With
mixing=sum, what fits none of them is noise and is left out. Two sources by one model without lips may be exchanged
within a recording, for their priors are the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdvae.enhancement.recordings import Enhancer, read_sound, write_sound
from avdvae.enhancement.separation import PicturesOfSources
from avdvae.enhancement.sources import MIXING, Assignment, Sources
from avdvae.errors import UserError, known_settings, naming_extras
from avdvae.latents.stage import build_enhancer
from avdvae.parallel import one_thread
from avdvae.programs.program import Program
from avdvae.progress import progress_bar
from avdvae.protocols import PICTURES
from avdvae.runs import open_run


@naming_extras()
def separate(config: Mapping[str, Any]) -> None:
    source, videos, output = checked(config)
    enhancers = open_enhancers(config["runs"], videos, config["enhance"])
    try:
        recording = read_sound(source)
    except UserError as error:
        raise UserError(f"input={source}: {error}") from error
    pictures = PicturesOfSources(
        [
            enhancer.pictures(video, recording.start if video.samefile(source) else None) if video else None
            for enhancer, video in zip(enhancers, videos, strict=True)
        ]
    )
    models = [enhancer.model for enhancer in enhancers]
    separator = replace(enhancers[0], model=Sources(models).eval())
    if config["mixing"] == "assignment":
        settings = known_settings(Assignment, "assignment", **config["assignment"])
        at_a_time = 1 if settings.finetune else separator.batch_size
        separator = replace(separator, settings=settings, batch_size=at_a_time)
    began = time.monotonic()
    with progress_bar(percent=True) as progress:
        task = progress.add_task("separating", total=1)
        found = separator.sources(recording, pictures, lambda part: progress.advance(task, part))
    seconds = len(recording.samples) / recording.rate
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number, sound in enumerate(found, 1):
            write_sound(output / f"{number}.wav", sound)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error.strerror}): choose another") from error
    factor = (time.monotonic() - began) / seconds
    print(f"separated  {seconds:.1f} s of sound, real-time factor {factor:.2f}: {output}")


def checked(config: Mapping[str, Any]) -> tuple[Path, list[Path | None], Path]:
    """Input, videos and output."""
    if missing := [f"{name}=" for name in ("runs", "input", "output") if not config[name]]:
        raise UserError(f"{', '.join(missing)} missing: give runs=[A,B] input=FILE output=FOLDER")
    runs, videos, mixing = config["runs"], config["videos"], config["mixing"]
    if not isinstance(runs, list):
        raise UserError(f"runs={runs}: write runs=[{runs}], with a run for each source")
    if mixing not in MIXING:
        raise UserError(f"mixing={mixing}: choose {' or '.join(MIXING)}")
    if videos is not None and (not isinstance(videos, list) or len(videos) != len(runs)):
        raise UserError(f"videos={videos}: give one for each of the {len(runs)} runs, or null where it takes none")
    source, output = Path(str(config["input"])), Path(str(config["output"]))
    films = [None if video is None else Path(str(video)) for video in videos or [None] * len(runs)]
    for name, path in (("input", source), *(("videos", film) for film in films)):
        if path and not path.is_file():
            raise UserError(f"{name}: {path} is no file: give a sound file or a video")
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder for the sources")
    return source, films, output


def open_enhancers(runs: Sequence[Any], videos: Sequence[Path | None], changes: Mapping[str, Any]) -> list[Enhancer]:
    """The model of each run, and how its pictures are extracted."""
    enhancers: list[Enhancer] = []
    for name, video in zip(map(str, runs), videos, strict=True):
        run = open_run(Path(name))
        one_thread(run.device)
        model = run.load_speech_prior(run.device)
        if video and not PICTURES & {*model.sees}:
            print(f"note       {type(model).__name__} uses the sound alone; its video is ignored")
        if not video and PICTURES & {*model.sees}:
            raise UserError(
                f"{name}: {type(model).__name__} is conditioned on pictures: give the video of its source in videos="
            )
        try:
            enhancers.append(build_enhancer(run, model, changes, video is not None, run.device))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    for what, values in (
        ("STFT hops", [enhancer.stft.hop for enhancer in enhancers]),
        ("sizes of lips", [e.crop_size for e in enhancers if "lips" in e.model.sees]),
        ("sizes of faces", [e.face_size for e in enhancers if "face" in e.model.sees]),
    ):
        if len({*values}) > 1:
            given = ", ".join(map(str, values))
            raise UserError(f"the runs have different {what} ({given}): give runs that were trained with the same")
    return enhancers


main = Program("separate", separate)

if __name__ == "__main__":
    main()
