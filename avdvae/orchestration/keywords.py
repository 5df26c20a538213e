"""The arguments of `avdvae.train` as a request: the same settings, written in Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from avdvae.configurations import choices, compose, keys, unknown_setting, word
from avdvae.errors import UserError, nearest
from avdvae.orchestration.request import Request


def request_of(exp: str, corpus: str | Path | None, run_dir: str | Path | None, settings: Mapping[str, Any]) -> Request:
    words = [f"exp={exp}"]
    if corpus is not None:
        words += _corpus(corpus)
    if run_dir is not None:
        words.append(word("run_dir", run_dir))
    known = keys("config")
    for name, value in settings.items():
        if isinstance(value, Mapping) and any(key.startswith(f"{name}.") for key in known):
            words += _section(name, value)
        elif name in known or "." in name:
            is_group = isinstance(value, str) and name in ("data", "model", "train")
            words.append(f"{name}={value}" if is_group else word(name, value))
        elif f"train.{name}" in known:
            words.append(word(f"train.{name}", value))
        else:
            raise UserError(unknown_setting(name, known))
    return Request(compose("config", words), words, shlex.join(["avdvae", "train", *words]))


def _corpus(corpus: str | Path) -> list[str]:
    if (path := Path(corpus)).is_dir():
        is_prepared = (path / "manifest.csv").is_file()
        return [word("prepared", path)] if is_prepared else ["data=folder", word("data.root", path)]
    if corpus not in (known := choices("data")):
        raise UserError(f"corpus={corpus} is no folder, and no corpus is called so: {nearest(str(corpus), [*known])}")
    return [f"data={corpus}"]


def _section(place: str, settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _section(f"{place}.{key}", value)
        else:  # the settings of an E-step are not in the configuration until they are given
            yield word(f"{'+' if place == 'enhance.estep' and key != 'name' else ''}{place}.{key}", value)
