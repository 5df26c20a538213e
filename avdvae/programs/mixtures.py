"""Write the mixtures of an evaluation as wavs, for other systems to enhance.

avdvae mixtures run=RUN out=FOLDER                                      those that the run was measured on
avdvae mixtures prepared=data/prepared/my_clips out=FOLDER evaluate.noises=[White] evaluate.snrs=[0,5]
avdvae mixtures run=RUN out=FOLDER clean=true                           with the references in FOLDER/clean

FOLDER/noisy has wavs at 16 kHz, which are divided by a power of 2 where they would clip. mixtures.csv lists them with
speaker, noise, SNR and this gain. Write the enhanced wavs under the same names into another folder, and score them by
`avdvae evaluate mixtures=FOLDER enhanced=THAT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.evaluation.measure import settings_of
from avdvae.evaluation.outside import Mixtures
from avdvae.programs.program import Program
from avdvae.runs import MISSING, Run, changed, open_run


def write_mixtures(given: Mapping[str, Any]) -> None:
    if given["out"] is None:
        raise UserError("out= is missing: give a folder for the mixtures")
    if given["run"] is not None:
        run = open_run(Path(str(given["run"])))
        asked = changed(run.config, {name: given[name] for name in ("prepared", "evaluate")})
        mixtures = Mixtures.of_run(Run(run.path, asked))
    elif given["prepared"] in (None, MISSING):
        raise UserError("run= or prepared= is missing: give a run, or the folder of a prepared corpus")
    else:
        mixtures = Mixtures(Path(given["prepared"]), settings_of(changed({}, given["evaluate"])))
    out = Path(given["out"])
    count = mixtures.write(out, given["clean"], given["bits"])
    print(f"mixtures   {out / 'noisy'} ({count} wavs)\nlist       {out / 'mixtures.csv'}")


main = Program("mixtures", write_mixtures, interrupted="interrupted; nothing was written")

if __name__ == "__main__":
    main()
