"""The notebooks run from the first cell to the last, with parameters that make them small."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest
from test_stage import make_run

from avdvae.data.prepare import Summary, prepare
from avdvae.data.talker.corpus import Talker

FOLDER = Path(__file__).parent.parent / "docs/notebooks"
CELLS = {path.stem: json.loads(path.read_text())["cells"] for path in FOLDER.glob("*.ipynb")}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the notebooks display; of IPython, which tests do without."""
    calls: list[Any] = []
    ipython: Any = ModuleType("IPython")
    ipython.version_info, ipython.get_ipython = (9, 0), lambda: None  # which Matplotlib asks
    display: Any = ModuleType("IPython.display")
    display.Audio = lambda samples, rate: (samples, rate)
    display.Image = lambda name: Path(name).read_bytes()
    display.display = calls.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    return calls


def run(name: str, **parameters: Any) -> dict[str, Any]:
    """The names of a notebook after its last cell, with these values in its cell of parameters."""
    code = [cell for cell in CELLS[name] if cell["cell_type"] == "code"]
    assert [cell["metadata"] for cell in code].index({"tags": ["parameters"]}) == 0
    assert not [cell for cell in code if cell["outputs"]], "notebooks are committed without outputs"
    names: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
        if number == 0:
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names


def test_recordings_are_enhanced(shown: list[Any], clip: Path) -> None:
    names = run("enhance", speech_file=clip.with_suffix(".wav"), iterations=10)
    clean, noisy, score = names["clean"], names["noisy"], names["si_sdr"]
    assert len(shown) == 5 and score(clean, names["speech"]["rvae-librispeech"]) > score(clean, noisy) + 3


def test_a_model_is_trained_and_compared(shown: list[Any], prepared: Summary) -> None:
    small = {"train": "debug", "evaluate": {"noises": ["White"], "snrs": [0], "metrics": ["si_sdr"]}}
    trained = run("train_your_own", corpus=str(prepared.out), settings=small)
    assert {row.metric for row in trained["results"]} >= {"si_sdr", "estoi"} and len(trained["rows"]) == 2
    measured = {"noises": ["White", "Car"], "snrs": [-5, 5], "per_speaker": 1}
    compared = run("compare_honestly", corpus=str(prepared.out), settings=small, measured=measured)
    assert [row.snr for row in compared["differences"]] == [-5, 5] and Path("runs/nmf/report.html").exists()


def test_latents_are_swapped(shown: list[Any], tmp_path: Path) -> None:
    talker = Talker(tmp_path / "corpora", speakers=3, utterances=1, seconds=1.5)
    corpus = prepare(talker, tmp_path / "prepared", workers=1, face=64).out
    make_run(tmp_path / "runs/mdvae", corpus, "MDVAE", hidden=None, size=8, memory=4, width=8, dim=2)
    names = run("voice_and_face", run_dir="runs/mdvae", source="01M/tk001", target="02F/tk001")
    assert {*names["z"]} == {*names["swaps"]} == {"w", "z_av", "z_a", "z_v"} and len(shown) == 5
