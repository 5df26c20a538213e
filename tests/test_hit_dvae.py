"""HiT-DVAE and LigHT-DVAE: sizes, the cache, long sequences. What depends on what: test_dynamical.py."""

from typing import Any

import pytest
import torch

from avdvae.errors import UserError
from avdvae.models.hit_dvae import HiTDVAE
from avdvae.probability.objectives import Schedule
from avdvae.protocols import Batch

CORES: Any = {"hidden": 128, "layers": 2, "inner": 512, "hidden_w": 128, "layers_w": 1}  # of exp=hit_dvae
TINY: Any = {"features": 9, "hidden": 16, "dim": 3, "dim_w": 2, "wide": 16, "heads": 4, "layers": 2, "inner": 32}
TINY |= {"hidden_w": 8, "layers_w": 1}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 15_737_985),
        ({"light": True}, 11_524_225),
        (CORES, 1_947_009),
        ({**CORES, "light": True}, 1_417_857),
        ({**CORES, "features": 48, "layers": 4, "inner": 256, "wide": 128}, 2_328_752),
        ({**CORES, "past_in_prior": False}, 1_947_009 - 2 * (4 * 128 * 129 + 2 * 128)),  # the prior's cross-attention
    ],
)
def test_it_has_as_many_parameters_as_counted_by_hand(options: Any, count: int) -> None:
    """LigHT-DVAE has one decoder less."""
    assert sum(parameter.numel() for parameter in HiTDVAE(**options).parameters()) == count


@pytest.mark.parametrize(
    "options", [{}, {"light": True}, {"query": "x"}, {"past_in_prior": False}, {"light": True, "past_in_prior": False}]
)
@torch.no_grad()
def test_frames_may_come_in_pieces(options: Any) -> None:
    """With keys and values of the frames so far, each gives what it gives in the whole."""
    torch.manual_seed(0)
    model = HiTDVAE(**TINY, **options)
    x, before, z = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 9, 3), torch.randn(3, 2, 9, 3)
    begin = model.first_state({"w": torch.randn(3, 2, 1, 2), "z": z})
    whole, _ = model.update_state(x, before, z, begin)
    state, pieces = begin, []
    for frames in (slice(0, 1), slice(1, 5), slice(5, 6), slice(6, 9)):
        h, state = model.update_state(x[:, :, frames], before[:, :, frames], z[:, :, frames], state)
        pieces.append(h)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-4, atol=1e-5)


def test_a_sequence_may_be_longer_than_the_windows_of_training() -> None:
    """Ten times as long, and the bound of a frame is no worse."""
    torch.manual_seed(0)
    model = HiTDVAE(**TINY, floor=0.1)
    level = 3 * (0.7 * torch.arange(400)[:, None] + torch.arange(9)).sin()  # a ripple that glides

    def windows(frames: int) -> Batch:
        starts = torch.randint(0, 400 - frames, (16,)).tolist()
        power = torch.stack([level[start : start + frames] for start in starts]).exp()
        return Batch(tuple(map(str, starts)), torch.ones(16, frames, dtype=torch.bool), power=power)

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        adam.zero_grad()
        model(windows(10), Schedule()).loss(Schedule()).mean().backward()
        adam.step()
    with torch.no_grad():
        short, long = (model(windows(frames), Schedule()) for frames in (10, 100))
    short, long = ((elbo.bound / elbo.n).mean() for elbo in (short, long))
    constant = -(1 + (torch.pi * level.exp().mean(0)).log()).sum()  # of the best spectrum for all frames
    assert short > constant + 10 and long > short - 0.5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"heads": 3}, "give 1 or more of each, and a hidden that is a multiple of the heads"),
        ({"query": "w"}, "model.query=w: choose z or x"),
        ({"query": "x", "past_in_prior": False}, "with model.query=x, the prior is made from the past: choose z"),
    ],
)
def test_what_makes_no_model_is_refused_in_a_sentence(options: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        HiTDVAE(**{**TINY, **options})
