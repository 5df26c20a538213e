"""Measure a model in the tasks of evaluation/tasks, and write the report.

Parts of tasks are measured in parallel, each in a process of one thread, and written to results.csv as they finish: an
interrupted evaluation continues from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, known_settings, require
from avdvae.evaluation.report import write_report
from avdvae.evaluation.results import (
    Result,
    read_examples,
    read_results,
    read_summary,
    summarise,
    without_baselines,
    write_results,
    write_summary,
)
from avdvae.evaluation.results import compare as compare_rows
from avdvae.evaluation.tasks import TASKS, find_task
from avdvae.evaluation.tasks.task import Evaluation, Measured, Part, Subject
from avdvae.files import replacing
from avdvae.parallel import in_parallel, one_thread_each
from avdvae.pictures.figures import cost_curves
from avdvae.protocols import LatentModel
from avdvae.runs import Run, build_vem, open_run, read_config, utterances_at_a_time
from avdvae.signals.metrics import PACKAGES

ENHANCED = "enhanced"  # the key of an evaluation of wavs that another system made: the folder of them
_LESS = "give fewer evaluate.workers= or a smaller enhance.batch_size="
_WRITE_EVERY = 20.0  # seconds
_MOST_WORKERS = {"cpu": 16, "cuda": 4}  # where evaluate.workers is null: each takes half a gigabyte, on the GPU too


class Unmeasured(UserError):
    """Some parts could not be measured; all others were."""


def measure(subject: Subject) -> list[Result]:
    """Measure what results.csv lacks, and return all its rows. If some parts cannot be measured, Unmeasured is raised
    after the others are done."""
    tasks, results = check_tasks(subject), subject.out / "results.csv"
    parts = [part for task in tasks for part in find_task(task).parts(subject)]
    rows = _measured_before(subject, parts, results)
    kept = subject.out / "examples.json"
    examples = read_examples(kept) if kept.exists() else []
    for folder in ("audio", "figures", *([] if subject.corpus.holds == "sound" else ["videos"])):
        (subject.out / folder).mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if part not in rows]
    if todo:
        subject.chosen.verify()
    workers = subject.settings.workers or min(os.cpu_count() or 1, _MOST_WORKERS[torch.device(subject.device).type])

    def write() -> None:
        write_results(results, [row for part in parts for row in rows.get(part, [])])
        with replacing(kept) as new:
            new.write_text(json.dumps(sorted(examples, key=lambda example: example["title"]), indent=1))

    written, lost = time.monotonic(), dict[Part, str]()
    try:
        with one_thread_each():
            for part, measured in in_parallel(partial(_measure, subject), todo, workers, "evaluating", _killed):
                if isinstance(measured, str):
                    lost[part] = measured
                    continue
                rows[part] = measured.rows
                examples += measured.examples
                if time.monotonic() > written + _WRITE_EVERY:
                    write()
                    written = time.monotonic()
    finally:
        write()
    if costs := {example["title"]: example["cost"] for example in examples if "cost" in example}:
        cost_curves(costs).savefig(subject.out / "figures" / "em_cost.png", dpi=150)
    if lost:
        raise Unmeasured(
            f"{len(lost)} of {len(parts)} parts could not be measured ({_reasons(subject, lost)}); the others are in "
            f"{results}: give the same command again to measure what is missing"
        )
    return [row for part in parts for row in rows[part]]


def _measured_before(subject: Subject, parts: Sequence[Part], results: Path) -> dict[Part, list[Result]]:
    """The rows of results.csv by the part that they belong to."""
    rows: dict[Part, list[Result]] = {}
    part_of = {
        (part.task, part.noise, part.snr, item.id): part for part in parts for item in subject.items(part).utterances
    }
    for row in read_results(results) if results.exists() else []:
        if (key := (row.task, row.noise, row.snr, row.item)) not in part_of:
            what = " ".join(str(value) for value in key if value not in ("", None))
            raise UserError(f"{results} has {what}, which this evaluation does not measure: delete it to measure anew")
        rows.setdefault(part_of[key], []).append(row)
    return rows


def _reasons(subject: Subject, lost: Mapping[Part, str]) -> str:
    """Why parts could not be measured; at most three are named for each reason."""
    parts: dict[str, list[Part]] = {}
    for part, reason in lost.items():
        parts.setdefault(reason, []).append(part)
    return "; ".join(
        f"{', '.join(_named(part, subject) for part in those[:3])}"
        f"{f' and {len(those) - 3} more' if len(those) > 3 else ''}: {reason}"
        for reason, those in parts.items()
    )


def check_tasks(subject: Subject) -> Sequence[str]:
    """The tasks, if they suit the corpus and the model and some utterance is left to measure."""
    tasks, holds = subject.settings.tasks, subject.chosen.holds
    if wrong := [task for task in tasks if find_task(task).takes != holds]:
        fit = ", ".join(task for task in TASKS if TASKS[task].takes == holds)
        raise UserError(
            f"evaluate.tasks={','.join(wrong)}: {subject.corpus.root} holds {holds}, so choose from {fit}, or give a "
            f"corpus of {find_task(wrong[0]).takes}"
        )
    for task in tasks:
        find_task(task).check(subject)
    model = subject.model
    if isinstance(model, LatentModel) and "lips" in model.sees and not subject.corpus.has_lips:
        name = type(model).__name__
        raise UserError(f"{name} needs lips and {subject.corpus.root} has none: give a corpus of videos")
    return tasks


def _measure(subject: Subject, part: Part) -> Measured | str:
    """The measurements, or the reason why there are none."""
    subject.model.to(subject.device)
    try:
        return find_task(part.task).measure(subject, part)
    except UserError as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        return f"there was not enough memory: {_LESS}"


def _killed(part: Part) -> str:
    return f"its process was killed, probably for lack of memory: {_LESS}"


def _named(part: Part, subject: Subject) -> str:
    items = subject.items(part).utterances
    level = "" if part.snr is None else f"{part.snr:g} dB"
    return " ".join(filter(None, (part.task, part.noise, level, f"of {items[0].id} to {items[-1].id}")))


def settings_of(config: Mapping[str, Any]) -> Evaluation:
    """The section `evaluate` of a configuration, checked."""
    settings = known_settings(Evaluation, "evaluate", **config)
    sound = any([find_task(task).takes == "sound" for task in settings.tasks])
    packages = [package for name in settings.metrics if sound for package in PACKAGES.get(name, ())]
    require("jinja2", "matplotlib", *packages)
    return settings


def find_other_runs(compare: Sequence[str]) -> list[Path]:
    """The runs to compare with, all of them evaluated."""
    for other in compare:
        if not (Path(other) / "results.csv").is_file():
            raise UserError(f"compare={other} has no results.csv: name runs that have been evaluated")
    return [Path(other) for other in compare]


def subject_of(run: Run, model: nn.Module, prepared: Path, out: Path) -> Subject:
    """What is measured of a run with this model, trained or not, as the run's configuration says."""
    settings, enhance = settings_of(run.config["evaluate"]), run.config["enhance"]
    corpus = PreparedCorpus(prepared, settings.split, verify=False)
    how = run.stft, build_vem(enhance, run), settings, out, run.config["exp"]
    return Subject(model, corpus, *how, utterances_at_a_time(enhance, run.device), run.device)


def evaluate_run(run: Run, out: Path, prepared: Path, compare: Sequence[str]) -> None:
    """Measure a run's model as its configuration says, compare it with other runs, and write the report, in `out`."""
    others = find_other_runs(compare)
    measure_and_report(subject_of(run, run.load_model(), prepared, out), run.config, others)


def measure_and_report(subject: Subject, config: dict[str, Any], others: Sequence[Path]) -> None:
    """Measure, compare with other evaluations, and write the report. `config`: that of the evaluation."""
    out, enhance = subject.out, config.get("enhance", {})
    start = time.monotonic()
    try:
        rows, lost = measure(subject), None
    except Unmeasured as error:
        if not (rows := read_results(out / "results.csv")):
            raise
        lost = error
    spent = {"evaluate": time.monotonic() - start}
    Run(out, config).note(device=subject.device, corpus=subject.corpus.utterances[0].corpus, seconds=spent)

    summary = summarise(rows)
    for other in others:
        theirs = without_baselines(read_results(other / "results.csv"))
        compared = compare_rows(without_baselines(rows), theirs)
        if differs := unlike(enhance, enhancement_of(other)):
            print(f"compare    {other} was measured with {differs}", flush=True)
        summary += [item | {"differs": differs} for item in compared]
    write_summary(out / "summary.json", summary)
    write_report(out)
    if lost:
        raise lost


def enhancement_of(evaluation: Path) -> Mapping[str, Any]:
    """The settings of enhancement of a run or an evaluation; none where another system made the estimates."""
    config = config_of(evaluation)
    return {} if ENHANCED in config else open_run(evaluation).config["enhance"]


def config_of(evaluation: Path) -> dict[str, Any]:
    """The configuration of a run, or of an evaluation of any kind."""
    path = evaluation / "config.yaml"
    if not path.is_file():
        raise UserError(f"{evaluation} has no config.yaml: give the folder of a run or of an evaluation")
    return read_config(path, "configuration", "restore it from a copy, or evaluate again in another folder")


def unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The settings of enhancement in which another run differs, in words; nothing where one of them has none."""
    if not (mine and theirs):
        return ""
    names = [name for name in {**mine, **theirs} if name != "batch_size" and mine.get(name) != theirs.get(name)]
    pairs = {name: ["null" if of.get(name) is None else of[name] for of in (theirs, mine)] for name in names}
    return ", ".join(f"enhance.{name}={other} instead of {own}" for name, (other, own) in pairs.items())


def join_evaluations(out: Path, parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Join evaluations in folders below `out` into one report there, with all models in its tables; its summary."""
    first, *more = [read_results(part / "results.csv") for part in parts.values()]
    rows = [*first, *(row for others in more for row in without_baselines(others))]
    summary, examples = summarise(rows), []
    for name, part in parts.items():
        summary += [item for item in read_summary(part / "summary.json") if "compared_with" in item]
        for example in read_examples(part / "examples.json"):
            where = part.relative_to(out)
            audio = {kind: str(where / path) for kind, path in example["audio"].items()}
            examples.append(
                {**example, "title": f"{name}: {example['title']}", "audio": audio}
                | {kind: str(where / example[kind]) for kind in ("figure", "video") if kind in example}
            )
    write_results(out / "results.csv", rows)
    write_summary(out / "summary.json", summary)
    with replacing(out / "examples.json") as new:
        new.write_text(json.dumps(examples, indent=1))
    write_report(out)
    return summary
