"""Enhancing any recording: long ones in windows, every rate and channel, the lips in step, whole folders."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from avdvae.enhancement import recordings, separation
from avdvae.enhancement.contract import Rounds
from avdvae.enhancement.markov_chains import Langevin
from avdvae.enhancement.separation import Pictures, separate, separate_long
from avdvae.enhancement.vem import Enhanced, Vem
from avdvae.errors import UserError
from avdvae.models.vae import VAE
from avdvae.nn.weights import WEIGHTS, save_weights
from avdvae.protocols import Batch
from avdvae.runs import MISSING, build_model, create_run
from avdvae.signals.audio import Stft
from avdvae.signals.video import clip_sound, probe, read_mono, write_mp4

PROGRAM = Path(__file__).parent.parent / "experiments" / "enhance.py"
STFT = Stft(256)
QUICK = Vem(Langevin(chains=2), iterations=3, rank=2)
OVERRIDES: dict[str, Any] = dict.fromkeys(
    [*Rounds._fields, "rank", "smoothness", "temper", "paper", "begin_from", "seed", "batch_size"], MISSING
) | {"estep": {"name": MISSING}}


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("avdvae.programs.enhance")


@pytest.fixture
def heard(monkeypatch) -> list[Batch]:
    """The batches that reach an EM whose filter is 1 everywhere."""
    batches = []

    def enhance(model, batch, settings, progress, stationary):
        batches.append(batch)
        for _ in range(settings.schedule.iterations):
            progress(1 / settings.schedule.iterations)
        return Enhanced(torch.ones_like(batch.noisy)[None], torch.zeros(1, len(batch.ids)))

    monkeypatch.setattr(separation, "enhance", enhance)
    return batches


def small_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(hidden=8, dim=4).eval().requires_grad_(False)


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def make_run(path: Path, name: str, module: str | None = None, **enhance: Any) -> Path:
    """A run whose model nobody has trained."""
    torch.manual_seed(0)
    sizes = {"size": 8, "memory": 4, "width": 8, "dim": 2} if name == "MDVAE" else {"hidden": 8, "dim": 4}
    model = {"target": f"avdvae.models.{module or name.lower()}.{name}", **sizes}
    estep = {"name": "free_gaussian", "lr": 0.1}
    enhance = {"iterations": 3, "rank": 2, "paper": False, "seed": 0, "batch_size": 2, "estep": estep} | enhance
    config = {"exp": name, "hop": 256, "seed": 0, "lips": {"size": 67, "face": 64}, "model": model, "enhance": enhance}
    others = {"data": {"reader": "talker", "root": "data"}, "train": {"accelerator": "cpu", "trim_db": 30.0}}
    run = create_run(path, config | others | {"evaluate": {}})
    save_weights(build_model(model), run.path / WEIGHTS)
    return path


def asked(run: Path, source: Path, output: Path, video: Path | None = None) -> dict[str, Any]:
    return {"run": str(run), "input": source, "video": video, "output": output, "enhance": OVERRIDES}


def test_what_fits_into_a_window_goes_through_whole():
    wave = noise(16_000)
    batch = Batch(
        ids=("0",),
        mask=torch.ones(1, STFT.frames(16_000), dtype=torch.bool),
        mixture=wave[None],
        noisy=STFT.power(wave[None]),
        lengths=torch.tensor([16_000]),
    )
    alone = separate(small_vae(), batch, STFT, QUICK).speech[0]
    (whole,) = separate_long(small_vae(), wave, STFT, QUICK, window=16_000, overlap=1600)
    assert torch.equal(whole, alone)


def test_windows_fade_into_each_other_and_few_are_in_memory(heard, monkeypatch):
    wave, shares = noise(50_001), []
    (speech,) = separate_long(small_vae(), wave, STFT, QUICK, None, 8000, 1000, batch_size=3, progress=shares.append)
    torch.testing.assert_close(speech, wave, atol=1e-5, rtol=0)
    assert sum(shares) == pytest.approx(1) and len(shares) == 3 * QUICK.schedule[0]
    assert [batch.ids for batch in heard] == [("0", "1", "2"), ("3", "4", "5"), ("6", "7")]
    assert all(batch.noisy.shape[1] <= STFT.frames(8000) for batch in heard)

    def count_up(model, batch, settings, progress, stationary):
        number_B11 = torch.tensor([float(name) for name in batch.ids])[:, None, None]
        return Enhanced(number_B11.expand_as(batch.noisy)[None], torch.zeros(1, len(batch.ids)))

    monkeypatch.setattr(separation, "enhance", count_up)
    (speech,) = separate_long(small_vae(), wave, STFT, QUICK, None, 8000, 1000)
    step = -(-(50_001 + 7 * 1000) // 8) - 1000
    since = torch.arange(50_001)[:, None] - step * torch.arange(1, 8)
    expected = ((since + 1) / 1001).clip(0, 1).sum(1)  # each window after the first rises from 0 to 1
    torch.testing.assert_close(speech, expected * wave, atol=1e-5, rtol=0)


def test_windows_of_a_real_model_do_not_depend_on_their_batch():
    wave = noise(30_000)
    one, three = (separate_long(small_vae(), wave, STFT, QUICK, None, 8000, 1000, size) for size in (1, 3))
    torch.testing.assert_close(one, three, atol=1e-5, rtol=0)
    assert 0 < one.square().sum() < wave.square().sum()


@pytest.mark.parametrize("seconds", [1.0, 5.0])  # of video, for three of sound
@pytest.mark.parametrize("sound_starts", [-0.2, 0.0, 0.3])
def test_each_frame_sees_the_picture_nearest_in_time(heard, seconds, sound_starts):
    count = round(seconds * 25)
    crops = np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    pictures = Pictures(crops, crops[:, 0, 0], 25.0, sound_starts)
    separate_long(small_vae(), noise(48_000), STFT, QUICK, pictures, 16_000, 3000, batch_size=2)
    length = -(-(48_000 + 3 * 3000) // 4)
    windows = [(batch, b) for batch in heard for b in range(len(batch.ids))]
    assert len(windows) == 4
    for number, (batch, b) in enumerate(windows):
        present = batch.mask[b]
        times = (number * (length - 3000) + 256 * np.arange(int(present.sum()))) / 16_000 + sound_starts
        away = np.abs(times[:, None] - np.arange(count) / 25)
        seen = batch.lips[b, present, 0, 0].numpy()
        np.testing.assert_allclose(away[np.arange(len(times)), seen], away.min(1))
        np.testing.assert_allclose(batch.confidence[b, present] * 255, seen, atol=1e-4)
        assert not batch.lips[b, ~present].any()


def test_silence_stays_silent_and_nothing_is_too_short():
    assert not separate_long(small_vae(), torch.zeros(20_000), STFT, QUICK, None, 8000, 1000).any()
    half = torch.cat([torch.zeros(20_000), noise(20_000)])
    (speech,) = separate_long(small_vae(), half, STFT, QUICK, None, 8000, 1000)
    assert speech.isfinite().all() and not speech[:10_000].any() and speech[30_000:].any()
    for samples in (1, 300, 1000):
        assert separate_long(small_vae(), noise(samples), STFT, QUICK).isfinite().all()


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "suffix"),
    [
        (44_100, 2, "PCM_16", "wav"),
        (48_000, 1, "PCM_24", "flac"),
        (8000, 3, "PCM_16", "wav"),
        (22_255, 1, "FLOAT", "wav"),
    ],
)
def test_the_output_is_like_the_input(program, heard, tmp_path, rate, channels, subtype, suffix):
    times = np.arange(round(rate * 1.3))[:, None] / rate
    tones = 0.25 * np.sin(2 * np.pi * (440 + 700 * np.arange(channels)) * times) * np.hanning(len(times))[:, None]
    source, output = tmp_path / f"in.{suffix}", tmp_path / "new" / "out.wav"
    soundfile.write(source, tones, rate, subtype=subtype)
    program.enhance(asked(make_run(tmp_path / "run", "VAE"), source, output))
    clean, found = soundfile.read(output, always_2d=True)
    assert found == rate and soundfile.info(output).subtype == ("PCM_16" if subtype == "PCM_16" else "FLOAT")
    np.testing.assert_allclose(clean, tones, atol=2e-3)
    assert len(heard) == channels and [path.name for path in output.parent.iterdir()] == ["out.wav"]


def test_the_program_repeats_itself_and_leaves_nothing_else(program, tmp_path):
    run = make_run(tmp_path / "run", "VAE")
    soundfile.write(tmp_path / "noisy.wav", noise(8000, 2).numpy(), 44_100)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, PROGRAM, "run=run", "input=noisy.wav", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = call("output=one.wav", "enhance.seed=7", "enhance.estep.name=langevin", "+enhance.estep.chains=2")
    assert done.returncode == 0 and "0.2 s of sound, real-time factor" in done.stdout and "one.wav" in done.stdout, done
    for seed in (7, 8):
        enhance = OVERRIDES | {"seed": seed, "estep": {"name": "langevin", "chains": 2}}
        program.enhance(asked(run, tmp_path / "noisy.wav", tmp_path / f"{seed}.wav") | {"enhance": enhance})
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one.wav", "7.wav", "8.wav"))
    assert one == same != other
    done = call("output=three.mp3")
    assert done.returncode == 1 and done.stderr == "enhance.py: output=three.mp3: give the name of a wav file\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7.wav", "8.wav", "noisy.wav", "one.wav", "run"]


def test_a_folder_goes_through_but_for_what_is_broken(program, tmp_path, clip):
    source, output = tmp_path / "in", tmp_path / "in" / "clean"
    (source / "deep" / "er").mkdir(parents=True)
    shutil.copy(clip, source / "deep" / "film.mp4")
    for name in ("a.wav", "a.flac", "deep/er/b.OGG"):
        soundfile.write(source / name, noise(5000).numpy(), 16_000)
    (source / "broken.wav").write_bytes(b"RIFF no more")
    (source / "notes.txt").write_text("no sound")
    run = make_run(tmp_path / "run", "VAE")
    for _ in range(2):  # what the first wrote is not enhanced again, but written again
        with pytest.raises(
            UserError, match=r"^1 of 5 files could not be enhanced:\n  \S*broken.wav: it cannot be read"
        ):
            program.enhance(asked(run, source, output))
    made = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    assert made == ["a.flac.wav", "a.wav.wav", "deep/er/b.wav", "deep/film.wav"]


def test_a_model_of_lips_asks_for_a_video_before_it_works(program, heard, tmp_path):
    soundfile.write(tmp_path / "noisy.wav", noise(5000).numpy(), 16_000)
    run = make_run(tmp_path / "run", "CVAE")
    with pytest.raises(UserError, match="CVAE needs the lips and there is no video: give video="):
        program.enhance(asked(run, tmp_path / "noisy.wav", tmp_path / "clean.wav"))
    assert not heard and not (tmp_path / "clean.wav").exists()


def test_a_model_that_can_miss_the_lips_works_without_a_video(program, tmp_path, clip, monkeypatch, capsys):
    """Without a video, even where enhancement is to begin from the lips; in a folder, where one has none."""
    run, seen = make_run(tmp_path / "run", "MINVAE", "min_vae", begin_from=["lips"]), []
    watched = recordings.separate_long
    monkeypatch.setattr(
        recordings, "separate_long", lambda *given, **named: seen.append(given[4]) or watched(*given, **named)
    )
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(clip, source / "film.mp4")
    shutil.copy(clip.with_suffix(".wav"), source / "sound.wav")
    program.enhance(asked(run, source / "sound.wav", tmp_path / "alone.wav"))
    program.enhance(asked(run, source, tmp_path / "out"))
    assert [pictures is not None for pictures in seen] == [False, True, False]
    assert capsys.readouterr().out.count("sound.wav has no video: it is enhanced from the sound alone") == 2
    alone, beside = (soundfile.read(tmp_path / name)[0] for name in ("alone.wav", "out/sound.wav"))
    np.testing.assert_array_equal(alone, beside)


def test_the_lips_come_from_the_video(program, tmp_path, clip, monkeypatch, capsys):
    """A film is its own video, in which sound and picture may start apart; a file of sound starts with the picture."""
    run, seen = make_run(tmp_path / "run", "CVAE"), []
    watched = recordings.separate_long

    def watching(model, waveform, stft, settings, pictures, **options):
        seen.append(pictures)
        return watched(model, waveform, stft, settings, pictures, **options)

    monkeypatch.setattr(recordings, "separate_long", watching)
    program.enhance(asked(run, clip, tmp_path / "film.wav"))
    program.enhance(asked(run, clip.with_suffix(".wav"), tmp_path / "apart.wav", video=clip))
    film, apart = seen
    assert film.sound_starts == pytest.approx(clip_sound(probe(clip, sound=True), None).offset_ms / 1000, abs=1e-9)
    assert apart.sound_starts == 0 and np.array_equal(film.crops, apart.crops) and film.crops.shape[1:] == (67, 67)
    assert soundfile.info(tmp_path / "film.wav").frames == len(read_mono(clip)[0])
    assert soundfile.info(tmp_path / "apart.wav").frames == soundfile.info(clip.with_suffix(".wav")).frames
    loud = [np.abs(soundfile.read(tmp_path / name)[0]).max() for name in ("film.wav", "apart.wav")]
    assert min(loud) > 1e-3

    program.enhance(asked(make_run(tmp_path / "deaf", "VAE"), clip, tmp_path / "sound.wav", video=clip))
    assert seen[2] is None and "video= is ignored" in capsys.readouterr().out

    whole = make_run(tmp_path / "whole", "MDVAE")
    program.enhance(asked(whole, clip, tmp_path / "face.wav"))
    assert film.faces is None and seen[3].faces.shape == (len(film.crops), 64, 64, 3) and seen[3].faces.std() > 10
    with pytest.raises(UserError, match="MDVAE needs the face and there is no video: give video="):
        program.enhance(asked(whole, clip.with_suffix(".wav"), tmp_path / "unseen.wav"))

    faceless = tmp_path / "faceless.mp4"
    write_mp4(faceless, [np.full((64, 64, 3), 128, np.uint8)] * 25, probe(clip).fps)
    with pytest.raises(UserError, match="no face was found"):
        program.enhance(asked(run, clip.with_suffix(".wav"), tmp_path / "none.wav", video=faceless))
    assert not (tmp_path / "none.wav").exists()
