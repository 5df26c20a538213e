"""The error for the user, checks of settings, and how programs report errors."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints


class UserError(ValueError):
    """A mistake that the user can correct: one sentence with what was given, what is allowed and what to do."""


def known_settings(kind: Any, section: str, **given: Any) -> Any:
    """Build `kind`, a dataclass, from a config section; refuse unknown keys and wrong types."""
    check_settings(kind, section, **given)
    return kind(**given)


def check_settings(kind: Any, section: str, **given: Any) -> None:
    """Refuse unknown keys and wrong types."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{section} has no {', '.join(unknown)}: {nearest(unknown[0], known)}")
    hints = get_type_hints(kind)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{section}.{name}={value}: give {_allowed(hints[name])}".removeprefix("."))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the names that are like it or, where there are none, all."""
    known = [*known]
    like = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(like)}?" if like else f"choose from {', '.join(known)}"


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a word"),
    bool: ((bool,), "true or false"),
    NoneType: ((NoneType,), "null"),
    Mapping: ((dict,), "its settings, as name.setting=value"),
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration has this type; types that YAML has not are not checked."""
    if hint in _PLAIN:
        return type(value) in _PLAIN[hint][0]
    if get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    return not get_args(hint) or any(_fits(value, option) for option in get_args(hint))


def _allowed(hint: Any) -> str:
    if get_origin(hint) is Sequence:
        return f"a list in brackets, each item {_allowed(get_args(hint)[0])}"
    return _PLAIN[hint][1] if hint in _PLAIN else ", or ".join(map(_allowed, get_args(hint)))


def whole_numbers(section: str, given: Mapping[str, Any], **least: int) -> None:
    """Refuse values that are not whole numbers of at least `least`; section is "enhance." or nothing."""
    for name, low in least.items():
        if type(value := given[name]) is not int or value < low:
            raise UserError(f"{section}{name}={value}: give a whole number of {low} or more")


@contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turn any error of a parser into a UserError: which file, what is wrong with it, and what to do. It catches every
    exception, because parsers of damaged files raise errors of any kind.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is cut off, damaged or no {kind} ({one_line(error)}): {remedy}") from error


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Put the file's name before a UserError over its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__


# Packages that an extra of pyproject.toml installs, by the names that they are imported by: what for, and the extra.
EXTRAS: dict[str, tuple[str, str]] = {
    "av": ("reading and writing films, and sounds that soundfile cannot read, needs PyAV", "video"),
    "cv2": ("pictures need OpenCV", "video"),
    "mediapipe": ("finding lips and faces needs MediaPipe", "video"),
    "lightning_fabric": ("training needs Lightning Fabric", "train"),
    "tensorboard": ("the curves of a training need TensorBoard", "train"),
    "torchvision": ("augmentation of lips needs torchvision", "train"),
    "matplotlib": ("figures need Matplotlib", "report"),
    "jinja2": ("reports need Jinja2", "report"),
    "fast_bss_eval": ("SDR needs fast-bss-eval", "metrics"),
    "pesq": ("PESQ needs pesq", "metrics"),
    "pystoi": ("STOI needs pystoi", "metrics"),
    "torchaudio": ("mel spectra, and noises and voices of another rate, need torchaudio", "metrics"),
    "onnxruntime": ("DNSMOS needs onnxruntime", "dnsmos"),
    "speechmos": ("DNSMOS needs speechmos", "dnsmos"),
    "cdflib": ("files of Human3.6M need cdflib", "corpora"),
    "h5py": ("MATLAB files of NTCD-TIMIT need h5py", "corpora"),
    "parselmouth": ("pitch and formants need praat-parselmouth", "control"),
    "pyworld": ("pitch needs pyworld", "control"),
    "pkg_resources": ("pyworld needs setuptools", "control"),
    "wandb": ("train.loggers=[wandb] needs Weights & Biases", "wandb"),
    "mlflow": ("train.loggers=[mlflow] needs MLflow", "mlflow"),
    "gradio": ("the demo needs gradio", "demo"),
}


@contextmanager
def naming_extras() -> Iterator[None]:
    """Turn the error over a package that is not installed into a UserError with the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0]) not in EXTRAS:
            raise
        needed, extra = EXTRAS[package]
        raise UserError(f"{needed}, which is not installed: pip install 'avdvae[{extra}]'") from error


def require(*packages: str) -> None:
    """Fail now, not after the work, if one of these is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def prepare_process() -> None:
    """At the start of a program: faster numbers, and models of the user, in the current folder, can be imported."""
    import torch

    # Gradients of saturated gates are denormal numbers, which are slow on CPUs.
    torch.set_flush_denormal(True)
    sys.path.insert(0, str(Path.cwd()))


@contextmanager
def in_sentences(name: str, interrupted: str = "interrupted") -> Iterator[None]:
    """Exit with one sentence, after the `name` of the program, instead of a traceback on a UserError, a missing
    package of an extra, or Ctrl-C."""
    try:
        with naming_extras():
            yield
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"{name}: {str(stop) or interrupted}")
