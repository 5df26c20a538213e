"""From the film of a talker to stabilised crops of the mouth, grey, and of the face if wanted, in colour.

Landmarks are interpolated onto the constant clock; the points of the face that speech does not move are fitted to the
clip's own mean face, which gives the rotation and scale of the head in each picture; both, and the centre of the lips,
are smoothed over time, and give every crop: upright, centred, in proportion to the head. The film is decoded twice, for
landmarks and then for pixels, since crops depend on the landmarks of all pictures and decoded pictures are too many to
keep.

A point of a picture is one complex number, x + iy, which makes turning, scaling and shifting the line a * z + b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from avdvae.errors import UserError
from avdvae.signals.faces import KEPT, STABLE, ArrivingFace, Points, eye_distance, find_faces
from avdvae.signals.video import LONGEST, Film, check_complete, read_frames, shown, to_grey, to_rgb

MIN_PICTURES = 10
MIN_FACE_RATE = 0.5
CROP_SIDE = 1.0  # outer eye distances: a mouth at rest fills half of the width, and one wide open still fits
FACE_SIDE, FACE_DROP = 2.1, 0.3  # outer eye distances: brows to chin; how far below eyes and nose their middle lies
SMOOTHING_SECONDS = 0.3  # nine pictures at 30 per second
LAG_SECONDS = 0.06  # time constant of the smoothing of a camera, whose future is not known
UNSURE_MISFIT = 0.1  # outer eye distances of misfit at which confidence has fallen to 60 %


@dataclass(frozen=True)
class MouthTrack:
    """Mouth crops of one clip on its constant clock, n pictures at `fps`.

    confidence  255 exp(-(m / 0.1)^2 / 2), at least 1, for a misfit of m outer eye distances (root mean square over the
                stable points) between the face and the clip's mean face; 0 where no face was found
    found       whether a face was found there, or in both of the examined pictures that it lies between
    mouth       opening between the inner lips and width of the mouth, in outer eye distances
    jitter      mean distance, in crop pixels, between the centre of the lips and the smoothed one
    landmarks   the points of KEPT in pixels of the upright picture; interpolated where no face was found
    matrices    the affine map from the upright picture to the crop
    """

    lips: np.ndarray  # uint8 (n, size, size)
    face: np.ndarray  # uint8 (n, face, face, 3); (0, 1, 1, 3) where none were wanted
    confidence: np.ndarray  # uint8 (n,)
    found: np.ndarray  # bool (n,)
    fps: Fraction
    mouth: np.ndarray  # float32 (n, 2)
    jitter: float
    landmarks: np.ndarray  # float32 (n, 45, 2)
    matrices: np.ndarray  # float32 (n, 2, 3)
    flags: tuple[str, ...] = ()  # what may be wrong with the face that was followed, in words


def extract_lips(film: Film, model: Path, size: int = 67, face: int | None = None) -> MouthTrack:
    """Crop the talker's mouth in every picture of a film to `size` x `size` grey pixels, and the face to `face` x
    `face` coloured ones unless `face` is None.

    Of several faces the largest in the first picture that has any is followed.
    """
    cv2.setNumThreads(1)  # clips are prepared in parallel, a process each
    times, examined, points, flags = find_faces(film, model)
    check_complete(len(times), film)
    if len(times) < MIN_PICTURES:
        raise UserError(f"{len(times)} pictures: at least {MIN_PICTURES} are needed")
    source = shown(times, film.fps)
    examined, points = examined[source], points[source]
    seen, ticks = ~np.isnan(points[:, 0]), np.arange(len(source))
    found = np.interp(ticks, ticks[examined], seen[examined]) == 1  # between two: if both show the face
    if not found.any():
        raise UserError(
            f"no face was found in any of {len(found)} pictures: give a video of an upright, frontal face "
            "that is at least a fifth as wide as the picture"
        )
    if found.mean() < MIN_FACE_RATE:
        raise UserError(f"a face in {found.sum()} of {len(found)} pictures: at least half are needed")

    points = _without_gaps(points, seen)
    fit, misfit = _onto_mean_face(points[:, : len(STABLE)], seen)
    confidence = np.where(found, _confidence(misfit), 0)

    centre = points[:, len(STABLE) :].mean(1)
    steady = _smooth(centre, film.fps)
    upright = _smooth(fit, film.fps)
    scale = upright * size / CROP_SIDE
    matrices = _matrices(scale, (size - 1) / 2 * (1 + 1j) - scale * steady)
    face_matrices = None
    if face:
        unit = face / FACE_SIDE
        middle = upright * _smooth(points[:, : len(STABLE)].mean(1), film.fps) + FACE_DROP * 1j
        face_matrices = _matrices(upright * unit, (face - 1) / 2 * (1 + 1j) - unit * middle)
    lips, faces = _cut(film, source, matrices, size, face_matrices, face or 1)
    return MouthTrack(
        lips=lips,
        face=faces,
        confidence=confidence.round().astype(np.uint8),
        found=found,
        fps=film.fps,
        mouth=_mouth(points),
        jitter=float(np.mean(np.abs((centre - steady) * scale))),
        landmarks=np.stack([points.real, points.imag], -1).astype(np.float32),
        matrices=matrices.astype(np.float32),
        flags=flags,
    )


class ArrivingMouth:
    """The mouth in the pictures of a camera, as they arrive: as in `extract_lips`, with mean face and smoothing of the
    pictures so far. Where no face is found, the crop stays in its place, and the confidence is 0."""

    def __init__(self, model: Path, fps: float, size: int = 67):
        self.face, self.size = ArrivingFace(model), size
        self.kept = math.exp(-1 / (fps * LAG_SECONDS))  # of the path before, in each picture
        self.level: Points = np.zeros(len(STABLE), complex)  # sum of the faces so far
        self.pictures = 0  # with a face
        self.path: Points | None = None  # rotation and scale, and the centre of the lips

    def crop(self, picture_HW3: UInt8[np.ndarray, "H W 3"]) -> tuple[UInt8[np.ndarray, "h w"], float]:
        """Of an RGB picture, and its confidence in 0..1."""
        points, confidence = self.face.find(picture_HW3), 0.0
        if points is not None:
            stable = points[: len(STABLE)]
            self.level += (stable - stable[0]) / (stable[3] - stable[0])
            self.pictures += 1
            fit, misfit = _onto(self.level / self.pictures, stable[None])
            now = np.array([fit[0], points[len(STABLE) :].mean()])
            self.path = now if self.path is None else self.kept * self.path + (1 - self.kept) * now
            confidence = float(_confidence(misfit)[0])
        if self.path is None:
            return np.zeros((self.size, self.size), np.uint8), 0.0
        scale = self.path[:1] * self.size / CROP_SIDE
        matrix = _matrices(scale, (self.size - 1) / 2 * (1 + 1j) - scale * self.path[1:])[0]
        return _warped(cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY), matrix, self.size), confidence / 255

    def close(self) -> None:
        self.face.close()


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


def _without_gaps(points: Points, found: np.ndarray) -> Points:
    """Pictures without a face get each point by linear interpolation between those with one; the ends repeat."""
    ticks = np.arange(len(points))
    return np.stack([np.interp(ticks, ticks[found], column[found]) for column in points.T], axis=1)


def _onto_mean_face(stable: Points, found: np.ndarray) -> tuple[Points, np.ndarray]:
    """The rotation and scale that fit each picture's stable points to the mean face best, and the misfit that is left.

    The mean face has its outer eye corners level and at distance 1. With complex points, Umeyama's least-squares
    similarity is a = sum conj(z) m / sum |z|^2 for points z and m about their means.
    """
    left, right = stable[:, :1], stable[:, 3:4]
    return _onto(((stable - left) / (right - left))[found].mean(0), stable)


def _onto(mean_face: Points, stable: Points) -> tuple[Points, np.ndarray]:
    mean_face = mean_face - mean_face.mean()
    about = stable - stable.mean(1, keepdims=True)
    fit = (about.conj() @ mean_face) / (np.abs(about) ** 2).sum(1)
    return fit, np.sqrt((np.abs(fit[:, None] * about - mean_face) ** 2).mean(1))


def _confidence(misfit: np.ndarray) -> np.ndarray:
    return np.clip(255 * np.exp(-((misfit / UNSURE_MISFIT) ** 2) / 2), 1, 255)


def _smooth(track: Points, fps: Fraction) -> Points:
    """A centred weighted mean; tracks are mirrored at their ends through the end point, so steady movement is kept."""
    reach = min(round(SMOOTHING_SECONDS * fps / 2), len(track) - 1)
    weights = np.hanning(2 * reach + 3)[1:-1]
    return np.convolve(np.pad(track, reach, "reflect", reflect_type="odd"), weights / weights.sum(), "valid")


def _matrices(scale: Points, shift: Points) -> np.ndarray:
    """The maps z -> scale z + shift as real 2x3 matrices."""
    return np.stack([scale.real, -scale.imag, shift.real, scale.imag, scale.real, shift.imag], -1).reshape(-1, 2, 3)


def _mouth(points: Points) -> np.ndarray:
    """Opening and width of the mouth, in outer eye distances."""
    pairs = np.array([[KEPT.index(13), KEPT.index(14)], [KEPT.index(61), KEPT.index(291)]])
    across = np.abs(points[:, pairs[:, 1]] - points[:, pairs[:, 0]])
    return (across / eye_distance(points)[:, None]).astype(np.float32)


def _cut(
    film: Film, source: np.ndarray, matrices: np.ndarray, size: int, face_matrices: np.ndarray | None, face: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mouth and face of tick k of the clock are cut from picture source[k] by the k-th matrices."""
    lips = np.empty((len(source), size, size), np.uint8)
    faces = np.empty((0 if face_matrices is None else len(source), face, face, 3), np.uint8)
    tick = 0
    for number, frame in enumerate(read_frames(film.path)):
        while tick < len(source) and source[tick] == number:
            lips[tick] = _warped(to_grey(frame), matrices[tick], size)
            if face_matrices is not None:
                picture = to_rgb(frame, LONGEST)
                # By the upright size, not the frame's. Pixel coordinates are those of their centres.
                shrink = max(picture.shape) / max(frame.width, frame.height)
                turn, shift = face_matrices[tick][:, :2], face_matrices[tick][:, 2:]
                matrix = np.hstack([turn / shrink, turn @ np.full((2, 1), (1 / shrink - 1) / 2) + shift])
                faces[tick] = _warped(picture, matrix, face)
            tick += 1
    return lips, faces


def _warped(picture: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    finer = max(1, int(np.ceil(1 / np.hypot(*matrix[:, 0]))))  # against aliasing, where the picture is finer
    zoomed = finer * matrix + [[0, 0, (finer - 1) / 2]]
    large = cv2.warpAffine(picture, zoomed, (finer * size, finer * size), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
