"""What the parts of the house hand to each other.

Shapes: B utterances, N samples, T STFT frames, F frequencies, H x W pixels of a mouth crop.
Batch first, time second, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from avdvae.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Utterances, or windows of them, on the clock of the STFT. A modality that is absent is None.

    ids       B names of utterances
    mask      B T      true where a frame holds data, false where it pads
    waveform  B N      clean speech
    mixture   B N      the same speech in noise
    power     B T F    |STFT|^2 of the clean speech
    noisy     B T F    |STFT|^2 of the mixture
    lips      B T H W  grey mouth crops, each STFT frame with the picture nearest to its centre in time
    sure      B T      confidence of the lips in 0..1; 0 where no face was found
    lengths   B        samples of waveform and mixture that hold data; the rest pads
    labels    B dicts  speaker, sex, emotion, ... as the corpus has them
    """

    ids: tuple[str, ...]
    mask: Bool[Tensor, "B T"]
    waveform: Float[Tensor, "B N"] | None = None
    mixture: Float[Tensor, "B N"] | None = None
    power: Float[Tensor, "B T F"] | None = None
    noisy: Float[Tensor, "B T F"] | None = None
    lips: UInt8[Tensor, "B T H W"] | None = None
    sure: Float[Tensor, "B T"] | None = None
    lengths: Int64[Tensor, " B"] | None = None
    labels: tuple[dict[str, Any], ...] = ()

    MODALITIES = ("waveform", "mixture", "power", "noisy", "lips", "sure")

    def only(self, *names: str) -> Batch:
        """The same batch with no modality but these: for ablations and missing video."""
        if unknown := set(names) - set(self.MODALITIES):
            given = ", ".join(sorted(unknown))
            raise UserError(f"no modality is called {given}: choose from {', '.join(self.MODALITIES)}")
        return replace(self, **{name: None for name in self.MODALITIES if name not in names})

    def to(self, device: torch.device | str) -> Batch:
        """Every tensor on `device`; the copy does not block when the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change) -> Batch:
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})
