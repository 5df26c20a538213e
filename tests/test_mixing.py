"""The mixtures are what they claim to be: level, sameness, character of each noise, share of spoilt lips."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from avdvae.data.mixing import CORRUPTIONS, NOISES, NoiseFolder, corrupt_lips, make_noise, mix
from avdvae.errors import UserError
from avdvae.randomness import stream
from avdvae.signals.clock import RATE

SEEDS = range(4)


def talker(f0, seconds=3.0):
    """Harmonics of f0 below 4 kHz that come and go like syllables and phrases, over the hiss of any recording."""
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * k * f0 * time) / k for k in range(1, int(4000 / f0)))
    syllables = np.clip(np.sin(2 * np.pi * (2 + f0 / 200) * time), 0, 1)
    phrases = np.sin(2 * np.pi * 0.4 * time + f0) > -0.6
    hiss = 0.001 * stream("hiss", f0).standard_normal(len(time))
    return (0.01 * f0 * (tones * syllables * phrases + hiss)).astype(np.float32)


TALKERS = [talker(f0) for f0 in (97, 113, 131, 149, 173, 199)]


def power(signal):
    return np.abs(np.fft.rfft(signal)) ** 2, np.fft.rfftfreq(len(signal), 1 / RATE)


def share_between(signal, low, high):
    density, hertz = power(signal)
    return density[(hertz >= low) & (hertz < high)].sum() / density.sum()


def unsteadiness(signal):
    """Standard deviation over time, in dB, of the level of a quarter of a second in an octave; mean over octaves."""
    frames = signal[: len(signal) // 4000 * 4000].reshape(-1, 4000) * np.hanning(4000)
    density, hertz = np.abs(np.fft.rfft(frames)) ** 2, np.fft.rfftfreq(4000, 1 / RATE)
    octaves = [density[:, (hertz >= low) & (hertz < 2 * low)].sum(1) for low in (125, 250, 500, 1000, 2000)]
    return np.std(10 * np.log10(octaves), axis=1).mean()


# Keys


def test_the_stream_of_a_key_is_the_same_in_every_process():
    assert stream("s01/sa1", 7).integers(1_000_000, size=3).tolist() == [457447, 618233, 862978]


def test_other_keys_give_other_streams():
    keys = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b,c"), ("a", 1), ("a", "1"), ("a", -1), (1, "a"), ("a1",), ()]
    assert len({stream(*key).bytes(16) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_is_a_function_of_its_key(name):
    first, again, other_id, other_seed = (
        make_noise(name, RATE, stream(*key), TALKERS) for key in (("a", 1), ("a", 1), ("b", 1), ("a", 2))
    )
    assert first.tobytes() == again.tobytes()
    assert all(abs(np.corrcoef(first, other)[0, 1]) < 0.9 for other in (other_id, other_seed))


# Mixing


@settings(deadline=None)
@given(
    samples=st.integers(1, 5000),
    snr_db=st.floats(-40, 40),
    speech_db=st.floats(-80, 40),
    noise_db=st.floats(-80, 40),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_snr_is_exact_and_the_speech_untouched(samples, snr_db, speech_db, noise_db, dtype):
    rng = stream("snr", samples)
    speech, noise = (rng.standard_normal((2, samples)) * 10 ** (np.array([[speech_db], [noise_db]]) / 20)).astype(dtype)
    mixed = mix(speech, noise, snr_db)
    energies = [np.square(x, dtype=np.float64).sum() for x in (speech, mixed.noise)]
    assert 10 * np.log10(energies[0] / energies[1]) == pytest.approx(snr_db, abs=1e-5)
    assert mixed.mixture.dtype == dtype
    np.testing.assert_array_equal(mixed.mixture, speech + mixed.noise)


def test_what_cannot_be_mixed_is_refused():
    sound, silence = np.ones(8), np.zeros(8)
    with pytest.raises(UserError, match="speech is silent"):
        mix(silence, sound, 0)
    with pytest.raises(UserError, match="noise is silent"):
        mix(sound, silence, 0)
    with pytest.raises(UserError, match="8 samples and noise 7"):
        mix(sound, sound[:7], 0)


# The six noises


@pytest.mark.parametrize("name", NOISES)
@given(length=st.integers(1, 3 * RATE), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=8)
def test_any_length_has_unit_rms(name, length, seed):
    noise = make_noise(name, length, stream(seed), TALKERS)
    assert noise.shape == (length,) and noise.dtype == np.float32
    assert np.sqrt(np.square(noise, dtype=np.float64).mean()) == pytest.approx(1, abs=1e-5)


def test_spectra_tell_the_stationary_noises_apart():
    for seed in SEEDS:
        white, car, room = (make_noise(name, 4 * RATE, stream("spectra", seed)) for name in ("White", "Car", "LR"))
        bands = [share_between(white, low, low + 1000) for low in range(0, 8000, 1000)]
        np.testing.assert_allclose(bands, 1 / 8, rtol=0.1)
        assert share_between(car, 0, 200) > 0.45
        assert share_between(car, 0, 300) > 0.6
        assert 2 * share_between(white, 0, 300) < share_between(room, 0, 300) < 0.8 * share_between(car, 0, 300)


def test_stationary_noises_are_steady_and_the_others_are_not():
    scores = {
        name: [unsteadiness(make_noise(name, 4 * RATE, stream("steady", seed), TALKERS)) for seed in SEEDS]
        for name in NOISES
    }
    steady = max(max(scores[name]) for name in ("White", "Car", "LR"))
    unsteady = min(min(scores[name]) for name in ("Babble", "Cafe", "Street"))
    assert 2 * steady < unsteady, scores


@pytest.mark.parametrize("name", ["Babble", "Cafe"])
def test_voices_are_heard_in_babble_and_cafe(name):
    tones = np.arange(300, 1500, 200)  # each talker is one tone, and levels differ by up to 40 dB
    time = np.arange(2 * RATE) / RATE
    talkers = [
        (10**magnitude * np.sin(2 * np.pi * f * time))
        for f, magnitude in zip(tones, np.linspace(-2, 0, 6), strict=True)
    ]
    noise = make_noise(name, 2 * RATE, stream("voices"), talkers)
    heard = np.array([share_between(noise, f - 5, f + 5) for f in tones])
    between = np.array([share_between(noise, f + 95, f + 105) for f in tones])
    assert (heard > 10 * between).all()
    if name == "Babble":
        np.testing.assert_allclose(heard, 1 / 6, rtol=0.1)


def test_few_and_short_talkers_fill_a_long_babble():
    noise = make_noise("Babble", 10 * RATE, stream("few"), [talker(120, seconds=0.7)])
    assert np.square(noise).reshape(10, -1).mean(1) == pytest.approx(np.ones(10), abs=0.7)


@pytest.mark.parametrize("name", ["Babble", "Cafe"])
def test_voices_must_be_given_and_sound(name):
    with pytest.raises(UserError, match="none were given"):
        make_noise(name, RATE, stream("x"))
    with pytest.raises(UserError, match="talker 0 is silent"):
        make_noise(name, RATE, stream("x"), [np.zeros(RATE)])


def test_an_unknown_noise_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'Rain'.*Babble, Cafe, Car, LR, Street, White.*folder"):
        make_noise("Rain", RATE, stream("x"))


# Recorded noise


def test_a_folder_is_resampled_mixed_down_and_cut(tmp_path):
    time = np.arange(3 * 44_100) / 44_100
    ramp = np.linspace(0.1, 0.5, len(time))  # tells where a piece was cut
    stereo = np.stack([np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 3000 * time)], axis=1) * ramp[:, None]
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "hum.WAV", stereo, 44_100)
    folder = NoiseFolder(tmp_path)
    piece = folder(RATE, stream("a", 1))
    assert piece.shape == (RATE,) and piece.dtype == np.float32
    assert np.square(piece).mean() == pytest.approx(1, abs=1e-4)
    assert share_between(piece, 990, 1010) == pytest.approx(0.5, abs=0.02)
    assert share_between(piece, 2990, 3010) == pytest.approx(0.5, abs=0.02)
    assert piece.tobytes() == folder(RATE, stream("a", 1)).tobytes() != folder(RATE, stream("a", 2)).tobytes()


def test_a_short_file_is_looped_and_every_file_is_used(tmp_path):
    short = stream("short").uniform(-0.5, 0.5, 1600)
    soundfile.write(tmp_path / "short.flac", short, RATE)
    noise = NoiseFolder(tmp_path)(8000, stream("x"))
    np.testing.assert_array_equal(noise[1600:], noise[:-1600])

    soundfile.write(tmp_path / "long.wav", stream("long").uniform(-0.5, 0.5, 16_000), RATE)
    pieces = [NoiseFolder(tmp_path)(8000, stream("x", seed)) for seed in range(12)]
    looped = [np.array_equal(piece[1600:], piece[:-1600]) for piece in pieces]
    assert 0 < sum(looped) < 12


def test_a_folder_without_noise_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        NoiseFolder(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no wav or flac"):
        NoiseFolder(tmp_path)
    for name, samples in (("quiet.wav", 100), ("void.wav", 0)):
        (tmp_path / name).unlink(missing_ok=True)
        soundfile.write(tmp_path / name, np.zeros(samples), RATE)
        with pytest.raises(UserError, match=f"{name}.*silent"):
            NoiseFolder(tmp_path)(RATE, stream("x"))
        (tmp_path / name).unlink()


# Lips


def blocks(corrupted):
    """First frame and length of each run of true."""
    steps = np.diff(np.concatenate([[0], corrupted.astype(int), [0]]))
    starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return starts, stops - starts


@pytest.mark.parametrize("kind", CORRUPTIONS)
@given(frames=st.integers(0, 400), height=st.integers(20, 40), width=st.integers(20, 40), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=40)
def test_a_third_of_the_frames_is_spoilt_in_separate_blocks(kind, frames, height, width, seed):
    lips = stream("lips", seed).integers(60, 220, size=(frames, height, width)).astype(np.uint8)
    before = lips.copy()
    spoilt, corrupted = corrupt_lips(lips, stream(seed), kind)
    np.testing.assert_array_equal(lips, before)
    np.testing.assert_array_equal((spoilt != lips).any(axis=(1, 2)), corrupted)
    assert abs(corrupted.sum() - frames / 3) < 1
    _, lengths = blocks(corrupted)
    assert len(lengths) >= (frames >= 20)
    if frames >= 60:
        assert ((lengths >= 14) & (lengths <= 30)).all()
    again, _ = corrupt_lips(lips, stream(seed), kind)
    np.testing.assert_array_equal(again, spoilt)


def test_each_kind_spoils_in_its_own_way():
    lips = np.full((300, 60, 60), 20, dtype=np.uint8)
    hidden, when = corrupt_lips(lips, stream("a"), "occluded")
    mouth = hidden[when][:, 15:45, 15:45]
    assert (mouth > 60).mean() > 0.6, "the hand covers much of the mouth"
    steps = np.abs(np.diff(hidden.astype(float), axis=0)).mean(axis=(1, 2))
    assert 0 < steps[when[1:] & when[:-1]].max() < 10, "the hand moves, slowly"
    assert len({int(np.median(hidden[start])) for start in blocks(when)[0]}) > 1, "another hand each time"

    noisy, when = corrupt_lips(lips, stream("a"), "noised")
    touched = (noisy[when] != 20).mean(axis=(1, 2))
    assert touched.min() > 0.1 and touched.max() < 0.95, "rectangles, not the whole picture"
    values = noisy[when][noisy[when] != 20].astype(float)
    assert abs(values.mean() - 128) < 5 and 50 < values.std() < 70

    absent, when = corrupt_lips(lips, stream("a"), "missing")
    assert not absent[when].any()
    nothing, when = corrupt_lips(lips, stream("a"), "none")
    assert when.all() and not nothing.any()


def test_the_blocks_lie_anywhere_and_never_touch():
    lips = np.ones((180, 1, 1), dtype=np.uint8)
    conditions = np.array([corrupt_lips(lips, stream(seed), "missing")[1] for seed in range(400)])
    assert conditions.any(axis=0).all()
    assert all(blocks(corrupted)[1].tolist() == [20, 20, 20] for corrupted in conditions)


def test_an_unknown_corruption_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"'blurred'.*occluded, noised, missing, none"):
        corrupt_lips(np.zeros((30, 4, 4), dtype=np.uint8), stream("x"), "blurred")
