"""The curves of a training, on the disk, in TensorBoard and in the loggers of the settings."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from avdvae.errors import reading
from avdvae.files import replacing
from avdvae.protocols import Batch
from avdvae.signals.audio import Stft
from avdvae.training.loggers import LOGGERS


class Curves:
    """metrics.jsonl, metrics.csv and TensorBoard, cut off behind the step, and the length, that a run goes on from; and
    loggers by name."""

    def __init__(self, run: Path, length: int, step: int, loggers: Sequence[str] = ()):
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        self.path, self.table, self.noted = run / "metrics.jsonl", run / "metrics.csv", run / "loggers.json"
        self.complete = False  # whether the training has reached its end
        with reading(self.noted, "file of a run", "restore it from a copy, or delete it to begin new curves"):
            known = dict(json.loads(self.noted.read_text())) if self.noted.is_file() else {}
            self.ids = {name: str(about["id"]) for name, about in known.items()}
            self.sent = {name: int(about["sent"]) for name, about in known.items()}  # bytes of metrics.jsonl
        self.loggers = {name: LOGGERS[name](run, self.ids.get(name)) for name in loggers}
        self.file = self.path.open("ab")
        self.file.truncate(min(length, self.file.tell()))
        self.board = SummaryWriter(run / "tensorboard", purge_step=step + 1)
        self.publish()

    def write(self, kind: str, epoch: int, step: int, means: Mapping[str, float], more: Mapping[str, float]) -> None:
        curves = {f"{kind}/{part}": mean for part, mean in means.items()}
        self.file.write(json.dumps({"epoch": epoch, "step": step, **curves, **more}).encode() + b"\n")
        for name, value in (curves | dict(more)).items():
            self.board.add_scalar(name, value, step)

    def publish(self) -> None:
        """metrics.csv and the loggers, from metrics.jsonl. Called once the state with these records is saved: records
        that a killed training repeats were not sent before."""
        self.write_table()
        for name, logger in self.loggers.items():
            content = self.path.read_bytes()
            new = content[self.sent.get(name, 0) :]
            self.ids[name], self.sent[name] = logger.id, len(content)
            with replacing(self.noted) as file:
                file.write_text(json.dumps({n: {"id": self.ids[n], "sent": self.sent[n]} for n in self.ids}))
            for record in records_of(new)[0]:
                values = {key: value for key, value in record.items() if key not in ("epoch", "step")}
                logger.scalars(record["step"], values)

    def write_table(self) -> None:
        """metrics.csv, from metrics.jsonl: a row for each validated epoch, with the means of its training records."""
        rows: list[dict[str, Any]] = []
        trained: dict[str, list[float]] = {}
        for record in read_curves(self.path)[0]:
            if "valid/loss" in record:
                rows.append({name: sum(values) / len(values) for name, values in trained.items()} | record)
                trained = {}
            for name, value in record.items():
                if name.startswith("train/"):
                    trained.setdefault(name, []).append(value)
        columns = dict.fromkeys(["epoch", "step", "seconds", *(name for row in rows for name in row)])
        with replacing(self.table) as new, new.open("w", newline="") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

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
        for logger in self.loggers.values():
            logger.close(self.complete)


def best_epoch(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch whose weights are kept: of the highest valid/si_sdr where that decides, else of the lowest loss."""
    valid = [record for record in records if "valid/loss" in record]
    best = min(valid, key=lambda r: -r["valid/si_sdr"] if "valid/si_sdr" in r else r["valid/loss"], default=None)
    return best["epoch"] if best else None


def read_curves(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of metrics.jsonl, and how many lines are none."""
    return records_of(path.read_bytes() if path.is_file() else b"")


def records_of(content: bytes) -> tuple[list[dict[str, Any]], int]:
    records, lines = [], content.splitlines()
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values()):
                records += [record] if "epoch" in record else []
    return records, len(lines) - len(records)
