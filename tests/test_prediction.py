"""Prediction of motion: the law of Gait futures, the scores of drawn futures, and the task from end to end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avdvae.configurations import compose
from avdvae.data.gait import Gait, subject
from avdvae.data.gait_futures import (
    BLEND,
    CHAIN,
    DEVIATION,
    DWELL,
    FPS,
    MEMORY,
    GaitFutures,
    State,
    begin,
    go_on,
    movements,
    poses_of,
    sequence_of,
    true_futures,
)
from avdvae.data.poses import read_poses
from avdvae.data.prepare import prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.evaluation.boards import entries_of
from avdvae.evaluation.futures import bone_lengths, frechet, scores_of
from avdvae.evaluation.measure import join_evaluations, measure, measure_and_report
from avdvae.evaluation.recognition import recognition_of
from avdvae.evaluation.results import BASELINES, Result, compare, read_results, summarise
from avdvae.evaluation.tasks.task import Evaluation, Subject
from avdvae.latents.transfer import generate
from avdvae.models.dsae import DSAE
from avdvae.models.rvae import RVAE
from avdvae.models.srnn import SRNN
from avdvae.models.vae import VAE
from avdvae.orchestration.request import Request
from avdvae.orchestration.starts import start_request
from avdvae.protocols import Batch
from avdvae.runs import create_run
from avdvae.signals.audio import Stft
from avdvae.signals.video import probe

PERSON = subject(0, 1)
MODELS = {"vae": VAE, "rvae": RVAE, "dsae": DSAE, "srnn": SRNN}


# ---------------------------------------------------------------------------------------------------------------------
# The law


@pytest.fixture(scope="module")
def path() -> State:
    """Five minutes, of 40 at once."""
    rng = np.random.default_rng(0)
    starts = [begin(rng) for _ in range(40)]
    return go_on(PERSON, State(*map(np.concatenate, zip(*starts, strict=True))), 300 * FPS // 40 * 8, rng)


def test_movements_follow_as_the_law_says(path):
    begun = path.since[1:] == 0
    ends = np.argwhere(begun)
    assert len(ends) > 1000
    assert (path.now[1:][begun] != path.now[:-1][begun]).all() and (
        path.before[1:][begun] == path.now[:-1][begun]
    ).all()
    following = np.bincount((path.now[1:][begun] - path.before[1:][begun]) % len(CHAIN), minlength=len(CHAIN))
    np.testing.assert_allclose(following[1:] / len(ends), 1 / 6, atol=0.05)
    blends = path.blend[1:][begun] / FPS
    assert blends.min() > BLEND[0] and blends.max() < BLEND[1] and abs(blends.mean() - np.mean(BLEND)) < 0.01
    settled = path.since[:-1] >= path.blend[:-1]
    leaves = begun[settled]
    assert not begun[~settled].any() and 1 / leaves.mean() / FPS == pytest.approx(DWELL, rel=0.08)
    for process in (path.tempo, path.reach):
        assert process.std() == pytest.approx(DEVIATION, rel=0.1)
        later = round(MEMORY * FPS)
        correlation = (process[later:] * process[:-later]).mean() / process.var()
        assert correlation == pytest.approx(np.exp(-1), abs=0.08)
    assert abs((path.tempo * path.reach).mean()) < 0.1 * DEVIATION**2 * 3


def test_poses_change_smoothly_and_become_those_of_the_next_movement(path):
    one = State(*(part[:, 0] for part in path))
    poses_TJ3 = poses_of(PERSON, one)
    speed_T = np.linalg.norm(np.diff(poses_TJ3, axis=0), axis=2).max(1) * FPS
    blending = (one.share < 1)[1:]
    assert speed_T[blending].max() < 1.5 * speed_T[~blending].max(), "no jump from a movement to the next"
    over = one._replace(before=(one.before + 1) % len(CHAIN))
    changed = np.abs(poses_of(PERSON, over) - poses_TJ3).max((1, 2)) > 1e-6
    assert not changed[one.share == 1].any() and changed[(one.share > 0.1) & (one.share < 0.9)].all()


def test_drawn_futures_continue_the_state_and_are_distributed_as_what_came():
    """The rank of the true future among the drawn ones is uniform."""
    ranks, draws, frames, lasts = [], 19, 100, range(24, 224, 100)
    for number in range(1, 51):
        person, states = sequence_of(3, number, 0, 250)
        poses_TJ3 = poses_of(person, states)
        rng = np.random.default_rng(number)
        drawn_WKTJ3 = true_futures(poses_TJ3, {"generated": [3, number, 0]}, lasts, frames, draws, rng)
        assert drawn_WKTJ3.shape == (2, draws, frames, 17, 3)
        for last, drawn_KTJ3 in zip(lasts, drawn_WKTJ3, strict=True):
            steps = np.linalg.norm(drawn_KTJ3[:, 0] - poses_TJ3[last], axis=-1).max()
            assert steps < 0.2, "one step after the last observed pose"
            true_TJ3 = poses_TJ3[last + 1 : last + 1 + frames]
            every = np.concatenate([true_TJ3[None], drawn_KTJ3])
            moved = np.abs(np.diff(every, axis=1)).sum((1, 2, 3)), np.abs(every[:, -1] - poses_TJ3[last]).sum((1, 2))
            ranks.append([(of > of[0]).sum() for of in moved])
    assert len(np.unique(np.round(drawn_WKTJ3[0, :, -1].reshape(draws, -1), 3), axis=0)) == draws
    shares = (np.array(ranks) + 0.5) / (draws + 1)
    np.testing.assert_allclose(shares.mean(0), 0.5, atol=4 / np.sqrt(12 * len(shares)))
    np.testing.assert_allclose(shares.var(0), 1 / 12, atol=4 * np.sqrt(1 / 180 / len(shares)))


def test_gait_futures_is_generated_alike_and_its_law_fits_no_other(tmp_path):
    corpus, again = (GaitFutures(tmp_path / name, subjects=3, sequences=2, seconds=3) for name in ("a", "b"))
    clips, faults = corpus.clips(workers=1)
    assert not faults and [clip.id for clip in clips] == [f"g{n:03d}/{s}" for n in (1, 2, 3) for s in (1, 2)]
    assert [clip.split for clip in clips] == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2
    for one, two in zip(clips, again.clips(workers=1)[0], strict=True):
        assert one.poses and two.poses and one.poses.read_bytes() == two.poses.read_bytes()
        assert len(movements(one.labels, 150)) == 150 and one.pose_format.fps == 50
    poses_TJ3 = read_poses(clips[0].source)
    assert len(poses_TJ3) == 150 and not poses_TJ3[:, 0].any()
    for other in ({"generated": [1, 1, 0]}, {"generated": [0, 1, 1]}):
        with pytest.raises(UserError, match="prepared by another version"):
            true_futures(poses_TJ3, other, [20], 5, 2, np.random.default_rng(0))
    assert corpus.key == again.key != Gait(tmp_path, 3, 2, 3).key
    with pytest.raises(UserError, match="at least 3"):
        GaitFutures(tmp_path, subjects=2)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def figure(*heights: float) -> torch.Tensor:
    """Frames of 17 joints without the hips, all of which are at these heights: T x 48."""
    return torch.tensor([[0.0, 0.0, height] * 16 for height in heights])


def test_scores_are_those_computed_by_hand():
    root = 4.0  # |x| of 16 joints that are all moved by 1
    last, true = figure(0)[0], figure(0, 0)
    predicted = torch.stack([figure(1, 0), figure(0, 0.5), figure(3, 3)])
    scores = scores_of(predicted, true, torch.stack([true, figure(3, 2)]), last)
    assert scores["ade"] == pytest.approx(root * 0.25) and scores["fde"] == pytest.approx(0)
    assert scores["mmade"] == pytest.approx(root * (0.25 + 0.5) / 2)
    assert scores["mmfde"] == pytest.approx(root * (0 + 1) / 2)
    pairs = [np.hypot(1, 0.5), np.hypot(2, 3), np.hypot(3, 2.5)]
    assert scores["apd"] == pytest.approx(root * np.mean(pairs), rel=1e-5)
    off = np.mean([1, 0.5, np.hypot(3, 3)])
    assert scores["energy_score"] == pytest.approx(root * (off - np.mean(pairs) / 2), rel=1e-5)
    # All joints are in one place, so that only bones from the hips, three of sixteen, have a length.
    assert scores["bone_error_mm"] == pytest.approx(1000 * 3 / 16 * np.mean([1, 0, 0, 0.5, 3, 3]), rel=1e-5)


def test_a_single_future_has_no_spread_and_its_distance_for_an_energy_score():
    scores = scores_of(figure(1, 0)[None], figure(0, 0), figure(0, 0)[None], figure(0)[0])
    assert scores["apd"] == 0 and scores["energy_score"] == pytest.approx(4.0)
    assert scores["ade"] == scores["mmade"] == pytest.approx(2.0) and scores["fde"] == scores["mmfde"] == 0


def test_the_energy_score_does_not_depend_on_the_number_of_futures_and_is_lowest_for_the_truth():
    generator = torch.Generator().manual_seed(0)

    def mean(count: int, spread: float, shift: float = 0.0, trials: int = 500) -> float:
        draws = torch.randn(trials, count + 1, 1, 48, generator=generator)
        parts = [scores_of(shift + spread * d[1:], d[0], d[:1], d[0, 0])["energy_score"] for d in draws]
        return float(np.mean(parts))

    true = mean(2, 1, trials=3000)
    assert true == pytest.approx(mean(20, 1, trials=1000), abs=0.1)
    assert min(mean(5, 0.5), mean(5, 1.5), mean(5, 1, 0.3), mean(1, 0)) > true + 0.1


def test_the_frechet_distance_is_that_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(50_000, 3, generator=generator) for _ in range(2))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    mix = torch.tensor([[1.0, 0.5, 0], [0, 2.0, 0], [0, 0, 0.5]])
    # Of N(0, 1) and N(m, S): |m|^2 + sum (1 - root of eigenvalues of S)^2
    wanted = 1 + 4 + float((1 - torch.linalg.eigvalsh(mix.T @ mix).sqrt()).square().sum())
    assert frechet(one, two @ mix + torch.tensor([1.0, 0, 2])) == pytest.approx(wanted, rel=0.02)


def test_bones_are_measured_from_the_hips_on():
    person, states = sequence_of(0, 5, 0, 20)
    poses_T = torch.from_numpy(poses_of(person, states)[:, 1:]).flatten(1)
    lengths = bone_lengths(poses_T)
    assert lengths.shape == (20, 16) and torch.allclose(lengths, lengths[:1].expand(20, -1), atol=1e-6)
    assert lengths[0, 0].item() == pytest.approx(person.lengths["hip"], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The task


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("futures")
    return prepare(GaitFutures(root / "raw", subjects=5, sequences=2, seconds=4), root / "prepared", workers=1).out


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    size = {"frequencies": 51} if name == "vae" else {"features": 51}
    return MODELS[name](**size, hidden=8, dim=3, observes="pose").eval().requires_grad_(False)


def subject_of(corpus: Path, out: Path, name: str = "rvae", **settings) -> Subject:
    given = {"tasks": ["prediction"], "per_speaker": None, "examples": 1, "workers": 1}
    given |= {"observe": 0.5, "predict": 1.0, "futures": 20} | settings
    out.mkdir(parents=True, exist_ok=True)
    return Subject(model_of(name), PreparedCorpus(corpus, "test"), Stft(533), None, Evaluation(**given), out, name)


def means_of(rows: list[Result]) -> dict[tuple[str, str], float]:
    return {(item["model"], item["metric"]): item["mean"] for item in summarise(rows)}


@pytest.fixture(scope="module")
def measured(corpus, tmp_path_factory) -> tuple[Path, list[Result]]:
    out = tmp_path_factory.mktemp("out")
    measure_and_report(subject_of(corpus, out), {"exp": "rvae"}, [])
    return out, read_results(out / "results.csv")


def test_the_task_measures_a_model_beside_the_baselines_and_the_law(measured, corpus):
    out, rows = measured
    names = ("rvae", *BASELINES["prediction"])
    means, metrics = means_of(rows), {row.metric for row in rows}
    assert metrics == {
        *("energy_score", "ade", "fde", "mmade", "mmfde", "apd"),
        *("bone_error_mm", "accuracy", "fid", "windows"),
    }
    assert set(means) == {(name, metric) for name in names for metric in metrics}
    items = [utterance.id for utterance in PreparedCorpus(corpus, "test").utterances]
    assert {(row.item, row.value) for row in rows if row.metric == "windows"} == {(item, 6.0) for item in items}
    assert [row.item for row in rows if row.metric == "fid"] == [items[0]] * 4, "of all windows together"
    law = "true generator"
    for worse in ("last pose", "constant velocity"):
        assert means[law, "energy_score"] < 0.8 * means[worse, "energy_score"], "a proper score"
        assert means[law, "mmade"] < means[worse, "mmade"] and means[worse, "apd"] == 0 < means[law, "apd"]
    assert means[law, "energy_score"] < means["rvae", "energy_score"]
    assert means["last pose", "bone_error_mm"] == 0 and means[law, "bone_error_mm"] < 1e-2
    assert means["constant velocity", "bone_error_mm"] > 10 < means["rvae", "bone_error_mm"]
    assert means[law, "fid"] < min(means["last pose", "fid"], means["rvae", "fid"])
    (film,) = (out / "videos").glob("*.mp4")
    assert probe(film).announced == 75 and float(probe(film).fps) == 50
    assert "<video" in (page := (out / "report.html").read_text()) and "constant velocity" in page
    assert "not comparable with" in page, "generated"


def test_the_last_velocity_is_kept_and_the_last_pose_held(measured, corpus):
    _, rows = measured
    prepared = PreparedCorpus(corpus, "test")
    item = prepared.utterances[1]
    poses_TD = torch.from_numpy(np.array(prepared.poses(item)[:, 1:])).flatten(1)
    ade = {"last pose": [], "constant velocity": []}
    for first in range(0, 200 - 75 + 1, 25):
        last, before, true_TD = poses_TD[first + 24], poses_TD[first + 23], poses_TD[first + 25 : first + 75]
        steps_T1 = torch.arange(1, 51)[:, None]
        ade["last pose"].append((true_TD - last).norm(dim=1).mean().item())
        ade["constant velocity"].append((true_TD - last - steps_T1 * (last - before)).norm(dim=1).mean().item())
    for name, each in ade.items():
        (found,) = [row.value for row in rows if (row.model, row.item, row.metric) == (name, item.id, "ade")]
        assert found == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_futures_follow_the_observed_part_and_differ(name, corpus):
    model = model_of(name)
    prepared = PreparedCorpus(corpus, "test")
    poses = torch.from_numpy(np.stack([prepared.poses(u)[:12] for u in prepared.utterances])).flatten(2)
    begun = Batch(("a", "b"), torch.ones(2, 12, dtype=torch.bool), pose=poses)
    around = Batch(("a", "b"), torch.ones(2, 20, dtype=torch.bool))

    def futures(begun: Batch) -> torch.Tensor:
        torch.manual_seed(0)
        return generate(model, around, begun, 3, "sample").likelihoods["pose"].expected

    drawn_KBTD = futures(begun)
    assert drawn_KBTD.shape == (3, 2, 20, 51) and drawn_KBTD[:, :, 12:].std(0).min() > 0
    assert drawn_KBTD[:, :, :12].std(0).max() > 0, "each future has its own sample of the observed part's latents"
    moved = futures(replace(begun, pose=poses + 0.5))
    assert (name == "vae") == torch.equal(moved[:, :, 12:], drawn_KBTD[:, :, 12:]), "of the prior alone, in a VAE"


def test_without_a_law_near_windows_are_the_truth_and_without_labels_nothing_is_recognised(tmp_path):
    root = prepare(Gait(tmp_path / "raw", subjects=3, sequences=2, seconds=4), tmp_path / "gait", workers=1).out
    rows = measure(subject_of(root, tmp_path / "out", examples=0, predict=0.4, futures=1))
    assert {row.model for row in rows} == {"rvae", "last pose", "constant velocity"}
    prepared, found = PreparedCorpus(root, "test"), {}
    observed, true = [], []
    for utterance in prepared.utterances:
        poses_TD = prepared.poses(utterance)[:, 1:].reshape(len(prepared.poses(utterance)), -1)
        firsts = range(0, len(poses_TD) - 22 + 1, 12)
        found[utterance.id] = [len(observed) + n for n in range(len(firsts))]
        observed += [poses_TD[first + 11] for first in firsts]
        true += [poses_TD[first + 12 : first + 22] for first in firsts]
    gaps = np.linalg.norm(np.array(observed)[:, None] - observed, axis=2)
    assert (gaps < 0.5).sum() > len(observed), "some window has another near it"
    for item, windows in found.items():
        wanted = np.mean(
            [
                np.mean([np.linalg.norm(true[m] - observed[n], axis=1).mean() for m in np.flatnonzero(gaps[n] < 0.5)])
                for n in windows
            ]
        )
        (value,) = [r.value for r in rows if (r.model, r.item, r.metric) == ("last pose", item, "mmade")]
        assert value == pytest.approx(wanted, rel=1e-5)
    assert {row.metric for row in rows} >= {"fid", "accuracy"}
    for path in root.glob("recognition-*"):
        path.unlink()
    table = root / "manifest.csv"
    table.write_text(table.read_text().replace('""action""', '""what""'))
    for shard in (root / "shards").iterdir():
        shard.write_bytes(shard.read_bytes().replace(b'\\"action\\"', b'\\"whatis\\"'))
    assert recognition_of(root, 12, 10, "cpu") is None


def test_a_trained_network_recognises_movements_and_is_kept(measured, corpus):
    (path,) = corpus.glob("recognition-*.safetensors")
    before = path.stat().st_mtime_ns
    network = recognition_of(corpus, 25, 50, "cpu")
    assert network and network.classes == list(CHAIN) and path.stat().st_mtime_ns == before
    longer = recognition_of(corpus, 25, 60, "cpu")
    assert longer and len([*corpus.glob("recognition-*.safetensors")]) == 2, "one for each length"


def test_windows_count_alike_in_means_and_baselines_are_in_a_table_once(measured, corpus, tmp_path):
    _, rows = measured
    row = replace(rows[0], metric="ade", model="m")
    two = [replace(row, item="a/1", value=1.0), replace(row, item="a/2", value=4.0)]
    two += [replace(one, metric="windows", value=count) for one, count in zip(two, (3.0, 1.0), strict=True)]
    assert means_of(two)["m", "ade"] == pytest.approx((3 * 1 + 4) / 4)
    (difference,) = [d for d in compare(two, [replace(one, value=0.0) for one in two]) if d["metric"] == "ade"]
    assert difference["mean"] == pytest.approx(7 / 4)

    parts = {name: tmp_path / "all" / name for name in ("rvae", "srnn")}
    done: list[Path] = []
    for name, out in parts.items():
        config = {**compose("config", ["exp=motion_srnn"]), "exp": name}
        create_run(out, config)
        measure_and_report(subject_of(corpus, out, name, examples=0, futures=2), config, done)
        done.append(out)
    summary = join_evaluations(tmp_path / "all", parts)
    joined = read_results(tmp_path / "all" / "results.csv")
    keys = [(r.model, r.item, r.metric) for r in joined]
    assert len(keys) == len(set(keys)) and {r.model for r in joined} == {*parts, *BASELINES["prediction"]}
    assert {item["model"] for item in summary if "compared_with" in item} == {"srnn"}
    assert [entry.name for entry in entries_of(done)] == ["rvae", *BASELINES["prediction"], "srnn"]
    law = {name: means_of(read_results(out / "results.csv"))["true generator", "ade"] for name, out in parts.items()}
    assert law["rvae"] == law["srnn"], "the same draws beside every model"


def test_what_cannot_be_predicted_is_refused(corpus, tmp_path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"predict": 4.0}, r"observe=0.5 and predict=4 need longer sequences than 4 s"),
        ({"observe": 0.02}, r"observe=0.02 and predict=1 are 1 and 50 poses of 50 a second: give 2 and 1 or more"),
        ({"predict": 0.0}, "are 25 and 0 poses"),
    ]
    for settings, words in refused:
        with pytest.raises(UserError, match=words):
            measure(subject_of(corpus, tmp_path, **settings))
    with pytest.raises(UserError, match=r"evaluate\.futures=0: give 1 or more"):
        Evaluation(futures=0)
    silent = replace(subject_of(corpus, tmp_path), model=RVAE(features=51, hidden=8, dim=3))
    with pytest.raises(UserError, match="RVAE as configured models no poses"):
        measure(silent)
    assert not [path for path in tmp_path.rglob("*") if path.name == "results.csv"]


def test_models_of_a_comparison_are_trained_on_its_corpus():
    words = ["exp=motion_prediction", "train.epochs=3"]
    request = Request(compose("config", words), words, "")
    asked = [start_request(name, request).config for name in request.config["models"]]
    assert [config["exp"] for config in asked] == request.config["models"]
    for config in asked:
        assert config["data"]["reader"] == "gait_futures" and config["train"]["epochs"] == 3
        assert config["model"]["observes"] == "pose" and config["evaluate"]["tasks"] == ["motion", "motion_true_past"]
