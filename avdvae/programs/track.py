"""Track detected objects with a trained model of boxes, by MixDVAE.

avdvae track run=RUN input=det.csv output=tracks.csv           detections: frame, -1, left, top, width, height
avdvae track run=RUN input=MOT17-02-SDP output=tracks.csv      a sequence of MOTChallenge, with det/det.txt
avdvae track run=RUN input=MOT17/train output=FOLDER           all sequences in a folder: FOLDER/<sequence>.txt

Tracked are the objects that are detected in the first frame with detections, until the last one: none appears later or
ends. Written are lines of frame, identity, left, top, width, height, in pixels. Where a sequence has gt/gt.txt, its
scores are printed, which count the objects that appear later as missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avdvae.data.boxes import BoxScene, read_detections, read_scene, write_tracks
from avdvae.errors import UserError, in_file, known_settings, whole_numbers
from avdvae.programs.program import Program
from avdvae.runs import changed, open_run
from avdvae.signals.metrics import Look
from avdvae.tracking.mixture import Tracker
from avdvae.tracking.priors import VAEPrior
from avdvae.tracking.scores import scores


def track(config: Mapping[str, Any]) -> None:
    if missing := [name for name in ("run", "input", "output") if config[name] is None]:
        raise UserError(
            f"{', '.join(f'{name}=' for name in missing)} missing: give run=RUN input=det.csv output=tracks.csv"
        )
    run, source, output = (Path(str(config[name])) for name in ("run", "input", "output"))
    opened = open_run(run)
    settings = changed(opened.config["evaluate"].get("tracking", {}), config["tracking"])
    tracker = known_settings(Tracker, "tracking", **settings)
    prior = VAEPrior(opened.load_model())
    if source.is_dir() and not (source / "det").is_dir():
        sequences = [path.parent for path in sorted(source.glob("*/det"))]
        if not sequences:
            raise UserError(f"input={source} has no sequence of MOTChallenge, which has det/det.txt: give one that has")
        if output.is_file():
            raise UserError(f"output={output} is a file: give a folder, as for input=")
        output.mkdir(parents=True, exist_ok=True)
        for sequence in sequences:
            track_one(*read_scene(sequence), tracker, prior, sequence, output / f"{sequence.name}.txt")
    elif source.is_dir():
        track_one(*read_scene(source), tracker, prior, source, output)
    else:
        picture = _size(config["picture"])
        detections_TK4 = read_detections(source, picture)
        scene = BoxScene(np.zeros((len(detections_TK4), 0, 4), np.float32), detections_TK4)
        track_one(scene, picture, tracker, prior, source, output)


def _size(given: Any) -> tuple[int, int]:
    if not isinstance(given, list) or len(given) != 2:
        raise UserError(f"picture={given}: give width and height in pixels, as [1920,1080]")
    width, height = given
    whole_numbers("picture.", {"width": width, "height": height}, width=1, height=1)
    return width, height


def track_one(
    scene: BoxScene, picture: tuple[int, int], tracker: Tracker, prior: VAEPrior, source: Path, output: Path
) -> None:
    first = int(np.isfinite(scene.detections[..., 0]).any(1).argmax())
    with in_file(source):
        found = tracker.track(torch.from_numpy(scene.detections[None, first:]), prior).m[0].numpy()
    before = np.full((first, *found.shape[1:]), np.nan, np.float32)
    tracks_TN4 = np.concatenate([before, found])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_tracks(output, tracks_TN4, picture)
    frames, objects, _ = tracks_TN4.shape
    print(f"tracked    {objects} objects in {frames} frames: {output}", flush=True)
    if scene.truth.size:
        shown = {metric: (value, Look.of(metric)) for metric, value in scores(scene.truth, tracks_TN4).items()}
        listed = (f"{look.name} {value:.{look.digits}f}" for value, look in shown.values())
        print(f"scores     {', '.join(listed)}", flush=True)


main = Program("track", track, interrupted="interrupted; finished files are kept")

if __name__ == "__main__":
    main()
