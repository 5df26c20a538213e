"""Boxes that move: generated, prepared, loaded and modelled."""

import numpy as np
import pytest
import torch

from avdvae.data.boxes import sizes
from avdvae.data.clips import SPLITS
from avdvae.data.loader import Loader
from avdvae.data.prepare import prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.data.tracks import COMPLETE, CROSSING, Tracks, scene, trajectories
from avdvae.errors import UserError
from avdvae.models.srnn import SRNN, BoxSRNN
from avdvae.protocols import Batch
from avdvae.signals.audio import Stft

# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_trajectories_stay_in_sight_and_move_in_pieces() -> None:
    boxes_TN4 = trajectories(150, np.random.default_rng(0))
    assert boxes_TN4.shape == (60, 150, 4) and (sizes(boxes_TN4) > 0).all()
    assert (boxes_TN4 >= (-0.5, 0, 0, -1.5)).all() and (boxes_TN4 <= (1, 1.5, 0.8, 1)).all()
    np.testing.assert_allclose(np.ptp(sizes(boxes_TN4)[..., 1] / sizes(boxes_TN4)[..., 0], 0), 0, atol=1e-6)
    steps_TN4 = np.abs(np.diff(boxes_TN4, axis=0))
    assert steps_TN4.max() < 0.1, "pieces join"
    still_N = (steps_TN4[..., 0] == 0).sum(0)  # in multiples of three frames, but for the frame after a break
    assert {*still_N.tolist()} > {0, 59} and 0.01 < (still_N == 59).mean() < 0.15


@pytest.mark.parametrize("crossing", [False, True])
def test_scenes_have_gaps_and_crossings_but_a_complete_beginning(crossing) -> None:
    gaps = []
    for seed in range(6):
        boxes_TJ4 = scene(120, crossing, np.random.default_rng(seed))
        truth_TN4, detections_TK4 = boxes_TJ4[:, :3], boxes_TJ4[:, 3:]
        missing_TK = np.isnan(detections_TK4[..., 0])
        assert not np.isnan(truth_TN4).any() and not missing_TK[:COMPLETE].any() and missing_TK.any()
        noise = ((detections_TK4 - truth_TN4) / sizes(truth_TN4))[~missing_TK]
        assert 0.018 < noise.std() < 0.022
        run_length, longest = 0, 0
        for gone in missing_TK[:, :2].T.ravel():
            run_length = run_length + 1 if gone else 0
            longest = max(longest, run_length)
        gaps.append(longest)
        if crossing:
            across_T = (truth_TN4[:, 1] - truth_TN4[:, 0])[:, 0] / sizes(truth_TN4[:, :2]).max(1)[:, 0]
            met = np.flatnonzero(np.abs(truth_TN4[:, 1] - truth_TN4[:, 0])[:, :2].max(1) < 1e-9)
            assert any(across_T[m - CROSSING // 2] * across_T[m + CROSSING // 2 - 1] < 0 for m in met), (
                "they swap sides where they meet"
            )
    assert (min(gaps) >= 5) if crossing else (max(gaps) < 5)


def test_tracks_are_what_they_were_and_reach_the_loader(tmp_path) -> None:
    one, two = (Tracks(tmp_path / name, tracks=103, valid=3, scenes=6) for name in ("one", "two"))
    clips = one.clips(1)[0]
    for a, b in zip(clips, two.clips(1)[0], strict=True):
        assert a.boxes and b.boxes and a.id == b.id and a.boxes.read_bytes() == b.boxes.read_bytes()
    assert one.key == two.key != Tracks(tmp_path, tracks=103, valid=3, scenes=6, seed=1).key
    prepare(one, tmp_path / "prepared", workers=1)
    splits = {split: PreparedCorpus(tmp_path / "prepared", split) for split in SPLITS}
    assert [len(splits[split].utterances) for split in SPLITS] == [2, 1, 6]
    longest = next(u for u in splits["test"].utterances if u.id == "scene/300 crossing 01")
    assert longest.seconds == pytest.approx(10) and longest.labels["objects"] == 3 and longest.labels["crossing"]
    stored = {clip.id: np.load(clip.boxes) for clip in clips if clip.boxes}
    np.testing.assert_array_equal(splits["test"].boxes(longest), stored[longest.id])
    loader = Loader(splits["train"], Stft(533), frames=25, batch_size=50, seed=0, shuffle=False)
    found: dict[str, list[np.ndarray]] = {}
    for batch in loader:
        for item, mask_T, boxes_T4 in zip(batch.ids, batch.mask, batch.need("boxes", loader), strict=True):
            found.setdefault(item, []).append(boxes_T4[mask_T].numpy())
    assert len(found) == 103
    for item, windows in found.items():
        clip, number = item.rsplit("/", 1)
        np.testing.assert_array_equal(np.concatenate(windows), stored[clip][:, int(number) - 1])


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [({"tracks": 0}, "tracks=0: give 1 or more"), ({"scenes": 10}, "scenes=10: give a multiple")],
)
def test_impossible_tracks_are_refused(wrong, complaint, tmp_path) -> None:
    with pytest.raises(UserError, match=complaint):
        Tracks(tmp_path, **wrong)


# ---------------------------------------------------------------------------------------------------------------------
# The model


def test_the_published_size_and_a_causal_posterior() -> None:
    torch.manual_seed(0)
    model = BoxSRNN()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1540
    boxes = torch.rand(1, 9, 4, requires_grad=True)
    batch = Batch(("a",), torch.ones(1, 9, dtype=torch.bool), boxes=boxes)
    q, context = model.infer(batch, mode="mean").q["z"], model.context(batch)
    (slope,) = torch.autograd.grad(q.mean[0, 0, 5].sum(), boxes)
    assert slope[0, 5].abs().sum() > 0 and not slope[0, 6:].any()
    noise = {"z": torch.randn(1, 1, 9, 4)}
    path = model.posterior(boxes, context, noise)
    z, q, p, output = model.recursion(boxes, context, noise)
    for found, expected in (
        (path.z["z"], z),
        (path.q["z"].mean, q.mean),
        (model.prior(path.z, context)["z"].log_var, p.log_var),
        (model.output(path.z, context), output),
    ):
        torch.testing.assert_close(found, expected)
    density = model.decode(path.z, context)["boxes"]
    mean, log_var = output.chunk(2, -1)
    expected = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(boxes).sum(-1)
    torch.testing.assert_close(density.log_prob(boxes), expected)
    assert (model.own_past(path.z, context) != model.own_past(path.z, context)).all(), "draws of the own output"
    assert isinstance(model, SRNN)
