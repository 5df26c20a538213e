"""Compare runs on the same mixtures: a leaderboard as page, CSV, LaTeX and figures in PDF.

avdvae compare RUN RUN out=FOLDER
avdvae compare RUN RUN RUN out=FOLDER baseline=RUN metrics=[pesq_wb,si_sdr]

RUN is the folder of a run, of an evaluation, or of an evaluation of wavs that another system made. Runs that were
measured on other corpora, items, noises or SNRs are refused. Each task ranks the models by its first metric, and gives
their paired differences to the baseline, with 95 % intervals.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.configurations import word
from avdvae.errors import UserError
from avdvae.evaluation.leaderboard import write_leaderboard
from avdvae.programs.program import Program


def compare(given: Mapping[str, Any]) -> None:
    if given["out"] is None:
        raise UserError("out= is missing: give a folder for the leaderboard")
    baseline = None if given["baseline"] is None else Path(str(given["baseline"]))
    out, runs = Path(given["out"]), [Path(str(run)) for run in given["runs"]]
    print("\n".join(write_leaderboard(runs, out, baseline, given["metrics"])))
    print(f"leaderboard {out / 'leaderboard.html'}")


program = Program("compare", compare, interrupted="interrupted; nothing was written")


def main(name: str | None = None) -> None:
    """Words without = are runs."""
    runs = [given for given in sys.argv[1:] if "=" not in given and not given.startswith("-")]
    if runs:
        sys.argv[1:] = [*(given for given in sys.argv[1:] if given not in runs), word("runs", runs)]
    program(name)


if __name__ == "__main__":
    main()
