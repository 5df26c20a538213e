"""Evaluate a trained model again: with other noises, another E-step, another corpus.

avdvae evaluate run=RUN evaluate.tasks=[resynthesis]
avdvae evaluate run=RUN evaluate.snrs=[0] enhance.estep.name=langevin compare=[RUN]
avdvae evaluate run=RUN prepared=data/prepared/my_clips evaluate.per_speaker=null

Results and a report are written to a folder of their own. The same out= continues an interrupted evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from avdvae.data.corpora import find_corpus
from avdvae.errors import UserError, check_settings, in_file
from avdvae.evaluation.measure import evaluate_run, find_other_runs, settings_of
from avdvae.evaluation.tasks.task import Evaluation
from avdvae.programs.program import Program
from avdvae.runs import Configuration, Run, build_vem, changed, create_run, open_run


def evaluate(given: Mapping[str, Any]) -> None:
    if given["run"] is None:
        raise UserError("run= is missing: give the folder of a run of experiments/run.py")
    trained = open_run(Path(str(given["run"])))
    with in_file(trained.path / "config.yaml"):
        check_settings(Evaluation, "evaluate", **trained.config["evaluate"])
        build_vem(trained.config["enhance"])
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out = Path(given["out"] or trained.path / "evaluations" / now)
    changes = {name: given[name] for name in ("prepared", "evaluate", "enhance")}
    asked = changed(trained.config, changes)
    begun = (out / "config.yaml").exists()
    if begun and open_run(out).config != asked:
        raise UserError(f"{out} holds an evaluation with other settings: choose another out=")
    Configuration.check(asked | {"compare": given["compare"]})
    settings_of(asked["evaluate"])  # errors come before a folder is created
    build_vem(asked["enhance"])
    find_other_runs(given["compare"])
    prepared = find_corpus(asked)
    evaluation = create_run(out, asked)
    with nullcontext() if begun else evaluation.undone_unless("results.csv"):
        evaluate_run(Run(trained.path, asked), out, prepared, given["compare"])
    print(f"report     {out / 'report.html'}\nevaluation {out}")


main = Program("evaluate", evaluate, interrupted="interrupted; the same command with out= continues")

if __name__ == "__main__":
    main()
