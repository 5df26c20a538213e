"""DNSMOS by the network of the package speechmos, beside that package's own function."""

import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from jaxtyping import Float

from avdvae.data.talker.articulation import perform
from avdvae.data.talker.people import speaker
from avdvae.data.talker.phones import sentence
from avdvae.data.talker.voice import speak
from avdvae.errors import UserError, naming_extras
from avdvae.evaluation.measure import settings_of
from avdvae.signals.metrics import DNSMOS, LOOKS, score

RATE = 16_000
MODULES = ("onnxruntime", "speechmos")
installed = pytest.mark.skipif(not all(map(importlib.util.find_spec, MODULES)), reason="pip install 'avdvae[dnsmos]'")


def voice(number: int) -> Float[np.ndarray, " N"]:
    """Of a sentence of Talker, as much as makes one window when it is repeated."""
    rng, who = np.random.default_rng(number), speaker(0, number)
    return speak(perform(sentence(rng, 3.0), who.voice, 0.5, rng), who.voice, rng)[: int(2.4 * RATE)] / 32768


def in_noise(clean_N: Float[np.ndarray, " N"], snr: float) -> Float[np.ndarray, " N"]:
    noise_N = np.random.default_rng(1).standard_normal(len(clean_N))
    return clean_N + noise_N * clean_N.std() * 10 ** (-snr / 20)


@installed
@pytest.mark.parametrize("seconds", [2.8, 17.2])  # two windows, by repetition; seven and one that is left out
def test_scores_are_those_of_the_package(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # It imports librosa for the input of another network, P.808, whose score is not compared.
    feature = SimpleNamespace(melspectrogram=lambda **_: np.ones((120, 900)))
    librosa = SimpleNamespace(feature=feature, power_to_db=lambda mel, ref: mel)
    monkeypatch.setitem(sys.modules, "librosa", librosa)
    monkeypatch.setitem(sys.modules, "requests", SimpleNamespace(session=None))
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    clean = np.tile(voice(1), 8)[: int(seconds * RATE)]
    noisy = clean + np.linspace(0, 0.05, len(clean)) * np.random.default_rng(0).standard_normal(len(clean))
    theirs = importlib.import_module("speechmos.dnsmos").run(noisy, RATE)
    found = score(clean, noisy, names=DNSMOS)
    expected = {"dnsmos": theirs["ovrl_mos"], "dnsmos_sig": theirs["sig_mos"], "dnsmos_bak": theirs["bak_mos"]}
    assert found == pytest.approx(expected, abs=1e-3)


@installed
def test_noise_lowers_the_scores_and_other_utterances_leave_them() -> None:
    clean = [voice(number) for number in range(3)]
    cleanest = [score(one, one, names=DNSMOS) for one in clean]
    for one, best in zip(clean, cleanest, strict=True):
        some, much = (score(one, in_noise(one, snr), names=DNSMOS) for snr in (10, -5))
        for name in ("dnsmos", "dnsmos_bak"):
            assert 5 > best[name] > some[name] + 0.3 and some[name] > much[name] > 1, name
    assert [score(one, one.astype(np.float32), names=DNSMOS) for one in reversed(clean)] == cleanest[::-1]
    assert {*DNSMOS} < {*LOOKS}


@installed
def test_what_cannot_be_scored_is_the_worst_or_nan() -> None:
    clean = voice(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for broken in (0 * clean, np.append(clean[:-1], np.nan), 1e30 * clean):
            assert score(clean, broken, names=DNSMOS) == dict.fromkeys(DNSMOS, 1.0)
    assert all(map(math.isnan, score(0 * clean, clean, names=DNSMOS).values()))
    assert all(1 < value < 5 for value in score(clean[:9], 3 * clean[:9] + 1, names=DNSMOS).values())
    with pytest.raises(UserError, match="dnsmos_bak is defined at 16000 Hz, not at 8000: resample"):
        score(clean, clean, 8000, ["dnsmos_bak"])


@pytest.mark.parametrize("module", MODULES)
def test_a_missing_extra_is_named_before_the_work(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=object()))
    monkeypatch.setitem(sys.modules, module, None)
    sentence = rf"DNSMOS needs {module}, which is not installed: pip install 'avdvae\[dnsmos\]'$"
    with pytest.raises(UserError, match=sentence), naming_extras():
        settings_of({"metrics": ["si_sdr", "dnsmos_sig"]})
