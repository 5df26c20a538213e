"""Mouths that are cropped already: files of NTCD-TIMIT and of corpora made from it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from scipy.fft import idctn

from avdvae.errors import UserError

FPS = Fraction(30000, 1001)  # of TCD-TIMIT, which says 30


def read_lips(path: Path, size: int) -> UInt8[np.ndarray, "T H W"]:
    """Upright grey crops of `size` pixels a side, from a MATLAB v7.3 file (.mat) or a NumPy file (.npy)."""
    pictures_TP = _rows(path)
    side = math.isqrt(pictures_TP.shape[1])
    if side**2 != pictures_TP.shape[1] or not len(pictures_TP):
        raise UserError(f"it has {pictures_TP.shape} numbers: a picture is a row of as many as a square has pixels")
    lips_THW = pictures_TP.reshape(-1, side, side).transpose(0, 2, 1)  # MATLAB counts down the columns
    if lips_THW.min() < 0:  # the 2-D DCT of a picture, of unknown scale
        lips_THW = np.asarray(idctn(lips_THW, axes=(1, 2)))
        low, high = lips_THW.min(), lips_THW.max()
        lips_THW = (lips_THW - low) / max(high - low, 1e-12)
    elif lips_THW.max() > 1:
        lips_THW = lips_THW / 255
    grey_THW = np.rint(255 * lips_THW.clip(0, 1)).astype(np.uint8)
    if side == size:
        return np.ascontiguousarray(grey_THW)
    import cv2

    return np.stack([cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) for picture in grey_THW])


def _rows(path: Path) -> Float[np.ndarray, "T P"]:
    """One picture a row."""
    try:
        if path.suffix == ".npy":  # pixels down, pictures across
            return np.load(path, allow_pickle=False).T.astype(np.float64)
        import h5py

        with h5py.File(path) as file:
            (name,) = [name for name in file if isinstance(file[name], h5py.Dataset)]
            return np.asarray(file[name], np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"it cannot be read as the pictures of a mouth ({error})") from error
