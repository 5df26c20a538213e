"""Interpolate latents between two clips, and show the sound and pictures of each step.

avdvae interpolate run=RUN source=A target=B latents=[v]     A and B: ids of the run's corpus, or files
avdvae interpolate run=RUN source=A target=B latents=[z] steps=9

Each step is the source with the named latents interpolated linearly from its own, 0 %, to the target's, 100 %, as in
experiments/transfer.py. The output folder has a wav per step, strip.png, and film.mp4 with all steps in turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.latents.stage import Stage
from avdvae.programs.program import Program
from avdvae.runs import open_run


def interpolate_clips(config: Mapping[str, Any]) -> None:
    if missing := [f"{name}=" for name in ("run", "source", "target") if config[name] is None]:
        raise UserError(f"{', '.join(missing)} missing: give run=RUN source=A target=B latents=[NAME]")
    if not (type(steps := config["steps"]) is int and 2 <= steps <= 20):
        raise UserError(f"steps={steps}: give 2 to 20, both ends included")
    stage, names, phase = Stage(open_run(Path(config["run"]))), [*map(str, config["latents"])], config["phase"]
    source, target = stage.pair(str(config["source"]), str(config["target"]), names, phase)
    ends, takes = {"source": stage.original(source), "target": stage.original(target)}, []
    for step in range(steps):
        share = step / (steps - 1)
        takes.append(ends | {f"at {100 * share:.0f} %": stage.transfer(source, target, names, share, phase)})
    label = re.sub(r"[^\w,-]+", "_", f"{source.ids[0]}_{target.ids[0]}_{','.join(names)}")
    out = Path(config["out"] or stage.run.results / "interpolate" / label)
    stage.write(out, takes)
    print(f"steps      {out}")


main = Program("interpolate", interpolate_clips, interrupted="interrupted; nothing was written")

if __name__ == "__main__":
    main()
