"""Trained models in Python: the same as the programs write, in the kind that was given; the examples; every error."""

import doctest
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_enhance import asked
from test_stage import A, B, make_run, program

import avdvae
from avdvae import trained
from avdvae.data.gait import Gait
from avdvae.data.prepare import Summary, prepare
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.recordings import in_16_bits
from avdvae.errors import UserError
from avdvae.latents.resynthesis import resynthesise
from avdvae.signals.video import probe, read_frames, read_mono, to_rgb, write_mp4
from avdvae.trained import Sound, TrainedModel


@pytest.fixture(scope="module")
def runs(prepared: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "vae", prepared.out, "VAE")
    make_run(root / "dsae", prepared.out, "DSAE", hop=256)
    make_run(root / "cvae", prepared.out, "CVAE", dim=32)
    make_run(root / "min_vae", prepared.out, "MINVAE", "min_vae")
    gait = prepare(Gait(root / "gait", subjects=3, sequences=1, seconds=2), root / "poses").out
    make_run(root / "moves", gait, "DSAE", features=51, observes="pose")
    return root


@pytest.fixture(scope="module")
def vae(runs: Path) -> TrainedModel:
    return avdvae.load(runs / "vae")


@pytest.fixture(scope="module")
def cvae(runs: Path) -> TrainedModel:
    return avdvae.load(str(runs / "cvae"), device="cpu")


def noise(*shape: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_it_enhances_as_the_program_and_gives_what_it_was_given(runs, vae, tmp_path):
    noisy, rate = noise(6000, 2), 44_100
    soundfile.write(tmp_path / "noisy.wav", in_16_bits(noisy), rate)
    program("enhance").enhance(asked(runs / "vae", tmp_path / "noisy.wav", tmp_path / "clean.wav"))
    written = soundfile.read(tmp_path / "clean.wav", dtype="int16")[0]
    codes, shares = in_16_bits(noisy), []
    clean = vae.enhance(codes, rate, progress=shares.append)
    assert clean.dtype == np.int16 and np.array_equal(clean, written) and np.array_equal(codes, in_16_bits(noisy))
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == pytest.approx(1)
    path = vae.enhance(tmp_path / "noisy.wav")
    assert isinstance(path, Sound) and path.rate == rate and np.array_equal(in_16_bits(path.samples), written)

    exact = codes / np.float32(2**15)
    for given in (exact, exact.astype(np.float64), torch.from_numpy(exact), torch.from_numpy(codes)):
        got = vae.enhance(given, rate)
        assert type(got) is type(given) and got.dtype == given.dtype and got.shape == given.shape
        samples = np.asarray(got) if got.dtype not in (torch.int16, np.int16) else np.asarray(got) / 2**15
        np.testing.assert_allclose(samples, path.samples, atol=2e-5 if got.dtype == torch.int16 else 0)
    mono = vae.enhance(torch.from_numpy(exact[:, 0]).half(), rate)
    assert mono.dtype == torch.float16 and mono.shape == (6000,)
    loud = vae.enhance(1000 * exact, rate)
    np.testing.assert_allclose(loud / 1000, path.samples, atol=1e-6)

    first, second, third = vae.enhance(
        [exact[:, 0], Sound(exact, rate), exact[:3000]], rate, progress=shares.append, iterations=3, estep="langevin"
    )
    assert first.shape == (6000,) and second.rate == rate and third.shape == (3000, 2)
    assert shares[-1] == pytest.approx(1) and np.abs(second.samples - path.samples).max() > 1e-4
    assert vae.enhance([tmp_path / "noisy.wav"])[0].samples.shape == (6000, 2)


def test_a_film_is_a_path_or_its_pictures(runs, cvae, clip, tmp_path, capsys):
    program("enhance").enhance(asked(runs / "cvae", clip, tmp_path / "film.wav"))
    film = cvae.enhance(clip)
    assert np.array_equal(in_16_bits(film.samples), soundfile.read(tmp_path / "film.wav", dtype="int16")[0])

    pictures, fps = np.stack([to_rgb(frame, 10_000) for frame in read_frames(clip)]), probe(clip).fps
    exact = tmp_path / "exact.mp4"
    write_mp4(exact, pictures, fps, lossless=True)
    noisy, rate = noise(24_000), 16_000
    soundfile.write(tmp_path / "noisy.wav", noisy, rate, subtype="FLOAT")
    by_path = cvae.enhance(noisy, rate, video=exact)
    assert np.array_equal(cvae.enhance(tmp_path / "noisy.wav", video=str(exact)).samples, by_path)
    for given in (pictures, torch.from_numpy(pictures)):
        assert np.array_equal(cvae.enhance(noisy, rate, video=given, fps=float(fps)), by_path)
    z = cvae.latents(noisy, rate, video=exact)["z"]
    assert np.array_equal(z, cvae.latents(noisy, rate, video=pictures, fps=fps)["z"])
    assert not np.array_equal(z, cvae.latents(noisy, rate, video=pictures[::-1], fps=fps)["z"]), "lips count"
    grey = np.full((30, 65, 63), 128, np.uint8)
    with pytest.raises(UserError, match="no face was found in any of 30 pictures"):
        cvae.enhance(noisy, rate, video=grey, fps=Fraction(30_000, 1001))

    by_ear = avdvae.load(runs / "min_vae").enhance(noisy, rate, estep="free_gaussian")
    assert by_ear.shape == noisy.shape and not capsys.readouterr().err


def test_latents_are_those_that_the_programs_take(runs, cvae, clip):
    dsae, stage = avdvae.load(runs / "dsae"), cvae.stage
    z = dsae.latents(clip)
    assert len(z["v"]) == 1 and z["z"].shape == (dsae.stage.clip("source", str(clip)).mask.shape[1], 4)
    inferred = stage.model.infer(stage.clip("source", A), mode="mean").z["z"][0, 0].numpy()
    np.testing.assert_array_equal(cvae.latents(A)["z"], inferred)

    wav = clip.with_suffix(".wav")
    codes, rate = soundfile.read(wav, dtype="int16")
    for given in (codes, codes / np.float32(2**15), torch.from_numpy(codes)):
        np.testing.assert_array_equal(dsae.latents(given, rate)["z"], dsae.latents(wav)["z"])
    quiet = dsae.latents(codes / np.float32(2**10), rate)["z"]
    np.testing.assert_allclose(quiet, dsae.latents(wav)["z"], atol=1e-2)
    assert len(read_mono(wav)[0]) / dsae.stage.stft.hop >= len(z["z"])


def test_what_is_decoded_is_what_the_programs_write(runs, vae, cvae, clip, tmp_path):
    wav = clip.with_suffix(".wav")
    again, batch = vae.resynthesise(wav, seed=3), vae.stage.clip("source", str(wav))
    torch.manual_seed(3)
    np.testing.assert_array_equal(again.sound, resynthesise(vae.stage.model, batch, vae.stage.stft)[0])
    assert again.rate == 16_000

    words = {"run": str(runs / "cvae"), "source": str(clip), "target": A, "latents": ["z"], "phase": "source"}
    program("transfer").transfer_clips(words | {"out": str(tmp_path / "swap")})
    swapped = cvae.transfer(clip, A, latents="z", phase="source")
    written = {name: soundfile.read(tmp_path / f"swap/{name}.wav")[0] for name in ("source", "target", "result")}
    ends = [cvae.stage.clip("source", name) for name in (str(clip), A)]
    loudest = max(np.abs(sound).max() for sound in (swapped.sound, *(end.waveform.numpy() for end in ends)))
    np.testing.assert_allclose(0.9 * swapped.sound / loudest, written["result"], atol=4e-5)
    np.testing.assert_array_equal(cvae.transfer(clip, A, ["z"], 0.5).sound, cvae.transfer(clip, A, ["z"], 0.5).sound)
    pictures, fps = np.stack([to_rgb(frame, 10_000) for frame in read_frames(clip)]), probe(clip).fps
    sound, rate = soundfile.read(wav, dtype="float32")
    given = cvae.transfer(sound, A, "z", phase="source", rate=rate, source_video=pictures, fps=fps)
    by_path = cvae.transfer(wav, A, "z", phase="source", source_video=clip)
    assert given.sound.shape == by_path.sound.shape == swapped.sound.shape
    assert np.corrcoef(given.sound, by_path.sound)[0, 1] > 0.99, "pictures in memory are those of the film"

    for model, given in ((vae, {"seconds": 1.0}), (cvae, {"source": A, "seconds": 1.5, "analysis": 0.5})):
        settings = {"source": None, "analysis": 1.0, "draws": 1, "seed": 7, "run": str(model.stage.run.path)} | given
        program("generate").generate_clips(settings | {"out": str(tmp_path / "made")})
        sound = model.generate(**given, seed=7).sound
        written = soundfile.read(tmp_path / "made/draw_1.wav")[0]
        np.testing.assert_allclose(sound / np.abs(sound).max(), written / np.abs(written).max(), atol=2e-4)
    state = torch.get_rng_state()
    assert not np.array_equal(vae.generate(1.0, seed=8).sound, vae.generate(1.0, seed=7).sound)
    assert torch.equal(torch.get_rng_state(), state), "random numbers of the user's own go on"

    moves = avdvae.load(runs / "moves")
    ids = [utterance.id for utterance in PreparedCorpus(moves.stage.corpus.root).utterances]
    frames = moves.stage.clip("source", ids[0]).mask.shape[1]
    for scene in (moves.resynthesise(ids[0]), moves.transfer(ids[0], ids[1], ["v"])):
        assert scene.sound is None and scene.poses is not None and scene.poses.shape == (frames, 17, 3)


def test_what_is_wrong_is_said_in_a_sentence(runs, vae, cvae, clip, tmp_path):
    sound, pictures, wav = noise(5000), np.zeros((30, 64, 64, 3), np.uint8), clip.with_suffix(".wav")
    for call, words in (
        (lambda: avdvae.load(tmp_path), "is no run, for it has no config.yaml: give a folder made by experiments"),
        (lambda: avdvae.load(runs / "vae", "gpu"), "device=gpu cannot be used: give cpu, or cuda where there is"),
        (lambda: vae.enhance(sound), "rate= is missing, for an array has no sample rate of its own: give it in Hz"),
        (lambda: vae.enhance(sound, 300), "a sample rate of 300 Hz: give 4000 to 768000 Hz"),
        (lambda: vae.enhance(Sound(sound, 8000), 16_000), "rate=16000: a Sound of 8000 Hz has a rate of its own"),
        (lambda: vae.enhance(wav, 16_000), "rate=16000: .* has a rate of its own: give rate= with arrays alone"),
        (lambda: vae.enhance(sound / np.float32(0), 16_000), "some of its samples are not finite numbers: look for"),
        (lambda: vae.enhance(1e60 * sound.astype(np.float64), 16_000), "some of its samples are not finite numbers"),
        (lambda: vae.enhance(sound[:0], 16_000), "it holds no sound"),
        (
            lambda: vae.enhance(sound.astype(np.int32), 16_000),
            "samples of type int32: give floats of -1 to 1, or int16",
        ),
        (lambda: vae.enhance(torch.zeros(9).long(), 16_000), "samples of type int64: give floats"),
        (lambda: vae.enhance(noise(2, 500), 16_000), r"a sound of shape \(2, 500\): channels come last, so give"),
        (lambda: vae.enhance(noise(2, 3, 4), 16_000), r"shape \(2, 3, 4\): give \(samples,\) or \(samples, channels\)"),
        (lambda: vae.enhance("none.wav"), "sound=none.wav is no file: give a file of sound or video, or an array"),
        (lambda: vae.enhance(Path(__file__)), "test_api.py: it cannot be read as sound"),
        (lambda: vae.enhance(sound, 16_000, steps=3), r"enhance has no steps: did you mean estep\?"),
        (lambda: vae.enhance([sound], 16_000, video=[]), "a list of 1 sounds: give a list of as many videos, or none"),
        (lambda: cvae.enhance(sound, 16_000), "CVAE needs the lips and there is no video: give video=, or a run of"),
        (lambda: cvae.enhance(wav), "CVAE needs the lips and there is no video: give video="),
        (lambda: cvae.enhance(wav, video="none.mp4"), "video=none.mp4 is no file: give a video, or an array of its"),
        (
            lambda: cvae.enhance(wav, video=clip, fps=25),
            "fps=25: a file has a rate of its own: give fps= with an array",
        ),
        (lambda: cvae.enhance(wav, video=pictures), "fps= is missing, for an array has no rate of its own: give"),
        (lambda: cvae.enhance(wav, video=pictures, fps=0), "fps=0: give 5 to 1000 pictures a second"),
        (lambda: cvae.enhance(wav, video=pictures[0, 0], fps=25), r"a video of shape \(64, 3\) and type uint8: give"),
        (lambda: cvae.enhance(wav, video=pictures / 255, fps=25), "type float64: give uint8 pictures"),
        (lambda: cvae.enhance(wav, video=pictures[:0], fps=25), r"a video of shape .* holds no pictures"),
        (lambda: avdvae.load(runs / "moves").enhance(sound, 16_000), "DSAE cannot enhance, for it is a model of poses"),
        (lambda: cvae.latents(wav), "CVAE needs video, for it is conditioned on the lips"),
        (lambda: cvae.latents(A, video=clip), f"sound={A} is no file, and clips of the corpus have their pictures"),
        (lambda: vae.latents(0 * sound, 16_000), "sound: silence: its loudest sample is 0"),
        (lambda: vae.latents("01M/tk01"), "sound=01M/tk01 is neither a file nor a clip of .* ids such as 01M/tk001"),
        (lambda: vae.transfer(A, B, ["w"]), r"latents=\[w\]: VAE has no latent called w: choose from z"),
        (lambda: vae.transfer(A, B, "z", phase="x"), "phase=x: choose from griffin_lim, source"),
        (lambda: vae.transfer(A, sound[:900], "z", rate=16_000), "target: 0.06 s of sound: at least 0.25 s are needed"),
        (lambda: vae.generate(90), "seconds=90: give 0 to 60 seconds"),
        (lambda: cvae.generate(1.0), "CVAE is conditioned on lips, in generation, too: give source="),
    ):
        with np.errstate(all="ignore"), pytest.raises(UserError, match=words):
            call()
    # Types that annotations exclude are checked by tests before the library can refuse them.
    script = f"import avdvae; avdvae.load({str(runs / 'vae')!r}).enhance({{}}, rate=1.5)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "UserError: a sound of type dict: give a path, an array, a tensor, a Sound or a list" in done.stderr


def test_a_training_in_python_reports_its_progress_and_gives_a_run(prepared, tmp_path, capsys):
    shares: list[float] = []
    few = {"tasks": ["resynthesis"], "metrics": ["si_sdr"], "workers": 1, "examples": 0}
    words = {"train": "debug", "epochs": 3, "model": {"hidden": 8}, "evaluate": few}
    run = avdvae.train("vae", prepared.out, tmp_path / "run", progress=shares.append, **words)
    assert shares == sorted(shares) and 0 < shares[0] < 0.4 and shares[-1] == 1
    assert "trained    3 of 3 epochs in" in capsys.readouterr().out and run.path == tmp_path / "run"
    rows = avdvae.evaluate(run, tasks=["resynthesis"], compare=[run.path])
    assert {row.mean for row in rows if row.compared_with} == {0.0}
    with pytest.raises(UserError, match=r"there is no setting epoch: did you mean train.epochs\? --help"):
        avdvae.train(epoch=3)
    with pytest.raises(UserError, match="corpus=nowhere is no folder, and no corpus is called so: choose from"):
        avdvae.train(corpus="nowhere")
    with pytest.raises(UserError, match="exp=vea: did you mean vae"):
        avdvae.train("vea")


def test_the_examples_of_the_docstrings_hold(runs, prepared, clip, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("gait", "poses", "moves"))
    for name in ("hello", "other"):
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    shutil.copy(clip.with_suffix(".wav"), tmp_path / "noisy.wav")
    (tmp_path / "my_corpus").symlink_to(prepared.out)
    monkeypatch.chdir(tmp_path)
    for module in (avdvae, trained):
        names = {"avdvae": avdvae, "soundfile": soundfile}
        tested = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
        assert tested.attempted > 1 and not tested.failed
    assert soundfile.info("clean.wav").frames == soundfile.info("noisy.wav").frames
