"""An experiment from its request to its report: a training, or trained models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from avdvae.data.corpora import find_corpus
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError, in_file
from avdvae.evaluation.measure import check_tasks, evaluate_run, join_evaluations, subject_of
from avdvae.evaluation.results import over_seeds, ranking, write_over_seeds
from avdvae.orchestration.request import MAIN, Request, new_run
from avdvae.orchestration.resuming import go_on, resumed
from avdvae.orchestration.starts import check_starts, find_starts, find_training, of_learned_estep, start_request
from avdvae.orchestration.training import check, train_run
from avdvae.runs import LEARNED, Run, create_run, open_run
from avdvae.signals.metrics import FAILED, Look


class Finished(NamedTuple):
    run: Run
    best_loss: float | None  # of validation; None for a comparison, which trains no model of its own


def run_experiment(request: Request, progress: Callable[[float], Any] | None = None) -> Finished:
    """`progress` is called with the share of the training that is done."""
    resume = Path(request.config["resume"]) if request.config["resume"] else None
    with in_file(resume / "config.yaml") if resume else nullcontext():
        config = resumed(request) if resume else of_learned_estep(request)
        untrained = check(config)
    if resume and ((opened := open_run(resume)).packaged or "imported" in opened.noted):
        raise UserError(
            f"{resume} holds weights and no training to go on with: evaluate them with "
            f"experiments/evaluate.py run={resume}, or train from them with start=[{resume}]"
        )
    prepared = find_corpus(config)
    splits = {split: PreparedCorpus(prepared, split) for split in ("train", "valid")}
    if config.get("models"):
        return compare_models(request, config, prepared, splits)
    check_tasks(subject_of(Run(Path(), config), untrained, prepared, Path()))  # before hours of training
    if resume:
        if config.get("start") and not open_run(resume).begun:
            raise UserError(f"{resume} was stopped before its training began: start a new run, in another run_dir")
        # The state of a learned E-step does not hold the model that it is for.
        starts = (
            find_starts(Request(config, request.words, request.command), splits) if config["exp"] == LEARNED else []
        )
        run = go_on(open_run(resume), config, request.command)
    else:
        if starts := find_starts(Request(config, request.words, request.command), splits):
            check_starts(untrained, starts)
        run = new_run(config)
    trained = train_run(run, splits, starts, request.command, progress)
    if MAIN and config["exp"] == LEARNED:
        use = f"python experiments/enhance.py run={config['start'][0]} enhance.estep.name=learned"
        print(f"learned    {run.path}; use it with {use}", flush=True)
    elif MAIN:
        before = run.noted["seconds"].get("evaluate", 0.0)
        evaluate_run(run, run.path, prepared, run.config["compare"])
        run.note(seconds={"evaluate": before + run.noted["seconds"]["evaluate"]})
        print(f"report     {run.path / 'report.html'}\nrun        {run.path}")
    return Finished(run, trained.best_loss)


def compare_models(
    request: Request, config: dict[str, Any], prepared: Path, splits: Mapping[str, PreparedCorpus]
) -> Finished:
    """Evaluate models on the same mixtures, each compared with those before it, in one report; with seeds, also means
    over them."""
    if request.config["resume"]:
        run = go_on(open_run(Path(request.config["resume"])), config, request.command)
        if (paths := run.noted.get("trained")) is None:
            raise UserError(f"{run.path / 'run.json'} does not list the trained models: start a new comparison")
    else:
        seeds = [f" seed={seed}" for seed in config["seeds"]] or [""]
        names = [f"{model}{seed}" for model in config["models"] for seed in seeds]  # with settings that differ
        trainings = {name: start_request(name.split()[0], request, name.split()[1:]) for name in names}
        paths = {name: str(find_training(training, splits).path) for name, training in trainings.items()}
        run = new_run(config)
        run.note(model=", ".join(paths), trained=paths, command=request.command)
    parts: dict[str, Path] = {}
    for name, path in paths.items():
        print(f"model      {name}, from {path}", flush=True)
        model = open_run(Path(path))
        same = {part: run.config[part] for part in ("evaluate", "enhance")}  # whatever their own runs have
        asked = {**model.config, **same, "exp": name, "start": []}
        folder = run.path / name.replace(" ", "_")
        part = open_run(folder) if folder.exists() else create_run(folder, asked)
        if part.config != asked:
            raise UserError(f"{part.path} was evaluated with other settings: give another run_dir")
        evaluate_run(Run(model.path, asked), part.path, prepared, [str(path) for path in parts.values()])
        parts[name] = part.path
    summary = join_evaluations(run.path, parts)
    for task in dict.fromkeys(item["task"] for item in summary if not item["noise"]):
        print(task.replace("_", " "))
        for place, (name, measured) in enumerate(ranking(summary, task), start=1):
            means = [_in_words(metric, item) for metric, item in measured.items() if metric != FAILED]
            print(f"{place:>4}. {name:<20}{'   '.join(means)}")
    if run.config.get("seeds"):
        table = over_seeds(summary)
        write_over_seeds(run.path / "seeds.csv", table)
        print(f"means over {len(run.config['seeds'])} seeds, from the lowest to the highest of them")
        for item in (item for item in table if not item["noise"]):
            values = f"{item['mean']:.3f} [{item['lowest']:.3f}, {item['highest']:.3f}]"
            print(f"  {item['model']:<28}{item['task']:<24}{item['metric']:<16}{values}")
    print(f"report     {run.path / 'report.html'}\nrun        {run.path}")
    return Finished(run, None)


def _in_words(metric: str, item: Mapping[str, Any]) -> str:
    """A mean and its interval."""
    look = Look.of(metric)
    mean, low, high = (f"{item[key]:.{look.digits}f}" for key in ("mean", "ci_low", "ci_high"))
    return f"{look.name} {mean} [{low}, {high}]{f' {look.unit}' if look.unit else ''}"
