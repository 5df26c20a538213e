"""Nearest detections: in each frame, the Hungarian algorithm assigns to each track at most one detection, such that the
sum of their overlaps is largest; a track without one that overlaps stays where it was."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from avdvae.tracking.scores import overlaps


def nearest_detections(detections_TK4: Float[np.ndarray, "T K 4"]) -> Float[np.ndarray, "T N 4"]:
    """A track for each detection of the first frame, in their order."""
    from scipy.optimize import linear_sum_assignment

    boxes_N4 = detections_TK4[0][np.isfinite(detections_TK4[0, :, 0])]
    tracks = []
    for detections_K4 in detections_TK4:
        overlap_NK = overlaps(boxes_N4, detections_K4)
        n, k = linear_sum_assignment(overlap_NK, maximize=True)
        hit = overlap_NK[n, k] > 0
        boxes_N4 = boxes_N4.copy()
        boxes_N4[n[hit]] = detections_K4[k[hit]]
        tracks.append(boxes_N4)
    return np.stack(tracks)
