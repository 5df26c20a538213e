"""Claims: verdicts against simulated speakers, pairs, the files of configs/claims, and a run of the program."""

import csv
import math
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from published import publish
from test_run import refuse, run

from avdvae.configurations import CONFIGS, choices, compose
from avdvae.data.prepare import Summary
from avdvae.errors import UserError
from avdvae.evaluation.claims_page import write_page
from avdvae.evaluation.results import Result
from avdvae.evaluation.tasks.separation import STATES
from avdvae.evaluation.verdicts import (
    Contrast,
    Rows,
    Side,
    gains,
    judge,
    overall,
    read_claim,
    read_tested,
    stored,
    verdict_of,
)
from avdvae.evaluation.verdicts import Tested as JudgedClaim
from avdvae.orchestration.claims import Settings, run_claims
from avdvae.protocols import LatentModel
from avdvae.runs import build_model, open_run
from avdvae.signals.metrics import OF_EACH_SAMPLE

PROJECT = Path(__file__).parent.parent
QUICK = yaml.safe_load((CONFIGS / "budgets" / "quick.yaml").read_text())["settings"]
CLAIMS = sorted((CONFIGS / "claims").glob("*.yaml"))
SIDE = Side("rvae", "enhancement", "si_sdr")
RNG = np.random.default_rng(0)


def verdicts(effect: float, contrast: Contrast, trials: int = 4000) -> dict[str, float]:
    """How often each verdict is given to eight speakers whose differences have this mean and a deviation of 1."""
    values = RNG.normal(effect, 1, size=(trials, 8))
    means, half = values.mean(1), scipy.stats.t.ppf(0.975, 7) * values.std(1, ddof=1) / math.sqrt(8)
    given = [verdict_of(contrast, m, m - h, m + h) for m, h in zip(means, half, strict=True)]
    return {name: given.count(name) / trials for name in ("holds", "fails", "undecided")}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_verdict_is_wrong_by_chance_in_one_case_of_forty(sign: int) -> None:
    def claim(bound: float) -> Contrast:
        return Contrast(SIDE, 0.0, **{"at_least" if sign > 0 else "at_most": sign * bound})  # type: ignore[arg-type]

    chance = 0.025 + 3 * math.sqrt(0.025 / 4000)
    for bound in (0.5, 2.0):
        assert verdicts(0, claim(bound))["holds"] < chance and verdicts(sign * bound, claim(bound))["fails"] < chance
    assert verdicts(0, claim(0.0))["holds"] == pytest.approx(0.025, abs=chance - 0.025)
    no_worse = verdicts(-sign * 1.0, claim(-1.0))  # exactly as much worse as is not allowed
    assert no_worse["holds"] == pytest.approx(0.025, abs=chance - 0.025) == no_worse["fails"]
    assert verdicts(sign * 3, claim(0.5))["holds"] > 0.99 and verdicts(-sign * 3, claim(0.5))["fails"] > 0.99
    assert verdicts(0, claim(-3.0))["holds"] > 0.99 and verdicts(sign * 0.5, claim(0.5))["undecided"] > 0.4
    assert verdicts(sign * 1, claim(2.0))["holds"] < 0.05, "an effect that is there, and too small to count"


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-5, 5))
def test_verdicts_exclude_each_other_and_at_most_is_at_least_the_other_way_round(mean, half, bound) -> None:
    at_least, at_most = Contrast(SIDE, 0.0, at_least=bound), Contrast(0.0, SIDE, at_most=-bound)
    verdict = verdict_of(at_least, mean, mean - half, mean + half)
    assert verdict == verdict_of(at_most, -mean, -mean - half, -mean + half)
    expected = "fails" if mean + half < bound else "undecided"
    if mean >= bound and (mean - half > 0 if bound >= 0 else mean - half > bound):
        assert expected == "undecided"
        expected = "holds"
    assert verdict == expected
    assert verdict_of(at_least, mean, math.nan, math.nan) == "undecided", "a single item has no interval"


def test_a_claim_holds_as_a_whole() -> None:
    assert overall(["holds", "holds"]) == "holds" and overall(["holds", "fails", "not measured"]) == "fails"
    assert overall(["holds", "undecided"]) == overall(["holds", "not measured"]) == "undecided"
    assert overall(["not measured"]) == "not measured"


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def row(item: str, value: float, noise: str = "White", snr: float | None = 0.0, **others: Any) -> Result:
    fields = {"run": "r", "model": "rvae", "task": "enhancement", "corpus": "c", "split": "test", "lips": ""}
    fields |= {"metric": "si_sdr", "speaker": item[0]} | others
    return Result(item=item, noise=noise, snr=snr, value=value, **fields)


def test_differences_are_of_the_same_items_with_intervals_between_speakers() -> None:
    items, noises = [f"{speaker}{n}" for speaker in "abcde" for n in range(3)], ("White", "Car")
    conditions = [(item, noise, snr) for item in items for noise in noises for snr in (0.0, 5.0)]
    level = {condition: RNG.normal(0, 50) for condition in conditions}  # of the items, which pairs take away
    gain = {condition: RNG.normal(1, 1) for condition in conditions}
    left = Rows("rvae", [row(i, level[i, n, s] + gain[i, n, s], n, s) for i, n, s in conditions])
    right = Rows("vae", [row(i, level[i, n, s], n, s, model="vae") for i, n, s in reversed(conditions[4:])])
    contrast = Contrast(SIDE, replace(SIDE, model="vae"), at_least=0.1)
    found = judge(contrast, left, right)
    paired = {c: value for c, value in gain.items() if c in conditions[4:]}
    assert found.mean == pytest.approx(np.mean([*paired.values()])) and (found.n, found.speakers) == (14, 5)
    assert found.left - found.right == pytest.approx(found.mean) and found.verdict == "holds"
    totals = [np.mean([value for (item, *_), value in gain.items() if item[0] == speaker]) for speaker in "bcde"]
    fewer = Rows("rvae", [one for one in left.rows if one.speaker != "a"])
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(totals), scipy.stats.sem(totals))
    assert (judge(contrast, fewer, right).low, judge(contrast, fewer, right).high) == pytest.approx((low, high))

    quiet = judge(replace(contrast, right=replace(SIDE, model="vae", snr=5.0)), left, right)
    assert quiet.n == 15 - 1 and quiet.mean == pytest.approx(
        np.mean([level[i, n, s] + gain[i, n, s] - level[i, n, 5.0] for i, n, s in conditions[4:]])
    ), "a side that is given another SNR is paired by item and noise"
    alone = judge(Contrast(SIDE, 3.0, at_least=0.1), left, None)
    assert alone.mean == pytest.approx(np.mean([one.value for one in left.rows]) - 3) and alone.right == 3


def test_states_of_the_lips_methods_and_lengths_of_items() -> None:
    rows = [row(f"{s}1", value, lips=lips) for s in "abc" for lips, value in (("clean", 4.0), ("none", 1.0))]
    lips = Contrast(SIDE, replace(SIDE, lips="none"), at_least=1)
    assert judge(lips, Rows("rvae", rows), Rows("rvae", rows)).mean == 3
    vae = Rows("vae", [row(f"{s}1", 2.0, model="vae") for s in "abc"])
    assert (
        judge(
            Contrast(replace(SIDE, lips="none"), replace(SIDE, model="vae"), at_least=1), Rows("rvae", rows), vae
        ).mean
        == -1
    )
    moved = Side("rvae", "control_f0", "f0")
    rows = [
        row(f"{s}1", v, "", None, model=m, task="control_f0", metric="f0")
        for s in "ab"
        for m, v in (("rvae", 1.0), ("WORLD", 3.0))
    ]
    world = Contrast(moved, replace(moved, method="WORLD"), at_most=0)
    assert judge(world, Rows("rvae", rows), Rows("rvae", rows)).mean == -2
    bits = Side("rvae", "likelihood", "bits_per_frame")
    values = [("a1", 8.0, 100), ("b1", 10.0, 300)]
    rows = [
        row(i, v, "", None, task="likelihood", metric=m)
        for i, b, n in values
        for m, v in (("bits_per_frame", b), ("samples", n))
    ]
    assert judge(Contrast(bits, 9.0, at_most=1), Rows("rvae", rows), None).mean == 0.5, "a ratio of totals"


def test_a_side_over_another_is_a_difference_of_items(tmp_path) -> None:
    """What lips add to one model less what they add to another, of which one has a run of its own without them."""
    over = {"left": {"model": "rvae", "task": "enhancement", "metric": "si_sdr", "over": {"lips": "none"}}}
    over |= {"right": {"model": "av_rvae", "over": {"model": "vae"}}, "at_least": 1}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"statement": "More", "source": "nobody", "contrasts": [over]}))
    (contrast,) = read_claim(path).contrasts
    left, right = contrast.left, contrast.right
    assert (
        isinstance(left, Side)
        and isinstance(right, Side)
        and left.over == Side(**vars(left) | {"lips": "none", "over": None})
    )
    assert [side.model for side in contrast.sides] == ["rvae", "av_rvae", "rvae", "vae"]
    assert contrast.in_words == "rvae, over lips none − av_rvae, over vae: enhancement, SI-SDR"
    noise = dict(zip("abcd", (-50.0, 3.0, 20.0, 70.0), strict=True))
    one = Rows(
        "rvae", [row(f"{s}1", noise[s] + v, lips=lips) for s in "abcd" for lips, v in (("clean", 5), ("none", 1))]
    )
    two, three = (
        Rows(name, [row(f"{s}1", 2 * noise[s] + v, model=name) for s in "abcd"])
        for name, v in (("av_rvae", 2.5), ("vae", 1))
    )
    found = judge(contrast, gains(left, one, one), gains(right, two, three))
    assert (found.left, found.right) == pytest.approx((4, 1.5)) and found.low == pytest.approx(2.5)
    tested = JudgedClaim("mine", read_claim(path), "talker", [found], [], "")
    (tmp_path / "claims.json").write_text(stored([tested]))
    assert read_tested(tmp_path / "claims.json")[0].claim == tested.claim
    path.write_text(path.read_text().replace("lips: none", "lips"))
    with pytest.raises(UserError, match=r"left\.over=lips: give what differs in the side that is subtracted"):
        read_claim(path)


def test_what_cannot_be_compared_is_said_in_a_sentence() -> None:
    left, right = (
        Rows(name, [row("a1", 1.0, model=name), row("a1", x, metric="input_si_sdr", model=name)])
        for name, x in (("rvae", 0.0), ("vae", 0.5))
    )
    contrast = Contrast(SIDE, replace(SIDE, model="vae"), at_least=1)
    with pytest.raises(UserError, match="rvae and vae were measured on different mixtures of a1, White at 0 dB"):
        judge(contrast, left, right)
    with pytest.raises(UserError, match=r"rvae − vae: .*: no item was measured on both sides"):
        judge(contrast, left, Rows("vae", [row("b1", 1.0, model="vae")]))
    with pytest.raises(UserError, match="SI-SDR, 7 dB was not measured: the task has input_si_sdr, si_sdr"):
        judge(replace(contrast, left=replace(SIDE, snr=7.0)), left, right)
    several = Rows("vae", [row("a1", 1.0, snr=snr, model="vae") for snr in (0.0, 5.0)])
    once = Rows("rvae", [row("a1", 1.0, "", None, task="resynthesis")])
    with pytest.raises(UserError, match="a1 has several values on the right: give its noise and SNR"):
        judge(replace(contrast, left=replace(SIDE, task="resynthesis")), once, several)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@cache
def latents_of(experiment: str) -> str:
    """The names of a model's latents, as a pattern."""
    with torch.device("meta"):
        model: Any = build_model(compose("config", [f"exp={experiment}"])["model"])
    return "|".join(spec.name for spec in model.latents) if isinstance(model, LatentModel) else "no latent"


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_a_claim_names_experiments_tasks_and_metrics_that_there_are(path: Path) -> None:
    claim = read_claim(path)
    assert re.fullmatch(r"[A-Z].*[^.]", claim.statement) and set(claim.expected) <= {*choices("data")}
    for side in (side for contrast in claim.contrasts for side in contrast.sides):
        assert side.model in choices("exp")
        words = [*QUICK, *claim.settings, *side.settings, f"exp={side.model}"]
        measured, latents = compose("config", words)["evaluate"], latents_of(side.model)
        scores = "|".join(measured["metrics"])
        of_task = {
            "enhancement": f"{scores}|rtf|si_sdr_improvement|lips_weight(_hidden)?",
            "separation": f"(other_)?({scores})|rtf|si_sdr_improvement",
            "resynthesis": f"{scores}|rmse",
            "likelihood": "|".join(OF_EACH_SAMPLE),
            "probe": rf"(phoneme|sex|tract|height_cm|speaker|emotion)_({latents}|mel)_k(1|5|10|20)",
            "transfer": rf"(kept|moments|{latents})_(voice|face|mood)_of_(source|donor)|"
            rf"(kept|moments|{latents})_(cepstra|opening)_as_(source|donor)",
            "latent_use": f"(kl|share)_({latents})",
            "motion": "mpjpe_mm",
            "denoising": r"(psnr|ssim)_(mouth|eyes)(_deaf|_interpolated)?",
            "calibration": r"(calibration_error|coverage_(50|90|95))(_loud|_quiet)?",
            "tracking": "(mota|idf1)(_(60|120|300)_(apart|crossing))?",
            "control": "(f0|f0_world|f1|f2|f3|voiced)(_in_speech)?|nisqa",
        }
        kind = (
            "control"
            if side.task.startswith("control_")
            else side.task.removesuffix("_true_past").replace("motion_latent", "latent")
        )
        assert re.fullmatch(of_task[kind], side.metric), side
        assert side.noise in (None, *measured["noises"]) and side.snr in (None, *measured["snrs"])
        assert side.lips in (None, *(STATES if kind == "separation" else measured["lips"]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"statment": "x"}, "the claim has no statment: did you mean statement"),
        ({"source": None}, "source=None: give a word"),
        ({"contrasts": []}, "contrasts is empty"),
        ({"contrasts": [{"left": {"model": "vae"}, "right": 1, "at_least": 1}]}, "left lacks task, metric"),
        ({"contrasts": [{"left": 2, "right": 1, "at_least": 1}]}, "left and right are 2 and 1: give what is measured"),
        ({"contrasts": [{"left": {"model": "vae", "task": "probe"}, "right": 1}]}, "give either at_least"),
        ({"contrasts": [{"left": {"modell": "vae"}, "right": 1, "at_least": 1}]}, "has no modell: did you mean model"),
    ],
)  # fmt: skip
def test_a_damaged_claim_is_refused_in_a_sentence(change, complaint, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(CLAIMS[0].read_text()) | change))
    with pytest.raises(UserError, match=rf"mine.yaml: .*{complaint}"):
        read_claim(path)


def test_the_page_in_docs_is_of_the_claims_in_configs(tmp_path: Path) -> None:
    docs = PROJECT / "docs"
    shutil.copy(docs / "claims.json", tmp_path)
    for tested in read_tested(docs / "claims.json"):
        assert tested.claim == read_claim(CONFIGS / "claims" / f"{tested.name}.yaml"), "test this claim again"
        assert (docs / "claims" / f"{tested.name}.svg").exists()
    write_page(tmp_path)
    for page in ("claims.md", "claims.csv"):
        assert (docs / page).read_text() == (tmp_path / page).read_text()


# ---------------------------------------------------------------------------------------------------------------------
# The program

MINE = {
    "statement": "A VAE of more latents resynthesises better than a dictionary",
    "source": "nobody",
    "contrasts": [
        {
            "left": {"model": "vae", "task": "resynthesis", "metric": "si_sdr", "settings": ["model.dim=8"]},
            "right": {"model": "nmf", "settings": []},
            "at_least": 100,
        },
        {"left": {"model": "vae_sequences", "task": "resynthesis", "metric": "si_sdr"}, "right": 0, "at_least": -1e3},
    ],
}
LIPS = {
    "statement": "Lips help",
    "source": "nobody",
    "settings": ["enhance.temper=1"],
    "contrasts": [
        {
            "left": {"model": "vae_mm", "task": "enhancement", "metric": "si_sdr", "lips": "clean", "snr": 0},
            "right": {"lips": "none"},
            "at_most": 100,
        },
        {"left": {"model": "vae_mm", "task": "likelihood", "metric": "flac_bits"}, "right": 8.0, "at_most": 100},
        {
            "left": {
                "model": "vae",
                "task": "separation",
                "metric": "si_sdr",
                "settings": [
                    "model.dim=8",
                    "evaluate.talkers=1",
                    "evaluate.background=[White]",
                    "evaluate.mixing=[sum]",
                ],
                "beside": ["exp=vae", "model.dim=8"],
            },
            "right": {"beside": []},
            "at_least": -1e3,
        },
    ],
}


def test_two_claims_are_tested_and_a_second_time_nothing_is_trained_or_measured(
    prepared: Summary, tmp_path: Path
) -> None:
    publish(tmp_path / "DVAE_SE" / "trained_models" / "wsj_vae", "VAE")
    for name, claim in (("mine", MINE), ("lips", LIPS)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(claim))
    few = ["train=debug", "evaluate.lips=[clean,none]", "evaluate.noises=[White]", "evaluate.snrs=[0]"]
    few += ["evaluate.metrics=[si_sdr]", "enhance.iterations=2"]
    words = [
        f"claims.only=[{tmp_path / 'mine.yaml'},{tmp_path / 'lips.yaml'}]",
        f"claims.corpora={{talker:{{prepared:{prepared.out},train.epochs:1}}}}",
    ]
    words += [
        f"claims.peer={tmp_path / 'DVAE_SE'}",
        f"runs={tmp_path / 'runs'}",
        f"claims.out={tmp_path / 'out'}",
        *few,
    ]
    printed = run("run.py", "exp=claims", *words)
    verdicts = re.findall(r"^(\w+) +(\w+) +talker(.*)$", printed, re.MULTILINE)
    assert verdicts == [("mine", "fails", ""), ("lips", "undecided", ""), ("mine", "holds", ", published weights")]
    assert "not done   vae_mm − 8: likelihood, FLAC: VAEMM gives densities" in printed
    assert printed.count("trained first") == 6, "two small VAEs, NMF; VAE-MM, which starts from A-VAE and AV-CVAE"
    with (tmp_path / "out" / "claims.csv").open() as file:
        lips, refused, babble, mine, ours, *_, published = csv.DictReader(file)
    assert mine["verdict"] == "fails" and mine["speakers"] == lips["speakers"] == "1" and refused["reason"]
    assert babble["n"] == "2" and float(babble["mean"]) != 0, "with and without the second prior"
    assert ours["n"] == published["n"] == "2" and ours["mean"] != published["mean"]
    sizes = {
        open_run(path.parent).config["model"].get("dim") for path in tmp_path.glob("runs/vae/*/weights.safetensors")
    }
    assert sizes == {8, 32}
    page, text = ((tmp_path / "out" / f"claims.{kind}").read_text() for kind in ("html", "md"))
    for content in (page, text):
        assert MINE["statement"] in content and "avdvae claims" in content and "train=debug" in content
        assert "≥ 100" in content and "undecided" in content and "144,449 parameters" not in content
    assert 'src="http' not in page and "data:image/svg+xml" in page and (tmp_path / "out/claims/mine.svg").exists()
    assert "claims/mine.svg" in text

    (nmf,) = tmp_path.glob("runs/nmf/*/evaluations/resynthesis-*/results.csv")
    whole = nmf.read_text()
    nmf.with_name("run.json").unlink()  # as if it had been interrupted
    nmf.write_text(whole.splitlines()[0] + "\n")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    words[0] = f"only=[{tmp_path / 'mine.yaml'}]"
    again = run("claims.py", *(word.removeprefix("claims.") for word in words))
    measured = re.findall("^measure +(.*), in", again, re.MULTILINE)
    assert "trained first" not in again and measured == ["nmf, resynthesis"] and nmf.read_text() == whole
    anew = {path for path in before if path.name.endswith(".lock") or nmf.parent in path.parents}
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after[path]} <= anew and before.keys() <= after.keys()
    assert (tmp_path / "out" / "claims.md").read_text() == text, "the other claim stays on the page"
    assert "no budget is called quik: did you mean quick" in refuse("run.py", "exp=claims", "claims.budget=quik")


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"only": ["dvae_beat_vae"]}, "no claim is called dvae_beat_vae: did you mean dvae_beats_vae"),
        ({"settings": ["trian=debug"]}, "there is no setting trian: did you mean train or"),
        ({"corpora": {"grid": None}}, "corpora={grid}: give the folder of the prepared corpus"),
        ({"corpora": {"grid": "."}}, "there is no manifest.csv: prepare it"),
        ({"peer": "."}, "peer=. has no trained_models: give a checkout"),
        ({"budget": 3}, "budget=3: give a word"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_trained(asked, complaint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        run_claims(Settings.of(asked))
    assert not [*tmp_path.iterdir()]
