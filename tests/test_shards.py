"""A prepared corpus is read as it was written, or the error names the damaged part."""

import csv
import hashlib
import json
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from avdvae import files
from avdvae.data.shard_files import PreparedClip, read_header, read_manifest, read_shard, write_manifest, write_shard
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError

OLD = ("audio", "lips", "confidence")  # what the first shards had


def make_clip(number: int, split: str = "train", samples: int = 4000, pictures: int = 7) -> PreparedClip:
    rng = np.random.default_rng(number)
    return PreparedClip(
        id=f'š{number}, "ö"\n語',
        corpus="made",
        split=split,
        speaker=f"speaker {number % 3}",
        labels={"emotion": "neutral", "level": number},
        audio=rng.integers(-999, 999, samples + number, dtype=np.int16),
        lips=rng.integers(0, 255, (pictures + number, 5, 6), dtype=np.uint8),
        confidence=rng.integers(0, 255, pictures + number, dtype=np.uint8),
        rate=16_000,
        fps=30_000 / 1001,
        face_rate=1 / 3,
    )


def write_corpus(root: Path, clips: list[PreparedClip], per_shard: int = 2) -> Path:
    (root / "shards").mkdir(parents=True)
    rows = []
    for start in range(0, len(clips), per_shard):
        path = root / "shards" / f"{start // per_shard:05}.safetensors"
        rows += write_shard(path, clips[start : start + per_shard], {"made by": "a test"})
    write_manifest(root / "manifest.csv", rows)
    return root


@pytest.fixture
def clips() -> list[PreparedClip]:
    return [make_clip(n, split) for n, split in enumerate(["train", "train", "valid", "test", "train"])]


def test_a_corpus_comes_back(tmp_path, clips):
    corpus = PreparedCorpus(write_corpus(tmp_path, clips))
    for clip, row in zip(clips, corpus.utterances, strict=True):
        for name in OLD:
            np.testing.assert_array_equal(getattr(corpus, name)(row), getattr(clip, name))
        for name in ("id", "corpus", "split", "speaker", "labels", "rate", "fps", "face_rate"):
            assert getattr(row, name) == getattr(clip, name)
        assert row.sha256 == hashlib.sha256(b"".join(map(np.ndarray.tobytes, corpus_arrays(clip)))).hexdigest()
    assert corpus.speakers == ("speaker 0", "speaker 1", "speaker 2")
    assert corpus.hours == pytest.approx(sum(len(clip.audio) for clip in clips) / 16_000 / 3600)
    rows, notes = read_header(tmp_path / "shards" / "00001.safetensors")
    assert rows == list(corpus.utterances[2:4]) and notes == {"made by": "a test"}
    assert read_manifest(tmp_path / "manifest.csv") == list(corpus.utterances)
    columns = (
        "id,corpus,split,speaker,shard,audio_start,audio_stop,lips_start,lips_stop,rate,fps,face_rate,labels,sha256,"
        "pose_start,pose_stop,box_start,box_stop"
    )
    assert (tmp_path / "manifest.csv").read_text("utf-8").startswith(columns + "\n")


def corpus_arrays(clip: PreparedClip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return clip.audio, clip.lips, clip.confidence


def test_a_shard_comes_back_even_empty(tmp_path, clips):
    path = tmp_path / "00000.safetensors"
    for written in (clips, []):
        write_shard(path, written, {"kept": len(written)})
        read, notes = read_shard(path)
        assert notes == {"kept": len(written)}
        for one, two in zip(read, written, strict=True):
            for field in fields(PreparedClip):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def test_splits(tmp_path, clips):
    root = write_corpus(tmp_path, clips)
    assert {u.split for u in PreparedCorpus(root, "valid").utterances} == {"valid"}
    assert len(PreparedCorpus(root, ["train", "test"]).utterances) == 4
    with pytest.raises(UserError, match="no split dev: it has test, train, valid"):
        PreparedCorpus(root, ["train", "dev"])


def without_pictures(clip: PreparedClip) -> PreparedClip:
    return replace(clip, lips=np.zeros((0, 1, 1), np.uint8), confidence=clip.confidence[:0], fps=0.0, face_rate=0.0)


def test_a_corpus_has_pictures_or_not(tmp_path, clips):
    assert PreparedCorpus(write_corpus(tmp_path / "seen", clips)).has_lips
    deaf = PreparedCorpus(write_corpus(tmp_path / "heard", [without_pictures(clip) for clip in clips]))
    assert not deaf.has_lips
    for clip, row in zip(clips, deaf.utterances, strict=True):
        np.testing.assert_array_equal(deaf.audio(row), clip.audio)
        assert len(deaf.lips(row)) == len(deaf.confidence(row)) == row.fps == row.face_rate == 0
    mixed = PreparedCorpus(write_corpus(tmp_path / "mixed", [*clips[:2], *map(without_pictures, clips[2:4])]))
    with pytest.raises(UserError, match=r"(?s)2 without, such as š2.* as a corpus of their own"):
        _ = mixed.has_lips
    assert PreparedCorpus(mixed.root, "train").has_lips


def with_face(clip: PreparedClip, pixels: int = 3) -> PreparedClip:
    rng, pictures = np.random.default_rng(len(clip.lips)), len(clip.lips)
    face = rng.integers(0, 255, (pictures, pixels, pixels, 3), dtype=np.uint8)
    return replace(clip, face=face, mouth=np.asfortranarray(rng.normal(size=(pictures, 2)).astype(np.float32)))


def test_faces_come_back_beside_the_mouths(tmp_path, clips):
    faced = [with_face(clip) for clip in clips]
    corpus = PreparedCorpus(write_corpus(tmp_path / "faces", faced))
    assert corpus.has_faces and not PreparedCorpus(write_corpus(tmp_path / "mouths", clips)).has_faces
    for clip, row in zip(faced, corpus.utterances, strict=True):
        np.testing.assert_array_equal(corpus.faces(row), clip.face)
        np.testing.assert_array_equal(corpus.mouths(row), clip.mouth)
    short = replace(faced[1], face=faced[1].face[1:], mouth=faced[1].mouth[1:])
    for wrong, message in ((short, "7 faces, 7 openings of the mouth and 8 pictures"), (clips[1], "3 and 1 pixels")):
        with pytest.raises(UserError, match=message):
            write_shard(tmp_path / "wrong", [faced[0], wrong], {})


def make_figure(number: int, split: str = "train", poses: int = 30, joints: int = 4) -> PreparedClip:
    pose = np.random.default_rng(number).normal(size=(poses + number, joints, 3)).astype(np.float32)
    return PreparedClip(f"figure {number}", "made", split, f"s{number % 2}", {"action": "walk"}, pose=pose, fps=25.0)


def test_a_corpus_of_poses_comes_back(tmp_path, clips):
    figures = [make_figure(n, split) for n, split in enumerate(["train", "valid", "test"])]
    corpus = PreparedCorpus(write_corpus(tmp_path / "seen", figures))
    assert corpus.has_poses and not corpus.has_lips
    for figure, row in zip(figures, corpus.utterances, strict=True):
        assert corpus.poses(row).dtype == np.float32
        np.testing.assert_array_equal(corpus.poses(row), figure.pose)
        assert len(corpus.audio(row)) == len(corpus.lips(row)) == row.rate == 0 and row.fps == 25
        assert row.sha256 == hashlib.sha256(figure.pose.tobytes()).hexdigest()
    assert [row.seconds for row in corpus.utterances] == [30 / 25, 31 / 25, 32 / 25]
    assert corpus.hours == pytest.approx(93 / 25 / 3600)
    assert corpus.choose(None, 1.23).utterances == corpus.utterances[1:]
    read, _ = read_shard(tmp_path / "seen" / "shards" / "00000.safetensors")
    np.testing.assert_array_equal(read[1].pose, figures[1].pose)
    mixed = PreparedCorpus(write_corpus(tmp_path / "mixed", [*figures[:2], clips[0]]))
    with pytest.raises(UserError, match=r"clips with poses and 1 without, such as š0"):
        _ = mixed.has_poses
    assert not PreparedCorpus(write_corpus(tmp_path / "heard", clips)).has_poses


def test_what_was_prepared_before_there_were_poses_boxes_and_faces_is_read(tmp_path, clips):
    corpus = PreparedCorpus(write_corpus(tmp_path, clips))
    manifest = tmp_path / "manifest.csv"
    with manifest.open(encoding="utf-8", newline="") as file:
        table = [row[:-4] for row in csv.reader(file)]
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    for path in (tmp_path / "shards").iterdir():
        with safetensors.safe_open(path, framework="numpy") as shard:
            header = json.loads(shard.metadata()["avdvae"])
        for row in header["rows"]:
            for name in ("pose_start", "pose_stop", "box_start", "box_stop"):
                del row[name]
        tensors = {name: array for name, array in safetensors.numpy.load_file(path).items() if name in OLD}
        safetensors.numpy.save_file(tensors, path, {"avdvae": json.dumps(header)})
    old = PreparedCorpus(tmp_path)  # every checksum holds
    assert old.utterances == corpus.utterances and not old.has_poses and not old.has_boxes
    np.testing.assert_array_equal(old.audio(old.utterances[1]), clips[1].audio)


def test_choosing_takes_the_first_long_enough_of_each_speaker(tmp_path, monkeypatch):
    lengths = [4000, 8000, 16_000, 15_999, 16_000, 20_000, 32_000, 16_000, 16_000]  # of speakers 0 1 2 0 1 2 0 1 2
    made = [replace(make_clip(n), audio=np.full(samples, n, np.int16)) for n, samples in enumerate(lengths)]
    corpus = PreparedCorpus(write_corpus(tmp_path, made))
    monkeypatch.setattr(PreparedCorpus, "verify", None)  # not again
    rows = corpus.utterances
    assert corpus.choose(1, 1.0).utterances == (rows[2], rows[4], rows[6])
    assert corpus.choose(2, 1.0).utterances == (rows[2], rows[4], rows[5], rows[6], rows[7])
    assert corpus.choose(None, 1.25).utterances == (rows[5], rows[6])
    chosen = corpus.choose(None, 0)
    assert chosen.utterances == rows == corpus.utterances and chosen is not corpus
    one = rows[4].speaker
    assert corpus.choose(None, 0, [one]).utterances == tuple(row for row in rows if row.speaker == one) != rows
    with pytest.raises(UserError, match="has no speaker nobody here"):
        corpus.choose(None, 0, [one, "nobody"])
    assert set(corpus.choose(1, 2.0).audio(rows[6])) == {6}
    for per_speaker, min_seconds in ((0, 1.0), (None, 2.5)):
        with pytest.raises(UserError, match=rf"per_speaker={per_speaker} and .* at most the 2.00 s of the longest"):
            corpus.choose(per_speaker, min_seconds)


def test_equal_clips_give_equal_bytes(tmp_path, clips):
    for name in ("one", "two"):
        relabelled = [replace(clip, labels=dict(reversed(clip.labels.items()))) for clip in clips]
        write_corpus(tmp_path / name, clips if name == "one" else relabelled)
    written = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(written) == 4  # three shards, the manifest, and nothing temporary
    for file in written:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_failure_leaves_what_was_there(tmp_path, clips, monkeypatch):
    path = tmp_path / "00000.safetensors"
    write_shard(path, clips[:1], {})
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", lambda file: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        write_shard(path, clips, {})
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


@pytest.mark.parametrize("tensor", ["audio", "lips", "confidence", "pose", "face", "mouth"])
def test_a_flipped_bit_is_named(tmp_path, clips, tensor):
    if tensor in ("face", "mouth"):
        clips = [with_face(clip) for clip in clips]
    if tensor == "pose":
        clips = [replace(make_figure(n, clip.split), id=clip.id) for n, clip in enumerate(clips)]
    root = write_corpus(tmp_path, clips)
    path = root / "shards" / "00001.safetensors"
    tensors = safetensors.numpy.load_file(path)
    data = bytearray(path.read_bytes())
    place = data.index(tensors[tensor].tobytes()) + tensors[tensor].nbytes - 1  # in the second clip, which is number 3
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"(?s)š3.* in 00001.safetensors") as caught:
        PreparedCorpus(root)
    assert "š2" not in str(caught.value)
    PreparedCorpus(root, "train")  # whose clips lie elsewhere


def test_a_missing_cut_off_or_foreign_shard_is_named(tmp_path, clips):
    root = write_corpus(tmp_path, clips)
    path = root / "shards" / "00001.safetensors"
    data = path.read_bytes()
    foreign = safetensors.numpy.save({"audio": np.zeros(3)})
    for content in (data[:-1], data[:50], data[:5], b"", b"\xff" * 99, foreign):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"00001.safetensors is cut off, damaged or no shard"):
            PreparedCorpus(root, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=r"00001.safetensors is missing"):
        PreparedCorpus(root, verify=False)


def test_a_wrong_root_says_how_to_prepare_one(tmp_path):
    with pytest.raises(UserError, match=r"manifest.csv is missing: make one with `python preprocessing/lips.py`"):
        PreparedCorpus(tmp_path)
    (tmp_path / "manifest.csv").write_text("id,corpus\n")
    with pytest.raises(UserError, match="has the columns id, corpus instead of"):
        PreparedCorpus(tmp_path)
    write_manifest(tmp_path / "manifest.csv", [])
    with pytest.raises(UserError, match="it has no rows"):
        PreparedCorpus(tmp_path)


def test_clips_that_do_not_fit_are_refused(tmp_path, clips):
    path = tmp_path / "00000.safetensors"
    with pytest.raises(UserError, match="0 samples, 0 poses, 0 boxes, 7 pictures and 7 confidences"):
        write_shard(path, [replace(clips[0], audio=clips[0].audio[:0])], {})
    with pytest.raises(UserError, match=r"(?s)5 x 6 pixels and .* 6 x 5 pixels"):
        write_shard(path, [clips[0], replace(clips[1], lips=clips[1].lips.swapaxes(1, 2))], {})
    with pytest.raises(UserError, match="4000 samples, 30 poses"):
        write_shard(path, [replace(clips[0], pose=make_figure(0).pose)], {})
    with pytest.raises(UserError, match="figure 0 of 4 joints and figure 1 of 5 joints"):
        write_shard(path, [make_figure(0), make_figure(1, joints=5)], {})


def test_workers_are_sent_rows_not_data(tmp_path):
    corpus = PreparedCorpus(write_corpus(tmp_path, [make_clip(n, samples=500_000) for n in range(4)]))
    assert (tmp_path / "shards" / "00000.safetensors").stat().st_size > 1_000_000
    sent = pickle.dumps(corpus)
    assert len(sent) < 5000
    received = pickle.loads(sent)
    for row in received.utterances:
        np.testing.assert_array_equal(received.lips(row), corpus.lips(row))


def test_a_manifest_that_says_otherwise_than_its_shards_is_refused(tmp_path, clips):
    root = write_corpus(tmp_path, clips)
    rows = read_manifest(root / "manifest.csv")
    for changes in ({"audio_stop": rows[1].audio_stop - 1}, {"fps": 25.0}, {"sha256": "0" * 64}, {"lips_start": 99}):
        write_manifest(root / "manifest.csv", [rows[0], replace(rows[1], **changes), *rows[2:]])
        with pytest.raises(UserError, match=r"(?s)manifest.csv has another place for š1.*: delete it and run"):
            PreparedCorpus(root, verify=False)
    write_manifest(root / "manifest.csv", rows)
    whole = (root / "manifest.csv").read_bytes()
    for damaged in (whole[:-20], whole.replace(b"0.333", b"0,333", 1), b"\xff" + whole, b"", b"{}"):
        (root / "manifest.csv").write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest.csv .*: delete it and run"):
            PreparedCorpus(root, verify=False)


def test_no_changed_byte_of_a_shard_goes_into_another(tmp_path, clips):
    path = tmp_path / "00000.safetensors"
    write_shard(path, clips[:2], {"kept": 2})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(whole)
        changed[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            read, _ = read_shard(path)
        except UserError as error:
            assert str(path) in str(error) and "delete it" in str(error)
        else:  # labels and names are all that has no checksum
            for one, two in zip(read, clips, strict=False):
                for name in OLD:
                    np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
