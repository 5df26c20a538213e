"""The curves of a training, on the disk and in TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from avdvae.protocols import Batch
from avdvae.signals.audio import Stft


class Curves:
    """metrics.jsonl and TensorBoard, cut off behind the step, and the length, that a run goes on from."""

    def __init__(self, run: Path, length: int, step: int):
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        self.file = (run / "metrics.jsonl").open("ab")
        self.file.truncate(min(length, self.file.tell()))
        self.board = SummaryWriter(run / "tensorboard", purge_step=step + 1)

    def write(self, kind: str, epoch: int, step: int, means: Mapping[str, float], more: Mapping[str, float]) -> None:
        curves = {f"{kind}/{part}": mean for part, mean in means.items()}
        self.file.write(json.dumps({"epoch": epoch, "step": step, **curves, **more}).encode() + b"\n")
        for name, value in (curves | dict(more)).items():
            self.board.add_scalar(name, value, step)

    def illustrate(self, batch: Batch, again_BTF: Float[Tensor, "B T F"], stft: Stft, step: int, rate: int) -> None:
        """Spectrograms and sounds of an utterance and of its resynthesis, and its lips."""
        from avdvae.pictures.stills import lip_strip, spectrogram

        assert batch.waveform is not None and batch.power is not None
        again_BN = stft.with_phase(again_BTF, stft.analyse(batch.waveform).angle(), batch.waveform.shape[1])
        for name, wave_BN, power_BTF in (("clean", batch.waveform, batch.power), ("resynthesis", again_BN, again_BTF)):
            self.board.add_audio(f"speech/{name}", wave_BN.clamp(-1, 1), step, rate)
            self.board.add_image(f"speech/{name}", spectrogram(power_BTF[0].cpu().numpy()), step, dataformats="HWC")
        if batch.lips is not None:
            self.board.add_image("lips", lip_strip(batch.lips[0].cpu().numpy()), step, dataformats="HWC")

    def flush(self) -> int:
        """Everything to the disk; the length of metrics.jsonl."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.board.flush()
        return self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_curves(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of metrics.jsonl, and how many lines are none."""
    records, lines = [], path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values()):
                records += [record] if "epoch" in record else []
    return records, len(lines) - len(records)
