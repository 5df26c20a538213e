"""From shards to batches: random frames for static models, random windows for sequence models, whole utterances.

Sequences of poses and trajectories of boxes are cut in the same way, a pose or box being a frame; what follows is about
sound.

An item is (utterance, first STFT frame), and a window of frames starts there. Worker processes cut samples and pictures
out of the memory maps; the device computes the STFT of a batch at a time. A window's frames are exactly those of the
whole utterance, for its samples come with half a window on either side and are mirrored only where the utterance ends.

Letters: B items, T frames, N samples, H x W pixels, D coordinates of a pose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from avdvae.data.cutters import BoxCutter, Corruption, Cutter, PoseCutter
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.protocols import Batch, Model
from avdvae.randomness import stream
from avdvae.signals.audio import BINS, MARGIN, Stft


def seen_by(model: Model) -> dict[str, Any]:
    """The settings by which a Loader gathers what a model takes, and nothing else."""
    sees = {"lips": "lips" in model.sees, "faces": "face" in model.sees, "spectrum": "spectrum" in model.sees}
    return {**sees, "pcm": model.observes == "waveform"}


class Loader:
    """Iterating once gives the batches of one epoch; their order follows from the seed and the number of the epoch.

    frames = 1      single frames, each frame of the corpus once an epoch
    frames = T      windows that tile each utterance. Shuffled, they are whole, from a new random phase each epoch; in
                    order, they start at the first frame and the last is padded. Utterances shorter than T are padded.
    frames = None   whole utterances, padded, neighbours in length sharing a batch. `batch_frames` caps what a batch
                    holds, padding included, in place of `batch_size`; one utterance it may always hold

    Waveforms are divided by the largest absolute sample of their utterance, or, as `pcm`, by 32768: then they are the
    codes of the recording, for models of samples. Batch.waveform starts at the centre of the
    first frame, spans `frames * hop` samples at most, and is zero from `lengths` on. `trim_db` cuts silence off both
    ends of the sound, and the pictures beside it. A `condition` (whole utterances only) adds `mixture` and `noisy`,
    in the scale of the clean waveform. A `level_db` of (low, high) then scales every item, its mixture alike, by a
    random level in that range, drawn anew each epoch. `lips`: with the mouth crops, where the corpus has any;
    `faces`: with the crops of faces and the opening of the mouths; `spectrum`: with the complex spectrum beside its
    power. Pictures take longer to gather than sound.

    `stft` and `trim_db` do not apply to poses and boxes.

    Single frames are the same in every epoch but for their order. Where neither level, noise nor pictures go with them,
    their spectra are kept from the first epoch on, as long as they take no more than KEPT bytes.

    Of each batch, process `rank` of `world` gets every world-th item from its rank-th. Shuffled, a batch of fewer items
    than processes is left out, so that all of them take equally many steps; in order, nothing is left out, and a
    process without a share goes on to the next batch.
    """

    KEPT = 2**30  # bytes

    def __init__(
        self,
        corpus: PreparedCorpus,
        stft: Stft,
        frames: int | None,
        batch_size: int,
        seed: int,
        shuffle: bool,
        workers: int = 0,
        trim_db: float | None = None,
        device: torch.device | str = "cpu",
        condition: Corruption | None = None,
        rank: int = 0,
        world: int = 1,
        level_db: tuple[float, float] | None = None,
        lips: bool = True,
        faces: bool = False,
        pcm: bool = False,
        spectrum: bool = False,
        batch_frames: int | None = None,
    ):
        if frames is not None and frames < 1:
            raise UserError(f"a window of {frames} frames is empty: choose 1 or more, or None for whole utterances")
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} items is empty: choose a batch_size of 1 or more")
        if trim_db is not None and trim_db <= 0:
            raise UserError(f"trim_db={trim_db} would cut speech away: choose a positive level such as 30, or None")
        if condition is not None and frames is not None:
            raise UserError(
                f"noise is mixed into whole utterances, not into windows of {frames} frames: use frames=None"
            )
        if batch_frames is not None and (frames is not None or batch_frames < 1):
            raise UserError(
                f"batch_frames={batch_frames} caps batches of whole utterances: give frames=None, and 1 or more"
            )
        if pcm and level_db is not None:
            raise UserError(f"level_db={list(level_db)} changes the codes that a model of codes is to learn: give null")
        if not 0 <= rank < world:
            raise UserError(f"rank={rank} of world={world}: ranks count from 0 and stay below the number of processes")
        if level_db is not None and not -np.inf < level_db[0] <= level_db[1] < np.inf:
            raise UserError(f"level_db={level_db}: give the lower and the higher end of a range, such as (-20, 0)")
        self.stft, self.frames, self.batch_size = stft, frames, batch_size
        self.rank, self.world, self.level_db, self.spectrum = rank, world, level_db, spectrum
        self.seed, self.shuffle, self.workers = seed, shuffle, workers
        self.device = torch.device(device)
        if faces and not corpus.has_faces:
            raise UserError(f"{corpus.root} has no faces: prepare a corpus of videos with lips.face=64")
        self.cutter: PoseCutter | BoxCutter | Cutter
        if corpus.holds != "sound":
            if condition is not None or level_db is not None:
                raise UserError(
                    f"{corpus.root} has {corpus.holds} and no sound: give neither a condition nor a level_db"
                )
            self.cutter = (PoseCutter if corpus.holds == "poses" else BoxCutter)(corpus, frames)
        else:
            self.cutter = Cutter(corpus, stft, frames, trim_db, condition, lips, faces, pcm)
        if frames is None:
            self.windows = np.ones_like(self.cutter.counts)
        elif shuffle:
            self.windows = np.maximum(self.cutter.counts // frames, 1)
        else:
            self.windows = -(-self.cutter.counts // frames)
        count = int(self.cutter.counts.sum())
        alone = corpus.holds == "sound" and not (condition or level_db or lips or faces or pcm or spectrum)
        keeps = alone and frames == 1 and world == 1 and 4 * BINS * count <= self.KEPT
        # Of all frames of the corpus, and which of them have passed
        self.spectra_MF = torch.empty(count, BINS, device=self.device) if keeps else None
        self.known_M = np.zeros(count if keeps else 0, bool)
        self.fewest = world if shuffle else rank + 1  # items that a batch must have to give this process any
        self.sizes = self.cutter.counts
        if batch_frames is None:
            self.cuts = np.arange(batch_size, int(self.windows.sum()), batch_size)
        else:
            if shuffle:  # lengths within about 6 % count as equal, so that their batches differ each epoch
                self.sizes = np.ceil(2 ** (np.ceil(12 * np.log2(self.sizes)) / 12))
            self.cuts = _capped(np.sort(self.sizes), batch_frames)
        # Consumed batches are counted among those of all processes, with those that are left out.
        self.epoch = self.consumed = self._resume_at = 0
        if shuffle and not len(self):
            raise UserError(
                f"{self.windows.sum()} items in batches of {batch_size} give none to some of {world} processes: "
                "choose a larger batch_size, or fewer processes"
            )

    def __len__(self) -> int:
        items = np.diff(self.cuts, prepend=0, append=int(self.windows.sum()))
        return int((items >= self.fewest).sum())

    def __iter__(self) -> Iterator[Batch]:
        self.consumed, self._resume_at = self._resume_at, 0
        batches = self._batches()
        mine = [n for n in range(self.consumed, len(batches)) if len(batches[n]) >= self.fewest]
        items = [batches[n][self.rank :: self.world] for n in mine]
        if self.spectra_MF is not None and self.known_M.all():
            ready = map(self._kept, items)
        else:
            fetch = DataLoader(
                self.cutter,
                batch_sampler=items,  # type: ignore[arg-type]  # arrays in place of lists
                collate_fn=_as_it_is,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # the global one would be a number ahead after a resume
            )
            gains = (self._gains(n, len(batches[n])) for n in mine)
            ready = map(self._keep, items, map(self._on_device, fetch, gains))
        for number, batch in zip(mine, _ahead(ready), strict=True):
            self.consumed = number + 1
            yield batch
        self.epoch, self.consumed = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batches": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration gives the batches left of that epoch."""
        self.epoch = state["epoch"]
        self.consumed = self._resume_at = state["batches"]

    def _batches(self) -> list[Int64[np.ndarray, "B 2"]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        counts, windows = self.cutter.counts, self.windows
        if self.frames is None:
            order = rng.permutation(len(counts)) if self.shuffle else np.arange(len(counts))
            order = order[np.argsort(self.sizes[order], kind="stable")]
            items = np.stack([order, np.zeros_like(order)], axis=1)
        else:
            phase = rng.integers(0, np.maximum(counts - windows * self.frames, 0) + 1)
            utterance = np.repeat(np.arange(len(counts)), windows)
            window = np.arange(len(utterance)) - np.repeat(np.cumsum(windows) - windows, windows)
            items = np.stack([utterance, phase[utterance] + window * self.frames], axis=1)
            if self.shuffle:
                items = items[rng.permutation(len(items))]
        batches = np.split(items, self.cuts)
        if self.frames is None and self.shuffle:
            rng.shuffle(batches)
        return batches

    def _keep(self, items: Int64[np.ndarray, "B 2"], batch: Batch) -> Batch:
        if self.spectra_MF is not None and batch.power is not None:
            assert isinstance(self.cutter, Cutter)
            rows = self.cutter.edges[items[:, 0]] + items[:, 1]
            self.spectra_MF[torch.from_numpy(rows)], self.known_M[rows] = batch.power[:, 0], True
        return batch

    def _kept(self, items: Int64[np.ndarray, "B 2"]) -> Batch:
        assert self.spectra_MF is not None and isinstance(self.cutter, Cutter)
        utterance, first = items.T
        power_BF = self.spectra_MF[torch.from_numpy(self.cutter.edges[utterance] + first)]
        return Batch(
            ids=tuple(self.cutter.ids[utterance]),
            mask=torch.ones(len(items), 1, dtype=torch.bool, device=self.device),
            power=power_BF[:, None],
            starts=torch.from_numpy(first).to(self.device),
            labels=tuple(self.cutter.labels[utterance]),
        )

    def _gains(self, number: int, size: int) -> Float[Tensor, "B 1"] | None:
        """The gains of the waveforms in this process's share of a batch."""
        if self.level_db is None:
            return None
        levels = stream("level", self.seed, self.epoch, number).uniform(*self.level_db, size)
        return torch.from_numpy(10 ** (levels[self.rank :: self.world, None] / 20)).float()

    def _on_device(self, batch: Batch, gains_B1: Float[Tensor, "B 1"] | None) -> Batch:
        """The batch with its spectra, and its waveforms without the margins for them."""
        if batch.lengths is None:
            return batch.to(self.device)
        samples = int(batch.lengths.max())  # computed before the transfer: later it would wait for the device
        sounding = batch.lengths.to(self.device, non_blocking=True)[:, None] > torch.arange(samples, device=self.device)
        batch = batch.to(self.device)
        gains_B1 = gains_B1 if gains_B1 is None else gains_B1.to(self.device, non_blocking=True)

        def cut(wide_BN: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            if wide_BN is None:
                return None, None, None
            wide_BN = wide_BN if gains_B1 is None else wide_BN * gains_B1
            spectrum, mask = self.stft.analyse(wide_BN, centred=False), batch.mask[..., None]
            power = (spectrum.real.square() + spectrum.imag.square()) * mask
            sound = wide_BN[:, MARGIN : MARGIN + samples] * sounding
            return sound, power, spectrum * mask if self.spectrum else None

        waveform, power, spectrum = cut(batch.waveform)
        mixture, noisy, _ = cut(batch.mixture)
        starts = batch.starts if gains_B1 is None else None
        spectra = {"power": power, "spectrum": spectrum, "noisy": noisy}
        return replace(batch, waveform=waveform, mixture=mixture, starts=starts, **spectra)


def _capped(sizes: np.ndarray, most: int) -> np.ndarray:
    """Where to cut a rising sequence so that each piece, padded to its last size, has `most` frames at most."""
    cuts, first = [], 0
    for number, size in enumerate(sizes):
        if number > first and (number + 1 - first) * size > most:
            cuts.append(first := number)
    return np.array(cuts, dtype=int)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; another thread makes the next two while one is in use."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as maker:
        maker.submit(_one_core).result()  # or both threads would use all cores
        torch.set_num_threads(threads)  # of threads to come
        made = deque(maker.submit(next, batches, None) for _ in range(2))
        while (batch := made.popleft().result()) is not None:
            made.append(maker.submit(next, batches, None))
            yield batch


def _one_core() -> None:
    torch.get_num_threads()  # a thread's first call sets the number of all threads
    torch.set_num_threads(1)


def _as_it_is(batch: Any) -> Any:
    """`__getitems__` makes whole batches: nothing is left to collate."""
    return batch
