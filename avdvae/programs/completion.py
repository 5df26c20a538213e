"""Complete commands, settings and names in a shell.

eval "$(avdvae completion)"    in bash; in zsh, after: autoload -U +X bashcompinit && bashcompinit
"""

from __future__ import annotations

import ast
import sys

from avdvae.configurations import choices, keys, keys_of_models
from avdvae.programs.command import COMMANDS, source

SCRIPT = """_avdvae() {
    local IFS=$'\\n'
    COMPREPLY=($(avdvae completion "${COMP_LINE:0:COMP_POINT}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _avdvae avdvae"""


def main(name: str = "avdvae completion") -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(str(__doc__).strip())
    elif len(sys.argv) == 1:
        print(SCRIPT)
    else:
        print("\n".join(completions(sys.argv[1])))


def completions(line: str) -> list[str]:
    """What the last word of a command line may become."""
    _, *words = line.split(" ")
    if len(words) < 2:
        return [f"{command} " for command in COMMANDS if command.startswith("".join(words))]
    config, word = config_of(words[0]), words[-1]
    group, given, _ = word.partition("=")
    if not config:
        return []
    if given:
        known = [f"{group}={name} " for name in choices(group)] if group in keys(config) else []
    else:
        known = [f"{key}=" for key in (*keys(config), *(keys_of_models() if word.startswith("model.") else ()))]
    return [completed for completed in known if completed.startswith(word)]


def config_of(command: str) -> str | None:
    """The name of a command's settings in configs/, read without its imports, which take seconds."""
    for node in ast.walk(ast.parse(source(COMMANDS[command]))) if command in COMMANDS else ():
        match node:
            case ast.Call(func=ast.Name(id="Program"), args=[ast.Constant(value=str(config)), *_]):
                return config
    return None
