"""Features of a frozen network, computed once for each frame of a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.protocols import Batch


class FrameCache:
    """The key of a frame is its utterance and its index there. Copies, also those of other processes, start empty.

    u   features of a frame, NaN until computed   u_BTM of a batch; u_TM of the start of an utterance
    """

    ROOM = 4e9  # bytes; once they are full, features of new frames are computed each time

    def __init__(self, size: int):
        self.size, self.room = size, self.ROOM
        self.cached: dict[str, Float[Tensor, "T M"]] = {}

    def __reduce__(self) -> tuple[type[FrameCache], tuple[int]]:
        return FrameCache, (self.size,)

    def __call__(
        self, batch: Batch, compute: Callable[[Bool[Tensor, "B T"]], Float[Tensor, "N M"]]
    ) -> Float[Tensor, "B T M"]:
        """`compute` gives the features of the frames whose mask is true. Those of frames that pad are 0."""
        assert batch.starts is not None
        mask_BT, starts = batch.mask, batch.starts.tolist()
        u_BTM = torch.full((*mask_BT.shape, self.size), math.nan, device=mask_BT.device)
        for u_TM, name, start in zip(u_BTM, batch.ids, starts, strict=True):
            if name in self.cached:
                cached_TM = self.cached[name][start : start + len(u_TM)]
                u_TM[: len(cached_TM)] = cached_TM
        if (new_BT := u_BTM[..., 0].isnan() & mask_BT).any():
            u_BTM[new_BT] = compute(new_BT)
            for u_TM, name, start, frames in zip(u_BTM, batch.ids, starts, mask_BT.sum(1).tolist(), strict=True):
                self._store(name, start, u_TM[:frames])
        return u_BTM.masked_fill(~mask_BT[..., None], 0)

    def _store(self, name: str, start: int, u_TM: Float[Tensor, "T M"]) -> None:
        cached_TM = self.cached.get(name, u_TM[:0])
        if more := max(start + len(u_TM) - len(cached_TM), 0):
            if self.room < more * u_TM[0].nbytes:
                return
            self.room -= more * u_TM[0].nbytes
            cached_TM = torch.cat([cached_TM, u_TM.new_full((more, self.size), math.nan)])
        cached_TM[start : start + len(u_TM)] = u_TM
        self.cached[name] = cached_TM
