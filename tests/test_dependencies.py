"""What is installed with which extra: the core alone enhances sound; what is missing is named in a sentence."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_stage import make_run

import avdvae
from avdvae.data.prepare import Summary
from avdvae.errors import EXTRAS, UserError, naming_extras, nearest
from avdvae.signals.audio import read_16_bits
from avdvae.signals.video import read_mono

PROJECT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS_OF_PYPROJECT: dict[str, list[str]] = PYPROJECT["optional-dependencies"]


def names(needs: list[str]) -> set[str]:
    """The packages of requirements, with those of the extras that they name."""
    found = set()
    for need in map(Requirement, needs):
        own = need.name == "avdvae"
        found |= set().union(*(names(EXTRAS_OF_PYPROJECT[extra]) for extra in need.extras)) if own else {need.name}
    return {*map(canonicalize_name, found)}


CORE = names(PYPROJECT["dependencies"])
BY_EXTRA = {extra: names(needs) for extra, needs in EXTRAS_OF_PYPROJECT.items()}
PACKAGES: dict[str, set[str]] = {
    module: {*map(canonicalize_name, dists)} for module, dists in packages_distributions().items()
}

PACKAGES.setdefault("parselmouth", {"praat-parselmouth"})  # a single file, which the list of the installed leaves out


def installed_with(needs: set[str]) -> set[str]:
    """These packages and all that they require."""
    found, todo = set(), list(needs)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            requirements = map(Requirement, distribution(name).requires or ())
            todo += [
                canonicalize_name(r.name) for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})
            ]
    return found


def in_a_base_install(program: str, *words: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run a program where no package can be imported that `pip install avdvae` does not bring."""
    there = {*installed_with(CORE), "avdvae"}
    absent = sorted(module for module, packages in PACKAGES.items() if not packages & there)
    assert {"av", "cv2", "matplotlib", "torchaudio", "torchvision"} <= {*absent}
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", hide + program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_core_alone_enhances_encodes_and_generates_sound(prepared: Summary, clip: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "vae", prepared.out, "VAE")
    wav, film, m4a = clip.with_suffix(".wav"), tmp_path / "film.mp4", tmp_path / "sound.m4a"
    for unread in (film, m4a):
        unread.write_bytes(clip.read_bytes())
    noisy = 0.1 * np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    np.save(tmp_path / "noisy.npy", noisy)
    program = """
import avdvae, json, numpy as np
run, noisy, wav, film, m4a = sys.argv[1:]
model, noisy = avdvae.load(run, device="cpu"), np.load(noisy)
found = {"clean": model.enhance(noisy, 16_000).tolist(), "latents": model.latents(wav)["z"].tolist(), "refused": []}
assert len(model.enhance(wav).samples) and len(model.latents(noisy, 44_100)["z"])
assert len(model.resynthesise(wav).sound) and len(model.generate(seconds=0.5).sound)
asked = [lambda: model.enhance(film), lambda: model.latents(film), lambda: model.enhance(m4a)]
asked += [lambda: model.latents(m4a), lambda: model.transfer(film, wav, "z")]
for ask in asked:
    try:
        ask()
    except avdvae.UserError as error:
        found["refused"].append(str(error))
print(json.dumps(found))
"""
    done = in_a_base_install(program, tmp_path / "vae", tmp_path / "noisy.npy", wav, film, m4a)
    assert done.returncode == 0, done.stderr
    found, model = json.loads(done.stdout.splitlines()[-1]), avdvae.load(tmp_path / "vae", device="cpu")
    np.testing.assert_allclose(found["clean"], model.enhance(noisy, 16_000), atol=1e-5)
    np.testing.assert_allclose(found["latents"], model.latents(wav)["z"], atol=1e-4)  # the same samples
    assert len(found["refused"]) == 5
    for refused in found["refused"]:
        assert "needs PyAV, which is not installed: pip install 'avdvae[video]'" in refused


def test_the_command_enhances_with_the_core_alone(prepared: Summary, clip: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "vae", prepared.out, "VAE")
    (tmp_path / "film.mp4").write_bytes(clip.read_bytes())
    program = """
from pathlib import Path
from avdvae.programs.command import main
folder, wav = sys.argv[1:]
for words in (["list"], ["enhance", f"run={folder}/vae", f"input={wav}", f"output={folder}/clean.wav"],
              ["enhance", f"run={folder}/vae", f"input={folder}/film.mp4", f"output={folder}/no.wav"],
              ["train", "exp=vae", "train=debug", "data=gait_tiny"], ["demo", f"run={folder}/vae"]):
    sys.argv = ["avdvae", *words]
    try:
        main()
    except SystemExit as refused:
        print("refused", refused)
"""
    done = in_a_base_install(program, tmp_path, clip.with_suffix(".wav"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "rvae" in done.stdout
        and soundfile.info(tmp_path / "clean.wav").frames == soundfile.info(clip.with_suffix(".wav")).frames
    )
    films, train, demo = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert "film.mp4: reading and writing films" in films and films.endswith("pip install 'avdvae[video]'")
    assert train.startswith("refused avdvae train: ") and re.search(r"pip install 'avdvae\[\w+\]'$", train), train
    assert demo.startswith("refused avdvae demo: ") and re.search(r"pip install 'avdvae\[\w+\]'$", demo), demo
    assert not (tmp_path / "runs").exists()  # refused before anything is written


def test_sounds_of_other_rates_differ_little_without_pyav(tmp_path: Path) -> None:
    times = np.arange(44_100) / 44_100
    stereo = np.stack([0.4 * np.sin(2 * np.pi * 440 * times), 0.2 * np.sin(2 * np.pi * 3000 * times)], 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100)
    ours, theirs = read_16_bits(tmp_path / "stereo.wav"), read_mono(tmp_path / "stereo.wav")[0]
    assert ours is not None and ours.dtype == np.int16 and abs(len(ours) - len(theirs)) <= 1
    assert np.abs(ours[200:15_800].astype(int) - theirs[200:15_800]).max() < 60  # of 32768


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(module: str) -> None:
    needed, extra = EXTRAS[module]
    assert PACKAGES.get(module, {module}) & BY_EXTRA[extra], "the extra installs it"
    sentence = f"{needed}, which is not installed: pip install 'avdvae[{extra}]'"
    with pytest.raises(UserError, match=re.escape(sentence)), naming_extras():
        raise ModuleNotFoundError(f"No module named '{module}.inner'", name=f"{module}.inner")
    with pytest.raises(ModuleNotFoundError), naming_extras():
        raise ModuleNotFoundError("No module named 'my_reader'", name="my_reader")


def test_every_import_is_of_the_core_or_of_an_extra_that_is_named() -> None:
    for path in PROJECT.glob("avdvae/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {name.partition(".")[0] for name in imported} - {"avdvae"} - {*sys.stdlib_module_names}:
                where = f"{module}, imported in {path.relative_to(PROJECT)}"
                if module == "torchmetrics":  # its absence gives a nan
                    continue
                module = {"omegaconf": "hydra", "starlette": "gradio"}.get(module, module)  # which bring them
                packages = PACKAGES.get(module, {module})
                extras = [extra for extra, brought in BY_EXTRA.items() if packages & brought and extra != "test"]
                assert packages & CORE or (module in EXTRAS and EXTRAS[module][1] in extras), where


def test_the_pinned_versions_are_complete_and_within_the_ranges() -> None:
    pins = dict(
        line.partition(" ")[0].split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines()[1:]
    )
    ranges = [*PYPROJECT["dependencies"], *(need for needs in EXTRAS_OF_PYPROJECT.values() for need in needs)]
    for need in map(Requirement, ranges):
        if need.name != "avdvae":
            pinned = pins.get(canonicalize_name(need.name)) or str(need.specifier).removeprefix("==")
            assert need.specifier.contains(pinned), need
    assert pins["opencv-python"] == pins["opencv-contrib-python"]  # both install cv2
    assert {*pins} <= CORE.union(*BY_EXTRA.values())


def test_the_nearest_names_are_offered_or_all() -> None:
    assert nearest("rvea", ["vae", "rvae", "nmf"]) == "did you mean rvae?"
    assert nearest("zzz", ["vae", "nmf"]) == "choose from vae, nmf"
