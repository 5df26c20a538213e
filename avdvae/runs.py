"""The directory of a run: its configuration and weights, and how to load its model.

config.yaml           the resolved configuration
weights.safetensors   best weights              last/             state of the training, to resume it
metrics.jsonl         training curve            tensorboard/      the same, with pictures and sound
metrics.csv           a row an epoch            loggers.json      its runs in Weights & Biases and MLflow
results.csv           every value               summary.json      means with intervals
report.html           the report                audio/, figures/  its examples
learned_estep/        the training of an E-step for it
run.json              sizes, times, and the commands that started and resumed it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import nn

from avdvae.enhancement.contract import Rounds
from avdvae.enhancement.esteps import SCHEDULED, build_estep
from avdvae.enhancement.learned import Learned, LearnedPosterior
from avdvae.enhancement.vem import Vem
from avdvae.entry_points import find_class
from avdvae.errors import UserError, check_settings, in_file, known_settings, reading, whole_numbers
from avdvae.files import replacing
from avdvae.nn.former_names import name_now
from avdvae.nn.weights import WEIGHTS, load_weights
from avdvae.protocols import SpeechPrior, why_no_speech_prior, why_not_enhancing
from avdvae.signals.audio import Stft

LEARNED = "learned_estep"  # in the folder of a run: the training of an E-step for it
PACKAGED = Path(__file__).parent / "weights"  # runs that come with the package, each with a card


@dataclass(frozen=True)
class Configuration:
    """Keys and types of configs/config.yaml. The users of a section check its content."""

    exp: str
    data: Mapping
    model: Mapping
    train: Mapping
    lips: Mapping
    enhance: Mapping
    evaluate: Mapping
    hop: int
    seed: int
    runs: str = "runs"
    run_dir: str | None = None
    resume: str | None = None
    prepared: str | None = None
    start: Sequence[str] = ()
    models: Sequence[str] = ()
    seeds: Sequence[int] = ()
    compare: Sequence[str] = ()

    # Keys of sections that are read before the sections are checked.
    WITHIN: ClassVar[Mapping[str, Sequence[str]]] = {
        "data": ("reader", "root"),
        "model": ("target",),
        "train": ("accelerator", "trim_db"),
        "lips": ("size",),
        "enhance": ("estep", "batch_size"),
    }

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Unknown top-level keys are allowed: the user may add some."""
        check_settings(cls, "", **{name: value for name, value in config.items() if name in cls.__dataclass_fields__})
        if missing := [field.name for field in fields(cls) if field.default is NO_DEFAULT and field.name not in config]:
            raise UserError(f"the configuration lacks {', '.join(missing)}")
        if missing := [f"{part}.{key}" for part, keys in cls.WITHIN.items() for key in keys if key not in config[part]]:
            raise UserError(f"the configuration lacks {', '.join(missing)}")


MISSING = "???"  # of Hydra, for a key without a value; null is a value


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the values of `changes` that are not MISSING, recursively; a section whose `name` changes loses its
    other settings, and an E-step that is scheduled has iterations of its own."""
    if changes.get("name", MISSING) not in (MISSING, config.get("name")):
        config = {}
    new = dict(config)
    before, after = (
        section["estep"].get("name", MISSING) if isinstance(section.get("estep"), Mapping) else MISSING
        for section in (config, changes)
    )
    if MISSING not in (before, after) and before != after and SCHEDULED & {before, after}:
        new |= dict.fromkeys(new.keys() & {*Rounds._fields})  # those of the new E-step
    for key, value in changes.items():
        if isinstance(value, Mapping):
            if (section := changed(config.get(key) or {}, value)) or key in config:
                new[key] = section
        elif value != MISSING:
            new[key] = value
    return new


@dataclass(frozen=True)
class Run:
    path: Path
    config: dict[str, Any] = field(repr=False)

    @property
    def stft(self) -> Stft:
        return Stft(self.config["hop"])

    @property
    def packaged(self) -> bool:
        """Whether it came with the package."""
        return self.path.parent == PACKAGED

    @property
    def name(self) -> str:
        """By which `open_run` finds it."""
        return self.path.name if self.packaged else str(self.path)

    @property
    def results(self) -> Path:
        """The folder in which programs put what they make with it; the package stays as it is."""
        return Path("runs", self.name) if self.packaged else self.path

    @property
    def device(self) -> str:
        """The device of the trained model."""
        return "cuda" if torch.cuda.is_available() and self.config["train"]["accelerator"] != "cpu" else "cpu"

    @property
    def noted(self) -> dict[str, Any]:
        """The content of run.json."""
        path = self.path / "run.json"
        if not path.exists():
            return {}
        with reading(path, "notes of a run", f"delete it; resume={self.path} then writes a new one"):
            noted = json.loads(path.read_text())
            if not (isinstance(noted, dict) and isinstance(noted.get("seconds", {}), dict)):
                raise ValueError("it has no names with values")
        return noted

    @property
    def begun(self) -> bool:
        """Whether there is a training to resume."""
        return (self.path / "last" / "state.pt").exists()

    @property
    def trained(self) -> bool:
        """Whether its training is complete."""
        noted = self.noted
        return "train" in noted.get("seconds", {}) and not noted.get("unfinished")

    def build_model(self) -> nn.Module:
        """The untrained model."""
        with in_file(self.path / "config.yaml"):
            return build_model(self.config["model"])

    def load_model(self, device: str = "cpu") -> nn.Module:
        """The model with its best weights, for inference."""
        weights = self.path / WEIGHTS
        if not weights.exists():
            raise UserError(f"{self.path} has no weights yet: finish its training with resume={self.path}")
        model = self.build_model()
        load_weights(model, weights)
        return model.to(device).eval().requires_grad_(False)

    def load_speech_prior(self, device: str = "cpu") -> SpeechPrior:
        model: Any = self.load_model(device)
        if reason := why_no_speech_prior(model):
            raise UserError(reason)
        return model

    def load_enhancing(self, device: str = "cpu") -> Any:
        """A model with which the EM enhances."""
        model: Any = self.load_model(device)
        if reason := why_not_enhancing(model):
            raise UserError(reason)
        return model

    def load_learned_posterior(self) -> LearnedPosterior:
        """Of exp=learned_estep, for this run."""
        for folder in (self.results / LEARNED, self.path / LEARNED):
            if (folder / WEIGHTS).exists():
                break
        else:
            run = self.name if (self.path / "config.yaml").exists() else "RUN"
            raise UserError(
                f"enhance.estep.name=learned: {run} has no learned E-step: train one in minutes, with "
                f"python experiments/run.py exp=learned_estep start=[{run}], or choose another E-step"
            )
        posterior: Any = open_run(folder).build_model()
        try:
            posterior.start_from(self.load_model())
        except RuntimeError as error:
            raise UserError(f"{folder} is for another model than that of {self.path}: train it anew") from error
        load_weights(posterior, folder / WEIGHTS)
        return posterior.eval().requires_grad_(False)

    def note(self, **facts: Any) -> None:
        """Add to run.json."""
        known = self.noted
        for name, fact in facts.items():
            known[name] = known.get(name, {}) | fact if isinstance(fact, dict) else fact
        with replacing(self.path / "run.json") as new:
            new.write_text(json.dumps(known, indent=1))

    @contextmanager
    def undone_unless(self, begun: str) -> Iterator[None]:
        """Undo the creation if a UserError is raised before `begun` exists."""
        try:
            yield
        except UserError:
            if not (self.path / begun).exists():
                for name in ("config.yaml", "run.json"):
                    (self.path / name).unlink(missing_ok=True)
                with suppress(OSError):  # the folder may contain files of the user
                    self.path.rmdir()
            raise


def create_run(path: Path, config: dict[str, Any]) -> Run:
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / "config.yaml") as new:
        new.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Run(path, config)


def packaged_weights() -> list[str]:
    """The names of the runs that come with the package."""
    return sorted(config.parent.name for config in PACKAGED.glob("*/config.yaml"))


def open_run(path: Path) -> Run:
    """The run in the folder `path`, or packaged weights by name."""
    if not (path / "config.yaml").is_file() and str(path) in packaged_weights():
        path = PACKAGED / path
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path} is no run, for it has no config.yaml: give a folder made by experiments/run.py, or packaged "
            f"weights: {' or '.join(packaged_weights())}"
        )
    file, remedy = path / "config.yaml", "restore it from a copy, or train the run anew"
    config = read_config(file, "configuration of a run", remedy)
    try:
        Configuration.check(config)
    except UserError as error:
        raise UserError(f"{file} is damaged or of another kind, for {error}: {remedy}") from error
    return Run(path, config)


def read_config(file: Path, kind: str, remedy: str) -> dict[str, Any]:
    """A file of names with values; `kind` and `remedy` are for the error over one that is damaged."""
    with reading(file, kind, remedy):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it has no names with values")
    return config


def find_runs(root: Path, config: dict[str, Any]) -> list[Run]:
    """The runs below `root` whose training, complete or not, gives the same weights as this configuration."""
    found, wanted = [], deciding_settings(config)
    for path in sorted(root.rglob("last/state.pt")):
        try:
            run = open_run(path.parent.parent)
        except UserError as error:
            print(f"skipped {error}", flush=True)
            continue
        if deciding_settings(run.config) == wanted:
            found.append(run)
    return found


NO_MATTER = ("accelerator", "compile", "devices", "nodes", "strategy", "workers", "log_every", "save_every", "loggers")


def deciding_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings on which the weights depend, apart from rounding."""
    names, parts = ("data", "prepared", "hop", "start", "seed"), ("model", "train", "lips")
    # A setting that is null may be missing from the configuration of an older run.
    sections = {
        part: {k: v for k, v in config.get(part, {}).items() if k not in NO_MATTER and v is not None} for part in parts
    }
    if frozen := sections["train"].get("freeze"):  # perhaps by the names that an older run has for them
        with torch.device("meta"):
            model = build_model(config["model"])
        sections["train"]["freeze"] = [name_now(name, model) for name in frozen]
    return {**{name: config.get(name) for name in names}, **sections}


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """An instance of the class `target` with the other settings as arguments, which may contain models."""
    arguments: dict[str, Any] = {
        k: build_model(v) if isinstance(v, Mapping) and "target" in v else v for k, v in config.items()
    }
    model = find_class("models", arguments.pop("target"))
    name = model.__name__
    given = ", ".join(f"{k}={v}" for k, v in arguments.items() if not isinstance(v, nn.Module)) or "nothing"
    # errors in models of other packages keep their traceback
    sizes = (ValueError, IndexError, RuntimeError) if model.__module__.startswith("avdvae.") else ()
    try:
        made = model(**arguments)
    except UserError:
        raise
    except (TypeError, *sizes) as error:
        raise UserError(f"{name} cannot be built with {given}: {error}") from error
    if any(not parameter.numel() for parameter in made.parameters()):
        raise UserError(f"{name} with {given} has layers without units: give sizes of 1 or more")
    return made


def utterances_at_a_time(enhance: Mapping[str, Any], device: str) -> int:
    """Of a run's `enhance` section; by default what pays on the device (docs/performance.md), and one where the E-step
    trains the encoder on each."""
    several = 4 if device == "cpu" else 16
    return enhance["batch_size"] or (1 if enhance["estep"]["name"] == "encoder" else several)


def build_vem(config: Mapping[str, Any], run: Run | None = None) -> Vem:
    """The EM settings of a run's `enhance` section. An E-step that is learned for a run is taken from its folder."""
    if not isinstance(config["estep"], Mapping):
        raise UserError(f"enhance.estep={config['estep']}: write enhance.estep.name={config['estep']}")
    if config.get("batch_size") is not None:
        whole_numbers("enhance.", config, batch_size=1)
    settings = {name: value for name, value in config.items() if name not in ("estep", "batch_size")}
    estep = build_estep(**config["estep"])
    if run and isinstance(estep, Learned):
        estep = replace(estep, network=run.load_learned_posterior())
    return known_settings(Vem, "enhance", estep=estep, **settings)
