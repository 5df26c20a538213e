"""Transfer, interpolation and generation as a user starts them: clips in; sounds, strips and films out."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch

from avdvae.data.gait import Gait
from avdvae.data.prepare import Summary, prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.nn.weights import WEIGHTS, save_weights
from avdvae.runs import build_model, create_run
from avdvae.signals.video import probe, write_mp4

PROJECT = Path(__file__).parent.parent
A, B = "01M/tk001", "06F/tk002"


def make_run(path: Path, prepared: Path, name: str, module: str | None = None, hop: int = 533, **model: Any) -> Path:
    """A run whose model nobody has trained."""
    torch.manual_seed(0)
    settings = {"target": f"avdvae.models.{module or name.lower()}.{name}", "hidden": 8, "dim": 4} | model
    settings = {key: value for key, value in settings.items() if value is not None}
    config = {"exp": name, "hop": hop, "seed": 0, "lips": {"size": 67}, "prepared": str(prepared), "evaluate": {}}
    config |= {"data": {"reader": "talker", "root": "data"}, "train": {"accelerator": "cpu", "trim_db": 30.0}}
    enhance = {"iterations": 2, "rank": 2, "paper": False, "seed": 0, "batch_size": 1, "estep": {"name": "point"}}
    run = create_run(path, config | {"model": settings, "enhance": enhance})
    save_weights(build_model(settings), run.path / WEIGHTS)
    return path


@pytest.fixture(scope="module")
def runs(prepared: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "dsae", prepared.out, "DSAE", hop=256)
    make_run(root / "srnn", prepared.out, "SRNN")
    make_run(root / "cvae", prepared.out, "CVAE")
    gait = prepare(Gait(root / "gait", subjects=3, sequences=1, seconds=2), root / "poses").out
    make_run(root / "moves", gait, "DSAE", features=51, observes="pose")
    return root


def program(name: str) -> ModuleType:
    return importlib.import_module(f"avdvae.programs.{name}")


def transfer(run: Path, source: object, target: object, latents: list[str], out: Path, phase: str = "griffin_lim"):
    asked = {"run": str(run), "source": str(source), "target": str(target), "latents": latents}
    program("transfer").transfer_clips(asked | {"phase": phase, "out": str(out)})


def generate(run: Path, out: Path, **asked: Any):
    settings = {"source": None, "analysis": 0.5, "seconds": None, "draws": 1, "seed": 0}
    program("generate").generate_clips(settings | {"run": str(run), "out": str(out)} | asked)


def watch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a film and its sound."""
    with av.open(str(path)) as film:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    with av.open(str(path)) as film:
        if not film.streams.audio:
            return pictures, np.zeros(0)
        return pictures, np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_a_transfer_is_heard_and_seen(runs, tmp_path):
    transfer(runs / "dsae", A, B, ["v"], tmp_path / "out")
    assert files(tmp_path / "out") == {"source.wav", "target.wav", "result.wav", "strip.png", "film.mp4"}
    sounds = {name: soundfile.read(tmp_path / f"out/{name}.wav")[0] for name in ("source", "target", "result")}
    assert len(sounds["result"]) == len(sounds["source"]) != len(sounds["target"]), "v serves all of the source"
    assert max(np.abs(sound).max() for sound in sounds.values()) == pytest.approx(0.9, abs=1e-3)
    pictures, sound = watch(tmp_path / "out/film.mp4")
    assert pictures.shape[1:] == (28 + 256 + 128, 3 * 256, 3)
    assert len(pictures) / float(probe(tmp_path / "out/film.mp4").fps) == pytest.approx(
        len(sounds["result"]) / 16_000, abs=0.1
    )
    middle = sound[2000:-4000]
    lags = [np.corrcoef(middle, sounds["result"][2000 + lag :][: len(middle)])[0, 1] for lag in range(-1500, 1500)]
    assert max(lags) > 0.9, "the film sounds like the result"
    left, right = pictures[:, 28:284, :256].astype(float), pictures[:, 28:284, 512:].astype(float)
    assert np.abs(np.diff(left, axis=0)).mean() > 0.2, "lips move"
    cursor = (pictures[:, 40:, 512:] > 200).all((1, 3)).argmax(1)
    assert (np.diff(cursor) >= 0).all() and cursor[-1] > 100 and right.std() > 0, "a line moves to the right"
    strip = cv2.imread(str(tmp_path / "out/strip.png"))
    assert strip is not None and min(strip.shape[:2]) > 300


def test_a_walk_begins_at_the_source_and_ends_at_the_transfer(runs, tmp_path):
    asked = {"run": str(runs / "cvae"), "source": A, "target": B, "latents": ["z"], "phase": "source"}
    program("interpolate").interpolate_clips(asked | {"steps": 3, "out": str(tmp_path / "walk")})
    assert files(tmp_path / "walk") == {
        *("source.wav", "target.wav", "at_0.wav", "at_50.wav", "at_100.wav", "strip.png", "film.mp4")
    }
    transfer(runs / "cvae", A, B, ["z"], tmp_path / "all", phase="source")
    walk = [soundfile.read(tmp_path / f"walk/at_{share}.wav")[0] for share in (0, 50, 100)]
    whole = soundfile.read(tmp_path / "all/result.wav")[0]
    assert np.corrcoef(walk[2], whole)[0, 1] > 0.999
    assert np.corrcoef(walk[0], whole)[0, 1] < np.corrcoef(walk[1], whole)[0, 1] < 0.99999
    shown = len(watch(tmp_path / "all/film.mp4")[0])
    assert len(watch(tmp_path / "walk/film.mp4")[0]) == 3 * shown


def test_what_goes_on_lasts_as_long_as_asked(runs, tmp_path):
    generate(runs / "srnn", tmp_path / "on", source=A, seconds=1.5, draws=2)
    assert files(tmp_path / "on") == {"source.wav", "draw_1.wav", "draw_2.wav", "strip.png", "film.mp4"}
    one, two = (soundfile.read(tmp_path / f"on/draw_{draw}.wav")[0] for draw in (1, 2))
    assert len(one) == pytest.approx(24_000, abs=533) and np.abs(one - two).max() > 1e-3
    generate(runs / "srnn", tmp_path / "again", source=A, seconds=1.5, draws=2)
    np.testing.assert_array_equal(one, soundfile.read(tmp_path / "again/draw_1.wav")[0])
    generate(runs / "srnn", tmp_path / "free")
    assert files(tmp_path / "free") == {"draw_1.wav", "strip.png", "film.mp4"}
    generate(runs / "cvae", tmp_path / "lips", source=A)
    draw, source = (soundfile.info(tmp_path / f"lips/{name}.wav").frames for name in ("draw_1", "source"))
    assert abs(draw - source) <= 533


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("VRNNWave", {"module": "vrnn_wave", "wide": 8}),
        ("SRNNWave", {"module": "srnn_wave", "wide": 8}),
        ("CWVAE", {"module": "cw_vae", "hidden": None, "channels": 8}),
        ("STCN", {"module": "stcn", "hidden": None, "dim": None, "channels": 8, "dims": [4, 2], "layers": 2}),
    ],
)
def test_models_of_waveforms_go_on_sample_by_sample(name, sizes, prepared, tmp_path):
    make_run(tmp_path / "run", prepared.out, name, hop=256, stride=64, **sizes)
    generate(tmp_path / "run", tmp_path / "on", source=A, seconds=0.8, draws=2)
    one, two, source = (soundfile.read(tmp_path / f"on/{n}.wav")[0] for n in ("draw_1", "draw_2", "source"))
    assert len(one) == len(two) == 12_800 and np.isfinite(one).all()
    begun = 16_000 // 2 // 64 * 64
    np.testing.assert_allclose(one[:begun], source[:begun], atol=1e-4)
    assert (one[:begun] == two[:begun]).all() and np.abs(one - two)[begun:].max() > 1e-3
    generate(tmp_path / "run", tmp_path / "free", seconds=0.3)
    assert len(soundfile.read(tmp_path / "free/draw_1.wav")[0]) == 4800


def test_figures_move_side_by_side(runs, tmp_path):
    ids = [
        utterance.id for utterance in PreparedCorpus(next((runs / "poses").glob("**/manifest.csv")).parent).utterances
    ]
    transfer(runs / "moves", ids[0], ids[1], ["v"], tmp_path / "out")
    assert files(tmp_path / "out") == {"strip.png", "film.mp4"}
    pictures, _ = watch(tmp_path / "out/film.mp4")
    assert pictures.shape[2] == 3 * pictures.shape[1] and len(pictures) > 40
    generate(runs / "moves", tmp_path / "on", source=ids[0], seconds=3)
    assert len(watch(tmp_path / "on/film.mp4")[0]) == 75


def test_clips_of_ones_own_come_on(runs, clip, tmp_path):
    transfer(runs / "cvae", clip, A, ["z"], tmp_path / "film")
    pictures, _ = watch(tmp_path / "film/film.mp4")
    assert pictures[:, 28:284, :256].std() > 10, "its lips are shown"
    transfer(runs / "dsae", clip.with_suffix(".wav"), clip, ["v", "z"], tmp_path / "sound")
    result, source = (soundfile.read(tmp_path / f"sound/{name}.wav")[0] for name in ("result", "source"))
    assert len(result) == len(source) > 16_000


def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_written(runs, clip, tmp_path):
    short, faceless, broken = tmp_path / "short.wav", tmp_path / "faceless.mp4", tmp_path / "broken.mp4"
    soundfile.write(short, np.random.default_rng(0).normal(0, 0.1, 1000), 16_000)
    write_mp4(faceless, [np.full((64, 64, 3), 128, np.uint8)] * 25, probe(clip).fps, np.ones(16_000, np.int16))
    broken.write_bytes(b"no film")
    before = {path.name for path in tmp_path.iterdir()}
    out = tmp_path / "out"
    for run, source, target, latents, words in (
        ("dsae", A, B, ["w"], r"latents=\[w\]: DSAE has no latent called w: choose from v, z"),
        ("dsae", A, B, [], r"latents=\[\]: none is named: choose from v, z"),
        ("dsae", "01M/tk01", B, ["v"], "source=01M/tk01 is neither a file nor a clip of .* ids such as 01M/tk001"),
        ("dsae", A, short, ["v"], r"target=\S*short.wav: 0.06 s of sound: at least 0.25 s are needed"),
        ("cvae", A, faceless, ["z"], r"target=\S*faceless.mp4: .*no face was found"),
        ("cvae", A, broken, ["z"], r"target=\S*broken.mp4: it is neither a video nor a sound file"),
        ("cvae", A, clip.with_suffix(".wav"), ["z"], "CVAE needs video"),
        ("moves", clip, clip, ["z"], "a model of motion takes ids of its corpus"),
    ):
        with pytest.raises(UserError, match=words):
            transfer(runs / run, source, target, latents, out)
    for run, asked, words in (
        ("srnn", {"source": A, "analysis": 9}, "analysis=9: the source lasts .* s, so give less"),
        ("srnn", {"source": A, "analysis": 0.5, "seconds": 0.4}, "longer than its analysis"),
        ("cvae", {}, "CVAE is conditioned on lips, in generation, too: give source="),
        ("cvae", {"source": A, "seconds": 30}, "CVAE is conditioned on lips, which the source has for"),
        ("srnn", {"draws": 0}, "draws=0: give 1 to 20"),
    ):
        with pytest.raises(UserError, match=words):
            generate(runs / run, out, **asked)
    assert {path.name for path in tmp_path.iterdir()} == before
    words = [sys.executable, str(PROJECT / "experiments/transfer.py"), f"run={runs / 'dsae'}", f"source={A}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == (
        "transfer.py: target= missing: give run=RUN source=A target=B latents=[NAME]\n"
    )
    done = subprocess.run([*words, f"target={B}", "latents=[v]"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "film.mp4" in files(Path(done.stdout.split()[1])), done.stderr
