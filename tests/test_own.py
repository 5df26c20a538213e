"""Readers, models and tasks of the user's files and of other packages."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_stage import make_run

from avdvae.data.corpora import open_corpus
from avdvae.data.prepare import Summary
from avdvae.data.shards import PreparedCorpus
from avdvae.entry_points import installed
from avdvae.errors import UserError
from avdvae.evaluation.measure import settings_of
from avdvae.evaluation.results import read_results
from avdvae.evaluation.tasks import find_task
from avdvae.programs.listing import others
from avdvae.runs import build_model

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "docs/own_reader.md").read_text()
(READER,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_reader_of_the_page_prepares_a_corpus(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "my_reader.py").write_text(READER)
    (tmp_path / "my_corpus").mkdir()
    for suffix in (".mp4", ".wav"):
        shutil.copy(clip.with_suffix(suffix), tmp_path / f"my_corpus/hello{suffix}")
    table = "file\tspeaker\tsplit\ttext\nhello\tanna\ttest\tgood day\nlost\tbob\ttrain\t\n"
    (tmp_path / "my_corpus/index.tsv").write_text(table)
    said = []
    (shell,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in shell.splitlines():
        _, program, *words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, str(PROJECT / program), *words], cwd=tmp_path, capture_output=True, text=True
        )
        said.append(done.stdout)
        assert done.returncode == 0 or "check_only=true" in words, done.stderr
    assert "lost.mp4: is missing" in said[0]
    films, sounds = sorted((tmp_path / "data/prepared").iterdir(), key=lambda path: not PreparedCorpus(path).has_lips)
    (film,), (sound,) = PreparedCorpus(films).utterances, PreparedCorpus(sounds).utterances
    for utterance in (film, sound):
        assert (utterance.id, utterance.speaker, utterance.split) == ("hello", "anna", "test")
        assert utterance.labels == {"text": "good day"}
    assert not PreparedCorpus(sounds).has_lips


def test_the_task_and_the_estep_of_the_page_run(prepared: Summary, clip: Path, tmp_path: Path) -> None:
    page = (PROJECT / "docs/extending.md").read_text()
    task, estep = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ((_, program, *words),) = [shlex.split(line) for line in re.findall(r"```sh\n(.*?)\n```", page)]
    make_run(tmp_path / "runs/vae", prepared.out, "VAE")
    (tmp_path / "active_units.py").write_text(task)
    shutil.copy(clip.with_suffix(".wav"), tmp_path / "noisy.wav")
    asked = [str(PROJECT / program), *words, "out=measured", "evaluate.workers=1"]
    for command in (asked, ["-c", estep + "print(clean.samples.std())"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1
    counts = [row.value for row in read_results(tmp_path / "measured/results.csv") if row.metric == "active_units"]
    assert counts and all(0 <= count <= 4 and count == int(count) for count in counts)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that enters a reader, a model and a task, and others that cannot be imported."""
    (tmp_path / "their_package.py").write_text(
        READER
        + """
from avdvae.evaluation.tasks.resynthesis import Resynthesis
from avdvae.models.vae import VAE

class TheirVAE(VAE):
    pass

class TheirTask(Resynthesis):
    def __init__(self):
        super().__init__(true_past=False)

class NoReader:
    pass
"""
    )
    (tmp_path / "their_broken_module.py").write_text("raise RuntimeError('half installed')\n")
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    broken = "broken = their_broken_module:Thing\n"
    (info / "entry_points.txt").write_text(
        f"[avdvae.readers]\ntheirs = their_package:MyReader\nnone = their_package:NoReader\n{broken}"
        f"[avdvae.models]\ntheir_vae = their_package:TheirVAE\n{broken}"
        f"[avdvae.tasks]\ntheir_task = their_package:TheirTask\n{broken}"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_readers_models_and_tasks_of_other_packages_are_found_by_name(package: None, tmp_path: Path) -> None:
    corpus: Any = open_corpus({"reader": "theirs", "root": tmp_path, "films": False})
    assert type(corpus).__name__ == "MyReader" and not corpus.films
    assert type(build_model({"target": "their_vae", "dim": 4})).__name__ == "TheirVAE"
    assert settings_of({"tasks": ["their_task", "their_package.TheirTask"]}).tasks[0] == "their_task"
    assert type(find_task("their_task")).__name__ == "TheirTask"
    assert {"broken", "their_vae"} <= {*installed("models")} and others()["their_task"] == "evaluate.tasks=their_task"
    assert open_corpus({"reader": "talker", "root": tmp_path}) and "their_broken_module" not in sys.modules


def test_wrong_names_and_broken_packages_are_explained(package: None, tmp_path: Path) -> None:
    broken = r"=broken is of the package their-package, which cannot be imported \(RuntimeError: half installed\)"
    for reader, sentence in {
        "broken": f"data.reader{broken}",
        "theris": r"no corpus reader is called theris: did you mean theirs\?",
        "xyz": "no corpus reader is called xyz: choose from talker, gait, flute, ",
        "my_file.My": r"data.reader=my_file.My cannot be found \(No module",
        "none": "data.reader=none is no dataclass",
    }.items():
        with pytest.raises(UserError, match=sentence):
            open_corpus({"reader": reader, "root": "."})
    with pytest.raises(UserError, match=r"data has no film: did you mean films\?"):
        open_corpus({"reader": "theirs", "root": ".", "film": True})
    for model, sentence in {
        "broken": f"model.target{broken}",
        "their_vea": r"no model is called their_vea: did you mean their_vae\?",
    }.items():
        with pytest.raises(UserError, match=sentence):
            build_model({"target": model})
    for task, sentence in {
        "broken": f"evaluate.tasks{broken}",
        "enhancment": r"no task is called enhancment: did you mean enhancement\?",
        "their_package.NoReader": "evaluate.tasks=their_package.NoReader is no task",
    }.items():
        with pytest.raises(UserError, match=sentence):
            settings_of({"tasks": [task]})
