"""How well tracks agree with the true ones: CLEAR MOT and identity measures.

K. Bernardin, R. Stiefelhagen, "Evaluating multiple object tracking performance: the CLEAR MOT metrics", EURASIP Journal
on Image and Video Processing 2008. E. Ristani, F. Solera, R. Zou, R. Cucchiara, C. Tomasi, "Performance measures and a
data set for multi-target, multi-camera tracking", ECCV Workshops 2016 (arXiv 1609.01775).

In each frame true boxes and tracks are matched one to one, if their intersection over union is MATCH or more. Pairs of
the frame before are kept while it is; the others are matched such that the sum of their overlaps is largest.

    misses, false_alarms     true boxes without a track, boxes of tracks without a true one
    id_switches              a true object is matched to another track than the last time that it was matched
    mota                     100 (1 - (misses + false_alarms + id_switches) / true boxes)
    motp                     mean intersection over union of the pairs, percent
    mostly_tracked, _lost    percent of the true objects matched in more than 80 % or in less than 20 % of their frames
    idf1                     100 * 2 IDTP / (true boxes + boxes of tracks), where each true object is assigned one track
                             for all frames, such that IDTP, the number of frames in which both overlap, is largest

Boxes are those of data/boxes.py; nan where an object is not there.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

MATCH = 0.5
_SLACK = 1e-9  # rounding, where an overlap is MATCH exactly


def overlaps(
    truth_N4: Float[np.ndarray, "*some N 4"], tracks_M4: Float[np.ndarray, "*some M 4"]
) -> Float[np.ndarray, "*some N M"]:
    """Intersection over union; 0 where a box is nan."""
    a, b = truth_N4[..., :, None, :].astype(np.float64), tracks_M4[..., None, :, :].astype(np.float64)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 3], b[..., 3])
    common = width.clip(min=0) * height.clip(min=0)
    area_a, area_b = ((box[..., 2] - box[..., 0]) * (box[..., 1] - box[..., 3]) for box in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(common / (area_a + area_b - common))


def scores(truth_TN4: Float[np.ndarray, "T N 4"], tracks_TM4: Float[np.ndarray, "T M 4"]) -> dict[str, float]:
    from scipy.optimize import linear_sum_assignment

    true_TN, found_TM = (np.isfinite(boxes[..., 0]) for boxes in (truth_TN4, tracks_TM4))
    overlap_TNM = overlaps(truth_TN4, tracks_TM4)
    last_N, now_N = (np.full(truth_TN4.shape[1], -1) for _ in range(2))  # the track last matched, and just before
    matched_N, overlap, switches = np.zeros(truth_TN4.shape[1], int), 0.0, 0
    for overlap_NM in overlap_TNM:
        pairs = _matched(overlap_NM, now_N)
        now_N[:] = -1
        for n, m in pairs:
            switches += last_N[n] not in (-1, m)
            last_N[n] = now_N[n] = m
            matched_N[n] += 1
            overlap += overlap_NM[n, m]
    boxes, pairs_in_all = int(true_TN.sum()), int(matched_N.sum())
    misses, false_alarms = boxes - pairs_in_all, int(found_TM.sum()) - pairs_in_all
    share_N = matched_N / true_TN.sum(0).clip(min=1)
    together_NM = (overlap_TNM >= MATCH - _SLACK).sum(0)
    identified = together_NM[linear_sum_assignment(together_NM, maximize=True)].sum()
    return {
        "mota": 100 * (1 - (misses + false_alarms + switches) / boxes),
        "idf1": 200 * float(identified) / (boxes + int(found_TM.sum())),
        "motp": 100 * float(overlap) / pairs_in_all if pairs_in_all else float("nan"),
        "id_switches": float(switches),
        "mostly_tracked": 100 * float((share_N > 0.8).mean()),
        "mostly_lost": 100 * float((share_N < 0.2).mean()),
        "false_alarms": float(false_alarms),
        "misses": float(misses),
    }


def _matched(overlap_NM: Float[np.ndarray, "N M"], before_N: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of a true box and a track; `before_N`: the track of each in the frame before, or -1."""
    from scipy.optimize import linear_sum_assignment

    value_NM = np.where(overlap_NM >= MATCH - _SLACK, overlap_NM, 0)
    kept = [(n, m) for n, m in enumerate(before_N.tolist()) if m >= 0 and value_NM[n, m]]
    for n, m in kept:
        value_NM[n], value_NM[:, m] = 0, 0
    found = zip(*linear_sum_assignment(value_NM, maximize=True), strict=True)
    return kept + [(int(n), int(m)) for n, m in found if value_NM[n, m]]
