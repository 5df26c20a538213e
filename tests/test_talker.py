"""Talker's sound is like speech, its pictures are like faces, and both are no more dependent than in real speech."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import parselmouth
import pytest
import soundfile

from avdvae.data.clips import split_of
from avdvae.data.talker.articulation import Performance, perform
from avdvae.data.talker.corpus import Talker, record
from avdvae.data.talker.people import EMOTIONS, Voice, speaker
from avdvae.data.talker.phones import PHONES, VISEMES, VOWELS, Spoken, sentence
from avdvae.data.talker.voice import speak
from avdvae.errors import UserError
from avdvae.signals.clock import RATE as SAMPLE_RATE

SILENCE = Spoken(PHONES["sil"], stressed=False, word=-1)


def say(names: list[str], voice: Voice, seconds: float | None = None) -> tuple[Performance, np.ndarray]:
    """One word of these phonemes between silences; `seconds` stretches its first phoneme."""
    phones = [PHONES[name] for name in names]
    if seconds:
        phones[0] = replace(phones[0], seconds=seconds)
    word = [Spoken(phone, stressed=False, word=0) for phone in phones]
    act = perform([SILENCE, *word, SILENCE], voice, effort=1.0, rng=np.random.default_rng(1))
    return act, speak(act, voice, np.random.default_rng(2)) / 32768


def band_db(sound: np.ndarray, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    return 10 * np.log10(power[(hertz >= low) & (hertz < high)].sum())


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_vowels_have_the_formants_and_the_pitch_of_the_ground_truth(number: int) -> None:
    voice = speaker(seed=0, number=number).voice
    for name in VOWELS:
        if len(PHONES[name].gestures) > 1:
            continue
        # At a low pitch the analysis sees the tract and not the nearest harmonic.
        act, sound = say([name], replace(voice, f0=100.0), seconds=0.4)
        middle = int(500 * (act.segments[1][0] + act.segments[1][1]))
        praat = parselmouth.Sound(sound, SAMPLE_RATE)
        formants = praat.to_formant_burg(maximum_formant=5000 * voice.tract, window_length=0.04)
        for k in (1, 2):
            heard = np.median([formants.get_value_at_time(k, t / 1000) for t in range(middle - 80, middle + 81, 10)])
            assert heard == pytest.approx(act.formants[middle, k - 1], rel=0.1), (name, k)

        act, sound = say([name], voice, seconds=0.4)
        pitch = parselmouth.Sound(sound, SAMPLE_RATE).to_pitch_ac(pitch_floor=60, pitch_ceiling=500)
        assert pitch.get_value_at_time(middle / 1000) == pytest.approx(act.f0[middle], rel=0.02), name


def test_fricatives_hiss_where_they_should_and_plosives_burst() -> None:
    voice = speaker(seed=0, number=1).voice

    def middle_of(name: str) -> np.ndarray:
        act, sound = say([name, "ah"], voice, seconds=0.2)
        start, stop, _ = act.segments[1]
        return sound[int((start + 0.05) * SAMPLE_RATE) : int((stop - 0.05) * SAMPLE_RATE)]

    s, sh, f, vowel = (middle_of(name) for name in ("s", "sh", "f", "aa"))
    assert band_db(s, 4500, 8000) > band_db(s, 0, 4000) + 10
    assert band_db(sh, 2000, 4000) > band_db(sh, 5500, 8000) + 3
    assert band_db(s, 0, 8000) > band_db(f, 0, 8000) + 6  # /f/ is the weak one
    assert band_db(vowel, 0, 1500) > band_db(vowel, 4500, 8000) + 25

    act, sound = say(["t", "aa"], voice)
    start, stop, _ = act.segments[1]
    step = SAMPLE_RATE // 500
    high = np.diff(sound, 2)[int(start * SAMPLE_RATE) : int(stop * SAMPLE_RATE)]
    level = 10 * np.log10(np.square(high[: len(high) // step * step]).reshape(-1, step).mean(1) + 1e-12)
    assert level.max() - level[3 : np.argmax(level) - 6].mean() > 30, "silence, then a burst"
    assert np.argmax(level) * 0.002 == pytest.approx(0.65 * (stop - start), abs=0.02)


def test_nasals_and_voiced_plosives_hum_and_voiceless_ones_are_silent() -> None:
    voice = speaker(seed=0, number=3).voice

    def closure(name: str) -> float:
        act, sound = say(["aa", name, "aa"], voice)
        start, stop, _ = act.segments[2]
        part = sound[
            int((start + 0.2 * (stop - start)) * SAMPLE_RATE) : int((start + 0.5 * (stop - start)) * SAMPLE_RATE)
        ]
        return band_db(part, 60, 600) - 10 * np.log10(len(part))

    assert closure("m") > closure("b") + 6 > closure("p") + 16


def test_emotions_differ_in_pitch_range_rate_and_tilt() -> None:
    voice = speaker(seed=0, number=5).voice
    measured = {}
    for name in ("sad", "neutral", "angry"):
        felt, _ = EMOTIONS[name].colour(voice, level=3)
        pitches, tilts, seconds = [], [], 0.0
        for seed in range(4):
            act = perform(sentence(np.random.default_rng(seed), 3.0), felt, 1.0, np.random.default_rng(seed))
            sound = speak(act, felt, np.random.default_rng(seed)) / 32768
            heard = parselmouth.Sound(sound, SAMPLE_RATE).to_pitch_ac(pitch_floor=60, pitch_ceiling=500)
            pitches.append(heard.selected_array["frequency"])
            tilts.append(band_db(sound, 1500, 4000) - band_db(sound, 60, 1000))
            seconds += act.seconds
        hertz = np.concatenate(pitches)
        semitones = 12 * np.log2(hertz[hertz > 0])
        spread = np.diff(np.quantile(semitones, [0.1, 0.9]))[0]
        measured[name] = np.array([np.median(semitones), spread, -seconds, np.mean(tilts)])
    assert np.all(measured["sad"] < measured["neutral"]) and np.all(measured["neutral"] < measured["angry"]), measured


def test_speakers_differ_and_the_sexes_more() -> None:
    people = [speaker(seed=0, number=n) for n in range(1, 25)]
    assert len({p.voice for p in people}) == len({p.looks for p in people}) == 24
    men, women = ([p.voice for p in people if p.sex == sex] for sex in "MF")
    assert max(v.f0 for v in men) < min(v.f0 for v in women)
    assert max(v.tract for v in men) < min(v.tract for v in women)


def test_lips_shut_for_bilabials_and_nothing_tells_them_apart() -> None:
    voice = speaker(seed=0, number=1).voice
    paths = {}
    for name in ("p", "b", "m"):
        act, _ = say(["aa", name, "aa"], replace(voice, rate=1.0))
        start, stop, _ = act.segments[2]
        assert act.aperture[int(1000 * start) : int(1000 * stop)].min() < 0.02, name
        paths[name] = (VISEMES[PHONES[name].viseme], act.aperture.max())
    assert len({viseme for viseme, _ in paths.values()}) == 1
    # Many phonemes, few visemes: that is what makes lip reading ambiguous.
    classes = defaultdict(set)
    for phone in PHONES.values():
        classes[phone.viseme].add(phone.name)
    assert sum(len(members) >= 2 for members in classes.values()) >= 8


def test_same_seed_same_bytes_and_an_interrupted_generation_goes_on(talker: Talker, tmp_path: Path) -> None:
    again = replace(talker, root=tmp_path)
    record(again, (2, 1))  # in another folder, alone, in another process than the fixture's
    done = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in done) == [".json", ".mp4", ".wav"]
    for path in done:
        assert path.read_bytes() == (talker.root / path.relative_to(tmp_path)).read_bytes(), path.name
    other = replace(again, seed=1)
    assert other.key != talker.key
    record(other, (2, 1))
    assert other._path(2, 1).with_suffix(".wav").read_bytes() != again._path(2, 1).with_suffix(".wav").read_bytes()

    # A clip without its JSON was cut off: it and only it is made again.
    truths = sorted(talker.root.rglob("*.json"))
    ages = {path: path.stat().st_mtime_ns for path in truths}
    before = truths[3].read_bytes()
    truths[3].unlink()
    clips, _ = talker.clips(workers=1)
    assert len(clips) == 12 and truths[3].read_bytes() == before
    assert [path for path in truths if path.stat().st_mtime_ns != ages[path]] == [truths[3]]


def test_splits_share_no_speaker(talker: Talker) -> None:
    for corpus in (talker, Talker(Path()), Talker(Path(), speakers=3)):
        numbers = range(1, corpus.speakers + 1)
        assert {split_of(n, corpus.speakers) for n in numbers} == {"train", "valid", "test"}
    assert [split_of(n, Talker(Path()).speakers) for n in range(1, 97)].count("train") == 80
    clips, _ = talker.clips(workers=1)
    splits = defaultdict(set)
    for clip in clips:
        splits[clip.split].add(clip.speaker)
    assert sum(len(names) for names in splits.values()) == 6


def test_the_ground_truth_beside_a_clip_is_whole(talker: Talker) -> None:
    for path in sorted(talker.root.rglob("*.json")):
        truth = json.loads(path.read_text())
        seconds = soundfile.info(path.with_suffix(".wav")).duration
        assert truth["phones"][0][2] == truth["phones"][-1][2] == "sil"
        assert truth["phones"][-1][1] == pytest.approx(seconds, abs=0.01)
        assert all(a[1] == b[0] for a, b in zip(truth["phones"], truth["phones"][1:], strict=False))
        assert len(truth["f0"]) == len(truth["formants"]) == pytest.approx(seconds / truth["step"], abs=1)
        assert len(truth["lip_aperture"]) == len(truth["lip_width"]) == pytest.approx(seconds * truth["fps"], abs=1)
        assert truth["emotion"] in EMOTIONS and truth["level"] in (1, 2, 3)


def test_lips_tell_much_of_the_envelope_and_less_of_the_spectrum(talker: Talker) -> None:
    """A linear map from lip geometry, a few frames around, onto log levels; evaluated on other speakers."""
    geometry, envelope, bands, people = [], [], [], []
    for path in sorted(talker.root.rglob("*.json")):
        truth = json.loads(path.read_text())
        sound, _ = soundfile.read(path.with_suffix(".wav"))
        count = len(truth["lip_aperture"])
        centres = np.rint(np.arange(count) / truth["fps"] * SAMPLE_RATE).astype(int)
        frames = np.pad(sound, 512)[centres[:, None] + np.arange(1024)] * np.hanning(1024)
        power = np.abs(np.fft.rfft(frames)) ** 2 + 1e-6
        edges = np.unique(np.geomspace(4, 513, 21).astype(int))
        lips = np.stack([truth["lip_aperture"], truth["lip_width"]], 1)
        around = np.pad(lips, ((3, 3), (0, 0)), "edge")
        geometry.append(np.hstack([around[k : k + count] for k in range(7)]))
        envelope.append(np.log(power.sum(1)))
        bands.append(np.log(np.add.reduceat(power, edges[:-1], axis=1)))
        people += [truth["speaker"]] * count
    x = np.hstack([np.concatenate(geometry), np.ones((len(people), 1))])
    y = np.column_stack([np.concatenate(envelope), np.concatenate(bands)])
    seen = np.isin(people, sorted(set(people))[:4])
    weights, *_ = np.linalg.lstsq(x[seen], y[seen], rcond=None)
    left = np.mean((y[~seen] - x[~seen] @ weights) ** 2, 0) / y[~seen].var(0)
    explained = 1 - left
    assert explained[0] > 0.3, explained
    assert explained[1:].mean() < explained[0] - 0.1 and explained[1:].mean() < 0.5, explained


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speakers": 2}, "at least 3"),
        ({"utterances": 0}, "1 or more"),
        ({"seconds": 0.1}, "1 to 60"),
        ({"emotions": ("bored",)}, "choose from angry"),
        ({"emotions": ()}, "choose from angry"),
    ],
)
def test_impossible_parameters_are_refused_in_a_sentence(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Talker(Path(), **change)
