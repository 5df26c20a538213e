"""The wheel, installed: the command works in an empty folder, with the package and the configs of the wheel alone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile
from test_stage import make_run

from avdvae.data.prepare import Summary

PROJECT = Path(__file__).parent.parent
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(out), str(PROJECT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def test_it_contains_what_the_package_reads_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "avdvae", "configs"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {f"avdvae/{name}" if name.startswith("configs/") else name for name in files}
    assert inside == expected and {"avdvae/py.typed", "avdvae/configs/config.yaml"} <= inside


def test_the_command_works_in_an_empty_folder(wheel: Path, prepared: Summary, clip: Path, tmp_path: Path) -> None:
    place, home, here = tmp_path / "venv", tmp_path / "home", tmp_path / "here"
    venv.create(place, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
    # The packages of this environment, without the .pth file by which it has avdvae of the checkout.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python, command = place / "bin/python", place / "bin/avdvae"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--ignore-installed", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home.mkdir()
    here.mkdir()
    make_run(here / "runs/vae", prepared.out, "VAE")
    shutil.copy(clip.with_suffix(".wav"), here / "noisy.wav")
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}

    def run(*words: object) -> str:
        done = subprocess.run(list(map(str, words)), cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    where = run(python, "-c", "import avdvae, avdvae.configurations as c; print(avdvae.__file__, c.CONFIGS, sep='\\n')")
    assert where.split() == [str(site / "avdvae/__init__.py"), str(site / "avdvae/configs")]
    assert "mixture" in run(command, "list", "experiments")
    run(command, "enhance", "noisy.wav", "with_packaged_weights.wav", "enhance.iterations=2")
    run(command, "enhance", "run=runs/vae", "input=noisy.wav", "output=clean.wav")
    for written in ("clean.wav", "with_packaged_weights.wav"):
        assert soundfile.info(here / written).frames == soundfile.info(here / "noisy.wav").frames
    small = ["data.speakers=3", "data.utterances=1", "data.seconds=1", "evaluate.min_seconds=0.5"]
    run(command, "train", "exp=vae", "train=debug", "data=talker_sound", *small, "run_dir=runs/mine")
    assert (here / "runs/mine/report.html").exists() and (here / "runs/mine/weights.safetensors").exists()
