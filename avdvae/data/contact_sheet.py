"""Pictures to check a prepared corpus by: crops of every speaker, and the landmarks of one film."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from avdvae.data.shards import PreparedCorpus
from avdvae.pictures.style import FAINT, INK, PAPER
from avdvae.signals.lips import draw_overlay, extract_lips
from avdvae.signals.video import probe, read_frames, to_rgb

_MARGIN, _NAME_WIDTH = 6, 150


def contact_sheet(
    corpus: PreparedCorpus, crops: int = 14, most_speakers: int = 100
) -> UInt8[np.ndarray, "height width 3"]:
    """For each speaker a strip of crops, evenly spread over all their clips.

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
    strip = np.full((size + _MARGIN, _NAME_WIDTH + crops * (size + _MARGIN), 3), PAPER, np.uint8)
    font = cv2.FontFace("sans")
    split = ", ".join(sorted({u.split for u in clips}))
    for text, line, colour, points in (
        (speaker, 0.4, INK, 17),
        (split, 0.68, FAINT, 12),
        (f"{len(clips)} clips, {ends[-1]} frames", 0.92, FAINT, 12),
    ):
        place = _MARGIN, int(line * size)
        cv2.putText(strip, _shortened(text, font, points), place, colour, font, points, 400)
    for column, frame in enumerate(np.linspace(0, ends[-1] - 1, crops).astype(int)):
        clip = int(np.searchsorted(ends, frame, side="right"))
        within = frame - (ends[clip - 1] if clip else 0)
        crop = np.repeat(corpus.lips(clips[clip])[within][..., None], 3, axis=2)
        if corpus.confidence(clips[clip])[within] == 0:
            cv2.rectangle(crop, (0, 0), (size - 1, size - 1), (220, 30, 30), 2)
        left = _NAME_WIDTH + column * (size + _MARGIN)
        strip[:size, left : left + size] = crop
    return strip


def _shortened(text: str, font: cv2.FontFace, points: int) -> str:
    """The beginning of a text that fits beside the pictures."""

    def fits(text: str) -> bool:
        _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), font, points, 400)
        return width <= _NAME_WIDTH - 2 * _MARGIN

    kept = len(text)
    while not fits(shown := text if kept == len(text) else f"{text[:kept].rstrip()}…") and kept:
        kept -= 1
    return shown


def overlay(video: Path, model: Path, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """The middle picture of a film with its landmarks and the outline of its crop."""
    film = probe(video)
    track = extract_lips(film, model, size)
    middle = len(track.lips) // 2
    seconds = film.start + middle / float(film.fps)
    frame = min(read_frames(video), key=lambda frame: abs((frame.time or 0.0) - seconds))
    picture = to_rgb(frame, max(frame.width, frame.height))
    return draw_overlay(picture, track.landmarks[middle], track.matrices[middle], size)
