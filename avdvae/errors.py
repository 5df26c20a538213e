"""The one error that is meant for the user's eyes, and how a program shows it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A mistake that its reader can mend: one sentence with what was given, what is allowed and what to do."""


def known_settings(kind: Any, section: str, **given: Any) -> Any:
    """A dataclass of what a section of the configuration was given, which may be what there is not, or no number."""
    known = kind.__dataclass_fields__
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{section} has no {', '.join(unknown)}: choose from {', '.join(known)}")
    numbers = {"int": ((int,), "a whole number"), "float": ((int, float), "a number")}
    for name, value in given.items():
        types, what = numbers.get(known[name].type, ((type(value),), ""))
        if type(value) not in types:
            raise UserError(f"{section}.{name}={value}: give {what}")
    return kind(**given)


@contextmanager
def as_a_program(*mistakes: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """What programs do around their work: they find a model of the user's own in the current folder, and end with one
    sentence, and not with a traceback, where their input is wrong, as a UserError or one of `mistakes` says, or Ctrl-C
    was pressed."""
    sys.path.insert(0, str(Path.cwd()))
    program = Path(sys.argv[0]).name
    try:
        yield
    except (UserError, *mistakes) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: {interrupted}")
