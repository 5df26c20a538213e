"""What several tests share: a tiny Talker, generated and prepared once."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from avdvae.configurations import register
from avdvae.data.prepare import Summary, prepare
from avdvae.data.talker.corpus import Talker
from avdvae.programs import command, program
from avdvae.signals.faces import find_face_model

register()  # for tests that compose configurations


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "check the contract (tests/test_contract.py) on this model instead of those of configs/model"
    parser.addoption("--model", metavar="MODULE.CLASS", help=about)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Talker:
    """Six speakers, two short utterances each."""
    corpus = Talker(tmp_path_factory.mktemp("corpora"), speakers=6, utterances=2, seconds=2.5)
    corpus.clips(workers=2)
    return corpus


@pytest.fixture(scope="session")
def prepared(talker: Talker, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return prepare(talker, tmp_path_factory.mktemp("prepared"), find_face_model(), workers=2)


@pytest.fixture(scope="session")
def clip(talker: Talker) -> Path:
    """One mp4 of the tiny Talker."""
    video = talker.clips(workers=1)[0][0].video
    assert video
    return video


@pytest.fixture
def avdvae_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command in this process, in an empty folder; the sentence with which it ends, if it does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(program, "prepare_process", lambda: None)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["avdvae", *words])
        try:
            command.main()
        except SystemExit as end:
            return str(end)
        return ""

    return call
