"""Put the weights of a run into the package, avdvae/weights/NAME, with its configuration and a card.

python docs/tools/package_weights.py RUN NAME [bfloat16]

Paths of this machine are replaced: the prepared corpus is data/prepared/librispeech, the folder of the run runs/NAME.
Of a card that is there already, all but the first table is kept; the figures in it are then to be measured again.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path

import torch

from avdvae.data.shards import PreparedCorpus
from avdvae.nn.weights import WEIGHTS, save_weights
from avdvae.runs import PACKAGED, Run, create_run, open_run

PREPARED = "data/prepared/librispeech"
MADE_HERE = ("runs=", "run_dir=", "prepared=")  # words of a command that name folders of this machine


def main() -> None:
    run, name, *precision = sys.argv[1:]
    package(open_run(Path(run)), name, getattr(torch, precision[0] if precision else "float32"))


def package(run: Run, name: str, dtype: torch.dtype) -> None:
    config = run.config | {"runs": "runs", "run_dir": f"runs/{name}", "prepared": PREPARED}
    packaged = create_run(PACKAGED / name, config)
    save_weights(run.load_model().to(dtype), packaged.path / WEIGHTS)
    words = [word for word in shlex.split(run.noted["command"])[1:] if not word.startswith(MADE_HERE)]
    command = shlex.join(["python", "experiments/run.py", f"prepared={PREPARED}", f"run_dir=runs/{name}", *words])
    kept = {key: run.noted[key] for key in ("model", "parameters", "seconds", "commit", "device") if key in run.noted}
    packaged.note(**kept, command=command)
    write_card(packaged, run, str(dtype).removeprefix("torch."))


def write_card(packaged: Run, run: Run, dtype: str) -> None:
    path, noted = packaged.path / "card.md", packaged.noted
    train, valid = (PreparedCorpus(Path(run.config["prepared"]), split, verify=False) for split in ("train", "valid"))
    rows = {
        "model": f"`{packaged.config['model']['target']}`, {noted['parameters']:,} parameters, {dtype}",
        "data": f"LibriSpeech, {train.hours:.2f} hours of {len(train.speakers)} talkers, {len(valid.speakers)} others "
        "for validation",
        "licence": "of LibriSpeech CC BY 4.0 (V. Panayotov et al., <https://www.openslr.org/12>); of the weights MIT",
        "command": f"`{noted['command']}`",
        "training": f"{noted['seconds']['train'] / 60:.0f} minutes on {noted['device']}",
        "seed": str(packaged.config["seed"]),
        "commit": noted.get("commit", "not recorded"),
        "SHA-256 of `weights.safetensors`": f"`{hashlib.sha256((packaged.path / WEIGHTS).read_bytes()).hexdigest()}`",
    }
    table = "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    card = path.read_text() if path.exists() else f"# {packaged.name}\n\nWhat it is, in a sentence.\n\n| | |\n"
    path.write_text(re.sub(r"^\| \| \|\n(?:\|.*\n)*", lambda _: table, card, count=1, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
