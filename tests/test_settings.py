"""Defaults: those of the library are those of configs/, and each of them is written for a reason."""

from dataclasses import MISSING, asdict, fields
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from omegaconf import OmegaConf

from avdvae.configurations import CONFIGS, compose, defaults, targets
from avdvae.enhancement.streaming import Streaming
from avdvae.enhancement.vem import Vem
from avdvae.evaluation.tasks.task import Evaluation
from avdvae.runs import find_runs, utterances_at_a_time
from avdvae.training.settings import Training

MODELS = sorted(path.stem for path in CONFIGS.glob("model/*.yaml") if path.stem != "own")
PAPER = sorted(path.stem for path in CONFIGS.glob("exp/*_paper.yaml"))
FACE = {"width", "codes", "dim"}
HIT = {"hidden", "layers", "inner", "hidden_w", "layers_w"}
DELIBERATE = {  # what a config gives its model otherwise than its class has it
    # Sizes for two cores; the class has those published, as exp=..._paper gives them.
    "byte_lm": {"dim", "heads", "layers", "context"},
    "cw_vae": {"channels", "dim"},
    "hit_dvae": HIT,
    "light_dvae": HIT | {"light"},
    "lstm": {"hidden"},
    "mdvae": {"size", "memory", "width", "dim"},
    "srnn_wave": {"dim", "wide", "hidden"},
    "stcn": {"channels", "dims"},
    "vq_mdvae": {"size", "memory"},
    "vq_mdvae.eye": FACE,
    "vqvae_face": FACE,
    "vrnn_wave": {"dim", "wide", "hidden"},
    "wavenet": {"channels"},
    # A VAE of another line of papers.
    "sf_vae": {"hidden", "dim"},
    # The components are trained with the plain bound.
    "sw_vae.both": {"alpha", "freeze_sound"},
    "vae_mm.both": {"alpha", "freeze_sound"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_config_of_a_model_holds_only_what_differs_from_the_defaults_of_its_class(name):
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"model/{name}.yaml"))
    for place, target in targets(config):
        values = reduce(getitem, place, config)
        known = defaults(target)
        differ = set(values) & set(known) - {"floor"}
        assert all(values[key] != known[key] for key in differ)
        assert differ == DELIBERATE.get(".".join((name, *place)), set())


@pytest.mark.parametrize("name", MODELS)
def test_a_composed_model_has_the_defaults_of_its_classes(name):
    composed = compose("config", [f"model={name}", *(["model.hidden=7"] if name == "rvae" else [])])["model"]
    for place, target in targets(composed):
        values = reduce(getitem, place, composed)
        assert defaults(target).keys() <= values.keys() | {"floor"}
        if "floor" in defaults(target) and name not in ("sf_vae", "mdvae"):
            assert values["floor"] == 1.0, "without it, networks take the power itself"
    assert name != "rvae" or composed["hidden"] == 7


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_published_size_is_what_the_class_has_by_default(name):
    composed = compose("config", [f"exp={name}"])["model"]
    for place, target in targets(composed):
        values = reduce(getitem, place, composed)
        assert all(values[key] == value for key, value in defaults(target).items() if key not in ("floor", "light"))


@pytest.mark.parametrize(("section", "kind"), [("train", Training), ("evaluate", Evaluation), ("enhance", Vem)])
def test_settings_have_the_defaults_of_config_yaml(section, kind):
    config = compose("config", [])
    given = {**config[section], "seed": config["seed"]} if kind is Training else config[section]
    known: dict[str, Any] = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    known |= {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    if kind is Vem:  # its E-step is another class, and the size of its batches a matter of who calls it
        known |= {"estep": {"name": "free_gaussian"}, "batch_size": None}
    assert given == {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


def test_several_utterances_are_enhanced_at_a_time_by_the_device() -> None:
    enhance = compose("config", [])["enhance"]
    assert [utterances_at_a_time(enhance, device) for device in ("cpu", "cuda")] == [4, 16]
    assert utterances_at_a_time(enhance | {"batch_size": 3}, "cuda") == 3
    assert utterances_at_a_time(enhance | {"estep": {"name": "encoder"}}, "cpu") == 1  # it adapts to one utterance


@pytest.mark.parametrize("program", ["enhance_file", "demo"])
def test_programs_stream_with_the_defaults_of_the_library(program):
    given = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{program}.yaml"))
    assert isinstance(given, dict) and given["streaming"] == asdict(Streaming())


def test_a_run_is_found_by_the_settings_that_decide_its_weights(tmp_path):
    old = compose("config", [])
    del old["model"]["floor"]
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "last" / "state.pt").touch()
    OmegaConf.save(old, tmp_path / "run" / "config.yaml")
    for floor, found in ((None, 1), (0.001, 0)):
        assert len(find_runs(tmp_path, {**old, "model": {**old["model"], "floor": floor}})) == found
    for change, found in ({"loggers": ["wandb"]}, 1), ({"lr": 0.1}, 0):
        assert len(find_runs(tmp_path, {**old, "train": {**old["train"], **change}})) == found
