"""List packaged weights, experiments, corpora, tasks, claims and E-steps, each with a line and its paper.

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

from avdvae.configurations import CONFIGS, choices, first_sentence
from avdvae.data.corpora import READERS
from avdvae.enhancement.esteps import ESTEPS
from avdvae.entry_points import GROUPS, installed
from avdvae.errors import nearest
from avdvae.evaluation.tasks import TASKS
from avdvae.runs import PACKAGED, packaged_weights

INITIALS = r"(?:[A-Z]\.[\s-])+"
CITATION = re.compile(
    rf"{INITIALS}(?P<author>(?:[a-z]+ )*[A-Z]\w+).*?\b(?P<year>(?:19|20)\d\d)\b(?:\s\(arXiv\s(?P<arxiv>[\d.]+)\))?",
    re.DOTALL,
)


def main(name: str = "avdvae list") -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        print(str(__doc__).strip())
        return
    for word in words:
        if word not in LISTS:
            sys.exit(f"{name}: there is no list of {word}: {nearest(word, LISTS)}")
    for kind in words or LISTS:
        title, lines = LISTS[kind]
        if not (items := lines()):
            continue
        width = max(map(len, items)) + 2
        print(f"{kind}, {title}\n")
        print("\n".join(f"  {item:<{width}}{about}" for item, about in items.items()) + "\n")


def weights() -> dict[str, str]:
    cards = {name: (PACKAGED / name / "card.md").read_text(encoding="utf-8") for name in packaged_weights()}
    return {name: first_sentence(" ".join(card.split("\n\n")[1].split())) for name, card in cards.items()}


def experiments() -> dict[str, str]:
    return {name: about + paper_of(name) for name, about in choices("exp").items()}


def paper_of(experiment: str) -> str:
    """The paper of an experiment's model, from the header of the model's file."""
    config = read("exp", experiment)
    for base in reversed(config.get("defaults", []) if "models" not in config else []):
        if isinstance(base, str) and base != "_self_" and not base.startswith("/"):
            return paper_of(base)
        if isinstance(base, dict) and (model := base.get("override /model")):
            target = read("model", model)["target"]
            return "" if target == "???" else paper_of_model(target.rpartition(".")[0])
    return ""


def paper_of_model(module: str) -> str:
    """The paper that its file cites, or the other file to which that refers."""
    header = import_module(module).__doc__ or ""
    other = re.search(r"(\w+)\.py", header)
    return cited(header) or (cited(import_module(f"avdvae.models.{other[1]}").__doc__) if other else "")


def data() -> dict[str, str]:
    readers = {name: READERS.get(read("data", name).get("reader", "")) for name in choices("data")}
    papers = {name: cited(import_module(reader.__module__).__doc__) for name, reader in readers.items() if reader}
    return {name: about + papers.get(name, "") for name, about in choices("data").items()}


def tasks() -> dict[str, str]:
    return {name: described(inspect.getmodule(type(task))).partition(": ")[2] for name, task in TASKS.items()}


def esteps() -> dict[str, str]:
    return {name: described(kind) + cited(kind.__doc__) for name, kind in ESTEPS.items()}


def others() -> dict[str, str]:
    return {name: f"{setting}={name}" for group, (_, setting) in GROUPS.items() for name in installed(group)}


def read(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))


def described(thing: object) -> str:
    """The first sentence of a docstring, without the citation at its end."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return first_sentence(re.split(rf": (?={INITIALS})", text)[0])


def cited(text: str | None) -> str:
    """First author, year and arXiv number of the paper that is cited first."""
    if not (found := CITATION.search(text or "")):
        return ""
    author, year, arxiv = found.group("author", "year", "arxiv")
    return f" ({author} {year}{f', arXiv {arxiv}' if arxiv else ''})"


LISTS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {
    "weights": ("avdvae enhance run=NAME, and avdvae.load", weights),
    "experiments": ("avdvae train exp=NAME", experiments),
    "data": ("avdvae prepare data=NAME, and avdvae train data=NAME", data),
    "schedules": ("avdvae train train=NAME", lambda: choices("train")),
    "tasks": ("evaluate.tasks=[NAME]", tasks),
    "claims": ("avdvae claims only=[NAME]", lambda: {n: read("claims", n)["statement"] for n in choices("claims")}),
    "esteps": ("enhance.estep.name=NAME", esteps),
    "others": ("of other packages", others),
}

if __name__ == "__main__":
    main(Path(sys.argv[0]).name)
