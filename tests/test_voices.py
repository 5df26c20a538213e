"""What the readers of sound alone make of a tree."""

from pathlib import Path

import numpy as np
import pytest

from avdvae.data.corpora import open_corpus
from avdvae.data.fixtures import MINIATURES
from avdvae.data.fixtures.miniature import Take
from avdvae.errors import UserError
from avdvae.signals.video import read_mono

SAMPLES = (3000 * np.sin(np.arange(8000) ** 1.3)).astype(np.int16)


@pytest.fixture
def clips(tmp_path):
    """The clips of a miniature by id, and the faults."""

    def read(name, change=lambda root: None, **parameters):
        MINIATURES[name].write(tmp_path, [Take(SAMPLES, Path(), "F", "one and two")])
        change(tmp_path)
        found, faults = open_corpus({"reader": name, "root": str(tmp_path), **parameters}).clips(1)
        return {clip.id: clip for clip in found}, faults

    return read


def test_an_utterance_in_the_log_has_a_noise(clips):
    found, faults = clips("voicebank_demand")
    assert found["p232/p232_001"].labels == {"noise": "cafeteria", "snr": 7.5}
    assert found["p232/p232_002"].labels == {}
    assert {clip.speaker: clip.split for clip in found.values()} == {"p226": "valid", "p228": "train", "p232": "test"}
    assert len(faults) == 1 and "p287 (valid)" in faults[0].reason and "p228" not in faults[0].reason


def test_a_sphere_file_compressed_with_shorten_is_heard_exactly(clips):
    found, _ = clips("wsj0")
    samples, start = read_mono(found["01t/01to030v"].source)
    assert start == 0 and np.array_equal(samples, SAMPLES)


def test_of_wsj0_a_converted_file_is_taken_and_a_speaker_of_wsj1_is_not(clips):
    def change(root):
        (root / "si_dt_05" / "050" / "050a0501.wv1").write_bytes(b"")
        (root / "si_dt_05" / "4k0").mkdir()
        (root / "si_dt_05" / "4k0" / "4k0c0301.wv1").write_bytes(b"")
        (root / "11-1.1").mkdir()
        (root / "si_tr_s").rename(root / "11-1.1" / "si_tr_s")

    found, _ = clips("wsj0", change)
    assert found["050/050a0501"].source.suffix == ".wav" and "4k0/4k0c0301" not in found
    assert found["01t/01to030v"].labels == {"sex": "M"} and len(found) == 7


def test_of_librispeech_words_and_sexes_are_known(clips):
    found, faults = clips("librispeech", lambda root: next(root.glob("dev-clean/*/*/*.txt")).unlink())
    assert found["103/103-1240-0000"].labels == {"text": "ONE AND TWO", "sex": "F"}
    (fault,) = faults
    assert fault.path.name == "1272-128104.trans.txt" and "is missing, and these clips are kept without" in fault.reason


def test_subsets_of_librispeech_are_chosen(clips):
    found, _ = clips("librispeech", train=[], valid=[], test=["dev-clean", "test-clean"])
    assert {clip.split for clip in found.values()} == {"test"} and len(found) == 4
    with pytest.raises(UserError, match=r"data\.train=train-clean: choose from train-clean-100, "):
        clips("librispeech", train=["train-clean"])
    with pytest.raises(UserError, match=r"data\.valid=test-clean: it is named twice"):
        clips("librispeech", valid=["test-clean"])
