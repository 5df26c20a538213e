"""The house itself: what importing costs, what the files promise, and that the README's commands run."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from published import publish

import avdvae
from avdvae.configurations import compose
from avdvae.data.clips import GENERATED, Corpus
from avdvae.data.corpora import open_corpus
from avdvae.data.prepare import Summary

PROJECT = Path(__file__).parent.parent
OTHER_DATA = {"prediction": "gait_futures", "motion": "gait", "tracking": "tracks"}  # of experiments without sound
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def test_the_core_imports_with_four_packages_only() -> None:
    core = ["torch", "numpy", "safetensors", "jaxtyping"]
    others = [re.split("[<>=]", need)[0] for need in PYPROJECT["dependencies"]]
    blocked = {
        "av",
        "cdflib",
        "cv2",
        "hydra",
        "mediapipe",
        "scipy",
        "soundfile",
        "rich",
        "matplotlib",
        "torchaudio",
        "torchvision",
    }
    assert others[:4] == core and len(others) > len(core)
    program = f"""
import sys
for name in {sorted(blocked | {"torchaudio", "torchvision", "pesq", "pystoi"})}:
    sys.modules[name] = None  # importing it raises ImportError
import avdvae, avdvae.protocols, avdvae.signals.audio
import avdvae.data.loader, avdvae.data.shards, avdvae.data.mixing, avdvae.data.conditions
import avdvae.models.cvae, avdvae.models.nmf, avdvae.enhancement.vem, avdvae.latents.resynthesis
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_programs_and_the_composition_of_configs_import_hydra() -> None:
    for path in {*PROJECT.glob("avdvae/**/*.py")} - {*PROJECT.glob("avdvae/programs/*.py")}:
        if path.stem == "configurations":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("hydra", "omegaconf")], path


def test_rooms_import_what_the_documented_table_says_and_nothing_upwards() -> None:
    table = (PROJECT / "docs/architecture.md").read_text().split("| room,")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[set(re.findall(r"`(\w+)[/`]", cell)) for cell in row.split("|")[1:4:2]] for row in table]
    commons, allowed = cells[0][0], {room: may for rooms, may in cells for room in rooms}
    order = list(allowed)
    assert all(order.index(other) < order.index(room) for room, may in allowed.items() for other in may)
    imported: dict[str, set[str]] = {room: set() for room in allowed}
    for path in PROJECT.glob("avdvae/*/**/*.py"):
        imported[path.relative_to(PROJECT / "avdvae").parts[0]] |= rooms_imported(path)
    for path in PROJECT.glob("avdvae/[a-z]*.py"):
        imported[path.stem] |= rooms_imported(path)
    for room, others in imported.items():
        assert others - commons - {room} == allowed[room], room
    assert not set.union(*(imported[room] for room in commons)) - commons


def rooms_imported(path: Path) -> set[str]:
    """With what only type checkers read."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avdvae"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if parts[1:] else {alias.name for alias in node.names}
    return found


def test_environment_and_makefile_agree_with_pyproject() -> None:
    environment = OmegaConf.to_container(OmegaConf.load(PROJECT / "environment.yml"))
    assert isinstance(environment, dict)
    python, _, pip = environment["dependencies"]
    assert PYPROJECT["requires-python"] == ">=" + python.split("=")[1]
    constraints, editable = pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable)
    makefile = (PROJECT / "Makefile").read_text()
    assert extras and f".venv/.test: EXTRAS = {extras[1]}\n" in makefile
    for install in re.findall(r"EXTRAS = (.*)", makefile):
        assert set(install.split(",")) <= set(PYPROJECT["optional-dependencies"])
    assert constraints == "-c constraints.txt" and " -c constraints.txt -e" in makefile


def test_the_version_is_the_same_everywhere() -> None:
    changes = (PROJECT / "CHANGELOG.md").read_text()
    citation: Any = OmegaConf.load(PROJECT / "CITATION.cff")
    assert citation.version == avdvae.__version__ and str(citation["date-released"]) in changes
    assert re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)[0] == avdvae.__version__
    wheels = re.findall(r"avdvae-([\d.]+)-py3", (PROJECT / "docs/install.md").read_text())
    assert wheels and {*wheels} == {avdvae.__version__}


def test_the_workflow_and_the_container_have_what_they_need(tmp_path: Path) -> None:
    workflow = (PROJECT / ".github/workflows/ci.yml").read_text()
    docker = (PROJECT / "Dockerfile").read_text()
    (libraries,) = re.findall(r"`apt-get install (lib[^`]*)`", (PROJECT / "docs/install.md").read_text())
    assert libraries in workflow and libraries in docker
    oldest = PYPROJECT["requires-python"].removeprefix(">=")
    assert f'python-version: "{oldest}"' in workflow and f"FROM python:{oldest}\n" in docker
    assert "- run: .ci/run\n" in workflow and os.access(PROJECT / ".ci/run", os.X_OK)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", docker, re.MULTILINE)
    assert {*extras.split(",")} <= {*PYPROJECT["optional-dependencies"]}
    for copied in re.findall(r"^COPY (.*) \./", docker, re.MULTILINE):
        for name in copied.split():
            copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            copy(PROJECT / name, tmp_path / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and [*tmp_path.glob("avdvae-*.whl")], done.stderr


def test_make_refuses_an_old_python_in_a_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")  # as `sys.exit(sys.version_info < (3, 11))` does there
    old.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "older than Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in PROJECT.glob("configs/data/*.yaml")))
def test_every_data_config_opens_its_corpus(name: str) -> None:
    words = ["data.reader=folder"] if name == "own" else []
    words += [] if name.startswith(GENERATED) else ["data.root=."]
    assert isinstance(open_corpus(compose("lips", [f"data={name}", *words])["data"]), Corpus)


def shell_commands(page: str) -> list[list[str]]:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    return [shlex.split(line, comments=True) for line in shell.splitlines() if line]


# Pages whose commands run below, one after the other, and those that other tests run, or that take too long.
RUN = ("getting_started", "../README", "models", "results", "metrics", "dynamical", "motion", "performance", "transfer")
RUN += ("control", "likelihood", "tracking", "enhance", "your_data", "talker", "audio_visual", "python")
RUN_ELSEWHERE = {
    "architecture": "test_project",
    "own_reader": "test_own",
    "comparing": "test_outside",
    "extending": "test_own",
    "streaming": "test_streaming",
    "denoising": "test_denoising",
}
# Corpora, machines and repositories that are not here, and hours of training.
NOT_RUN = {"claims", "measured", "cluster", "corpora", "separation"}


def test_commands_of_all_pages_run_somewhere() -> None:
    with_commands = {path.stem for path in PROJECT.glob("docs/*.md") if "```sh" in path.read_text()}
    assert with_commands - {*RUN, *RUN_ELSEWHERE, *NOT_RUN} == set()
    for page, test in RUN_ELSEWHERE.items():
        assert f"docs/{page}.md" in (PROJECT / f"tests/{test}.py").read_text()


def test_the_commands_of_the_readme_run(clip: Path, prepared: Summary, tmp_path: Path) -> None:
    """And those of the pages in RUN, with train=debug and a small Talker: these change how much is done, not what."""
    pages = [(PROJECT / "docs" / f"{name}.md").read_text() for name in RUN]
    commands = [list(words) for words in dict.fromkeys(tuple(c) for page in pages for c in shell_commands(page))]
    assert [c for c in commands if c[0] == "make"] == [["make", "demo"], ["make", "test"]]  # run by .ci/run
    assert "make demo" in (PROJECT / ".ci/run").read_text() and "make test" in (PROJECT / ".ci/run").read_text()
    for speaker in ("anna", "bob"):
        (tmp_path / "my_clips" / speaker).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "my_clips" / speaker / "hello.mp4")
    for folder, speakers in {"my_sounds": ["anna", "bob"], "voices": ["en", "fr_CA_f_June", "it_IT_m_Carlo"]}.items():
        for speaker in speakers:
            (tmp_path / folder / speaker).mkdir(parents=True)
            shutil.copy(clip.with_suffix(".wav"), tmp_path / folder / speaker / "hello.wav")
    shutil.copy(clip.with_suffix(".wav"), tmp_path / "noisy.wav")
    shutil.copy(clip, tmp_path / "clip.mp4")
    publish(
        tmp_path / "DVAE_SE" / "trained_models" / "wsj_rvae", "RVAE both ways"
    )  # for which the page clones a repository
    programs = [c for c in commands if c[0] in ("python", "avdvae")]
    programs.remove(["python", "preprocessing/lips.py", "data=talker_small"])  # that is make demo
    for words in sorted(programs, key=lambda words: "lips.py" not in words[1]):
        command = command_for_the_test(words, prepared.out)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
    parts, whole = tmp_path / "data/prepared/in_parts", tmp_path / "data/prepared/my_clips"
    assert (parts / "manifest.csv").read_bytes() == (whole / "manifest.csv").read_bytes()
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    prints = (r"^16000 \(\d+,\) \(\d+, 16\)", r"^-?\d.* \d+ \(\d+,\) \(\d+, \d+\) ", r"torch.Size\(\[2, ")
    for block, said in zip(blocks, prints, strict=True):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search(said, done.stdout, re.MULTILINE), done.stdout


def command_for_the_test(words: list[str], prepared: Path) -> list[str]:
    """A command of a page, made small."""
    kind, program, *words = words
    words = [word.replace("/usr/share/asterisk/sounds", "voices") for word in words]
    words = [re.sub(r"=\d+[FM]/tk001", "=my_clips/anna/hello.mp4", word) for word in words]
    if program.endswith("lips.py") and not words:
        words = ["data.speakers=3", "data.utterances=1", "data.seconds=1"]
    if program in ("experiments/run.py", "train") and not any(word.startswith("resume") for word in words):
        words += [word for word in ("train=debug", "evaluate.noises=[White]") if word not in words]
        tiny = [f"data={data}_tiny" for kind, data in OTHER_DATA.items() if kind in words[0]][:1]
        chosen = any(word.startswith("prepared") for word in words)
        words += tiny or ([] if chosen else [f"prepared={prepared}"])
        if words[0] == "exp=tracking":
            words += ["evaluate.tracking.iterations=2", "evaluate.tracking.start_iterations=1"]
        if words[0] == "exp=vq_mdvae":  # of faces, of which the prepared ones have none
            words[-1:] = ["data.speakers=12", "data.utterances=2", "data.seconds=1.5"]
        fewer = {
            "exp=dvae_benchmark": "vae_sequences,srnn",
            "exp=motion_benchmark": "motion_vae,motion_dkf",
            "exp=motion_prediction": "motion_vae,motion_srnn",
            "exp=likelihood_benchmark": "lstm,cw_vae_1",
        }
        words += [f"models=[{fewer[words[0]]}]"] if words[0] in fewer else []
        words = [word if "min_seconds" not in word else "evaluate.min_seconds=1" for word in words]
    if kind == "avdvae":
        return [sys.executable, "-m", "avdvae.programs.command", program, *words]
    return [sys.executable, str(PROJECT / program), *words]


def test_the_model_of_the_architecture_page_trains_enhances_and_keeps_the_contract(
    clip: Path, prepared: Summary, tmp_path: Path
) -> None:
    page = (PROJECT / "docs/architecture.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "lip_prior.py").write_text("\n".join(blocks))
    shutil.copy(clip, tmp_path / "clip.mp4")
    for _, program, *words in shell_commands(page):
        if program == "-m":
            words = [word.replace("tests/", f"{PROJECT}/tests/") for word in words]
            command = [sys.executable, "-m", *words, "--rootdir", str(PROJECT), "-c", str(PROJECT / "pyproject.toml")]
        else:
            also = [f"prepared={prepared.out}"] if program.endswith("run.py") else []
            command = [sys.executable, str(PROJECT / program), *words, *also]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (tmp_path / "clean.wav").exists() and (tmp_path / "runs/lip_prior/report.html").exists()
