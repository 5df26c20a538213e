"""From videos of every kind to shards: what is kept, what is left out and why, and resuming after a kill."""

import csv
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import fuzz
import numpy as np
import pytest
import soundfile
from PIL import Image

import avdvae.data.prepare as preparation
from avdvae.data import prepare_clip
from avdvae.data.clips import Clip
from avdvae.data.contact_sheet import _strip, contact_sheet
from avdvae.data.corpora import ensure_prepared, open_corpus
from avdvae.data.prepare import OUTPUTS, Summary, prepare
from avdvae.data.readers.folder import Folder
from avdvae.data.shards import PreparedCorpus
from avdvae.data.talker.corpus import Talker
from avdvae.errors import UserError
from avdvae.signals.faces import find_face_model
from avdvae.signals.video import probe, read_mono, read_pictures, write_mp4

PROJECT = Path(__file__).parent.parent
MODEL = find_face_model()


def lips_program(*overrides: str, **options) -> subprocess.CompletedProcess[str]:
    """`python preprocessing/lips.py` as a user runs it."""
    command = [sys.executable, str(PROJECT / "preprocessing" / "lips.py"), "workers=2", *overrides]
    return subprocess.run(command, capture_output=True, text=True, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def picture_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def table(out: Path, name: str = "quality.csv") -> dict[str, dict[str, str]]:
    with (out / name).open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_talker_is_prepared_whole_and_in_step(talker: Talker, prepared: Summary) -> None:
    out = prepared.out
    assert sorted(path.name for path in out.iterdir()) == sorted([*OUTPUTS, "shards"])
    rows = table(out)
    assert len(rows) == 12 and all(row["kept"] == "yes" for row in rows.values())
    assert all(int(row["faces_found"]) >= 0.99 * int(row["frames"]) for row in rows.values())
    corpus = PreparedCorpus(out)  # every checksum holds
    for utterance in corpus.utterances:
        clip = talker.root / talker.key / "volunteers" / utterance.speaker / "Clips/straightcam" / utterance.id[4:]
        sound, _ = soundfile.read(clip.with_suffix(".wav"), dtype="int16")
        audio, lips = corpus.audio(utterance), corpus.lips(utterance)
        np.testing.assert_array_equal(audio, sound[: len(audio)])
        assert lips.shape[1:] == (67, 67)
        assert abs(len(audio) / 16000 - len(lips) / utterance.fps) < 0.5 / utterance.fps
        assert abs(len(audio) - len(sound)) < 16000 / utterance.fps
        assert utterance.labels["emotion"] in talker.emotions and utterance.labels["sex"] == utterance.speaker[-1]

        # An open mouth is dark and full of teeth: the spread of grey in the middle of the crop follows the aperture
        # drawn, most closely when neither is shifted against the other.
        truth = np.array(json.loads(clip.with_suffix(".json").read_text())["lip_aperture"])[: len(lips)]
        seen = lips[:, 24:50, 20:47].reshape(len(lips), -1).std(1)
        agreement = [np.corrcoef(seen[3:-3], truth[3 + lag : len(truth) - 3 + lag])[0, 1] for lag in range(-3, 4)]
        assert np.argmax(agreement) == 3 and agreement[3] > 0.75, utterance.id


def test_faces_lie_in_a_folder_of_their_own_with_the_same_mouths(talker: Talker, prepared: Summary) -> None:
    config = {"reader": "talker", "root": talker.root, "speakers": 3, "utterances": 1, "seconds": 1.0}
    plain, faced = (PreparedCorpus(ensure_prepared(config, talker.root / "p", face=face)) for face in (None, 64))
    assert faced.root.name == f"{plain.root.name}-face64" and faced.has_faces and not plain.has_faces
    for one, two in zip(plain.utterances, faced.utterances, strict=True):
        np.testing.assert_array_equal(plain.lips(one), faced.lips(two))
        assert faced.faces(two).shape == (len(faced.lips(two)), 64, 64, 3)
        assert faced.mouths(two)[:, 0].min() >= 0 and faced.mouths(two)[:, 1].mean() == pytest.approx(0.62, abs=0.15)


def test_the_mouth_that_mediapipe_measures_follows_the_drawn_one(talker: Talker) -> None:
    from avdvae.signals.lips import extract_lips

    clips, _ = talker.clips(workers=1)
    for speaker in sorted({clip.speaker for clip in clips}):
        measured, drawn, found = [], [], []
        for clip in clips[::2]:
            if clip.speaker == speaker:
                assert clip.video
                lips = extract_lips(probe(clip.video), MODEL)
                truth = json.loads(clip.video.with_suffix(".json").read_text())
                measured.append(lips.mouth)
                drawn.append(np.stack([truth["lip_aperture"], truth["lip_width"]], 1)[: len(lips.mouth)])
                found.append(lips.found)
        assert np.concatenate(found).mean() >= 0.99, speaker
        apart = np.concatenate(measured).T, np.concatenate(drawn).T
        assert np.corrcoef(apart[0][0], apart[1][0])[0, 1] >= 0.9, speaker
        assert np.corrcoef(apart[0][1], apart[1][1])[0, 1] >= 0.75, speaker


def test_pictures_to_look_at_are_there(prepared: Summary) -> None:
    sheet = picture_of(prepared.out / "contact_sheet.png")
    assert sheet.shape[0] == 6 * 73 and sheet[:, 150:].std() > 20
    overlay = picture_of(prepared.out / "overlay.png")
    assert overlay.shape == (256, 256, 3)
    green = (overlay[..., 1].astype(int) - overlay.max(-1) == 0) & (overlay[..., 1] > 180) & (overlay[..., 0] < 90)
    rows, columns = np.nonzero(green)
    assert len(rows) > 100, "landmarks are drawn"
    assert columns.std() < 60 and 100 < rows.mean() < 220, "and lie on the face"


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(talker: Talker, prepared: Summary, tmp_path: Path) -> None:
    parameters = [f"data.{name}={getattr(talker, name)}" for name in ("root", "speakers", "utterances", "seconds")]
    out = tmp_path / "killed"
    command = [sys.executable, str(PROJECT / "preprocessing/lips.py"), "workers=2", f"out={out}", *parameters]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("staging/*.safetensors"))) < 4:
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    finished = {path.name for path in out.glob("staging/*.safetensors")}
    assert finished and not (out / "manifest.csv").exists()

    seen = []
    watched = preparation.in_parallel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            preparation, "in_parallel", lambda work, items, *rest: seen.extend(items) or watched(work, items, *rest)
        )
        prepare(talker, out, MODEL, workers=2)
    assert len(seen) == 12 - len(finished) or len(seen) == 12 - len(finished) - 2, "finished clips are not done again"
    assert contents(out) == contents(prepared.out)

    summary = prepare(talker, out, MODEL, workers=2)  # again: nothing to do
    assert summary.speed == 0 and contents(out) == contents(prepared.out)
    assert not (out / "staging").exists()


def test_parts_prepared_apart_merge_into_what_one_process_writes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preparation, "CLIPS_PER_SHARD", 2)
    corpus = Talker(tmp_path / "corpora", speakers=5, utterances=1, seconds=1.0)
    one, two = tmp_path / "one", tmp_path / "two"
    prepare(corpus, one, MODEL, size=32, workers=2)
    assert not prepare(corpus, two, MODEL, size=32, workers=2, shard=(1, 2)).complete
    assert not (two / "manifest.csv").exists()
    assert prepare(corpus, two, MODEL, size=32, workers=2, shard=(0, 2)).complete
    assert contents(one) == contents(two)
    assert len(list((two / "shards").iterdir())) == 3

    class Shrunk:  # the clip of the last shard is gone
        key = "shrunk"

        def clips(self, workers: int) -> tuple[list, list]:
            return corpus.clips(workers)[0][:4], []

    prepare(Shrunk(), two, MODEL, size=32, workers=2)
    assert len(list((two / "shards").iterdir())) == 2 and len(table(two, "manifest.csv")) == len(table(two)) == 4

    with pytest.raises(UserError, match=r"size=32.*not size=48"):
        prepare(corpus, two, MODEL, size=48)


@pytest.fixture(scope="module")
def zoo(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips such as people have them."""
    root = tmp_path_factory.mktemp("zoo")
    pictures = [picture for _, picture in read_pictures(clip, 256)]
    sound, _ = read_mono(clip)

    def film(
        name: str,
        shown: list,
        fps: Fraction = Fraction(30000, 1001),
        heard: np.ndarray | None = sound,
        rate: int = 16000,
    ) -> None:
        write_mp4(root / name, shown, fps, heard, rate)

    for folder in ("anna", "Žofie Müller", "odd"):
        (root / folder).mkdir()
    (root / "anna" / "plain.mp4").write_bytes(clip.read_bytes())
    film("Žofie Müller/čistý zvuk 1.mp4", pictures)
    film("anna/25 fps.mp4", pictures, Fraction(25))
    film("anna/60fps.mp4", [p for p in pictures for _ in (0, 1)], Fraction(60))
    film("anna/own sound.mp4", pictures, heard=None)
    soundfile.write(root / "anna" / "own sound.wav", np.repeat(sound, 3)[:, None].repeat(2, 1), 48000)
    eight = root / "anna" / "phone.mp4"
    film("anna/phone.mp4", pictures, heard=sound[::2].copy(), rate=8000)
    assert read_mono(eight, 8000)[0].size > 0

    whole = (root / "anna" / "plain.mp4").read_bytes()
    (root / "odd" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "odd" / "empty.mp4").write_bytes(b"")
    (root / "odd" / "text.mp4").write_text("this is no film\n" * 50)
    film("odd/mute.mp4", pictures, heard=None)
    with av.open(str(root / "odd" / "blind.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film("odd/wall.mp4", [np.full((256, 256, 3), 120, np.uint8)] * 40)
    film("odd/short.mp4", pictures[:3])
    (root / "odd" / "notes.txt").write_text("no video, not counted")
    return root


def test_every_kind_of_input_is_prepared_or_named(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lips_program("data=folder", f"data.root={zoo}", f"out={out}", 'data.test=["Žofie Müller"]')
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no chatter of any library"
    rows = table(out)
    kept = {name for name, row in rows.items() if row["kept"] == "yes"}
    assert kept == {
        "anna/plain",
        "anna/25 fps",
        "anna/60fps",
        "anna/own sound",
        "anna/phone",
        "Žofie Müller/čistý zvuk 1",
    }
    reasons = {
        "odd/cut": "truncated",
        "odd/empty": "empty",
        "odd/text": "neither a video nor",
        "odd/mute": "no sound",
        "odd/blind": "no picture",
        "odd/wall": "no face",
        "odd/short": "3 pictures: at least 10",
    }
    assert set(rows) == kept | set(reasons)
    for name, words in reasons.items():
        assert words in rows[name]["why_not"], rows[name]
        assert f"{name}: {rows[name]['why_not']}" in done.stdout

    corpus = PreparedCorpus(out)
    by_id = {u.id: u for u in corpus.utterances}
    assert by_id["Žofie Müller/čistý zvuk 1"].split == "test" and by_id["anna/plain"].split == "train"
    assert by_id["anna/25 fps"].fps == 25 and by_id["anna/60fps"].fps == 60
    frames = {name: u.lips_stop - u.lips_start for name, u in by_id.items()}
    assert frames["anna/plain"] == frames["anna/own sound"] == frames["anna/phone"]
    assert by_id["anna/60fps"].rate == 16000
    # The same words in 48 kHz stereo beside the video and at 8 kHz inside it: still the same, at 16 kHz.
    plain, own, phone = (corpus.audio(by_id[f"anna/{name}"]).astype(float) for name in ("plain", "own sound", "phone"))
    for other in (own, phone):
        common = min(len(plain), len(other)) - 2000
        lags = range(-40, 41)
        agreement = [np.corrcoef(plain[1000:common], other[1000 + lag : common + lag])[0, 1] for lag in lags]
        assert max(agreement) > 0.9 and abs(lags[int(np.argmax(agreement))]) <= 8  # half a millisecond


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=folder"], "data.root is not given"),
        (["data=folder", "data.root={tmp}/nowhere"], "is no folder"),
        (["data=folder", "data.root={tmp}"], "has no video: searched for .mp4"),
        (["data=folder", "data.root={zoo}", "data.valid=[nobody]"], "choose from anna, odd, Žofie Müller"),
        (
            ["data=talker_tiny", "out={file}/out", "data.root={root}", "data.utterances=2", "data.seconds=2.5"],
            "cannot write",
        ),
        (["data=talker_tiny", "data.root={file}"], "cannot write Talker to data.root="),
        (["data=folder", "data.root={zoo}", "out={zoo}"], "choose a new or an empty folder"),
        (["shards=2", "shard=2", "data.root={root}"], "shard=2 of shards=2"),
        (["shard=half"], "shard=half: give a whole number of 0 or more"),
        (["workers=0", "data=folder", "data.root={zoo}"], "workers=0"),
        (["size=4", "data=folder", "data.root={zoo}"], "size=4"),
        (["face_model={tmp}/none.task"], "no face model at"),
        (["face_model={file}"], "not the face model"),
        (["data=folder", "data.root={zoo}/odd", "out={tmp}/nothing"], "not one clip was kept"),
    ],
)
def test_mistakes_get_one_sentence(overrides: list[str], words: str, zoo: Path, talker: Talker, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("a file")
    places = {"tmp": tmp_path, "zoo": zoo, "file": file, "root": talker.root}
    done = lips_program(*(override.format(**places) for override in overrides), cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(zoo: Path, tmp_path: Path) -> None:
    def no_large_files() -> None:  # the kernel refuses to write beyond this, as it does when the disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = lips_program("data=folder", f"data.root={zoo}/anna", f"out={tmp_path}/out", preexec_fn=no_large_files)
    assert done.returncode == 1 and "cannot write to out=" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_folder_that_may_not_be_opened_is_named(zoo: Path, monkeypatch) -> None:
    allowed = os.scandir

    def scandir(path):
        if Path(path).name == "odd":
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    clips, unreadable = Folder(zoo).clips(workers=1)
    assert {clip.speaker for clip in clips} == {"anna", "Žofie Müller"}
    (place,) = unreadable
    assert (place.path.name, place.reason) == ("odd", "cannot be opened (Permission denied)")


def test_a_folder_of_splits_gives_the_splits(zoo: Path, tmp_path: Path) -> None:
    for split, speaker in (("train", "anna"), ("valid", "bob"), ("test", "eve")):
        (tmp_path / split / speaker).mkdir(parents=True)
        (tmp_path / split / speaker / "a.mp4").touch()
        (tmp_path / split / speaker / "a.mov").touch()
    clips, _ = Folder(tmp_path).clips(workers=1)
    assert {(clip.split, clip.speaker) for clip in clips} == {("train", "anna"), ("valid", "bob"), ("test", "eve")}
    assert sorted(clip.id for clip in clips if clip.split == "test") == ["test/eve/a.mov", "test/eve/a.mp4"]


def write_g722(path: Path, sound: np.ndarray) -> None:
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glide of 2 s by two speakers in five formats, and files that cannot be kept."""
    root = tmp_path_factory.mktemp("sounds")
    for speaker in ("anna", "bob"):
        (root / speaker).mkdir()
    for path, rate, channels in (
        ("anna/mono.wav", 16000, 1),
        ("anna/stereo.wav", 44100, 2),
        ("anna/mono.flac", 8000, 1),
        ("bob/song.ogg", 48000, 2),
    ):
        left = np.repeat(glide(rate)[:, None], channels, axis=1) * np.linspace(1, 0, channels)
        soundfile.write(root / path, left.astype(np.int16), rate)
    write_g722(root / "bob" / "phone.g722", glide(16000).astype(np.int16))
    soundfile.write(root / "bob" / "short.wav", glide(16000)[:3900].astype(np.int16), 16000)
    soundfile.write(root / "bob" / "still.wav", np.zeros(16000, np.int16), 16000)
    (root / "bob" / "empty.mp3").write_bytes(b"")
    (root / "bob" / "text.opus").write_text("this is no sound\n" * 50)
    (root / "bob" / "film.mp4").write_text("no sound file, not counted")
    return root


def glide(rate: int) -> np.ndarray:
    """Two seconds from 200 to 1200 Hz."""
    t = np.arange(2 * rate) / rate
    return 9000 * np.sin(2 * np.pi * (200 * t + 250 * t**2))


def test_a_folder_of_sounds_is_prepared_without_pictures(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lips_program(
        "data=folder", f"data.root={sounds}", "data.modalities=[audio]", "data.test=[bob]", f"out={out}"
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "clips      5 of 9 kept, 0.003 hours" in done.stdout and "seconds of sound a second" in done.stdout
    assert not {"faces", "sync", "(check"} & set(done.stdout.split())
    assert sorted(path.name for path in out.iterdir()) == ["manifest.csv", "quality.csv", "shards"]
    for name, words in {
        "bob/short": "0.24 s of sound: at least 0.25 s",
        "bob/still": "silence: its loudest sample is 0",
        "bob/empty": "empty",
        "bob/text": "neither a video nor a sound",
    }.items():
        assert words in table(out)[name]["why_not"] and f"left out   {name}: " in done.stdout

    corpus = PreparedCorpus(out)
    assert not corpus.has_lips
    by_id = {u.id: corpus.audio(u) for u in corpus.utterances}
    assert set(by_id) == {"anna/mono.wav", "anna/mono.flac", "anna/stereo", "bob/song", "bob/phone"}
    assert {u.id: u.split for u in corpus.utterances if u.speaker == "bob"} == {"bob/song": "test", "bob/phone": "test"}
    for name, audio in by_id.items():
        assert abs(len(audio) - 32000) <= 1024, name  # whole packets
        loudness = 0.5 if name in ("anna/stereo", "bob/song") else 1.0  # the mean of a channel and of silence
        assert np.abs(audio).max() == pytest.approx(9000 * loudness, rel=0.1), name
        common = slice(1000, min(len(audio), 32000) - 1000)
        lags = range(-40, 41)
        heard = [np.corrcoef(glide(16000)[common], np.roll(audio, lag)[common])[0, 1] for lag in lags]
        assert max(heard) > 0.98 and abs(lags[int(np.argmax(heard))]) <= 24, name  # G.722 itself is 22 late


def test_sounds_are_ensured_without_a_face_model_and_after_an_interruption(sounds: Path, tmp_path: Path) -> None:
    config = {"reader": "folder", "root": str(sounds), "modalities": ["audio"]}
    begun = []

    def interrupted(work, items, *_):
        for item in items[:6] if not begun else items:
            begun.append(item.clip.id)
            yield item, work(item)
        if len(begun) == 6:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CLIPS_PER_SHARD", 4)
        patch.setattr(preparation, "find_face_model", None)  # whoever looks for it fails
        patch.setattr(preparation, "in_parallel", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_prepared(config, tmp_path / "two")
        two = ensure_prepared(config, tmp_path / "two")
        assert sorted(begun) == sorted(table(two)) and len(begun) == 9, "nothing is done twice"
        one = ensure_prepared(config, tmp_path / "one")
        again = len(begun)
        assert one == ensure_prepared(config, tmp_path / "one") and len(begun) == again
        assert one == tmp_path / "one" / open_corpus(config).key and contents(one) == contents(two)
        assert len(list((one / "shards").iterdir())) == 3
        (one / "shards" / "00001.safetensors").unlink()
        assert contents(ensure_prepared(config, tmp_path / "one")) == contents(two) and len(begun) == again + 4


def test_a_film_is_opened_three_times(clip: Path, tmp_path: Path, monkeypatch) -> None:
    """For its clock, sound and key pictures; for landmarks; and for crops, which need the landmarks of all pictures."""
    opened, av_open = [], av.open
    monkeypatch.setattr(av, "open", lambda path, **options: opened.append(path) or av_open(path, **options))
    preparation.prepare_alone(Clip("c", "own", "train", "x", clip), tmp_path)
    assert opened == [str(clip)] * 3


def test_wrong_modalities_and_empty_corpora_are_refused(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.modalities=\[lips\]: give \[audio,lips\] for videos"):
        Folder(sounds, modalities=["lips"])
    with pytest.raises(UserError, match=r"has no sound: searched for .wav, .*; data.modalities=\[audio,lips\] reads"):
        Folder(tmp_path, modalities=["audio"]).clips(workers=1)
    with pytest.raises(UserError, match=r"has no video: searched for .mp4, .*; data.modalities=\[audio\] reads"):
        Folder(tmp_path).clips(workers=1)
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "empty.wav").touch()
    with pytest.raises(UserError, match=r"not one clip was kept; .*quality.csv gives the reasons"):
        ensure_prepared({"reader": "folder", "root": tmp_path, "modalities": ["audio"]}, tmp_path / "out", workers=1)
    assert Folder(sounds).key != Folder(sounds, modalities=["audio"]).key


def test_films_in_any_container_are_read_and_what_is_passed_over_is_counted_and_named(clip: Path, tmp_path) -> None:
    root, out = tmp_path / "films", tmp_path / "out"
    root.mkdir()
    pictures, (sound, _) = [picture for _, picture in read_pictures(clip, 256)][:24], read_mono(clip)
    for suffix in fuzz.FILMS:
        fuzz.write_film(root / f"film{suffix}", pictures, sound[:15360], Fraction(25))
    latin = (root / "film.mp4").read_bytes().replace(fuzz.TITLE, "Fräulein Müller".encode("latin-1") * 4)
    assert len(latin) == len((root / "film.mp4").read_bytes()) and b"\xfc" in latin
    (root / "latin.mp4").write_bytes(latin)
    for name in ("notes.txt", "table.csv", "alone.wav", "more.txt", "film", "x.txt"):
        (root / name).write_text("no film")
    done = lips_program("data=folder", f"data.root={root}", f"out={out}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = table(out)
    assert {name for name, row in rows.items() if row["kept"] == "no"} == set()
    assert len(rows) == len(fuzz.FILMS) + 1 and all(abs(int(row["frames"]) - 24) <= 2 for row in rows.values()), rows
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("passed by")]
    assert "6 files that are no videos by their names (3 .txt, " in told and "alone.wav, film, " in told
    assert "more.txt" in told and "x.txt" not in told and told.endswith("table.csv and 1 more")


class Deadly(Clip):
    """Kills the process that reads it, as a system does that has no memory left."""

    @property
    def source(self) -> Path:
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().source


class Sounds:
    key = "sounds"

    def __init__(self, root: Path, kind: type[Clip]):
        self.root, self.kind = root, kind

    def clips(self, workers: int) -> tuple[list, list]:
        paths = sorted(self.root.glob("*.wav"))
        kinds = [self.kind if path.stem == "3" else Clip for path in paths]
        found = [kind(p.stem, "own", "train", "x", None, p) for kind, p in zip(kinds, paths, strict=True)]
        return found, []


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(8):
        soundfile.write(tmp_path / "in" / f"{number}.wav", glide(16000).astype(np.int16), 16000)
    return tmp_path / "in"


def test_a_clip_that_kills_its_process_is_named_and_the_rest_goes_on(eight: Path, tmp_path: Path) -> None:
    summary = prepare(Sounds(eight, Deadly), tmp_path / "out", workers=2)
    left = {row.id: row.why_not for row in summary.quality if row.kept == "no"}
    assert left.keys() == {"3"} and "its process was killed, most likely for want of memory" in left["3"]
    assert len(PreparedCorpus(tmp_path / "out").utterances) == 7


@pytest.mark.parametrize("error", [RuntimeError("a bug of a decoder"), UnicodeDecodeError("utf-8", b"x", 0, 1, "no")])
def test_whatever_a_decoder_raises_concerns_one_clip(error, eight: Path, tmp_path: Path, monkeypatch) -> None:
    reads = prepare_clip._samples

    def read(path: Path):
        if path.stem == "3":
            raise error
        return reads(path)

    monkeypatch.setattr(prepare_clip, "_samples", read)
    summary = prepare(Sounds(eight, Clip), tmp_path / "out", workers=1)
    left = {row.id: row.why_not for row in summary.quality if row.kept == "no"}
    assert left.keys() == {"3"} and f"damaged: it cannot be prepared ({type(error).__name__}: " in left["3"]

    monkeypatch.setattr(prepare_clip, "_samples", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"cannot write to out=.*No space left"):  # that is no clip's fault
        prepare(Sounds(eight, Clip), tmp_path / "full", workers=1)


def test_long_names_stay_in_their_picture(prepared: Summary) -> None:
    corpus = PreparedCorpus(prepared.out)
    plain = contact_sheet(corpus)
    for name in ("a speaker with a name that is far too long", "ě" * 200):
        rows = [replace(u, speaker=name if u.speaker == corpus.speakers[0] else u.speaker) for u in corpus.utterances]
        renamed = corpus.only(sorted(rows, key=lambda u: u.speaker != name))
        sheet = np.vstack([_strip(renamed, name, 14)])
        np.testing.assert_array_equal(sheet[:, 145:], plain[: len(sheet), 145:])
        assert (sheet[:25, 100:140] < 128).any(), "as much of the name as there is room for"
