"""Boxes are tracked by MixDVAE and its baselines, and scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_run import refuse, run

from avdvae.data.boxes import BoxScene, read_detections, read_scene, sizes, write_tracks
from avdvae.data.prepare import prepare
from avdvae.data.tracks import Tracks, scene
from avdvae.errors import UserError
from avdvae.evaluation.results import read_results
from avdvae.models.srnn import SRNN, BoxSRNN
from avdvae.programs.track import track
from avdvae.protocols import Batch
from avdvae.tracking import mixture
from avdvae.tracking.mixture import Estimate, Evidence, Tracker, assignments, bound_of_assignments, evidence_of
from avdvae.tracking.nearest import nearest_detections
from avdvae.tracking.priors import ConstantVelocity, VAEPrior
from avdvae.tracking.scores import overlaps, scores

# ---------------------------------------------------------------------------------------------------------------------
# The tracker

B, T, K, N = 2, 7, 3, 3


@pytest.fixture
def seen() -> torch.Tensor:
    """Detections of two scenes, of which some are missing after the first frame."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(B, 1, K, 2, generator=generator) + 0.02 * torch.randn(B, T, K, 2, generator=generator)
    boxes = torch.cat([corner, corner + torch.tensor([0.05, -0.1])], -1)
    boxes[:, 1:][torch.rand(B, T - 1, K, generator=generator) < 0.3] = torch.nan
    return boxes


@pytest.fixture
def estimate(seen) -> Estimate:
    m_BTN4 = seen[:, :1].expand(-1, T, -1, -1) + 0.01
    return Estimate(m_BTN4, torch.full_like(m_BTN4, 1e-4))


@pytest.fixture
def model() -> BoxSRNN:
    torch.manual_seed(1)
    return BoxSRNN().eval().requires_grad_(False)


def noise_of(seen: torch.Tensor, rho: float = 0.04) -> torch.Tensor:
    return (rho * mixture.sizes(seen)).square()


def test_assignments_sum_to_one_and_missing_detections_have_none(seen, estimate) -> None:
    eta, here = assignments(seen, estimate, noise_of(seen)), mixture.detected(seen)
    assert (~here).sum() > 0 and not eta[~here].any()
    torch.testing.assert_close(eta.sum(-1), here.float())
    near = (seen[here][0] - estimate.m[0, 0]).square().sum(-1).argmin()
    assert eta[here][0].argmax() == near
    evidence = evidence_of(seen, eta, noise_of(seen))
    gone = ~here.any(-1)
    assert all(part.isfinite().all() and not part[gone].any() for part in evidence)


def test_neither_assignment_nor_the_noise_lowers_the_bound(seen, estimate) -> None:
    here, size = mixture.detected(seen), mixture.sizes(seen)
    eta = assignments(seen, estimate, noise_of(seen, 0.3))
    best = bound_of_assignments(seen, eta, estimate, noise_of(seen, 0.3))
    for seed in range(20):
        other = torch.randn(B, T, K, N, generator=torch.Generator().manual_seed(seed)).softmax(-1) * here[..., None]
        for mixed in (other, 0.95 * eta + 0.05 * other):
            assert (bound_of_assignments(seen, mixed, estimate, noise_of(seen, 0.3)) < best).all()
    rho = mixture.learned_noise(seen, eta, estimate, size)
    bounds = [
        bound_of_assignments(seen, eta, estimate, (scale * rho[:, None, None, None] * size).square())
        for scale in (0.3, 0.97, 1, 1.03, 3)
    ]
    assert all((bounds[2] > other).all() for n, other in enumerate(bounds) if n != 2)


def conditioned(mean: torch.Tensor, variance: torch.Tensor, seen: list, eta: list, noise: list) -> tuple:
    """Moments of s ~ N(mean, diag variance) given o_k = s + N(0, noise_k / eta_k), by dense matrices."""
    there = [k for k, o in enumerate(seen) if o.isfinite().all()]
    mean, prior = mean.double(), torch.diag(variance.double())
    if not there:
        return mean, prior.diagonal()
    H = torch.eye(4, dtype=torch.double).repeat(len(there), 1)
    R = torch.diag(torch.cat([(noise[k] / eta[k]).double() for k in there]))
    gain = prior @ H.T @ torch.linalg.inv(H @ prior @ H.T + R)
    o = torch.cat([seen[k] for k in there]).double()
    return mean + gain @ (o - H @ mean), (prior - gain @ H @ prior).diagonal()


def test_the_filter_conditions_the_predicted_gaussian_on_the_assigned_detections(seen, estimate, model) -> None:
    noise = noise_of(seen, 0.5)
    eta = assignments(seen, estimate, 125 * noise)
    evidence, first = evidence_of(seen, eta, noise), mixture.first_boxes(seen)
    found = VAEPrior(model).filtered(evidence, first, estimate, torch.Generator().manual_seed(3))
    # the same z, and the decoder's moments for all frames at once, given the means that the filter found
    draws = torch.randn((N, T, 4), generator=torch.Generator().manual_seed(3))
    for b in range(B):
        rows = estimate.m[b].transpose(0, 1)
        batch = Batch(("a",) * N, torch.ones(N, T, dtype=torch.bool), boxes=rows)
        z = model.posterior(rows, model.context(batch), {"z": draws[None]}).z
        context = replace(model.context(batch), past=found.m[b].transpose(0, 1))
        density = model.decode(z, context)["boxes"].density
        for n in range(N):
            for t in range(T):
                mean, variance = density.mean[0, n, t], density.log_var[0, n, t].exp()
                if t == 0:
                    mean, variance = first[b, n], torch.full((4,), mixture.FIRST_VARIANCE)
                m, V = conditioned(
                    mean, variance, *([of[b, t, k] for k in range(K)] for of in (seen, eta[..., n], noise))
                )
                torch.testing.assert_close(found.m[b, t, n].double(), m, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.V[b, t, n].double(), V, rtol=1e-4, atol=1e-9)


def test_the_kalman_filter_conditions_on_all_detections_so_far() -> None:
    """Against the joint Gaussian of the accelerations, of one coordinate."""
    frames, generator = 9, torch.Generator().manual_seed(0)
    law = ConstantVelocity(torch.full((4,), 0.3), torch.full((4,), 0.02))
    o, r = torch.randn(frames, generator=generator), torch.rand(frames, generator=generator) + 0.1
    precision = torch.where(torch.arange(frames) % 4 == 2, 0, 1 / r)
    shape = (1, frames, 1, 4)
    evidence = Evidence(*(of[None, :, None, None].expand(shape) for of in (precision, precision * o)))
    first = torch.full((1, 1, 4), 0.5)
    found = law.filtered(evidence, first, Estimate(*evidence), torch.Generator())
    # s_1, u_1, a_2, ..., a_T -> s_1:T
    A = torch.zeros(frames, frames + 1, dtype=torch.double)
    for t in range(frames):
        A[t, 0], A[t, 1] = 1, t
        A[t, 2 : t + 2] = t - torch.arange(t) - 0.5
    inner = torch.diag(torch.tensor([mixture.FIRST_VARIANCE, 0.3, *[0.02] * (frames - 1)], dtype=torch.double))
    S = A @ inner @ A.T
    for t in range(frames):
        known = [i for i in range(t + 1) if precision[i] > 0]
        gain = S[t, known] @ torch.linalg.inv(S[known][:, known] + torch.diag(r[known].double()))
        torch.testing.assert_close(
            found.m[0, t, 0, 2].double(), 0.5 + gain @ (o[known] - 0.5).double(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(found.V[0, t, 0, 2].double(), S[t, t] - gain @ S[known, t], rtol=1e-3, atol=1e-6)


def test_exact_detections_are_followed_and_useless_ones_change_nothing(seen, model) -> None:
    alone = seen[:1, :, :1].clone()
    alone[0, 3] = torch.nan
    exact = Tracker(iterations=3, noise=mixture.FLOOR).track(alone, VAEPrior(model))
    here = mixture.detected(alone)[0, :, 0]
    assert (exact.m[0, here, 0] - alone[0, here, 0]).abs().max() < 1e-3 and exact.m.isfinite().all()
    useless, other = (
        Tracker(iterations=3, noise=1e4, start_iterations=1).track(boxes, VAEPrior(model))
        for boxes in (alone, torch.cat([alone[:, :1], alone[:, 1:] + 0.3], 1))
    )
    torch.testing.assert_close(useless.m, other.m, rtol=0, atol=1e-5)


def test_two_objects_in_one_place_stay_alike() -> None:
    boxes = torch.tensor([0.4, 0.6, 0.5, 0.3]).expand(1, 12, 2, 4) + 0.01 * torch.randn(1, 12, 1, 4)
    found = Tracker(iterations=5).track(boxes, ConstantVelocity())
    assert torch.equal(found.m[:, :, 0], found.m[:, :, 1]) and (found.eta == 0.5).all()


@pytest.mark.parametrize("settings", [{}, {"start": "found", "learn_noise": True, "piece": 3}])
def test_a_scene_is_tracked_alike_alone_and_in_a_batch(seen, model, settings) -> None:
    tracker = Tracker(iterations=4, start_iterations=2, **settings)
    together = tracker.track(seen, VAEPrior(model))
    for b in range(B):
        for part, whole in zip(tracker.track(seen[b : b + 1], VAEPrior(model)), together, strict=True):
            torch.testing.assert_close(part[0], whole[b], rtol=1e-4, atol=1e-6)


def test_the_order_of_detections_after_the_first_frame_does_not_matter(seen, model) -> None:
    other = torch.cat([seen[:, :1], seen[:, 1:, [2, 0, 1]]], 1)
    tracker = Tracker(iterations=4, start_iterations=2)
    for prior in (VAEPrior(model), ConstantVelocity()):
        torch.testing.assert_close(tracker.track(seen, prior).m, tracker.track(other, prior).m, rtol=1e-4, atol=1e-6)


def test_fine_tuning_changes_a_copy_of_the_model(seen, model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tracker = Tracker(iterations=3, start_iterations=1)
    plain, tuned = (replace(tracker, finetune=yes).track(seen, VAEPrior(model)).m for yes in (False, True))
    assert not torch.equal(plain, tuned) and tuned.isfinite().all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="no networks to fine-tune"):
        replace(tracker, finetune=True).track(seen, ConstantVelocity())


def walking() -> BoxScene:
    """Two objects in parallel, one of them hidden for ten frames, in which it moves by more than its width."""
    left = np.repeat(0.3 + 0.004 * np.arange(60)[:, None], 2, 1)
    truth = np.stack([left, 0 * left + (0.9, 0.5), left + 0.03, 0 * left + (0.75, 0.35)], -1).astype(np.float32)
    seen = truth + 0.02 * sizes(truth) * np.random.default_rng(0).normal(size=truth.shape)
    seen[25:35, 0] = np.nan
    return BoxScene(truth, seen.astype(np.float32)).shuffled(np.random.default_rng(1))


def test_a_prior_of_motion_bridges_a_gap() -> None:
    scene = walking()
    assert not np.isnan(scene.detections[0]).any() and np.isnan(scene.detections[25:35]).any(-1).sum() == 10
    law = ConstantVelocity(torch.full((4,), 0.004**2), torch.full((4,), 0.0002**2))
    found = Tracker(iterations=5, start_iterations=3).track(torch.from_numpy(scene.detections[None]), law).m[0].numpy()
    nearest = nearest_detections(scene.detections)
    assert scores(scene.truth, found)["idf1"] > 95 > 80 > scores(scene.truth, nearest)["idf1"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [({"iterations": 0}, "iterations=0 of the tracker: give 1"), ({"start": "cold"}, "choose from cascade, found")],
)
def test_wrong_settings_of_the_tracker_are_refused(wrong, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        Tracker(**wrong)


def test_what_cannot_be_tracked_is_refused(seen) -> None:
    unlike = seen.clone()
    unlike[0, 0, 1] = torch.nan
    with pytest.raises(UserError, match="have 2 and 3 detections"):
        Tracker().track(unlike, ConstantVelocity())
    with pytest.raises(UserError, match="SRNN is no autoregressive model of boxes"):
        VAEPrior(SRNN(hidden=2, dim=2, wide=2, narrow=[2]))


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def boxes_at(*places: tuple[float, ...]) -> np.ndarray:
    """Squares of side 1 whose left edges are these, one row a frame."""
    x = np.array(places, float)
    return np.stack([x, 0 * x + 1, x + 1, 0 * x], -1)


def test_overlaps_of_boxes() -> None:
    one = np.array([[0, 2, 2, 0], [np.nan] * 4])
    other = np.array([[0, 2, 2, 0], [1, 2, 3, 0], [1, 1, 3, -1], [5, 2, 6, 0.0]])
    np.testing.assert_allclose(overlaps(one, other), [[1, 1 / 3, 1 / 7, 0], [0, 0, 0, 0]])


def test_scores_by_hand() -> None:
    truth = boxes_at(*[(0, 5)] * 10)
    perfect = scores(truth, truth)
    assert (perfect["mota"], perfect["idf1"], perfect["motp"], perfect["mostly_tracked"]) == (100, 100, 100, 100)
    swapped = scores(truth, boxes_at(*[(0, 5)] * 4, *[(5, 0)] * 6))
    assert swapped["id_switches"] == 2 and swapped["mota"] == 90 and swapped["idf1"] == 60
    lost = scores(truth, boxes_at(*[(0.2, 5)] * 7, *[(9, 5)] * 3))
    assert (lost["misses"], lost["false_alarms"], lost["id_switches"]) == (3, 3, 0) and lost["mota"] == 70
    assert lost["motp"] == pytest.approx(100 * (7 * 0.8 / 1.2 + 10) / 17) and lost["mostly_tracked"] == 50
    assert lost["idf1"] == pytest.approx(85)
    gone = truth.copy()
    gone[:, 1] = np.nan
    one = scores(truth, gone)
    assert (one["misses"], one["false_alarms"], one["mostly_lost"], one["mota"]) == (10, 0, 50, 50)
    assert one["idf1"] == pytest.approx(200 / 3)
    # a track that still overlaps keeps its object, though another overlaps more
    near = scores(boxes_at((0,), (0,)), boxes_at((0, 9), (0.3, 0)))
    assert (
        near["id_switches"] == 0 and near["false_alarms"] == 2 and near["motp"] == pytest.approx(50 * (1 + 0.7 / 1.3))
    )
    # a switch is counted after a gap, too
    late = scores(boxes_at((0,), (0,), (0,)), boxes_at((0, 9), (9, 9), (9, 0)))
    assert late["id_switches"] == 1 and late["misses"] == 1


def test_scores_agree_with_trackeval() -> None:
    oracle = pytest.importorskip("trackeval").metrics
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = scene(120, True, rng)[:, :3]
        tracks = truth + 0.15 * sizes(truth) * rng.normal(size=truth.shape)
        for t in rng.integers(1, 119, 4):
            tracks[t:] = tracks[t:, rng.permutation(3)]
        tracks[rng.random(tracks.shape[:2]) < 0.1] = np.nan
        here, found = (np.isfinite(boxes[..., 0]) for boxes in (truth, tracks))
        data = {
            "num_timesteps": 120,
            "num_gt_ids": 3,
            "num_tracker_ids": 3,
            "num_gt_dets": int(here.sum()),
            "num_tracker_dets": int(found.sum()),
            "gt_ids": [np.flatnonzero(row) for row in here],
            "tracker_ids": [np.flatnonzero(row) for row in found],
            "similarity_scores": [
                overlaps(a[i], b[j]) for a, b, i, j in zip(truth, tracks, here, found, strict=True)
            ],
        }  # fmt: skip
        clear, identity, ours = (
            oracle.CLEAR().eval_sequence(data),
            oracle.Identity().eval_sequence(data),
            scores(truth, tracks),
        )
        assert ours["mota"] == pytest.approx(100 * clear["MOTA"]) and ours["motp"] == pytest.approx(100 * clear["MOTP"])
        assert ours["idf1"] == pytest.approx(100 * identity["IDF1"])
        counts = [ours[name] for name in ("id_switches", "misses", "false_alarms")]
        assert counts == [clear["IDSW"], clear["CLR_FN"], clear["CLR_FP"]]
        assert [ours["mostly_tracked"], ours["mostly_lost"]] == [
            pytest.approx(100 * clear[name] / 3) for name in ("MT", "ML")
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Files and programs


def write_sequence(folder: Path, scene: BoxScene, picture: tuple[int, int] = (640, 480)) -> None:
    """As MOTChallenge has it, with a line in gt.txt that does not count."""
    for name in ("det", "gt"):
        (folder / name).mkdir(parents=True)
    write_tracks(folder / "det/det.txt", scene.detections, picture)
    write_tracks(folder / "gt/gt.txt", scene.truth, picture)
    lines = (folder / "gt/gt.txt").read_text().replace(",1,-1,-1,-1", ",1,1,1.0")
    (folder / "gt/gt.txt").write_text(lines + "1,99,1,1,5,5,0,1,1.0\n")
    (folder / "seqinfo.ini").write_text(f"[Sequence]\nimWidth={picture[0]}\nimHeight={picture[1]}\n")


def test_boxes_of_motchallenge(tmp_path) -> None:
    (tmp_path / "det.txt").write_text("2,-1,64,48,32,96,0.9\n2,-1,0,0,640,480,0.5\n4,-1,64,48,32,96,0.9\n")
    boxes = read_detections(tmp_path / "det.txt", (640, 480))
    assert boxes.shape == (4, 2, 4) and np.isnan(boxes[[0, 2]]).all() and np.isnan(boxes[3, 1]).all()
    np.testing.assert_allclose(boxes[1], [[0.1, 0.9, 0.15, 0.7], [0, 1, 1, 0]], atol=1e-7)
    scene = walking()
    write_sequence(tmp_path / "seq", scene)
    again, picture = read_scene(tmp_path / "seq")
    assert picture == (640, 480) and again.truth.shape == scene.truth.shape
    np.testing.assert_allclose(again.truth, scene.truth, atol=1e-4)
    there = np.isfinite(scene.detections[..., 0])
    assert (np.isfinite(again.detections[..., 0]).sum(1) == there.sum(1)).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no boxes"),
        ("frame,id,left\n", "no file of boxes"),
        ("0,-1,1,1,2,2\n", "frame is no whole number of 1"),
        ("1,-1,1,1,0,2\n", "a box without width"),
    ],
)
def test_damaged_detections_are_refused(text, complaint, tmp_path) -> None:
    (tmp_path / "det.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_detections(tmp_path / "det.csv", (640, 480))


def test_from_nothing_to_the_report_and_to_tracks_of_a_file(tmp_path, capsys) -> None:
    words = [f"runs={tmp_path}", f"run_dir={tmp_path / 'run'}", "data=tracks_tiny", f"data.root={tmp_path}"]
    words += [f"prepared={prepare(Tracks(tmp_path, 200, 50, 6), tmp_path / 'prepared', workers=1).out}"]
    words += ["train.epochs=1", "train.warmup_epochs=0", "train.own_past=[0,1]", "evaluate.examples=1"]
    words += ["evaluate.workers=1", "evaluate.tracking.iterations=2", "evaluate.tracking.start_iterations=1"]
    run("run.py", "exp=tracking", *words)
    rows = read_results(tmp_path / "run/results.csv")
    assert {row.task for row in rows} == {"tracking"}
    assert {row.model for row in rows} == {"tracking", "Kalman", "nearest"} and len({row.item for row in rows}) == 6
    assert len([row for row in rows if row.metric == "idf1_300_crossing"]) == 3
    page = (tmp_path / "run/report.html").read_text()
    assert "video/mp4" in page and "MOTA, 60 frames, apart" in page

    for name in ("a", "b"):
        write_sequence(tmp_path / "mot" / name, walking())
    few = {"run": tmp_path / "run", "tracking": {"iterations": 2}, "picture": [640, 480]}
    track({**few, "input": tmp_path / "mot", "output": tmp_path / "out"})
    printed = capsys.readouterr().out
    assert printed.count("tracked    2 objects in 60 frames") == 2 and printed.count("MOTA ") == 2
    assert (tmp_path / "out/a.txt").read_bytes() == (tmp_path / "out/b.txt").read_bytes()
    detections = tmp_path / "mot/a/det/det.txt"
    track({**few, "input": detections, "output": tmp_path / "c.csv"})
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "out/a.txt").read_bytes()
    frames = [int(line.split(",")[0]) for line in (tmp_path / "c.csv").read_text().splitlines()]
    assert frames == [t for t in range(1, 61) for _ in range(2)]
    said = refuse(
        "track.py", f"run={tmp_path / 'run'}", f"input={tmp_path / 'none.csv'}", f"output={tmp_path / 'd.csv'}"
    )
    assert "there is no file" in said and not (tmp_path / "d.csv").exists()
