"""List experiments, corpora, tasks and E-steps, each with a line and its paper.

avdvae list
avdvae list experiments
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from avdvae.configurations import CONFIGS, choices
from avdvae.data.corpora import READERS
from avdvae.enhancement.esteps import ESTEPS
from avdvae.errors import nearest
from avdvae.evaluation.tasks import TASKS

AUTHOR = r"(?:[A-Z]\.[ -])+((?:[a-z]+ )*[A-Z]\w+)"  # with initials before


def main(name: str = "avdvae list") -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        print(str(__doc__).strip())
        return
    for word in words:
        if word not in LISTS:
            sys.exit(f"{name}: there is no list of {word}: {nearest(word, [*LISTS])}")
    for kind in words or LISTS:
        title, lines = LISTS[kind]
        items = lines()
        width = max(map(len, items)) + 2
        print(f"{kind}, {title}\n")
        print("\n".join(f"  {item:<{width}}{about}" for item, about in items.items()) + "\n")


def experiments() -> dict[str, str]:
    return {name: f"{about}{paper_of(name)}" for name, about in choices("exp").items()}


def paper_of(experiment: str) -> str:
    """The paper of an experiment's model, from the header of the model's file."""
    config = read("exp", experiment)
    bases = [base for base in config.get("defaults", []) if base != "_self_"]
    for base in reversed(bases if "models" not in config else []):
        if isinstance(base, str) and not base.startswith("/"):
            return paper_of(base)
        if isinstance(base, dict) and (model := base.get("override /model")):
            target = read("model", model)["target"]
            return "" if target == "???" else paper_of_model(target.rpartition(".")[0])
    return ""


def read(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))


def paper_of_model(module: str) -> str:
    """The paper that its file cites, or the other file to which that refers."""
    if paper := cited(module):
        return paper
    other = re.search(r"(\w+)\.py", import_module(module).__doc__ or "")
    return cited(f"avdvae.models.{other[1]}") if other else ""


def cited(module: str) -> str:
    """First author, year and arXiv number of the paper that the header of a file cites first."""
    header = " ".join((import_module(module).__doc__ or "").split())
    found = re.search(rf'{AUTHOR}[^"]*"[^"]+"[^"]*?\b(\d{{4}})\b(?: \(arXiv ([\d.]+)\))?', header)
    return f" ({found[1]} {found[2]}{f', arXiv {found[3]}' if found[3] else ''})" if found else ""


def data() -> dict[str, str]:
    return {name: f"{about}{corpus_paper(name)}" for name, about in choices("data").items()}


def corpus_paper(name: str) -> str:
    reader = READERS.get(read("data", name).get("reader", ""))
    return cited(reader.__module__) if reader else ""


def first_sentence(thing: object) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. (?=[A-Z])", text)[0].rstrip(".")


def tasks() -> dict[str, str]:
    return {name: first_sentence(inspect.getmodule(type(task))).partition(": ")[2] for name, task in TASKS.items()}


def esteps() -> dict[str, str]:
    return {name: first_sentence(kind) for name, kind in ESTEPS.items()}


LISTS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {
    "experiments": ("avdvae train exp=NAME", experiments),
    "data": ("avdvae prepare data=NAME, and avdvae train data=NAME", data),
    "schedules": ("avdvae train train=NAME", lambda: choices("train")),
    "tasks": ("evaluate.tasks=[NAME]", tasks),
    "esteps": ("enhance.estep.name=NAME", esteps),
}

if __name__ == "__main__":
    main(Path(sys.argv[0]).name)
