"""Items cut out of the shards of a prepared corpus, a batch at a time: samples and pictures, or poses, or boxes.

An item is (utterance, first STFT frame), or of poses (utterance, first pose), or of boxes
(trajectory, first frame).

Letters: B items, T frames, N samples, H x W pixels, D coordinates of a pose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import Dataset

from avdvae.data.shards import PreparedCorpus, Utterance
from avdvae.probability.pcm import CODES
from avdvae.protocols import Batch
from avdvae.signals.audio import MARGIN, WINDOW, Stft, reflected, trim_silence
from avdvae.signals.clock import nearest_frames

# (utterance, index of its sample with which the clean waveform starts, the waveform, the pictures M H W or None) ->
# (the mixture, as long as the waveform; the pictures, spoilt). A function of its arguments alone, or batches would
# depend on the number of workers.
Corruption = Callable[[Utterance, int, np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]


class PoseCutter(Dataset[Batch]):
    """Cuts items out of sequences of poses, a batch at a time; `counts` are the poses of each."""

    def __init__(self, corpus: PreparedCorpus, frames: int | None):
        self.corpus, self.frames = corpus, frames
        self.counts = np.array([u.pose_stop - u.pose_start for u in corpus.utterances])

    def __getitems__(self, items: Int64[np.ndarray, "B 2"]) -> Batch:
        utterance, first = items.T
        rows = [self.corpus.utterances[u] for u in utterance]
        count = self.frames or int(self.counts[utterance].max())
        mask_BT = first[:, None] + np.arange(count) < self.counts[utterance, None]
        windows = [self.corpus.poses(row)[start : start + count] for row, start in zip(rows, first, strict=True)]
        pose_BTD = np.zeros((*mask_BT.shape, windows[0][0].size), np.float32)
        pose_BTD[mask_BT] = np.concatenate(windows).reshape(-1, pose_BTD.shape[-1])
        return Batch(
            ids=tuple(row.id for row in rows),
            mask=torch.from_numpy(mask_BT),
            pose=torch.from_numpy(pose_BTD),
            labels=tuple({"speaker": row.speaker, **row.labels} for row in rows),
        )


class BoxCutter(Dataset[Batch]):
    """Cuts items out of the trajectories of true boxes, a batch at a time; `counts` are the frames of each."""

    def __init__(self, corpus: PreparedCorpus, frames: int | None):
        self.corpus, self.frames = corpus, frames
        self.trajectories = [(u, n) for u in corpus.utterances for n in range(u.labels["objects"])]
        self.counts = np.array([(u.box_stop - u.box_start) // u.labels["boxes"] for u, _ in self.trajectories])

    def __getitems__(self, items: Int64[np.ndarray, "B 2"]) -> Batch:
        trajectory, first = items.T
        rows = [self.trajectories[i] for i in trajectory]
        count = self.frames or int(self.counts[trajectory].max())
        mask_BT = first[:, None] + np.arange(count) < self.counts[trajectory, None]
        windows = [self.corpus.boxes(u)[start : start + count, n] for (u, n), start in zip(rows, first, strict=True)]
        boxes_BT4 = np.zeros((*mask_BT.shape, 4), np.float32)
        boxes_BT4[mask_BT] = np.concatenate(windows)
        return Batch(
            ids=tuple(f"{u.id}/{n + 1}" for u, n in rows),
            mask=torch.from_numpy(mask_BT),
            boxes=torch.from_numpy(boxes_BT4),
            labels=tuple({"speaker": u.speaker, **u.labels} for u, _ in rows),
        )


class Cutter(Dataset[Batch]):
    """Cuts items out of the shards, a batch at a time. Arrays over utterances:

    origin, length   first sample in the audio of its shard, and number of samples, after trimming silence
    peak             divisor of its samples: the largest absolute one, or CODES
    counts, edges    number of its STFT frames, and index of the first among those of the corpus
    pictures         index in its shard of the picture of each STFT frame of the corpus; None without pictures
    """

    def __init__(
        self,
        corpus: PreparedCorpus,
        stft: Stft,
        frames: int | None,
        trim_db: float | None,
        condition: Corruption | None,
        lips: bool,
        faces: bool,
        pcm: bool,
    ):
        self.lips, self.faces = lips, faces
        self.corpus, self.hop, self.frames, self.condition = corpus, stft.hop, frames, condition
        self.ids = np.array([u.id for u in corpus.utterances], dtype=object)
        self.labels = np.array([{"speaker": u.speaker, **u.labels} for u in corpus.utterances], dtype=object)
        shards, self.shard = np.unique([u.shard for u in corpus.utterances], return_inverse=True)
        self.shards = shards.tolist()
        has_lips = corpus.has_lips and (lips or faces)
        origin, length, peak, pictures = [], [], [], []
        for u in corpus.utterances:
            audio = corpus.audio(u)
            start, stop = (0, len(audio)) if trim_db is None else trim_silence(audio, trim_db)
            kept = audio[start:stop]
            origin.append(u.audio_start + start)
            length.append(len(kept))
            peak.append(CODES if pcm else max(int(kept.max()), -int(kept.min()), 1))  # silence stays silent
            if has_lips:
                seconds = (start + np.arange(stft.frames(len(kept))) * stft.hop) / u.rate
                pictures.append(u.lips_start + nearest_frames(seconds, u.fps, u.lips_stop - u.lips_start))
        self.origin, self.length, self.peak = np.array(origin), np.array(length), np.array(peak, dtype=np.float32)
        self.counts = np.array([stft.frames(samples) for samples in length])
        self.edges = np.cumsum(self.counts) - self.counts
        self.pictures = np.concatenate(pictures) if pictures else None

    def __getitems__(self, items: Int64[np.ndarray, "B 2"]) -> Batch:
        """A batch without spectra yet, its waveforms half an STFT window wider on either side."""
        utterance, first = items.T
        count = self.frames or int(self.counts[utterance].max())
        frame_BT = first[:, None] + np.arange(count)
        mask_BT = frame_BT < self.counts[utterance, None]
        # The samples from the centre of the first frame to the last frame's end or the next one's centre.
        width = MARGIN + max((count - 1) * self.hop + WINDOW - MARGIN, count * self.hop)
        waveform_BN = self._gather_sound(utterance, first * self.hop - MARGIN, width)
        picture_BT = lips_BTHW = confidence_BT = face_BTHW3 = mouth_BT2 = None
        if self.pictures is not None:
            picture_BT = self.pictures[self.edges[utterance, None] + frame_BT * mask_BT]
            if self.lips:
                lips_BTHW = self._gather_pictures("lips", utterance, picture_BT)
                confidence_BT = self._gather_pictures("confidence", utterance, picture_BT) * mask_BT / np.float32(255)
            if self.faces:
                face_BTHW3 = self._gather_pictures("face", utterance, picture_BT)
                face_BTHW3[~mask_BT] = 0
                mouth_BT2 = self._gather_pictures("mouth", utterance, picture_BT) * mask_BT[..., None]
        mixture_BN = self._apply_condition(utterance, waveform_BN, picture_BT, lips_BTHW) if self.condition else None
        if lips_BTHW is not None:
            lips_BTHW[~mask_BT] = 0
        return Batch(
            ids=tuple(self.ids[utterance]),
            mask=torch.from_numpy(mask_BT),
            lengths=torch.from_numpy(np.minimum(self.length[utterance] - first * self.hop, count * self.hop)),
            starts=None if self.condition else torch.from_numpy(first),
            waveform=torch.from_numpy(waveform_BN),
            mixture=_tensor(mixture_BN),
            lips=_tensor(lips_BTHW),
            confidence=_tensor(confidence_BT),
            face=_tensor(face_BTHW3),
            mouth=_tensor(mouth_BT2),
            labels=tuple(self.labels[utterance]),
        )

    def _gather_sound(self, utterance: np.ndarray, start: np.ndarray, width: int) -> Float[np.ndarray, "B N"]:
        """Waveforms from the shards; `start` counts samples of the utterance."""
        shard, origin, length = self.shard[utterance], self.origin[utterance], self.length[utterance]
        inside = (start >= 0) & (start + width <= length)
        samples_BN = np.empty((len(utterance), width), np.int16)
        for number in np.unique(shard):
            audio, here = self.corpus.arrays(self.shards[number]).audio, shard == number
            if (whole := here & inside).any():  # copied as runs of samples, a hundred times faster than one by one
                samples_BN[whole] = sliding_window_view(audio, width)[origin[whole] + start[whole]]
            if (edge := here & ~inside).any():
                index = reflected(start[edge, None] + np.arange(width), length[edge, None])
                samples_BN[edge] = audio[origin[edge, None] + index]
        return samples_BN / self.peak[utterance, None]

    def _gather_pictures(
        self, kind: str, utterance: np.ndarray, picture_BT: np.ndarray
    ) -> Shaped[np.ndarray, "B T *of_one"]:
        """Values of an array of the shards, by its name, for each picture."""
        shard = self.shard[utterance]
        first = getattr(self.corpus.arrays(self.shards[shard[0]]), kind)
        gathered = np.empty(picture_BT.shape + first.shape[1:], first.dtype)
        for number in np.unique(shard):
            here = shard == number
            gathered[here] = getattr(self.corpus.arrays(self.shards[number]), kind)[picture_BT[here]]
        return gathered

    def _apply_condition(
        self,
        utterance: np.ndarray,
        waveform_BN: np.ndarray,
        picture_BT: np.ndarray | None,
        lips_BTHW: np.ndarray | None,
    ) -> Float[np.ndarray, "B N"]:
        """The mixtures, with margins like those of the waveforms; changes the lips in place."""
        assert self.condition is not None
        mixture_BN = np.empty_like(waveform_BN)
        around = np.arange(waveform_BN.shape[1]) - MARGIN
        for b, u in enumerate(utterance):
            row, length = self.corpus.utterances[u], int(self.length[u])
            crops = None if picture_BT is None else self.corpus.lips(row)
            waveform_N, start = waveform_BN[b, MARGIN : MARGIN + length].copy(), int(self.origin[u]) - row.audio_start
            mixture, lips = self.condition(row, start, waveform_N, crops)
            mixture_BN[b] = mixture[reflected(around, length)]
            if lips is not None:
                assert picture_BT is not None and lips_BTHW is not None
                lips_BTHW[b] = lips[picture_BT[b] - row.lips_start]
        return mixture_BN


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
