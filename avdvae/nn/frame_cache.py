"""What networks that stay as they are make of the frames of a corpus: found when a frame is first met, then kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avdvae.protocols import Batch


class FrameCache:
    """A frame is known by its utterance and its number there. Copies, and those of other processes, begin empty.

    u   features of a frame, NaN until it is met   u_BTM of a batch; u_TM of an utterance, as far as it was met
    """

    ROOM = 4e9  # bytes; when they are full, what is new is found anew each time

    def __init__(self, size: int):
        self.size, self.room = size, self.ROOM
        self.known: dict[str, Float[Tensor, "T M"]] = {}

    def __reduce__(self) -> tuple[type[FrameCache], tuple[int]]:
        return FrameCache, (self.size,)

    def __call__(
        self, batch: Batch, find: Callable[[Bool[Tensor, "B T"]], Float[Tensor, "N M"]]
    ) -> Float[Tensor, "B T M"]:
        """`find` gives the features of those frames that are true. Frames that pad have none but zeros."""
        assert batch.starts is not None
        mask_BT, starts = batch.mask, batch.starts.tolist()
        u_BTM = torch.full((*mask_BT.shape, self.size), math.nan, device=mask_BT.device)
        for u_TM, name, start in zip(u_BTM, batch.ids, starts, strict=True):
            if name in self.known:
                met_TM = self.known[name][start : start + len(u_TM)]
                u_TM[: len(met_TM)] = met_TM
        if (new_BT := u_BTM[..., 0].isnan() & mask_BT).any():
            u_BTM[new_BT] = find(new_BT)
            for u_TM, name, start, frames in zip(u_BTM, batch.ids, starts, mask_BT.sum(1).tolist(), strict=True):
                self._keep(name, start, u_TM[:frames])
        return u_BTM.masked_fill(~mask_BT[..., None], 0)

    def _keep(self, name: str, start: int, u_TM: Float[Tensor, "T M"]) -> None:
        known_TM = self.known.get(name, u_TM[:0])
        if more := max(start + len(u_TM) - len(known_TM), 0):
            if self.room < more * u_TM[0].nbytes:
                return
            self.room -= more * u_TM[0].nbytes
            known_TM = torch.cat([known_TM, u_TM.new_full((more, self.size), math.nan)])
        known_TM[start : start + len(u_TM)] = u_TM
        self.known[name] = known_TM
