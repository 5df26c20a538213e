"""The share of the output that depends on a latent: of a model where it is known, and of one that ignores a latent."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_likelihood import subject_of

from avdvae.errors import UserError
from avdvae.evaluation.measure import measure
from avdvae.evaluation.tasks.latent_use import shares_of
from avdvae.models.hit_dvae import HiTDVAE
from avdvae.models.lstm import LSTM
from avdvae.protocols import Batch


class Linear:
    """x = 2 u + v + past, of independent u, v and past, each of variance 1; r changes nothing."""

    observes = "pose"

    def infer(self, batch: Batch) -> Any:
        u_KBT1, v_KBT1, r_KBT1, _ = batch.need("pose", self)[None].split(1, -1)
        return SimpleNamespace(z={"u": u_KBT1, "v": v_KBT1, "r": r_KBT1})

    def context(self, batch: Batch) -> Any:
        return batch.need("pose", self)[..., 3:]

    def decode(self, z: Any, past_BT1: Any) -> Any:
        return {"pose": SimpleNamespace(expected=2 * z["u"] + z["v"] + past_BT1)}


def test_shares_of_independent_parts_are_their_shares_of_the_variance() -> None:
    torch.manual_seed(0)
    batches = [Batch(("a",), torch.ones(1, 20_000) > 0, pose=torch.randn(1, 20_000, 4)) for _ in range(2)]
    assert shares_of(Linear(), *batches) == pytest.approx({"u": 4 / 6, "v": 1 / 6, "r": 0}, abs=0.02)


def test_a_latent_that_is_ignored_has_no_share(prepared, tmp_path) -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden": 16, "dim": 3, "dim_w": 2, "wide": 16, "heads": 4, "layers": 1, "inner": 16}
    model = HiTDVAE(**sizes, hidden_w=8, layers_w=1, floor=0.03).eval().requires_grad_(False)
    model.latent_embedding.weight[:, :3] = 0  # of z; w enters by the past, too
    rows = measure(subject_of(model, prepared, tmp_path, tasks=("latent_use",), per_speaker=None))
    assert {*Counter(row.item for row in rows).values()} == {4}
    for row in rows:
        assert row.metric in ("kl_w", "kl_z", "share_w", "share_z")
        assert row.value == 0 if row.metric == "share_z" else row.value > 0, row


def test_what_has_no_frames_of_latents_is_refused_in_a_sentence(prepared, tmp_path) -> None:
    with pytest.raises(UserError, match="LSTM has no latents that frames of power or face are decoded from: choose"):
        measure(subject_of(LSTM(), prepared, tmp_path, tasks=("latent_use",)))
