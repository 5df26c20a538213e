"""Runs of earlier versions load: their layers may have been renamed since."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_contract import LISTED, utterances

from avdvae.nn.former_names import FORMER_NAMES, name_now
from avdvae.runs import build_model, find_runs, open_run

FORMER = Path(__file__).parent / "former"
NAMES = json.loads((FORMER / "names.json").read_text())


@pytest.mark.parametrize("kind", NAMES)
def test_each_former_name_is_that_of_the_same_weights_now(kind: str) -> None:
    """Layers are made in the order in which they were, so that the order of the weights tells which is which."""
    model = build_model(LISTED[kind])
    now = [name for name in model.state_dict() if name.split(".")[-1] not in ("mean_crop", "crops")]  # younger
    assert [name_now(name, model) for name in NAMES[kind]] == now == [name_now(name, model) for name in now]


def test_no_name_is_a_former_one_of_another_layer() -> None:
    for kind, names in FORMER_NAMES.items():
        assert not set(names) & set(names.values()), kind


def test_a_run_of_an_earlier_version_gives_the_numbers_that_it_gave() -> None:
    run = open_run(FORMER / "dkf")
    with torch.no_grad():
        z_KBTL = run.load_speech_prior().infer(utterances(3300), mode="mean").z["z"]
    torch.testing.assert_close(z_KBTL.sum((0, 1, 2)), torch.tensor([0.50333, 1.86406]), rtol=1e-4, atol=1e-5)


def test_a_run_of_an_earlier_version_is_found_by_what_it_froze(tmp_path: Path) -> None:
    config = open_run(FORMER / "dkf").config
    (tmp_path / "old" / "last").mkdir(parents=True)
    (tmp_path / "old" / "last" / "state.pt").touch()
    old = {**config, "train": {**config["train"], "freeze": ["hear", "head"]}}
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(old))
    for freeze, count in ((["encoder_rnn", "combiner.posterior_net"], 1), (["encoder_rnn"], 0)):
        assert len(find_runs(tmp_path, {**config, "train": {**config["train"], "freeze": freeze}})) == count
