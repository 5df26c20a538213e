"""Test the claims of the field: train and measure the models that they compare, and write a page with their verdicts.

avdvae claims                                 all claims of configs/claims, on Talker
avdvae claims only=[dvae_beats_vae]           some of them, or files of your own, as [mine.yaml]
avdvae claims corpora={librispeech:data/prepared/librispeech} budget=full
avdvae claims 'corpora={librispeech:{prepared:data/prepared/librispeech,train.lr:1e-3}}'    settings of one corpus
avdvae claims peer=DVAE_SE                    the published weights of that checkout, too
avdvae claims train=debug seed=1              any settings of `avdvae train`, for all models

Trainings and measurements are found again by their settings: an interrupted command continues, and a finished one
costs nothing. Two commands may run side by side and share them. The page keeps what earlier commands have found.
"""

from __future__ import annotations

import sys
from typing import Any

from avdvae.configurations import keys, word
from avdvae.orchestration.claims import Settings, run_claims
from avdvae.programs.program import Program


def test(given: dict[str, Any]) -> None:
    out = run_claims(Settings.of(given))
    print(f"page       {out / 'claims.html'}\nmarkdown   {out / 'claims.md'}\nnumbers    {out / 'claims.csv'}")


program = Program("claims", test, interrupted="interrupted; the same command continues", complete=True)


def main(name: str | None = None) -> None:
    """Words that are no settings of claims are those of all trainings and evaluations."""
    given, own = sys.argv[1:], keys("claims")
    others = [each for each in given if "=" in each and each.partition("=")[0] not in own and not each.startswith("-")]
    if others:
        sys.argv[1:] = [*(each for each in given if each not in others), word("settings", others)]
    program(name)


if __name__ == "__main__":
    main()
