"""Replace latents of one clip by those of another, and show the sound and pictures of the result.

avdvae transfer run=RUN source=A target=B latents=[v]     A and B: ids of the run's corpus, or files
avdvae transfer run=RUN source=anna.mp4 target=b.wav latents=[z] phase=source

The result is the source with the named latents taken from the target. A static latent is used for every frame of the
source; if a dynamic one is taken, both clips are cut to the length of the shorter. Inputs that a model is conditioned
on, such as the lips, stay those of the source. The output folder has wavs, strip.png, and film.mp4 with the sound of
the result.
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


def transfer_clips(config: Mapping[str, Any]) -> None:
    if missing := [f"{name}=" for name in ("run", "source", "target") if config[name] is None]:
        raise UserError(f"{', '.join(missing)} missing: give run=RUN source=A target=B latents=[NAME]")
    stage, names, phase = Stage(open_run(Path(config["run"]))), [*map(str, config["latents"])], config["phase"]
    source, target = stage.pair(str(config["source"]), str(config["target"]), names, phase)
    result = stage.transfer(source, target, names, 1.0, phase)
    scenes = {"source": stage.original(source), "target": stage.original(target), "result": result}
    label = re.sub(r"[^\w,-]+", "_", f"{source.ids[0]}_{target.ids[0]}_{','.join(names)}")
    out = Path(config["out"] or stage.run.results / "transfer" / label)
    stage.write(out, [scenes])
    print(f"transfer   {out}")


main = Program("transfer", transfer_clips, interrupted="interrupted; nothing was written")

if __name__ == "__main__":
    main()
