"""Prepare a corpus: find and crop the mouths in its videos, and write them with their sound as shards. Or write sound
alone, the poses of moving figures, or the boxes of moving objects.

avdvae prepare                              the embedded corpus, Talker
avdvae prepare data=folder data.root=DIR    any folder of videos
avdvae prepare data=folder data.root=DIR data.modalities=[audio]    any folder of sound files
avdvae prepare data=ntcd_timit data.root=DIR data.split=inria       a corpus of the field: docs/corpora.md
avdvae prepare data=gait                    moving figures, generated like Talker
avdvae prepare data=timit data.root=DIR check_only=true             check that it is complete, and stop
avdvae prepare -m shards=64 'shard=range(64)' hydra/launcher=submitit_slurm ...    64 tasks of a cluster
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.data.check import check
from avdvae.data.corpora import open_corpus, prepared_folder
from avdvae.data.prepare import Summary, prepare
from avdvae.data.readers.folder import Folder
from avdvae.data.readers.tree import Tree
from avdvae.errors import UserError, whole_numbers
from avdvae.programs.program import Program
from avdvae.signals.faces import find_face_model


def report(summary: Summary) -> None:
    kept = summary.kept
    frames, hours = sum(row.frames for row in kept), sum(row.seconds for row in kept) / 3600
    print(f"clips      {len(kept)} of {len(summary.quality)} kept, {hours:.3f} hours")
    joints = max((row.joints for row in kept), default=0)
    boxes = sum(row.frames * row.boxes for row in kept)
    if boxes:
        print(f"boxes      {boxes} in {frames} frames, {kept[0].fps:g} frames a second")
    elif joints:
        print(f"poses      {frames} of {joints} joints, {kept[0].fps:g} a second")
    elif frames:
        start = max(abs(row.sound_starts_late_ms) for row in kept)
        end = max(abs(row.sound_ends_late_ms) for row in kept)
        print(f"faces      found in {sum(row.faces_found for row in kept) / frames:.2%} of {frames} pictures")
        print(f"sync       sound starts within {start:.0f} ms of the picture and ends within {end:.0f} ms of it")
    unit = "frames" if boxes else "poses" if joints else "pictures" if frames else "seconds of sound"
    print(f"speed      {f'{summary.speed:.0f} {unit} a second' if summary.speed else 'nothing was left to do'}")
    for row in summary.quality:
        if row.kept == "no":
            print(f"left out   {row.id}: {row.why_not}")
    if flagged := [row for row in kept if row.flags]:
        some = "; ".join(f"{row.id}, {row.flags}" for row in flagged[:3])
        more = "; quality.csv names them all" if len(flagged) > 3 else ""
        print(f"flagged    {len(flagged)} of those kept: check that they show the talker ({some}{more})")


def prepare_corpus(config: Mapping[str, Any]) -> None:
    workers = 1 if config["workers"] is None else config["workers"]
    given = {"workers": workers, "shards": config["shards"], "shard": config["shard"]}
    whole_numbers("", given, workers=1, shards=1, shard=0)
    model = find_face_model(Path(config["face_model"])) if config["face_model"] else None
    corpus = open_corpus(config["data"])
    if config["check_only"] or isinstance(corpus, Tree):
        checked = check(corpus, config["workers"] or os.cpu_count() or 1)
        print("\n".join(checked.report()), flush=True)
        if config["check_only"] and checked.faults:
            raise UserError(f"{len(checked.faults)} faults")
        if config["check_only"]:
            return
    out = Path(config["out"]) if config["out"] else prepared_folder(corpus, face=config["face"])
    part = (config["shard"], config["shards"])
    summary = prepare(corpus, out, model, config["size"], config["workers"], part, config["face"])
    report(summary)
    if isinstance(corpus, Folder) and (passed_over := corpus.passed_over()):
        print(f"passed by  {passed_over}")
    summary.usable()
    if not summary.complete:
        print(f"prepared   a part of {out}; the other tasks of the array have the rest")
    else:
        pictures = " and ".join(name for name in ("contact_sheet.png", "overlay.png") if (out / name).exists())
        print(f"prepared   {out}{f' (check {pictures} there)' if pictures else ''}")


main = Program("lips", prepare_corpus, interrupted="interrupted; the same command resumes from here")

if __name__ == "__main__":
    main()
