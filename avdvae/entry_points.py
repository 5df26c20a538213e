"""Readers, models and tasks of other packages and of the user."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from avdvae.errors import UserError, nearest, one_line

# By the end of the group's name, as in avdvae.readers: what they are called, and the setting that names one.
GROUPS = {
    "readers": ("corpus reader", "data.reader"),
    "models": ("model", "model.target"),
    "tasks": ("task", "evaluate.tasks"),
}


def installed(group: str) -> list[str]:
    """The names that other packages have entered."""
    return sorted({entry.name for entry in entry_points(group=f"avdvae.{group}")})


def find_class(group: str, name: str, known: Mapping[str, Any] | None = None) -> Any:
    """The class of a name: one of `known`, module.Class, or an entry point of another package, which is imported only
    if it is named."""
    known, (kind, setting) = known or {}, GROUPS[group]
    if name in known:
        return known[name]
    if entries := [*entry_points(group=f"avdvae.{group}", name=name)]:
        try:
            return entries[0].load()
        except Exception as error:  # code of another package raises errors of any kind
            package = entries[0].dist.name if entries[0].dist else entries[0].value
            raise UserError(
                f"{setting}={name} is of the package {package}, which cannot be imported ({one_line(error)}): "
                "repair it, or choose another"
            ) from error
    module, dot, last = name.rpartition(".")
    if not dot:
        offered = nearest(name, [*known, *installed(group), "module.Class"])
        raise UserError(f"no {kind} is called {name}: {offered}")
    try:
        return getattr(import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{setting}={name} cannot be found ({error}): give module.Class") from error
