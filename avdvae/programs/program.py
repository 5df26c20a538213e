"""What all programs share: settings by Hydra, help, and mistakes in one sentence."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from itertools import takewhile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from avdvae.configurations import CONFIGS, choices, documented_keys, in_a_sentence, keys, register, word
from avdvae.errors import UserError, in_sentences, prepare_process


class Program:
    """The program whose settings are those of configs/<config>.yaml; what `task` returns is for a sweeper of Hydra.

    `complete`: whether all settings must have a value; they may otherwise be ???, for those of a run.
    `positional`: settings that the first words of the command line give without their names.
    """

    def __init__(
        self,
        config: str,
        task: Callable[[dict[str, Any]], Any],
        interrupted: str = "interrupted",
        complete: bool = False,
        positional: Sequence[str] = (),
    ):
        self.config, self.task, self.interrupted, self.complete = config, task, interrupted, complete
        self.positional = positional

    def __call__(self, name: str | None = None) -> None:
        """Run with the words of the command line. `name`: as which the program was called."""
        script = Path(sys.argv[0])
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print(self.help(name or f"python {os.path.relpath(script)}"))
            return
        plain = [*takewhile(_without_name, sys.argv[1:])][: len(self.positional)]
        sys.argv[1 : 1 + len(plain)] = map(word, self.positional, plain)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, instead of a traceback that Hydra prints
        register()
        sentences = partial(in_sentences, name or script.name, self.interrupted)

        @wraps(self.task)
        def job(config: Any) -> Any:
            prepare_process()
            sweep = HydraConfig.get().mode == RunMode.MULTIRUN  # whose sweeper may go on after an error
            with nullcontext() if sweep else sentences():
                return self.task(self.settings(config))

        with sentences(), self.hydra_in_sentences():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=self.config)(job)()

    def settings(self, config: Any) -> dict[str, Any]:
        with self.hydra_in_sentences():
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=self.complete)  # type: ignore[return-value]

    @contextmanager
    def hydra_in_sentences(self) -> Iterator[None]:
        try:
            yield
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(in_a_sentence(error, self.config)) from error

    def help(self, name: str) -> str:
        usage = re.compile(r"^((?:OMP_\w+=\d )?)avdvae \w+", re.MULTILINE)
        about = usage.sub(rf"\1{name}", sys.modules[self.task.__module__].__doc__ or "")
        groups = [key for key in keys(self.config) if (CONFIGS / key).is_dir()]
        parts = [about.strip(), "Settings, with their defaults:", documented_keys(self.config)]
        parts += [f"{group}=NAME, one of\n  " + " ".join(choices(group)) for group in groups]
        return "\n\n".join(parts)


def _without_name(word: str) -> bool:
    """Whether it is a value alone; - is one, of a pipe."""
    return word == "-" or not ("=" in word or word.startswith("-"))
