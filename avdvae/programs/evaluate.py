"""Evaluate a trained model again, with other noises, another E-step, another corpus; or wavs that another system made.

avdvae evaluate run=RUN evaluate.tasks=[resynthesis]
avdvae evaluate run=RUN evaluate.snrs=[0] enhance.estep.name=langevin compare=[RUN]
avdvae evaluate run=RUN prepared=data/prepared/my_clips evaluate.per_speaker=null
avdvae evaluate mixtures=MIXTURES enhanced=FOLDER compare=[RUN]     wavs made of MIXTURES/noisy, under the same names
avdvae evaluate run=RUN enhanced=FOLDER                             of the mixtures of that run, of `mixtures run=RUN`

Results and a report are written to a folder of their own. The same out= continues an interrupted evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.evaluation.again import evaluate_again
from avdvae.evaluation.outside import Mixtures, evaluate_folder
from avdvae.programs.program import Program
from avdvae.runs import MISSING, changed, open_run


def evaluate(given: Mapping[str, Any]) -> None:
    out = Path(given["out"]) if given["out"] else None
    if given["enhanced"] is not None:
        out = evaluate_enhanced(given, out)
    elif given["mixtures"] is not None or given["name"] is not None:
        raise UserError("enhanced= is missing: give the folder of the wavs that were made of the mixtures")
    elif given["run"] is None:
        raise UserError("run= is missing: give the folder of a run of experiments/run.py")
    else:
        changes = {name: given[name] for name in ("prepared", "evaluate", "enhance")}
        out = evaluate_again(open_run(Path(str(given["run"]))), changes, given["compare"], out)
    print(f"report     {out / 'report.html'}\nevaluation {out}")


def evaluate_enhanced(given: Mapping[str, Any], out: Path | None) -> Path:
    if (given["run"] is None) == (given["mixtures"] is None):
        raise UserError("enhanced= needs the mixtures: give either mixtures=FOLDER, or run=RUN for those of that run")
    if changed({"estep": {}}, given["enhance"]) != {"estep": {}}:
        raise UserError(
            "enhance. settings are for a model, and the wavs of enhanced= are there already: leave them out"
        )
    prepared = None if given["prepared"] in (None, MISSING) else given["prepared"]
    if given["run"] is not None:
        run = open_run(Path(str(given["run"])))
        if prepared:
            raise UserError(
                f"prepared={prepared}: the mixtures of run= are those of its corpus: give mixtures= instead"
            )
        mixtures = Mixtures.of_run(run)
    else:
        mixtures = Mixtures.in_folder(Path(str(given["mixtures"])), Path(prepared) if prepared else None)
    name = None if given["name"] is None else str(given["name"])
    changes = changed({}, given["evaluate"])
    return evaluate_folder(Path(str(given["enhanced"])), mixtures, out, name, given["compare"], changes)


main = Program("evaluate", evaluate, interrupted="interrupted; the same command with out= continues")

if __name__ == "__main__":
    main()
