"""Measures a model in the tasks of avdvae/evaluation/tasks, and reports.

Parts of tasks are measured side by side, a process and a thread each, and written to results.csv as they come: an
evaluation that was interrupted goes on from there.
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
from avdvae.errors import UserError, known_settings
from avdvae.evaluation.report import write_report
from avdvae.evaluation.results import (
    Result,
    read_examples,
    read_results,
    read_summary,
    summarise,
    write_results,
    write_summary,
)
from avdvae.evaluation.results import compare as compare_rows
from avdvae.evaluation.tasks import TASKS
from avdvae.evaluation.tasks.task import Evaluation, Measured, Part, Subject
from avdvae.files import replacing
from avdvae.parallel import in_parallel, one_thread_each
from avdvae.pictures.figures import cost_curves
from avdvae.runs import Run, build_vem, open_run

_LESS = "give fewer evaluate.workers= or a smaller enhance.batch_size="
_WRITE_EVERY = 20.0  # seconds
_MOST_WORKERS = {"cpu": 16, "cuda": 4}  # unless asked for: each takes half a gigabyte, of the GPU too


class Unmeasured(UserError):
    """Parts that could not be measured; all others were."""


def measure(subject: Subject) -> list[Result]:
    """All that is not in results.csv yet; what it then holds. Where some part cannot be measured, Unmeasured is raised
    when the others are done."""
    tasks = check_tasks(subject)
    results, rows = subject.out / "results.csv", dict[Part, list[Result]]()
    parts = [part for task in tasks for part in TASKS[task].parts(subject)]
    whose = {
        (part.task, part.noise, part.snr, item.id): part for part in parts for item in subject.items(part).utterances
    }
    for row in read_results(results) if results.exists() else []:
        if (measured_on := (row.task, row.noise, row.snr, row.item)) not in whose:
            what = " ".join(str(value) for value in measured_on if value not in ("", None))
            raise UserError(f"{results} has {what}, which this evaluation does not measure: delete it to measure anew")
        rows.setdefault(whose[measured_on], []).append(row)
    kept = subject.out / "examples.json"
    examples = read_examples(kept) if kept.exists() else []
    for folder in ("audio", "figures", *(["videos"] if subject.corpus.has_poses else [])):
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
        reasons: dict[str, list[Part]] = {}
        for part, reason in lost.items():
            reasons.setdefault(reason, []).append(part)
        told = [
            f"{', '.join(_named(part, subject) for part in those[:3])}"
            f"{f' and {len(those) - 3} more' if len(those) > 3 else ''}: {reason}"
            for reason, those in reasons.items()
        ]
        raise Unmeasured(
            f"{len(lost)} of {len(parts)} parts could not be measured, and the others are in {results} ("
            f"{'; '.join(told)}): the same command goes on with what is missing"
        )
    return [row for part in parts for row in rows[part]]


def check_tasks(subject: Subject) -> Sequence[str]:
    """The tasks, if the corpus and the model are made for them and some utterance is left to measure."""
    tasks, holds = subject.settings.tasks, "poses" if subject.chosen.has_poses else "sound"
    if wrong := [task for task in tasks if TASKS[task].takes != holds]:
        fit = ", ".join(task for task in TASKS if TASKS[task].takes == holds)
        raise UserError(
            f"evaluate.tasks={','.join(wrong)}: {subject.corpus.root} holds {holds}, so choose from {fit}, or give a "
            f"corpus of {TASKS[wrong[0]].takes}"
        )
    for task in tasks:
        TASKS[task].check(subject)
    if "lips" in getattr(subject.model, "sees", ()) and not subject.corpus.has_lips:
        name = type(subject.model).__name__
        raise UserError(f"{name} looks at lips and {subject.corpus.root} has none: give a corpus of videos")
    return tasks


def _measure(subject: Subject, part: Part) -> Measured | str:
    """What was measured, or why it could not be."""
    subject.model.to(subject.device)
    try:
        return TASKS[part.task].measure(subject, part)
    except UserError as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        return f"there was not enough memory: {_LESS}"


def _killed(part: Part) -> str:
    return f"its process was killed, most likely for want of memory: {_LESS}"


def _named(part: Part, subject: Subject) -> str:
    items = subject.items(part).utterances
    level = "" if part.snr is None else f"{part.snr:g} dB"
    return " ".join(filter(None, (part.task, part.noise, level, f"of {items[0].id} to {items[-1].id}")))


def settings_of(config: Mapping[str, Any]) -> Evaluation:
    """`evaluate` of a configuration."""
    settings = known_settings(Evaluation, "evaluate", **config)
    if unknown := set(settings.tasks) - set(TASKS):
        raise UserError(f"no task is called {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    return settings


def find_other_runs(compare: Sequence[str]) -> list[Path]:
    """The runs to be compared with, all of them evaluated."""
    for other in compare:
        if not (Path(other) / "results.csv").is_file():
            raise UserError(f"compare={other} has no results.csv: name runs that have been evaluated")
    return [Path(other) for other in compare]


def subject_of(run: Run, model: nn.Module, prepared: Path, out: Path) -> Subject:
    """What is measured of a run whose model this is, trained or yet to be, as its configuration says."""
    settings, enhance = settings_of(run.config["evaluate"]), run.config["enhance"]
    corpus = PreparedCorpus(prepared, settings.split, verify=False)
    how = run.stft, build_vem(enhance), settings, out, run.config["exp"], enhance["batch_size"], run.device
    return Subject(model, corpus, *how)


def evaluate_run(run: Run, out: Path, prepared: Path, compare: Sequence[str]) -> None:
    """Measure a run's model as its configuration says, summarise, hold it against other runs, and report, in `out`."""
    others = find_other_runs(compare)
    subject = subject_of(run, run.load_model(), prepared, out)
    start = time.monotonic()
    try:
        rows, lost = measure(subject), None
    except Unmeasured as error:
        if not (rows := read_results(out / "results.csv")):
            raise
        lost = error
    spent = {"evaluate": time.monotonic() - start}
    Run(out, run.config).note(device=run.device, corpus=subject.corpus.utterances[0].corpus, seconds=spent)

    summary = summarise(rows)
    for other in others:
        compared = compare_rows(rows, read_results(other / "results.csv"))
        if differs := unlike(run.config["enhance"], open_run(other).config["enhance"]):
            print(f"compare    {other} was measured with {differs}", flush=True)
        summary += [item | {"differs": differs} for item in compared]
    write_summary(out / "summary.json", summary)
    write_report(out)
    if lost:
        raise lost


def unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The settings of enhancement that another run had otherwise, in words."""
    names = [name for name in {**mine, **theirs} if name != "batch_size" and mine.get(name) != theirs.get(name)]
    return ", ".join(f"enhance.{name}={theirs.get(name)} in place of {mine.get(name)}" for name in names)


def join_evaluations(out: Path, parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One page, in `out`, of evaluations that lie in folders below it: the models beside each other; its summary."""
    rows = [row for part in parts.values() for row in read_results(part / "results.csv")]
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
