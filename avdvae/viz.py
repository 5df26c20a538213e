"""Pictures to look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from avdvae.data.shards import PreparedCorpus, replacing

_MARGIN, _NAME_WIDTH = 6, 150
_INK, _FAINT, _PAPER = (40, 40, 40), (130, 130, 130), 255


def contact_sheet(
    corpus: PreparedCorpus, crops: int = 14, most_speakers: int = 100
) -> UInt8[np.ndarray, "height width 3"]:
    """For each speaker a strip of crops, evenly spread over all their clips: one look tells whether they are right.

    Crops of frames without a face have a red edge. Of more than `most_speakers` an even choice is shown.
    """
    speakers = corpus.speakers
    if len(speakers) > most_speakers:
        speakers = [speakers[round(i)] for i in np.linspace(0, len(speakers) - 1, most_speakers)]
    return np.vstack([_strip(corpus, speaker, crops) for speaker in speakers])


def _strip(corpus: PreparedCorpus, speaker: str, crops: int) -> np.ndarray:
    clips = [u for u in corpus.utterances if u.speaker == speaker]
    ends = np.cumsum([u.lips_stop - u.lips_start for u in clips])
    size = corpus.lips(clips[0]).shape[1]
    strip = np.full((size + _MARGIN, _NAME_WIDTH + crops * (size + _MARGIN), 3), _PAPER, np.uint8)
    font = cv2.FontFace("sans")
    split = ", ".join(sorted({u.split for u in clips}))
    for text, line, colour, points in (
        (speaker, 0.4, _INK, 17),
        (split, 0.68, _FAINT, 12),
        (f"{len(clips)} clips, {ends[-1]} frames", 0.92, _FAINT, 12),
    ):
        cv2.putText(strip, text, (_MARGIN, int(line * size)), colour, font, points, 400)
    for column, frame in enumerate(np.linspace(0, ends[-1] - 1, crops).astype(int)):
        clip = int(np.searchsorted(ends, frame, side="right"))
        within = frame - (ends[clip - 1] if clip else 0)
        crop = np.repeat(corpus.lips(clips[clip])[within][..., None], 3, axis=2)
        if corpus.confidence(clips[clip])[within] == 0:
            cv2.rectangle(crop, (0, 0), (size - 1, size - 1), (220, 30, 30), 2)
        left = _NAME_WIDTH + column * (size + _MARGIN)
        strip[:size, left : left + size] = crop
    return strip


def write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with replacing(path) as new:
        new.write_bytes(encoded.tobytes())
