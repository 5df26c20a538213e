"""The weights of a model on the disk, with a checksum of their own.

A safetensors file whose metadata hold the SHA-256 of its tensors: a byte that changed on a disk or on the way would
otherwise give another model, and no error. Files without the checksum, older ones and those of others, load as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from avdvae.errors import UserError, one_line, reading
from avdvae.files import replacing
from avdvae.nn.former_names import with_names_now

WEIGHTS = "weights.safetensors"  # in the folder of a run
_CHECKSUM = "sha256"


def save_weights(model: nn.Module, path: Path) -> None:
    """The file appears under its name when complete."""
    with replacing(path) as new:
        new.touch()
        mode = new.stat().st_mode  # as the umask allows; safetensors makes files that their owner alone may read
        safetensors.torch.save_model(model, str(new))
        kept = safetensors.torch.load_file(new)  # tensors that layers share are kept once
        safetensors.torch.save_file(kept, new, {_CHECKSUM: _checksum(kept)})
        new.chmod(mode)


def load_weights(model: nn.Module, path: Path) -> None:
    """Into a model made with the settings that it was saved with, on whatever device it is."""
    remedy = "copy it again, or train the run anew"
    with reading(path, "file of weights", remedy):
        with safe_open(path, "pt") as file:
            noted = (file.metadata() or {}).get(_CHECKSUM)
        state = safetensors.torch.load_file(path)
        if noted not in (None, _checksum(state)):
            raise UserError(f"{path} is damaged, for its weights are not those that were saved: {remedy}")
    state = with_names_now(state, model)
    shared = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}  # a file has those once
    known = {shared[name] for name in state if name in shared}
    try:
        missing, unknown = model.load_state_dict(state, strict=False)
        if missing := [name for name in missing if shared[name] not in known] or unknown:
            raise RuntimeError(f"{', '.join(missing)} are missing or unknown")
    except RuntimeError as error:
        raise UserError(
            f"{path} has the weights of another model than the {type(model).__name__} that config.yaml beside it "
            f"asks for ({one_line(error)}): put the two files of one run together"
        ) from error


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
