"""The face: drawn so that a face detector finds it, with a mouth that follows a Performance.

Drawing is in head units (half the head's width is 1, the origin is between the eyes, y points down) on a texture of
twice the picture's size: still parts are painted once a speaker, then each frame stretches the jaw, paints eyes, brows
and mouth, and puts the rotated and shifted head over the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avdvae.data.talker.articulation import CONTROL_RATE, Performance
from avdvae.data.talker.people import Colour, Expression, Looks

SIZE = 256  # pixels a side
_TEXTURE = 2 * SIZE
_CENTRE = (_TEXTURE / 2, _TEXTURE * 0.46)  # the head's origin in the texture
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SHIFT = 4  # fractional bits of OpenCV's coordinates


@dataclass(frozen=True)
class Mouth:
    """In head units: the mouth's outline, which is the ground truth of lip reading."""

    opening: float  # between the inner edges of the lips
    half_width: float
    thickness: float
    tongue: float
    smile: float

    @classmethod
    def shape(cls, looks: Looks, aperture: float, width: float, tongue: float, smile: float) -> Mouth:
        return cls(
            opening=looks.opening * max(aperture, 0.0),
            half_width=looks.mouth_width * (1 + 0.2 * width + 0.06 * smile - 0.06 * max(aperture, 0.0)),
            # Rounded lips stick out, spread ones are thin, pressed ones nearly vanish.
            thickness=looks.lip_thickness * (1 - 0.22 * width + 1.5 * min(aperture, 0.0)),
            tongue=tongue,
            smile=smile,
        )


@dataclass(frozen=True)
class Pose:
    """Of the head in one frame: roll in radians, shift in head units, scale, and the turn to the side (-1 .. 1)."""

    roll: float
    shift: tuple[float, float]
    scale: float
    turn: float


def eye_distance(looks: Looks) -> float:
    """Between the outer corners of the eyes, in head units: the measure of lip aperture and width."""
    return 2 * (looks.eye_spacing + looks.eye_size)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # pyright: ignore[reportReturnType]


class Face:
    """One speaker's head; `draw` gives a picture."""

    def __init__(self, looks: Looks, rng: np.random.Generator) -> None:
        self.looks, self.unit = looks, 2 * looks.size
        y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
        light = 1 + 0.25 * rng.uniform(-1, 1) * x + 0.25 * rng.uniform(-1, 1) * y
        wall = np.clip(light[..., None] * looks.background, 0, 255).astype(np.uint8)
        shoulders = (int(1.6 * looks.size), 62)
        cv2.ellipse(wall, (SIZE // 2, SIZE + 12), shoulders, 0, 0, 360, looks.shirt, -1, cv2.LINE_AA)
        self.background = cv2.GaussianBlur(wall, (0, 0), 2)
        self.texture, self.alpha = self._paint_head()

    def _points(self, xy: np.ndarray) -> np.ndarray:
        return np.rint((xy * self.unit + _CENTRE) * (1 << _SHIFT)).astype(np.int32)

    def _fill(self, canvas: np.ndarray, xy: np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(canvas, [self._points(xy)], colour, cv2.LINE_AA, _SHIFT)

    def _line(self, canvas: np.ndarray, x: np.ndarray, y: np.ndarray, colour: Colour, thickness: int) -> None:
        cv2.polylines(canvas, [self._points(np.stack([x, y], -1))], False, colour, thickness, cv2.LINE_AA, _SHIFT)

    def _between(self, canvas: np.ndarray, x: np.ndarray, upper: np.ndarray, lower: np.ndarray, colour: Colour) -> None:
        """Fill the area between two curves over the same x."""
        outline = np.stack([np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]])], -1)
        self._fill(canvas, outline, colour)

    def _paint_head(self) -> tuple[np.ndarray, np.ndarray]:
        """The still parts, as colours and as a mask: hair, neck, ears, face, light and nose."""
        looks, skin, nose = self.looks, self.looks.skin, self.looks.nose
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        x, y = np.sin(angle), -np.cos(angle)
        circle = np.stack([x, y], -1)
        jaw = np.stack([0.93 * x * (1 - 0.16 * np.clip(y, 0, 1) ** 2), np.where(y < 0, 1.05 * y, looks.jaw * y)], -1)
        canvas = np.full((_TEXTURE, _TEXTURE, 3), looks.hair, np.uint8)
        alpha = np.zeros((_TEXTURE, _TEXTURE, 3), np.uint8)
        for outline, colour in (
            (circle * (1.06, 1.08) + (0, -0.32), looks.hair),
            (np.array([(-0.45, 0.7), (0.45, 0.7), (0.62, 2.4), (-0.62, 2.4)]), _mix(skin, _BLACK, 0.28)),
            (circle * (0.1, 0.22) + (-0.95, 0.12), _mix(skin, _BLACK, 0.12)),
            (circle * (0.1, 0.22) + (0.95, 0.12), _mix(skin, _BLACK, 0.12)),
            (jaw, skin),
        ):
            self._fill(canvas, outline, colour)
            self._fill(alpha, outline, _WHITE)

        # Light: a round head, darker to the sides and below, brighter on forehead, nose and cheeks.
        y, x = np.mgrid[0:_TEXTURE, 0:_TEXTURE].astype(np.float32)
        x, y = (x - _CENTRE[0]) / self.unit, (y - _CENTRE[1]) / self.unit
        shade = 1.05 - 0.2 * x**2 - 0.06 * y**2
        for strength, centre_x, centre_y, width, height in (
            (0.1, 0, -0.6, 0.5, 0.35),  # forehead
            (0.1, 0, 0.25, 0.07, 0.3),  # ridge of the nose
            (-0.1, 0, looks.mouth_height + 0.26, 0.22, 0.05),  # below the lip
            *((-0.14, side * looks.eye_spacing, -0.02, 0.24, 0.16) for side in (-1, 1)),
            *((0.04, side * 0.5, 0.45, 0.25, 0.2) for side in (-1, 1)),  # cheeks
            *((-0.12, side * nose * 0.95, 0.45, 0.07, 0.13) for side in (-1, 1)),
        ):
            shade += strength * np.exp(-(((x - centre_x) / width) ** 2) - ((y - centre_y) / height) ** 2)
        canvas = np.clip(cv2.GaussianBlur(canvas, (0, 0), 2.2) * shade[..., None], 0, 255).astype(np.uint8)

        for side in (-1, 1):
            self._fill(canvas, circle * (nose * 0.24, 0.03) + (side * nose * 0.5, 0.55), _mix(skin, _BLACK, 0.45))
            wing = side * nose * np.array([0.95, 1.08, 0.8])
            self._line(canvas, wing, np.array([0.42, 0.52, 0.57]), _mix(skin, _BLACK, 0.3), 2)
        return cv2.GaussianBlur(canvas, (0, 0), 1.0), cv2.GaussianBlur(alpha[..., 0], (0, 0), 1.5)

    def _eye(self, canvas: np.ndarray, side: int, openness: float, gaze: float) -> None:
        skin, half, middle = self.looks.skin, self.looks.eye_size, side * self.looks.eye_spacing
        height = 0.48 * half * openness
        x = np.linspace(-half, half, 15)
        upper, lower = -height * (1 - (x / half) ** 2), 0.012 + 0.75 * height * (1 - (x / half) ** 2)
        if openness > 0.15:
            self._between(canvas, x + middle, upper, lower, (238, 234, 230))
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            for radius, right, down, colour in (
                (0.5, 0.0, 0.0, self.looks.iris),
                (0.24, 0.0, 0.0, (12, 10, 10)),
                (0.08, -0.14, -0.12, (250, 250, 250)),
            ):
                disc_x = half * (radius * np.cos(angle) + right) + gaze
                disc_y = half * (radius * np.sin(angle) + down) - 0.01
                covered = np.clip(disc_y, np.interp(disc_x, x, upper), np.interp(disc_x, x, lower))  # by the lids
                self._fill(canvas, np.stack([disc_x + middle, covered], -1), colour)
        self._line(canvas, x + middle, upper, _mix(skin, (20, 10, 10), 0.75), 3)
        self._line(canvas, x + middle, lower, _mix(skin, _BLACK, 0.35), 1)

    def _brow(self, canvas: np.ndarray, side: int, expression: Expression) -> None:
        x = np.linspace(-1, 1, 9)
        inner = -side * x  # 1 at the inner end
        y = -0.27 - 0.07 * expression.brow_raise + 0.05 * expression.brow_slant * inner + 0.05 * x**2
        half = self.looks.brow * (0.35 + 0.15 * inner)
        hair = _mix(self.looks.hair, self.looks.skin, 0.2)
        self._between(canvas, side * self.looks.eye_spacing + 1.25 * self.looks.eye_size * x, y - half, y + half, hair)

    def _mouth(self, canvas: np.ndarray, mouth: Mouth) -> None:
        looks, dark = self.looks, partial(_mix, self.looks.lips, _BLACK)
        x = np.linspace(-1, 1, 33)
        arch = 1 - x**2
        outer, inner = mouth.half_width * x, 0.86 * mouth.half_width * x
        rest = looks.mouth_height - 0.06 * mouth.smile * x**2  # a smile raises the corners
        above, below = rest - 0.3 * mouth.opening * arch, rest + 0.7 * mouth.opening * arch  # inner edges of the lips
        middle, gap = (above + below) / 2, below - above
        bow = 1 - 0.28 * np.exp(-((x / 0.16) ** 2))  # the dip in the upper lip
        self._between(canvas, outer, above - 0.85 * mouth.thickness * arch**0.7 * bow, middle, dark(0.16))
        self._between(canvas, outer, middle, below + 1.1 * mouth.thickness * arch**0.75, looks.lips)
        gloss = np.full(33, below[16] + 0.5 * mouth.thickness)
        self._line(canvas, 0.45 * outer, gloss, _mix(looks.lips, _WHITE, 0.18), 2)
        if mouth.opening * self.unit < 1:
            self._line(canvas, inner, middle, dark(0.55), 2)
            return
        self._between(canvas, inner, above, below, (42, 16, 18))
        self._between(canvas, 0.8 * inner, above, above + np.minimum(0.09, 0.42 * gap), (226, 220, 208))  # teeth
        tongue = below - (0.28 + 0.4 * mouth.tongue) * gap  # on the floor of the mouth, or its tip raised
        self._between(canvas, 0.62 * inner, tongue, below, (172, 84, 88))

    def draw(
        self, mouth: Mouth, expression: Expression, openness: float, gaze: float, pose: Pose
    ) -> UInt8[np.ndarray, "H W 3"]:
        """One picture, before light and noise."""
        looks = self.looks
        # The jaw drops: rows below the mouth move down, by less than the mouth opens, and those of the neck do not.
        row = np.arange(_TEXTURE)
        below = (row - looks.mouth_height * self.unit - _CENTRE[1]) / self.unit
        drop = 0.45 * mouth.opening * self.unit * np.clip(below / 0.3, 0, 1) * np.clip((0.9 - below) / 0.45, 0, 1)
        rows = np.rint(row - drop).astype(int)
        canvas, alpha = self.texture[rows], self.alpha[rows]
        for side in (-1, 1):
            self._eye(canvas, side, openness * (1 + 0.35 * expression.eyes), gaze)
            self._brow(canvas, side, expression)
        self._mouth(canvas, mouth)

        cosine, sine = np.cos(pose.roll) * pose.scale / 2, np.sin(pose.roll) * pose.scale / 2
        turn = np.array([[cosine * (1 - 0.05 * pose.turn**2), -sine], [sine, cosine]])
        shift = np.array([SIZE / 2, SIZE * 0.46]) + np.array(pose.shift) * looks.size - turn @ _CENTRE
        matrix = np.hstack([turn, shift[:, None]])
        # Replicated borders: a neck that ends above the picture's edge is continued.
        turned = partial(cv2.warpAffine, M=matrix, dsize=(SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
        head, cover = turned(canvas), turned(alpha).astype(np.float32) / 255
        return cv2.blendLinear(head, self.background, cover, 1 - cover)


def _wander(rng: np.random.Generator, count: int, fps: float, scale: float, period: float) -> np.ndarray:
    """A smooth random motion: cosine-interpolated values drawn every `period` seconds."""
    knots = rng.normal(0, scale, int(count / fps / period) + 3)
    place = np.arange(count) / fps / period
    low = place.astype(int)
    ease = 0.5 - 0.5 * np.cos(np.pi * (place - low))
    return knots[low] + (knots[low + 1] - knots[low]) * ease


@dataclass(frozen=True)
class LipTruth:
    """Per frame, as shares of the distance between the outer corners of the eyes."""

    aperture: Float[np.ndarray, " T"]
    width: Float[np.ndarray, " T"]


def film(
    act: Performance, looks: Looks, expression: Expression, fps: float, rng: np.random.Generator
) -> tuple[LipTruth, Iterator[UInt8[np.ndarray, "H W 3"]]]:
    """The sentence as pictures, and the true positions of the lips. Picture k shows the mouth at time k / fps."""
    count = int(act.seconds * fps)
    at = np.minimum(np.rint(np.arange(count) / fps * CONTROL_RATE).astype(int), len(act.f0) - 1)
    mouths = [
        Mouth.shape(looks, *values, expression.smile)
        for values in zip(act.aperture[at], act.width[at], act.tongue[at], strict=True)
    ]
    scale = eye_distance(looks)
    truth = LipTruth(
        np.array([m.opening / scale for m in mouths]), np.array([2 * m.half_width / scale for m in mouths])
    )
    face = Face(looks, rng)
    tilt, turn, zoom = (_wander(rng, count, fps, s, 0.8) for s in (0.035, 0.4, 0.012))
    x, y = _wander(rng, count, fps, 0.035, 0.7), _wander(rng, count, fps, 0.03, 0.6)
    gaze = _wander(rng, count, fps, 0.012, 0.5)
    light = 1 + _wander(rng, count, fps, 0.015, 1.5) + rng.uniform(-0.1, 0.1)
    blinks = np.cumsum(rng.exponential(2.5, int(act.seconds) + 2))
    lids = [float(np.min(np.clip(np.abs(k / fps - blinks) / 0.09, 0.05, 1))) for k in range(count)]
    film_grain = np.rint(rng.normal(0, rng.uniform(1.0, 2.5), (SIZE + 64, SIZE + 64, 3))).astype(np.int16)
    corners = rng.integers(0, 64, (count, 2))

    def pictures() -> Iterator[np.ndarray]:
        for k in range(count):
            pose = Pose(tilt[k], (x[k], y[k]), 1 + zoom[k], turn[k])
            picture = face.draw(mouths[k], expression, lids[k], gaze[k], pose)
            top, left = corners[k]  # of one field of grain: new noise for each picture would take longer than the face
            grain = film_grain[top : top + SIZE, left : left + SIZE]
            yield cv2.add(cv2.convertScaleAbs(picture, alpha=light[k]), grain, dtype=cv2.CV_8U)

    return truth, pictures()
