"""Human figures: generated or read, cleared of where they are and prepared, and what is wrong with them named."""

from dataclasses import replace
from pathlib import Path

import cdflib
import numpy as np
import pytest
from test_prepare import lips_program, table

from avdvae.data.clips import SPLITS
from avdvae.data.corpora import open_corpus
from avdvae.data.fixtures import MINIATURES
from avdvae.data.fixtures.motion import about_the_room, on_32_joints, write_cdf
from avdvae.data.gait import MOVEMENTS, Gait, perform, subject
from avdvae.data.poses import SKELETONS, PoseFormat, in_frame_of_hips, read_poses
from avdvae.data.prepare import prepare
from avdvae.data.readers.h36m import ACTIONS
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError

FOLDER = Path("MyPoseFeatures", "D3_Positions")


@pytest.fixture(scope="module")
def h36m(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("h36m")
    MINIATURES["h36m"].write(root, [])
    return root


def lengths(corpus: str, poses_TJ3: np.ndarray) -> np.ndarray:
    """Of the bones, T x bones."""
    parents, children = zip(*SKELETONS[corpus].bones, strict=True)
    return np.linalg.norm(poses_TJ3[:, children] - poses_TJ3[:, parents], axis=2)


@pytest.mark.parametrize(("name", "joints"), [("gait", 17), ("h36m", 32)])
def test_a_skeleton_is_a_tree_below_the_hips(name, joints):
    skeleton = SKELETONS[name]
    assert len(set(skeleton.joints)) == joints == len(skeleton.parents) + 1
    assert all(parent < child for parent, child in skeleton.bones)
    for parent, child in skeleton.bones:  # a limb stays on its side
        theirs, ours = (skeleton.joints[joint].split()[0] for joint in (parent, child))
        assert theirs == ours or theirs not in ("left", "right")


def test_gait_moves_bones_that_keep_their_lengths(tmp_path):
    clips, faults = Gait(tmp_path, subjects=3, sequences=6, seconds=2).clips(workers=1)
    assert len(clips) == 18 and not faults and {clip.labels["action"] for clip in clips} == set(MOVEMENTS)
    assert {clip.speaker: clip.split for clip in clips} == {"g001": "train", "g002": "valid", "g003": "test"}
    of_subject = {}
    for clip in clips:
        assert clip.poses
        poses_TJ3 = read_poses(clip.poses)
        assert poses_TJ3.dtype == np.float32 and 0.85 * 50 - 1 < len(poses_TJ3) < 1.15 * 50 + 1
        assert not poses_TJ3[:, 0].any() and np.abs(poses_TJ3).max() < 1.5, "metres, from the hips"
        steps = np.linalg.norm(np.diff(poses_TJ3, axis=0), axis=2)
        assert 0.02 < steps.max() < 0.4, "it moves, and smoothly"
        bones = lengths("gait", poses_TJ3)
        np.testing.assert_allclose(bones, np.broadcast_to(bones[0], bones.shape), atol=1e-6)
        np.testing.assert_allclose(bones[0], of_subject.setdefault(clip.speaker, bones[0]), atol=1e-6)
        assert bones[0].min() > 0.03
        # Feet are below, the head above; right is right.
        joints = dict(zip(SKELETONS["gait"].joints, np.moveaxis(poses_TJ3, 1, 0), strict=True))
        assert (joints["head"][:, 2] > 0.3).all() and (joints["right ankle"][:, 2] < 0).all()
        assert (joints["right hip"][:, 0] > 0).all() and (joints["left shoulder"][:, 0] < 0).all()
    assert len({tuple(bones.round(4)) for bones in of_subject.values()}) == 3


@pytest.mark.parametrize("movement", ["walking", "running"])
@pytest.mark.parametrize(
    ("upper", "middle", "lower", "way"), [("hip", "knee", "ankle", -1), ("shoulder", "elbow", "wrist", 1)]
)
def test_knees_bend_backward_and_elbows_forward(movement, upper, middle, lower, way):
    poses_TJ3 = perform(subject(0, 1), MOVEMENTS[movement], 4, np.random.default_rng(0)).astype(float)
    joints = dict(zip(SKELETONS["gait"].joints, np.moveaxis(poses_TJ3, 1, 0), strict=True))
    to_the_right = joints["right shoulder"] - joints["left shoulder"]
    for side in ("left", "right"):
        a, b, c = (joints[f"{side} {joint}"] for joint in (upper, middle, lower))
        assert (way * (np.cross(b - a, c - b) * to_the_right).sum(1) > 0).mean() > 0.95


def test_gait_is_what_it_was(tmp_path):
    one, two = (Gait(tmp_path / name, subjects=3, sequences=2, seconds=1) for name in ("one", "two"))
    for a, b in zip(one.clips(1)[0], two.clips(1)[0], strict=True):
        assert a.poses and b.poses and a.id == b.id and a.poses.read_bytes() == b.poses.read_bytes()
    assert one.key == two.key != Gait(tmp_path, subjects=3, sequences=2, seconds=1, seed=1).key
    other = perform(subject(1, 1), MOVEMENTS["walking"], 1, np.random.default_rng(0))
    assert not np.allclose(other, perform(subject(0, 1), MOVEMENTS["walking"], 1, np.random.default_rng(0)))


def test_impossible_gaits_are_refused(tmp_path):
    for parameters, words in (
        ({"subjects": 2}, "at least 3"),
        ({"sequences": 0}, "1 or more"),
        ({"seconds": 0}, "1 to 60"),
    ):
        with pytest.raises(UserError, match=words):
            Gait(tmp_path, **parameters)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write Gait to"):
        Gait(tmp_path / "file").clips(1)


def test_rotating_and_moving_a_figure_changes_nothing(tmp_path):
    figure = on_32_joints(perform(subject(0, 1), MOVEMENTS["running"], 2, np.random.default_rng(0)))
    write_cdf(tmp_path / "still.cdf", 1000 * figure)
    still = read_poses(tmp_path / "still.cdf")
    np.testing.assert_allclose(still, figure[::2], atol=1e-6)  # Gait's frame is that of the hips
    for lean in (0.1, 1.5):
        write_cdf(tmp_path / "about.cdf", about_the_room(figure, lean))
        np.testing.assert_allclose(read_poses(tmp_path / "about.cdf"), still, atol=1e-5)
    write_cdf(tmp_path / "mirrored.cdf", 1000 * figure * [-1, 1, 1])
    assert np.abs(read_poses(tmp_path / "mirrored.cdf") - still).max() > 0.1, "a mirrored figure is another"


def test_the_frame_of_the_hips_is_theirs():
    poses_TJ3 = in_frame_of_hips(np.random.default_rng(0).normal(size=(40, 32, 3)))
    right_T3, spine_T3 = poses_TJ3[:, 1] - poses_TJ3[:, 6], poses_TJ3[:, 12]
    assert (right_T3[:, 0] > 0).all() and np.abs(right_T3[:, 1:]).max() < 1e-12
    assert (spine_T3[:, 2] > 0).all() and np.abs(spine_T3[:, 1]).max() < 1e-12 and not poses_TJ3[:, 0].any()


def test_human36m_goes_through_the_program(h36m, tmp_path):
    out = tmp_path / "out"
    done = lips_program("data=h36m", f"data.root={h36m}", f"out={out}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for line in (
        "subjects   7 of 7",
        "clips      210 of 210",
        "splits     train 150, valid 30, test 30",
        "clips      210 of 210 kept, 0.058 hours",
        "poses      5250 of 32 joints, 25 a second",
    ):
        assert line in done.stdout, done.stdout
    assert not {"face", "faces", "fault", "sync", "pictures", "(check", "speakers"} & set(done.stdout.split())
    assert sorted(path.name for path in out.iterdir()) == ["manifest.csv", "quality.csv", "shards"]
    assert {row["joints"] for row in table(out).values()} == {"32"}
    corpora = {split: PreparedCorpus(out, split) for split in SPLITS}
    assert {split: set(corpus.speakers) for split, corpus in corpora.items()} == {
        "train": {"S1", "S6", "S7", "S8", "S9"},
        "valid": {"S11"},
        "test": {"S5"},
    }
    rows = {row.id: row for row in corpora["train"].utterances}
    assert rows["S1/WalkingDog 1"].labels == {"action": "WalkDog", "subject": "S1"}
    assert {row.labels["action"] for row in rows.values()} == set(ACTIONS)
    assert corpora["train"].has_poses and not corpora["train"].has_lips
    row = rows["S1/Walking"]
    assert (row.fps, row.rate, row.seconds) == (25, 0, 1.0) and corpora["train"].hours == pytest.approx(150 / 3600)

    with cdflib.CDF(h36m / "S1" / FOLDER / "Walking.cdf") as file:
        world = np.asarray(file.varget("Pose")).reshape(-1, 32, 3)
    poses_TJ3 = corpora["train"].poses(row)
    assert poses_TJ3.shape == (25, 32, 3) and not poses_TJ3[:, 0].any()
    np.testing.assert_allclose(lengths("h36m", poses_TJ3), lengths("h36m", world[::2]) / 1000, atol=1e-5)


def test_the_protocol_of_prediction_keeps_17_joints_at_50_hz_along_the_axes_of_the_room(tmp_path, monkeypatch):
    for name in ("S1", "S5", "S6", "S7", "S8", "S9", "S11"):
        folder = tmp_path / "h36m" / name / FOLDER
        folder.mkdir(parents=True)
        for action in ACTIONS:
            for number in (1, 2):
                (folder / f"{action} {number}.cdf").touch()
    given = {"reader": "h36m", "root": str(tmp_path / "h36m")}
    corpus = open_corpus({**given, "protocol": "prediction"})
    clips, faults = corpus.clips(1)
    subjects = {split: {clip.speaker for clip in clips if clip.split == split} for split in SPLITS}
    assert not faults and subjects["train"] == {"S1", "S5", "S6", "S7", "S8"} and subjects["test"] == {"S9", "S11"}
    held_out = [clip for clip in clips if clip.split == "valid"]
    assert 4 <= len(held_out) <= 18 and subjects["valid"] <= subjects["train"], "some files of the training subjects"

    clip = next(clip for clip in clips if clip.split == "test")
    clip.source.unlink()
    world = about_the_room(on_32_joints(perform(subject(0, 1), MOVEMENTS["running"], 1, np.random.default_rng(0))))
    write_cdf(clip.source, world)
    monkeypatch.setattr(type(corpus), "clips", lambda self, workers: ([clip], []))
    out = prepare(corpus, tmp_path / "out", workers=1).out
    prepared = PreparedCorpus(out, "test")
    (row,) = prepared.utterances
    assert (row.fps, row.seconds, row.labels) == (50, len(world) / 50, clip.labels)
    kept = [*range(4), *range(6, 9), *range(12, 16), *range(17, 20), *range(25, 28)]
    np.testing.assert_allclose(prepared.poses(row), (world - world[:, :1])[:, kept] / 1000, atol=1e-6)
    names = [SKELETONS["h36m"].joints[n] for n in kept]
    sides = [name for name in names if name.split()[0] in ("left", "right")]
    assert sides == [name for name in SKELETONS["gait"].joints if name.split()[0] in ("left", "right")]

    other = replace(clip, pose_format=PoseFormat())
    monkeypatch.setattr(type(corpus), "clips", lambda self, workers: ([other], []))
    with pytest.raises(UserError, match=r"was prepared with .*, not "):
        prepare(corpus, out, workers=1)
    with pytest.raises(UserError, match=r"data\.protocol=dlow: choose from dvae, prediction"):
        open_corpus({**given, "protocol": "dlow"})
    assert corpus.key != open_corpus(given).key


def test_every_fault_of_human36m_is_named_at_once(h36m, tmp_path):
    def place(subject: str, name: str) -> Path:
        return tmp_path / "h36m" / subject / FOLDER / f"{name}.cdf"

    for path in h36m.rglob("*.cdf"):
        target = tmp_path / "h36m" / path.relative_to(h36m)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)

    def overwrite(subject: str, name: str, content: bytes) -> Path:
        path = place(subject, name)
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(content or whole[: len(whole) // 2])
        return path

    corpus = {"reader": "h36m", "root": str(tmp_path / "h36m")}
    stems = {(c.speaker, c.labels["action"]): Path(c.id).name for c in open_corpus(corpus).clips(1)[0]}
    place("S1", "Eating 1").unlink()
    for path in (tmp_path / "h36m" / "S5" / FOLDER).glob("Posing*"):
        path.unlink()
    cut = overwrite("S1", "Walking", b"")
    text = overwrite("S1", "Waiting", b"no CDF")
    empty = place("S6", stems["S6", "Smoking"])
    empty.unlink()
    empty.touch()
    lost = place("S11", stems["S11", "Directions"])
    lost.unlink()
    figure = on_32_joints(perform(subject(0, 1), MOVEMENTS["running"], 2, np.random.default_rng(0)))
    figure[7:11, 3] = np.nan
    write_cdf(lost, 1000 * figure)
    folded = overwrite("S6", stems["S6", "Photo"], b"none")
    write_cdf(folded, np.ones((50, 32, 3)))
    done = lips_program("data=h36m", f"data.root={corpus['root']}", "check_only=true")
    assert done.returncode == 1 and "lips.py: 7 faults" in done.stderr and "Traceback" not in done.stderr
    for fault in (
        f"{tmp_path / 'h36m' / 'S1' / FOLDER}: lacks 1 of 2 files of Eating",
        f"{tmp_path / 'h36m' / 'S5' / FOLDER}: lacks 2 of 2 files of Posing",
        f"{cut}: cannot be read as poses",
        f"{text}: cannot be read as poses",
        f"{empty}: is empty",
        f"{lost}: cannot be used: 2 of its 25 poses lack the place of a joint",
        f"{folded}: cannot be used: 25 of its 25 poses lack",
    ):
        assert f"fault      {fault}" in done.stdout, done.stdout
    assert f"clips      {210 - 3 - 5} of 210" in done.stdout
