"""The one error that is meant for the user's eyes, and how a program shows it."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints


class UserError(ValueError):
    """A mistake that its reader can mend: one sentence with what was given, what is allowed and what to do."""


def known_settings(kind: Any, section: str, **given: Any) -> Any:
    """A dataclass of what a section of the configuration was given, which may be what there is not, or not what it is
    for: a word in place of a number, or of a list."""
    check_settings(kind, section, **given)
    return kind(**given)


def check_settings(kind: Any, section: str, **given: Any) -> None:
    """Refuse what `kind` does not have, and values of other types."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{section} has no {', '.join(unknown)}: choose from {', '.join(known)}")
    hints = get_type_hints(kind)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{section}.{name}={value}: give {_asked(hints[name])}".removeprefix("."))


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a word"),
    bool: ((bool,), "true or false"),
    NoneType: ((NoneType,), "null"),
    Mapping: ((dict,), "settings of it, as name.setting=value"),
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is of this type, as far as types are those of configurations."""
    if hint in _PLAIN:
        return type(value) in _PLAIN[hint][0]
    if get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    return not get_args(hint) or any(_fits(value, option) for option in get_args(hint))


def _asked(hint: Any) -> str:
    if get_origin(hint) is Sequence:
        return f"a list in brackets, each of it {_asked(get_args(hint)[0])}"
    return _PLAIN[hint][1] if hint in _PLAIN else ", or ".join(map(_asked, get_args(hint)))


def whole_numbers(section: str, given: Mapping[str, Any], **least: int) -> None:
    """Refuse what is no whole number or less than `least` of its name; section is "enhance." or nothing."""
    for name, low in least.items():
        if type(value := given[name]) is not int or value < low:
            raise UserError(f"{section}{name}={value}: give a whole number of {low} or more")


@contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Whatever a parser raises over the content of a file becomes one sentence: which file, what is wrong with it, and
    what to do. Parsers of damaged files raise what their reading happens to end in, so that no list of kinds would do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is cut off, damaged or no {kind} ({one_line(error)}): {remedy}") from error


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """A mistake that is found in what a file says is told with the file's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


@contextmanager
def as_a_program(*mistakes: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """What programs do around their work: they find a model of the user's own in the current folder, and end with one
    sentence, and not with a traceback, where their input is wrong, as a UserError or one of `mistakes` says, or Ctrl-C
    was pressed."""
    import torch

    # The slopes of saturated gates are so close to 0 that a CPU takes far longer for them.
    torch.set_flush_denormal(True)
    sys.path.insert(0, str(Path.cwd()))
    program = Path(sys.argv[0]).name
    try:
        yield
    except (UserError, *mistakes) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: {interrupted}")
