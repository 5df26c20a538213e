"""Weights on the disk: a byte that changed is noticed, and files of others are still read."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from avdvae.errors import UserError
from avdvae.models.vae import VAE
from avdvae.nn.weights import load_weights, save_weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("count", torch.tensor(3))


@pytest.mark.parametrize("make", [lambda: VAE(hidden=4, dim=2), Tied])
def test_weights_come_back_and_equal_ones_are_equal_bytes(make, tmp_path: Path) -> None:
    model, other = make(), make()
    for name in ("a", "b"):
        save_weights(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    load_weights(other, tmp_path / "a")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode, "as the umask allows"


def test_no_changed_byte_is_taken_for_a_weight(tmp_path: Path) -> None:
    model, path = VAE(hidden=4, dim=2), tmp_path / "weights.safetensors"
    save_weights(model, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(200):
        changed = bytearray(whole)
        place = int(rng.integers(header) if number % 2 else rng.integers(header, len(whole)))
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        other = VAE(hidden=4, dim=2)
        try:
            load_weights(other, path)
        except UserError as error:
            assert str(path) in str(error) and ": copy it again, or" in str(error)
        else:  # a blank, or the name under which the checksum is noted
            torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
            assert place < header
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"weights.safetensors is cut off, damaged or no file of weights"):
        load_weights(VAE(hidden=4, dim=2), path)


def test_weights_without_a_checksum_load_and_those_of_another_model_do_not(tmp_path: Path) -> None:
    model, path = VAE(hidden=4, dim=2), tmp_path / "weights.safetensors"
    safetensors.torch.save_model(model, str(path))
    other = VAE(hidden=4, dim=2)
    load_weights(other, path)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
    for wrong in (VAE(hidden=5, dim=2), Tied()):
        with pytest.raises(UserError, match=f"has the weights of another model than the {type(wrong).__name__}"):
            load_weights(wrong, path)
