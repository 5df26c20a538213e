"""The leaderboard: its numbers, against those computed here by hand; what it refuses; its page, LaTeX and figures."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from avdvae.errors import UserError
from avdvae.evaluation.latex import escaped
from avdvae.evaluation.leaderboard import write_leaderboard
from avdvae.evaluation.results import Result, write_results
from avdvae.runs import create_run

SNRS, NOISES, SPEAKERS = (-5.0, 5.0), ("Car", "White"), 6
GAINS = {"vae": 1.0, "a_v&b": 3.0, "nmf": -2.0}
RNG = np.random.default_rng(0)
EASE = RNG.normal(0, 5, SPEAKERS)  # of each speaker, far larger than what differs between models
OWN = {name: RNG.normal(0, 0.3, (SPEAKERS, len(NOISES), len(SNRS))) for name in GAINS}


def result(model: str, snr: float, noise: int, speaker: int, lips: str = "", worse: float = 0.0) -> list[Result]:
    mean = snr + EASE[speaker] + GAINS[model] + OWN[model][speaker, noise, SNRS.index(snr)] - worse
    where = ("run", model, "enhancement", "talker", "test", f"s{speaker}/u", f"s{speaker}", NOISES[noise], snr, lips)
    values = {"input_si_sdr": snr + EASE[speaker], "si_sdr": mean, "estoi": mean / 50, "si_sdr_improvement": mean - snr}
    return [Result(*where, metric, value) for metric, value in values.items()]


def rows_of(model: str, lips: tuple[str, ...] = ("",)) -> list[Result]:
    every = [(snr, noise, speaker) for snr in SNRS for noise in range(2) for speaker in range(SPEAKERS)]
    return [row for state in lips for place in every for row in result(model, *place, state, state == "occluded")]


def write_run(path: Path, rows: list[Result], **config: object) -> Path:
    needed = {name: {} for name in ("data", "model", "train", "lips", "evaluate")} | {"hop": 533, "seed": 0}
    needed |= {"data": {"reader": "talker", "root": "."}, "model": {"target": "x"}, "lips": {"size": 67}}
    needed |= {"train": {"accelerator": "cpu", "trim_db": 30.0}, "exp": rows[0].model}
    create_run(path, needed | {"enhance": {"estep": {"name": "point"}, "batch_size": 1}} | config)
    write_results(path / "results.csv", rows)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    lips = {"a_v&b": ("clean", "occluded")}
    return [write_run(tmp_path / "runs" / f"of_{name}", rows_of(name, lips.get(name, ("",)))) for name in GAINS]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "leaderboard.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pick(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    return found


def test_the_numbers_are_those_computed_by_hand(runs: list[Path], tmp_path: Path) -> None:
    text = write_leaderboard(runs, tmp_path / "out")
    assert [line.split("  ")[1 if n else 0].strip() for n, line in enumerate(text)] == [
        "Enhancement, by SI-SDR; differences to vae",
        "1. a_v&b, lips clean",
        "2. a_v&b, lips occluded",
        "3. vae",
        "4. nmf",
    ]
    rows = table(tmp_path / "out")
    assert list(rows[0])[-3:] == ["difference", "difference_low", "difference_high"]

    def check(row: dict[str, str], names: tuple[str, str, str], values_of_speakers: np.ndarray) -> None:
        mean = values_of_speakers.mean()
        low, high = scipy.stats.t.interval(0.95, SPEAKERS - 1, mean, scipy.stats.sem(values_of_speakers))
        assert [float(row[name]) for name in names] == pytest.approx([mean, low, high])

    difference = ("difference", "difference_low", "difference_high")
    whole = {"metric": "si_sdr", "noise": "all", "snr": ""}
    assert pick(rows, model="vae", **whole)["difference"] == ""
    own = OWN["nmf"] + EASE[:, None, None] + np.array(SNRS) - 2
    check(pick(rows, model="nmf", **whole), ("mean", "ci_low", "ci_high"), own.mean((1, 2)))
    check(pick(rows, model="nmf", **whole), difference, (OWN["nmf"] - OWN["vae"]).mean((1, 2)) - 3)
    at_minus_5 = {"metric": "si_sdr", "noise": "all", "snr": "-5.0"}
    for lips, worse in (("clean", 0), ("occluded", 1)):
        paired = (OWN["a_v&b"] - OWN["vae"])[:, :, 0].mean(1) + 2 - worse
        check(pick(rows, model="a_v&b", lips=lips, **at_minus_5), difference, paired)
    one = pick(rows, model="nmf", metric="estoi", noise="White", snr="5.0")
    check(one, difference, ((OWN["nmf"] - OWN["vae"])[:, 1, 1] - 3) / 50)
    assert (one["n"], one["speakers"]) == ("6", "6")
    check(pick(rows, model="unprocessed input", **whole), ("mean", "ci_low", "ci_high"), EASE)

    text = write_leaderboard(runs, tmp_path / "out", baseline=runs[1], metrics=["estoi"])
    rows = table(tmp_path / "out")
    assert {row["metric"] for row in rows} == {"estoi"} and "by ESTOI; differences to a_v&b" in text[0]
    against_clean = ((OWN["vae"] - OWN["a_v&b"]).mean((1, 2)) - 2) / 50
    check(pick(rows, model="vae", noise="all", snr=""), difference, against_clean)
    figures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    names = ("means_enhancement", "differences_enhancement_estoi")  # and none of the leaderboard before
    assert figures == {f"{name}.{kind}" for name in names for kind in ("pdf", "svg")}


def test_a_lower_error_is_better_and_tasks_are_ranked_by_themselves(tmp_path: Path) -> None:
    runs = []
    for model, rmse in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        rows = [
            Result("r", model, "resynthesis", "timit", "test", f"u{i}", f"s{i}", "", None, "", "rmse", rmse + i)
            for i in range(3)
        ]
        other = [replace(row, task="f0", metric="f0") for row in rows] if model != "c" else []
        runs.append(write_run(tmp_path / model, rows + other))
    text = write_leaderboard(runs, tmp_path / "out")
    assert [line.split()[1] for line in text if line[0] == " "] == ["b", "a", "c", "b", "a"]
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "Not measured: c." in page and "generated by the suite" not in page and "by SNR" not in page
    assert r"b & \textbf{1.0000}" not in page
    assert re.search(r"b & \\textbf\{2\.0000\} \$\\pm\$ 2\.4841", (tmp_path / "out/leaderboard.tex").read_text())


def test_other_mixtures_are_refused_and_nothing_is_written(runs: list[Path], tmp_path: Path) -> None:
    def changed(name: str, change) -> list[Path]:
        return [runs[0], write_run(tmp_path / name, [new for row in rows_of("nmf") if (new := change(row))])]

    for name, change, said in (
        (
            "corpus",
            lambda row: replace(row, corpus="grid"),
            r"nmf and vae differ .* only vae has talker test s0/u, Car",
        ),
        (
            "split",
            lambda row: replace(row, split="valid"),
            "only vae has talker test s0/u, Car at -5 dB: evaluate both",
        ),
        ("items", lambda row: None if row.item == "s3/u" else row, "only vae has talker test s3/u, Car at -5 dB"),
        ("noises", lambda row: None if row.noise == "White" else row, "only vae has talker test s0/u, White at -5 dB"),
        ("snrs", lambda row: replace(row, snr=10.0) if row.snr == 5 else row, "only vae has .* at 5 dB"),
        (
            "input",
            lambda row: replace(row, value=row.value + 0.01) if row.metric == "input_si_sdr" else row,
            "differ in the mixture s0/u, Car at -5 dB: its input_si_sdr",
        ),
        ("task", lambda row: replace(row, task="resynthesis"), "nmf and vae have no task in common"),
    ):
        with pytest.raises(UserError, match=said):
            write_leaderboard(changed(name, change), tmp_path / "out")
    refused: list[tuple[list[Path], Path | None, list[str], str]] = [
        ([], None, [], "a leaderboard needs runs, each once"),
        ([runs[0], runs[0]], None, [], "a leaderboard needs runs, each once"),
        (runs[:1], None, [], "has results of vae alone: give two runs or more"),
        ([*runs, tmp_path], None, [], "has no results.csv: give the folder of a run that has been evaluated"),
        (runs, tmp_path, [], "baseline=.* is not among the runs: give one of"),
        (runs, None, ["loudness"], "metrics=loudness: no task has them of all runs: choose from si_sdr, estoi"),
    ]
    for those, baseline, metrics, said in refused:
        with pytest.raises(UserError, match=said):
            write_leaderboard(those, tmp_path / "out", baseline, metrics)
    assert not (tmp_path / "out").exists()


def test_models_of_one_name_and_of_one_folder_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    again = write_run(tmp_path / "seeds" / "of_vae", rows_of("vae"))
    both = write_run(tmp_path / "both", rows_of("vae") + rows_of("nmf"))
    write_leaderboard([runs[0], again, both], tmp_path / "out")
    names = {row["model"] for row in table(tmp_path / "out")} - {"unprocessed input"}
    assert names == {"vae (runs/of_vae)", "vae (seeds/of_vae)", "vae (both)", "nmf"}


def test_the_page_loads_nothing_and_says_what_differs(runs: list[Path], tmp_path: Path) -> None:
    others = {"estep": {"name": "langevin"}, "batch_size": 1}
    runs[2] = write_run(tmp_path / "other", rows_of("nmf"), enhance=others)
    write_leaderboard(runs, tmp_path / "out")
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page and page.count("<img") == 3
    assert "a_v&amp;b, lips clean" in page and "2.0</b>" not in page
    assert "nmf was measured with enhance.estep={&#39;name&#39;: &#39;langevin&#39;} instead of" in page
    first = (tmp_path / "out/figures/means_enhancement.pdf").read_bytes()
    write_leaderboard(runs, tmp_path / "out")
    assert (tmp_path / "out/leaderboard.html").read_text() == page
    assert (tmp_path / "out/figures/means_enhancement.pdf").read_bytes() == first
    assert b"/Type3" not in first and b"/FontFile2" in first  # letters are type that publishers accept


def test_latex_is_whole_and_escaped(runs: list[Path], tmp_path: Path) -> None:
    write_leaderboard(runs, tmp_path / "out")
    text = (tmp_path / "out/leaderboard.tex").read_text()
    assert (
        text.startswith("% \\usepackage{booktabs}")
        and text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 2
    )
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    for body in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert len(rows) == 6 and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(body[0]) - 1}
    best = {row.split(" & ")[0] for row in text.splitlines() if r"\textbf" in row}
    assert best == {r"a\_v\&b, lips clean"}
    assert r"$\Delta$: paired difference to vae." in text and "$-$5\\,dB" in text
    assert escaped(r"50% of #1_{a}~\b^2 <$x|") == (
        r"50\% of \#1\_\{a\}\textasciitilde{}\textbackslash{}b\textasciicircum{}2 \textless{}\$x\textbar{}"
    )
    if shutil.which("pdflatex"):
        page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{leaderboard}\\end{document}"
        (tmp_path / "out/paper.tex").write_text(page)
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
        done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
