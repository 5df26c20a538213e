"""The one error that is meant for the user's eyes, and how a program shows it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake that its reader can mend: one sentence with what was given, what is allowed and what to do."""


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
