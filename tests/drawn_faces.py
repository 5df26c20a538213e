"""A plain drawn face with known head and mouth, enough for a landmarker to find."""

from __future__ import annotations

import cv2
import numpy as np

SKIN, SHADE, LIP, DARK = (222, 178, 150), (190, 140, 115), (178, 84, 84), (40, 15, 18)


def similarity(turn: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), side: int = 256):
    """The 2x3 map that turns (degrees) and zooms about the middle of the picture, then shifts (pixels)."""
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn, zoom)
    matrix[:, 2] += shift
    return matrix


def blank(side: int = 256) -> np.ndarray:
    """A background without a face."""
    return np.full((side, side, 3), (96, 108, 122), np.uint8)


def draw_face(aperture: float, matrix: np.ndarray | None = None, picture: np.ndarray | None = None) -> np.ndarray:
    """Draw a face of 256 x 256 pixels, its mouth open by `aperture` pixels, moved by `matrix` onto `picture` (RGB)."""
    layer, cover = cv2.resize(blank(), None, fx=2, fy=2), np.zeros((512, 512), np.uint8)

    def oval(canvas, x, y, half_width, half_height, colour, start=0, end=360):
        x, y, half_width, half_height = (round(32 * length) for length in (x, y, half_width, half_height))
        # Twice the size, and positions in sixteenths of a pixel, so that slow movements are smooth.
        cv2.ellipse(canvas, (x, y), (half_width, half_height), 0, start, end, colour, -1, cv2.LINE_AA, 4)

    jaw = aperture / 3
    oval(layer, 128, 112, 74, 92, (70, 48, 36))
    oval(cover, 128, 112, 74, 92, 255)
    oval(layer, 128, 130 + jaw / 2, 66, 88 + jaw / 2, SKIN)
    oval(cover, 128, 130 + jaw / 2, 66, 88 + jaw / 2, 255)
    for side in (-1, 1):
        x = 128 + 27 * side
        oval(layer, x, 97, 15, 4, (75, 50, 38), 180, 360)
        oval(layer, x, 113, 14, 9, SHADE)
        oval(layer, x, 114, 12, 6.5, (245, 243, 240))
        oval(layer, x, 114, 5.8, 5.8, (82, 58, 40))
        oval(layer, x, 114, 2.6, 2.6, (12, 10, 10))
        oval(layer, 128 + 6 * side, 151, 5, 3.5, SHADE)
        oval(layer, 128 + 5 * side, 152, 2.2, 1.5, (110, 65, 55))
    oval(layer, 128, 134, 5, 18, (206, 160, 134))
    oval(layer, 128, 146, 9, 7, (232, 190, 164))
    oval(layer, 128, 181 + aperture / 2, 25, 6 + aperture / 2, LIP)
    oval(layer, 128, 181 + aperture / 2, 20, max(aperture / 2, 0.6), DARK)

    slope = np.linspace(1.12, 0.82, 512)[None, :, None]
    layer = cv2.GaussianBlur(np.clip(layer * slope, 0, 255).astype(np.uint8), (0, 0), 1.4)
    picture = blank() if picture is None else picture
    size = picture.shape[1], picture.shape[0]
    half = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    onto = (similarity() if matrix is None else matrix) @ half
    moved = cv2.warpAffine(layer, onto, size, flags=cv2.INTER_AREA)
    share = cv2.warpAffine(cover, onto, size, flags=cv2.INTER_AREA)[..., None] / 255
    return (moved * share + picture * (1 - share)).round().astype(np.uint8)
