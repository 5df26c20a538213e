"""The command `avdvae`."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

import avdvae
from avdvae.errors import in_sentences, nearest

COMMANDS = {  # and their modules
    "prepare": "prepare",
    "train": "train",
    "enhance": "enhance",
    "separate": "separate",
    "evaluate": "evaluate",
    "compare": "compare",
    "claims": "claims",
    "mixtures": "mixtures",
    "transfer": "transfer",
    "interpolate": "interpolate",
    "generate": "generate",
    "control": "control",
    "track": "track",
    "demo": "demo",
    "bench": "bench",
    "import": "import_weights",
    "list": "listing",
    "completion": "completion",
}


def main() -> None:
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print("avdvae COMMAND name=value ...    avdvae COMMAND --help for its settings\n")
        print("\n".join(f"{command:<12} {about(module)}" for command, module in COMMANDS.items()))
        return
    if word == "--version":
        print(f"avdvae {avdvae.__version__}")
        return
    if word not in COMMANDS:
        sys.exit(f"avdvae: no command is called {word}: {nearest(word, [*COMMANDS])}")
    with in_sentences(f"avdvae {word}"):
        module = import_module(f"avdvae.programs.{COMMANDS[word]}")
    # The file is a script, too: distributed training starts it again for each of its processes.
    sys.argv = [str(module.__file__), *rest]
    module.main(f"avdvae {word}")


def about(module: str) -> str:
    """The first sentence of a program's docstring."""
    return " ".join((ast.get_docstring(ast.parse(source(module))) or "").split("\n\n")[0].split())


def source(module: str) -> str:
    """The text of a program, without its imports, which take seconds."""
    return Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
