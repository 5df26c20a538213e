"""The configurations in configs/, composed by Hydra as the commands do it, and sentences for Hydra's errors.

Hydra is imported where it is used, so that the library needs it for new trainings alone.

The defaults of models are those of their constructors, to which configs/model/*.yaml only refer: in NAME.yaml,
`- /defaults/NAME@_here_` is what `register` makes of the constructor that the file's target names. So
`model.hidden=256` needs no +, unknown names are refused, and each default stands in one place.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from avdvae.errors import UserError, nearest, one_line

PACKAGE = Path(__file__).parent
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


def compose(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration that `words`, as exp=vae train.lr=3e-4, make of configs/<name>.yaml."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    running = GlobalHydra.instance().hydra
    try:
        if not running or str(CONFIGS) not in str(running.config_loader.get_search_path()):
            GlobalHydra.instance().hydra = None  # that of a program of the user, into which ours may be called
            hydra.initialize_config_dir(str(CONFIGS), version_base="1.3")
        # Within a command its own Hydra goes on, for it has the --config-dir of the user.
        config: Any = OmegaConf.to_container(hydra.compose(name, [*words]), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_a_sentence(error, name)) from error
    finally:
        GlobalHydra.instance().hydra = running
    return config


def word(key: str, value: Any) -> str:
    """A setting as a word of the command line, whatever its value has in it."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str | Path):
        quotable = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ("\\" if found[2] else "") + found[2], str(value))
        return f'"{quotable}"'
    return json.dumps(value)


# ---------------------------------------------------------------------------------------------------------------------
# Names and descriptions


def choices(group: str) -> dict[str, str]:
    """The files of a group of configs/ by name, with the first sentence of each."""
    return {path.stem: first_sentence(_comment(path)) for path in sorted((CONFIGS / group).glob("*.yaml"))}


def _comment(path: Path) -> str:
    """At the beginning of a file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def first_sentence(text: str) -> str:
    return re.split(r"(?<!et al)\. (?=[A-Z])", text)[0].rstrip(".")


def keys(name: str) -> list[str]:
    """All keys of configs/<name>.yaml, with the sections before them, and its groups."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    groups = [group for item in config.pop("defaults", []) if isinstance(item, dict) for group in item]
    config.pop("hydra", None)

    def within(section: Mapping[str, Any], place: str) -> Iterator[str]:
        for key, value in section.items():
            yield place + key
            if isinstance(value, dict):
                yield from within(value, f"{place}{key}.")

    return [group for group in groups if " " not in group] + list(within(config, ""))


def keys_of_models() -> list[str]:
    return sorted({f"model.{key}" for of_class in defaults_of_models().values() for key in of_class})


def documented_keys(name: str) -> str:
    """configs/<name>.yaml as it reads, without what only Hydra needs."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    sections = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(part for part in sections if not part.startswith(("#", "defaults:", "hydra:"))).strip()


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def in_a_sentence(error: Exception, name: str) -> str:
    """An error of Hydra over the words of a command with configs/<name>.yaml: what was given, and what is allowed."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    message = str(error).splitlines()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, given = error.missing_cfg_file.rpartition("/")
        extra = {"hydra/sweeper": "sweep", "hydra/launcher": "cluster"}.get(group)
        more = f"; pip install 'avdvae[{extra}]' brings others" if extra else ""
        return f"{group}={given}: {nearest(given, sorted(error.options or []))}{more}"
    if isinstance(error, OverrideParseException):
        given = error.override
        if "=" not in given:
            roles = [role for role in ("input", "run", "source") if role in keys(name)]
            return f"{given}: settings are written name=value, as {f'{roles[0]}={given}' if roles else 'exp=vae'}"
        return f"{given} cannot be read ({message[0]}): put values with special characters in quotes"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give {error.full_key}="
    if found := re.search(r"Could not (?:override|delete|append)[^']*'([^']*)'", message[0]):
        given = found[1].partition("@")[0]
        return unknown_setting(given, [*keys(name), *keys_of_models()])
    return one_line(error).partition(": ")[2].split(" full_key:")[0]


def unknown_setting(given: str, known: Sequence[str]) -> str:
    """A sentence, with settings that may have been meant: of that name, or like it in its section, if it has one."""
    section, _, own = given.rpartition(".")
    ends = {key: key.rpartition(".")[2] for key in known}
    near = get_close_matches(own, [end for key, end in ends.items() if key.startswith(section)], 3, cutoff=0.65)
    meant = [key for key, end in ends.items() if end == own]
    meant += [key for name in near for key, end in ends.items() if end == name and key.startswith(section)]
    hint = f"did you mean {' or '.join(list(dict.fromkeys(meant))[:3])}? " if meant else ""
    return f"there is no setting {given}: {hint}--help shows them all"


# ---------------------------------------------------------------------------------------------------------------------
# Defaults of models


@cache
def register() -> None:
    """Give the defaults of models to Hydra."""
    from hydra.core.config_store import ConfigStore

    for name, node in defaults_of_models().items():
        ConfigStore.instance().store(group="defaults", name=name, node=node)


def defaults_of_models() -> dict[str, dict[str, Any]]:
    """By the name of the file in configs/model, for the models within a model with their place after it."""
    found = {}
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        found |= {".".join([path.stem, *place]): defaults(target) for place, target in targets(config)}
    return found


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
