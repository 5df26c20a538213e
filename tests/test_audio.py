"""The STFT against torch's and its own inverse; sound files; trimming."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avdvae.data.talker.articulation import perform
from avdvae.data.talker.people import speaker
from avdvae.data.talker.phones import sentence
from avdvae.data.talker.voice import speak
from avdvae.errors import UserError
from avdvae.signals.audio import MARGIN, WINDOW, Stft, read_wav, sine_window, trim_silence, write_wav

HOPS = pytest.mark.parametrize("hop", [256, 533])


@HOPS
@settings(deadline=None, max_examples=30)
@given(samples=st.integers(1, 6000), seed=st.integers(0, 99))
def test_synthesis_inverts_analysis(hop, samples, seed):
    stft = Stft(hop)
    waveform = torch.rand(2, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    spec = stft.analyse(waveform)
    assert spec.shape == (2, 1 + samples // hop, 513)
    again = stft.synthesise(spec, samples)
    assert again.shape == waveform.shape
    weighed = samples // hop * hop + MARGIN - 12  # beyond, the last window's square is below a thousandth
    torch.testing.assert_close(again[:, :weighed], waveform[:, :weighed], atol=1e-5, rtol=0)
    assert again.abs().max() <= 1 + 1e-5


@HOPS
@settings(deadline=None, max_examples=20)
@given(samples=st.integers(MARGIN + 1, 5000))
def test_analysis_is_that_of_torch(hop, samples):
    waveform = torch.randn(3, samples)
    window = sine_window(waveform.device)
    expected = torch.stft(waveform, WINDOW, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    torch.testing.assert_close(Stft(hop).analyse(waveform), expected.mT, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(Stft(hop).power(waveform), expected.mT.abs().square(), atol=1e-3, rtol=1e-4)


def test_a_window_first_used_under_inference_mode_serves_training():
    sine_window.cache_clear()
    with torch.inference_mode():
        Stft(256).analyse(torch.ones(1, 2000))
    waveform = torch.ones(1, 2000, requires_grad=True)
    Stft(256).power(waveform).sum().backward()
    assert waveform.grad is not None and waveform.grad.abs().sum() > 0


def test_the_stft_says_what_it_cannot_do():
    for hop in (0, 534):
        with pytest.raises(UserError, match=f"{hop} samples: choose 1 to 533"):
            Stft(hop)
    with pytest.raises(UserError, match="no spectrum"):
        Stft(256).analyse(torch.zeros(1, 0))
    with pytest.raises(UserError, match="11 frames at hop 256 and the spectrum has 9"):
        Stft(256).synthesise(torch.zeros(1, 9, 513, dtype=torch.complex64), 2560)


def test_sound_files_keep_their_sound(tmp_path):
    import soundfile

    seconds = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "stereo.wav", np.stack([2 * tone, np.zeros_like(tone)], axis=1), 44_100, subtype="FLOAT")
    waveform = read_wav(tmp_path / "stereo.wav")
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert waveform.shape == (16_000,) and waveform.dtype == torch.float32
    np.testing.assert_allclose(waveform[200:-200], expected[200:-200], atol=2e-3)
    write_wav(tmp_path / "mono.wav", waveform, 16_000)
    torch.testing.assert_close(read_wav(tmp_path / "mono.wav"), waveform, atol=1 / 2**15, rtol=0)


def test_sound_files_that_cannot_be(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("text.wav", "missing.wav"):
        with pytest.raises(UserError, match=f"{name} cannot be read as sound"):
            read_wav(tmp_path / name)
    with pytest.raises(UserError, match="sample rate of 16 Hz"):
        write_wav(tmp_path / "new.wav", torch.zeros(9), 16)
    with pytest.raises(UserError, match="not finite"):
        write_wav(tmp_path / "new.wav", torch.full((9,), torch.nan), 16_000)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_trimming_finds_the_speech(dtype):
    rng = np.random.default_rng(0)
    loudness = np.repeat([3, 3000, 3], [8000, 16_000, 5000])  # 60 dB between silence and speech
    start, stop = trim_silence((rng.standard_normal(loudness.size) * loudness).clip(-32767, 32767).astype(dtype))
    assert 8000 - 768 <= start <= 8000 and 24_000 <= stop <= 24_000 + 768


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=1500), st.floats(0.1, 90))
def test_trimming_leaves_something(samples, top_db):
    start, stop = trim_silence(np.array(samples, dtype=np.int16), top_db)
    assert 0 <= start < stop <= len(samples)


@HOPS
@pytest.mark.parametrize("samples", [WINDOW * 16, 20_011])
def test_griffin_lim_finds_a_signal_of_nearly_the_same_spectrum(hop, samples):
    rng, voice, stft = np.random.default_rng(0), speaker(seed=0, number=1).voice, Stft(hop)
    speech = torch.from_numpy(speak(perform(sentence(rng, 2.0), voice, 1.0, rng), voice, rng)[:samples] / 32768).float()
    power = stft.power(speech[None])
    found = stft.griffin_lim(power, samples)
    assert found.shape == (1, samples) and torch.equal(found, stft.griffin_lim(power, samples))
    begun, converged = (
        ((stft.power(signal).sqrt() - power.sqrt()).norm() / power.sqrt().norm()).item()
        for signal in (stft.griffin_lim(power, samples, iterations=0), found)
    )
    assert converged < 0.15 < 0.3 < begun, "spectral convergence"
