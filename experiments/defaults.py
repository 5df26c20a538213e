"""The defaults of models, for Hydra: those of their constructors, which configs/model/*.yaml only refer to.

`- /defaults/NAME@_here_` in configs/model/NAME.yaml is what `register` makes of the constructor that the file's target
names. So `model.hidden=256` needs no +, unknown names are refused, and each default stands in one place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

MODELS = Path(__file__).parent.parent / "configs" / "model"


def register() -> None:
    for path in sorted(MODELS.glob("*.yaml")):
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
        for place, target in targets(config):
            name = ".".join([path.stem, *place])
            ConfigStore.instance().store(group="defaults", name=name, node=defaults(target))


def targets(config: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The classes that a config names, and where: its own, and those of the models within it."""
    if config.get("target", "???") != "???":
        yield place, config["target"]
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from targets(value, (*place, key))


def defaults(target: str) -> dict[str, Any]:
    """Of the arguments of a class, with those that it passes on to its base by **."""
    module, _, name = target.rpartition(".")
    found: dict[str, Any] = {}
    for kind in getattr(import_module(module), name).__mro__:
        if "__init__" in vars(kind):
            arguments = inspect.signature(kind.__init__).parameters.values()
            found = {a.name: a.default for a in arguments if a.default is not a.empty} | found
            if all(a.kind != a.VAR_KEYWORD for a in arguments):
                break
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
