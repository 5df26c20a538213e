"""The programs, as a user starts them: from a corpus to a report, interrupted and resumed, measured again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
import torch
from safetensors.torch import load_file

from avdvae.data.gait import Gait
from avdvae.data.prepare import Summary, prepare
from avdvae.evaluation.results import read_results
from avdvae.protocols import Autoregressive
from avdvae.runs import build_model, open_run
from avdvae.signals.video import probe

PROJECT = Path(__file__).parent.parent
SEVERAL = {
    "own",
    "learned_estep",
    "robustness",
    "dvae_benchmark",
    "likelihood_benchmark",
    "odd_attention",
    "odd_attention_gait",
}
ELSEWHERE = ("motion", "vqvae", "mdvae", "box_srnn", "tracking")  # those that need poses, faces or boxes
EXPERIMENTS = sorted(
    path.stem
    for path in PROJECT.glob("configs/exp/*.yaml")
    if path.stem not in SEVERAL and not any(kind in path.stem for kind in ELSEWHERE)
)
LARGE = [name for name in EXPERIMENTS if name.endswith(("_paper", "_large"))]  # minutes long
EXPERIMENTS = [name for name in EXPERIMENTS if name not in LARGE]
TRUE_PAST = "resynthesis_true_past"


def start(program: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROJECT / "experiments" / program), *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(program: str, *words: object) -> str:
    """What a program prints; it must succeed."""
    process = start(program, *words)
    printed, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return printed


def refuse(program: str, *words: object) -> str:
    """What a program complains of; it must fail, without a traceback."""
    process = start(program, *words)
    _, complaints = process.communicate()
    assert process.returncode != 0 and "Traceback" not in complaints, complaints
    return complaints


@pytest.fixture(scope="module")
def runs(prepared: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a debug run of every experiment."""
    folder = tmp_path_factory.mktemp("runs")
    run("run.py", "-m", f"exp={','.join(EXPERIMENTS)}", *debug(prepared), f"runs={folder}", "run_dir=${runs}/${exp}")
    return folder


def debug(prepared: Summary) -> list[str]:
    return ["train=debug", f"prepared={prepared.out}"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_what_the_readme_promises(name: str, runs: Path) -> None:
    path = runs / name
    files = {"config.yaml", "weights.safetensors", "metrics.jsonl", "results.csv", "summary.json", "report.html"}
    assert files <= {file.name for file in path.iterdir()}
    rows = read_results(path / "results.csv")
    model, tasks = build_model(open_run(path).config["model"]), set(open_run(path).config["evaluate"]["tasks"])
    assert {row.task for row in rows} == tasks - (set() if isinstance(model, Autoregressive) else {TRUE_PAST})
    page = (path / "report.html").read_text()
    assert "<audio" in page and "data:image/png" in page and 'src="http' not in page
    rows = [row for row in rows if row.task == "enhancement"]
    if "enhancement" not in tasks:
        return
    assert {row.noise for row in rows} == {"White", "Car"} and {row.snr for row in rows} == {0.0, 10.0}
    assert {row.lips for row in rows} == ({"clean", "occluded"} if "lips" in model.sees else {""})  # type: ignore[operator]
    for metric in ("si_sdr", "input_si_sdr", "si_sdr_improvement", "sdr", "pesq_wb", "pesq_nb", "stoi", "estoi", "rtf"):
        assert any(row.metric == metric for row in rows), metric
    snr_heard = [row.value for row in rows if row.metric == "input_si_sdr" and row.snr == 10]
    assert all(abs(value - 10) < 2 for value in snr_heard)  # measured: at most what chance correlation makes of it
    for item in json.loads((path / "summary.json").read_text()):
        assert {"model", "task", "noise", "snr", "lips", "metric", "mean", "ci_low", "ci_high", "n"} <= item.keys()


def test_a_killed_run_goes_on_to_the_same_weights(runs: Path, prepared: Summary, tmp_path: Path) -> None:
    words = ["exp=vae", *debug(prepared), f"run_dir={tmp_path / 'killed'}", "train.save_every=0"]
    process = start("run.py", *words)
    curve = tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and not (curve.exists() and curve.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "results.csv").exists()
    printed = run("run.py", f"resume={tmp_path / 'killed'}")
    assert printed.splitlines()[-1].split() == ["run", str(tmp_path / "killed")]
    whole, resumed = (load_file(path / "weights.safetensors") for path in (runs / "vae", tmp_path / "killed"))
    assert all((whole[name] == resumed[name]).all() for name in whole)
    assert (tmp_path / "killed" / "report.html").exists()


def test_what_is_given_beside_resume_is_honoured_or_refused(prepared: Summary, tmp_path: Path) -> None:
    path, few = tmp_path / "run", ["evaluate.noises=[White]", "evaluate.metrics=[si_sdr]", "enhance.iterations=1"]
    words = ["exp=vae", *debug(prepared), "train.schedule=constant", *few, "evaluate.snrs=[0]", "train.epochs=1"]
    run("run.py", *words, f"run_dir={path}")
    before = open_run(path).noted
    said = refuse("run.py", f"resume={path}", "exp=vae", "model.dim=8", "train.lr=1e-4", "seed=3", "train.epochs=3")
    assert "model.dim=8, train.lr=1e-4, seed=3 would change them: give train.epochs" in said
    assert open_run(path).noted == before and open_run(path).config["train"]["epochs"] == 1

    words = [f"resume={path}", "train.epochs=2", "evaluate.snrs=[5]", "enhance.estep.name=point"]
    assert "set aside" in run("run.py", *words, "+enhance.estep.steps=3", "train.workers=1")
    after, config = open_run(path).noted, open_run(path).config
    assert config["train"] == {**config["train"], "epochs": 2, "workers": 1, "schedule": "constant"}
    assert config["enhance"]["estep"] == {"name": "point", "steps": 3} and config["enhance"]["iterations"] == 1
    curve = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in curve if "valid/loss" in row] == [1, 2]
    (aside,) = (path / "evaluations").iterdir()
    for folder, snr in ((path, 5.0), (aside, 0.0)):
        assert {row.snr for row in read_results(folder / "results.csv")} == {snr}
        assert open_run(folder).config["evaluate"]["snrs"] == [snr]
    assert after["command"] == before["command"] and "train.epochs=2" in after["resumed"][0]["command"]
    assert all(after["seconds"][part] > before["seconds"][part] for part in ("train", "evaluate"))
    assert open_run(path).trained

    assert f"{path} has trained for 2 epochs already: give that or more" in refuse(
        "run.py", f"resume={path}", "train.epochs=1"
    )
    (path / "config.yaml").write_text((path / "config.yaml").read_text().replace("constant", "cosine"))
    assert "those of train.schedule=cosine over 2 epochs" in refuse("run.py", f"resume={path}", "train.epochs=3")


def test_runs_start_from_the_same_trained_model(runs: Path) -> None:
    starts = {json.loads((runs / name / "run.json").read_text())["start"]["vae"] for name in ("av_vae", "cvae")}
    (path,) = starts  # trained for the first, found again by the second
    assert open_run(Path(path)).trained and open_run(Path(path)).config["exp"] == "vae"


def test_models_of_motion_are_ranked_side_by_side(prepared: Summary, tmp_path: Path) -> None:
    gait = prepare(Gait(tmp_path / "gait", subjects=3, sequences=2, seconds=3), tmp_path / "prepared").out
    words = ["exp=motion_benchmark", "train=debug", f"prepared={gait}", f"runs={tmp_path}"]
    printed = run("run.py", *words, f"run_dir={tmp_path / 'all'}")
    rows = read_results(tmp_path / "all" / "results.csv")
    every = {path.stem for path in PROJECT.glob("configs/exp/motion_*.yaml")} - {
        "motion_benchmark",
        "motion_prediction",
    }
    assert {row.model for row in rows if row.task == "motion"} == every
    given_the_past = {f"motion_{name}" for name in ("storn", "vrnn", "srnn", "srnn_gm", "hit_dvae", "light_dvae")}
    assert {row.model for row in rows if row.task == "motion_true_past"} == given_the_past
    assert {row.metric for row in rows} == {"mpjpe_mm"} and all(0 < row.value < 2000 for row in rows)
    ranked = [line.split() for line in printed.splitlines() if "MPJPE" in line][: len(every)]
    assert {line[1] for line in ranked} == every
    assert [float(line[3]) for line in ranked] == sorted(float(line[3]) for line in ranked)
    films = list((tmp_path / "all").rglob("*.mp4"))
    assert len(films) == len(every) + len(given_the_past) and all(probe(film).announced > 25 for film in films)
    page = (tmp_path / "all" / "report.html").read_text()
    assert page.count("<video") == len(films) and "not comparable with" in page
    said = refuse("run.py", "exp=motion_vae", *debug(prepared), f"run_dir={tmp_path / 'a'}")
    assert "holds sound" in said and "or give a corpus of poses" in said and not (tmp_path / "a").exists()


def test_what_a_model_starts_from_is_trained_as_its_own_experiment_says(
    runs: Path, prepared: Summary, tmp_path: Path
) -> None:
    words = ["exp=av_dkf", "train.lr=1e-6", *debug(prepared), f"runs={runs}", f"run_dir={tmp_path / 'a'}"]
    assert f"start      dkf, found in {runs / 'dkf'}" in run("run.py", *words)
    start, own = (load_file(path / "weights.safetensors") for path in (runs / "dkf", tmp_path / "a"))
    assert start["phi_x.0.weight"].equal(own["phi_x.0.weight"]) and own["emitter_fusion.lips_in.weight"].any()
    words = ["exp=av_dkf", *debug(prepared), f"run_dir={tmp_path / 'b'}"]
    run("run.py", *words, f"start=[{runs / 'dkf'}]", "train.lr=1e-6")
    again = load_file(tmp_path / "b" / "weights.safetensors")
    assert all(value.equal(own[name]) for name, value in again.items())
    words[-1] = f"run_dir={tmp_path / 'c'}"
    assert "AVDKF starts from DKF, and was given VAE" in refuse("run.py", *words, f"start=[{runs / 'vae_sequences'}]")
    said = refuse("run.py", *words, f"start=[{runs / 'dkf'}]", "model.hidden=64")
    assert "this run has model.hidden=128, and here it is 64" in said and not (tmp_path / "c").exists()


def test_models_that_differ_in_settings_are_compared_over_seeds(prepared: Summary, tmp_path: Path) -> None:
    words = ["exp=odd_attention", 'models=[vae_sequences,"vae_sequences model.dim=4"]', "seeds=[0,1]", *debug(prepared)]
    words += ["evaluate.tasks=[latent_use,resynthesis]", "evaluate.per_speaker=2", f"runs={tmp_path}"]
    words += [f"run_dir={tmp_path / 'all'}"]
    printed = run("run.py", *words)
    assert printed.count("trained first") == 4 and "means over 2 seeds" in printed
    rows = read_results(tmp_path / "all" / "results.csv")
    names = ["vae_sequences", "vae_sequences model.dim=4"]
    assert {row.model for row in rows} == {f"{name} seed={seed}" for name in names for seed in (0, 1)}
    with (tmp_path / "all" / "seeds.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["metric"] == "share_z"]
    assert [row["model"] for row in table] == names
    for row in table:
        of_seed = [
            mean([one.value for one in rows if (one.model, one.metric) == (f"{row['model']} seed={seed}", "share_z")])
            for seed in (0, 1)
        ]
        assert of_seed[0] != of_seed[1] and float(row["mean"]) == pytest.approx(mean(of_seed))
        assert [float(row["lowest"]), float(row["highest"])] == pytest.approx(sorted(of_seed))
    assert (tmp_path / "all" / "vae_sequences_model.dim=4_seed=1" / "report.html").exists()
    wrong = ['models=[vae_sequences,"vae_sequences model.dims=4"]', *words[2:-1], f"run_dir={tmp_path / 'no'}"]
    assert "there is no setting model.dims: did you mean model.dim" in refuse("run.py", words[0], *wrong)
    assert "seeds=[0, 1] are of the models that are compared: give models=" in refuse("run.py", "exp=vae", *words[2:-1])


def test_models_are_measured_side_by_side(runs: Path, prepared: Summary, tmp_path: Path) -> None:
    words = ["exp=robustness", "models=[vae,vae_mm]", *debug(prepared), f"runs={runs}", f"run_dir={tmp_path / 'both'}"]
    printed = run("run.py", *words, "evaluate.lips=[clean,none]", "enhance.iterations=3")
    assert "trained first" not in printed and printed.count("found in") == 2
    trained = open_run(runs / "vae").config["enhance"]["iterations"]
    costs = [len(example["cost"]) for example in json.loads((tmp_path / "both" / "examples.json").read_text())]
    assert trained != 3 and set(costs) == {3}  # as asked for now, not as when they were trained
    rows = read_results(tmp_path / "both" / "results.csv")
    assert {(row.model, row.lips) for row in rows} == {("vae", ""), ("vae_mm", "clean"), ("vae_mm", "none")}
    items = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert {(i["model"], i["lips"]) for i in items if "compared_with" in i} == {("vae_mm", "clean"), ("vae_mm", "none")}
    (tmp_path / "both" / "vae_mm" / "results.csv").unlink()  # as if it had been interrupted there
    run("run.py", f"resume={tmp_path / 'both'}")
    assert len(read_results(tmp_path / "both" / "results.csv")) == len(rows)
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Published figures" in page and "not comparable with" in page and "<audio" in page


def test_an_evaluation_alone_compares_runs_on_the_same_mixtures(runs: Path, tmp_path: Path) -> None:
    words = [f"run={runs / 'vae'}", f"out={tmp_path / 'again'}", "evaluate.noises=[White]"]
    words += ["evaluate.per_speaker=null"]  # a value, not a key left as it was
    words += ["evaluate.tasks=[enhancement,resynthesis]", "enhance.estep.name=langevin", "+enhance.estep.chains=2"]
    printed = run("evaluate.py", *words, f"compare=[{runs / 'cvae'},{runs / 'vae'}]")
    assert printed.count("was measured with enhance.estep={'name': 'free_gaussian'} instead of") == 2
    with (tmp_path / "again" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    asked = open_run(tmp_path / "again").config["evaluate"]
    assert asked["per_speaker"] is None and asked["snrs"] == open_run(runs / "vae").config["evaluate"]["snrs"]
    assert {row["task"] for row in rows} == {"enhancement", "resynthesis"}
    assert {row["metric"] for row in rows if row["task"] == "resynthesis"} >= {"si_sdr", "pesq_wb", "estoi", "rmse"}
    items = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert {item["compared_with"] for item in items if "compared_with" in item} == {
        str(runs / "cvae"),
        str(runs / "vae"),
    }
    mixtures = [
        {(row.item, row.noise, row.snr): row.value for row in read_results(path) if row.metric == "input_si_sdr"}
        for path in (runs / "cvae" / "results.csv", tmp_path / "again" / "results.csv")
    ]
    shared = {key: value for key, value in mixtures[1].items() if key in mixtures[0]}
    assert shared and shared.items() <= mixtures[0].items()


def test_what_is_wrong_is_said_in_a_sentence(runs: Path, prepared: Summary, tmp_path: Path) -> None:
    assert "holds a run already" in refuse("run.py", *debug(prepared), f"run_dir={runs / 'vae'}")
    assert "is no run" in refuse("run.py", f"resume={tmp_path}")
    assert "train.lr=-1" in refuse("run.py", *debug(prepared), "train.lr=-1", f"run_dir={tmp_path / 'a'}")
    words = [*debug(prepared), "evaluate.min_seconds=100", f"run_dir={tmp_path / 'a'}"]
    assert "leave no utterance" in refuse("run.py", *words)  # before the training
    for section in ("train", "evaluate", "enhance"):
        words = [*debug(prepared), f"+{section}.nothing=1", f"run_dir={tmp_path / 'a'}"]
        assert f"{section} has no nothing: choose from" in refuse("run.py", *words)
    words = [*debug(prepared), "model.floor=0", f"run_dir={tmp_path / 'a'}"]
    assert "model.floor=0: give a power above 0" in refuse("run.py", "exp=sf_vae", *words)
    assert "no E-step is called" in refuse(
        "evaluate.py", f"run={runs / 'vae'}", "enhance.estep.name=guess", f"out={tmp_path / 'b'}"
    )
    assert "cannot be found" in refuse(
        "run.py", *debug(prepared), "exp=own", "model.target=nothing.Here", f"run_dir={tmp_path / 'c'}"
    )
    words = [f"run={runs / 'vae'}", "evaluate.tasks=[motion]", f"out={tmp_path / 'b'}"]
    assert "give a corpus of poses" in refuse("evaluate.py", *words)
    words = [*debug(prepared), "start=[nmf]", f"run_dir={tmp_path / 'd'}"]
    assert "VAE starts from VAE, and was given NMF" in refuse("run.py", *words)
    words = [*debug(prepared), "exp=nmf", "start=[nmf]", f"run_dir={tmp_path / 'd'}"]
    assert "NMF has no method start_from" in refuse("run.py", *words)
    words = [*debug(prepared), "train.own_past=[1,2]", f"run_dir={tmp_path / 'e'}"]
    assert "VAE is not conditioned on the past" in refuse("run.py", *words)  # as training begins
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_noticed_before_a_corpus_is_made(tmp_path: Path) -> None:
    words = [f"data.root={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}", "exp=vae"]
    assert "train.accelerator=cuda, train.devices=1: torch finds 0 GPUs" in refuse(
        "run.py", *words, "train.accelerator=cuda"
    )
    assert not list(tmp_path.iterdir())
