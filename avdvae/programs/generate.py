"""Generate speech or motion with a model: after the beginning of a clip, or from the prior.

avdvae generate run=RUN source=A                          after the first second of A, an id or a file
avdvae generate run=RUN source=A analysis=0.5 seconds=6 draws=3
avdvae generate run=RUN                                   from the prior alone, for 2.5 s
avdvae generate run=RUN seconds=4 draws=5

Latents are inferred from the beginning alone; those of a whole utterance are kept. An autoregressive model takes the
true past in the beginning, and its own output after it. A model conditioned on lips takes those of the source, so the
output ends with the source at the latest. Written are a wav of each draw, strip.png, and film.mp4 with the draws one
after another; a line marks where generation begins. A model that denoises draws spectra with their phase, keeps those
of the beginning, and takes the lips of the source if it has any.
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


def generate_clips(config: Mapping[str, Any]) -> None:
    if config["run"] is None:
        raise UserError("run= missing: give run=RUN, and source=A for a clip to continue")
    stage, source = Stage(open_run(Path(config["run"]))), None
    if config["source"] is not None:
        source = stage.clip("source", str(config["source"]))
    scenes = stage.generate(source, config["analysis"] or 0, config["seconds"], config["draws"], config["seed"])
    begun = config["analysis"] if source else None
    ends = {"source": stage.original(source)} if source else {}
    takes = [ends | {f"draw {number}": scene} for number, scene in enumerate(scenes, start=1)]
    label = re.sub(r"[^\w-]+", "_", source.ids[0]) if source else "prior"
    out = Path(config["out"] or stage.run.results / "generate" / label)
    stage.write(out, takes, begun)
    print(f"generated  {out}")


main = Program("generate", generate_clips, interrupted="interrupted; nothing was written")

if __name__ == "__main__":
    main()
