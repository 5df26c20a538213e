"""Factors are found in latents, moved and synthesised: in constructed spaces, and end to end."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from avdvae.data.prepare import Summary
from avdvae.data.shards import PreparedCorpus
from avdvae.data.talker.vowels import GRIDS, SETTINGS, Vowel, sound
from avdvae.errors import UserError
from avdvae.evaluation.results import read_results
from avdvae.evaluation.tasks.control import Control, analyse
from avdvae.evaluation.tasks.f0 import errors
from avdvae.evaluation.tasks.task import Evaluation, Subject
from avdvae.latents import control
from avdvae.latents.control import LEVEL, Controller, Discriminants, Encoded, Space, latents_of, vowels_of
from avdvae.latents.subspaces import Subspace, fit_discriminants, fit_subspace, hats, nearest, principal_angles
from avdvae.models.dsae import DSAE
from avdvae.models.rvae import RVAE
from avdvae.models.vae import VAE, encoder_input
from avdvae.probability.gaussian import Gaussian
from avdvae.protocols import Batch
from avdvae.signals.audio import Stft, trim_silence
from avdvae.signals.metrics import NISQA, naturalness
from avdvae.signals.phonetics import move_by_psola, move_by_world, pitch_praat, pitch_world

PROJECT = Path(__file__).parent.parent
STFT = Stft(256)
MIXED = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[
    0
]  # directions of a made-up space


def bent(factor: str, hertz: Tensor, directions: Tensor) -> Tensor:
    """A curve in the plane of two directions, whose corners lie on the knots."""
    low, high = GRIDS[factor][0].item(), GRIDS[factor][-1].item()
    share = (hertz - low) / (high - low)
    corner = (share - 0.5).abs()
    return torch.stack([4 * share, 3 * corner], -1) @ directions.T


def made_up(factor: str, directions: Tensor) -> tuple[Subspace, Tensor]:
    """What is fitted to such a curve, at three places of the space."""
    hertz = torch.from_numpy(GRIDS[factor]).float()
    curve = bent(factor, hertz, directions)
    places = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(1))
    return fit_subspace(factor, curve + places, share=0.999), curve


def test_the_plane_of_a_curve_is_found_and_the_curve_in_it() -> None:
    fitted, curve = made_up("f0", MIXED[:, :2])
    assert fitted.basis_LM.shape == (8, 2)
    torch.testing.assert_close(fitted.basis_LM @ fitted.basis_LM.T, MIXED[:, :2] @ MIXED[:, :2].T, atol=1e-4, rtol=0)
    centred = (curve - curve.mean(0)) @ fitted.basis_LM
    torch.testing.assert_close(fitted.at(torch.from_numpy(GRIDS["f0"]).float()), centred, atol=1e-4, rtol=0)
    assert (fitted.shares_L.diff() >= -1e-6).all() and fitted.shares_L[-1] == pytest.approx(1)


def test_hats_make_lines_from_knot_to_knot() -> None:
    knots, values = torch.linspace(100, 300, 21), torch.randn(21)
    hertz = torch.linspace(100, 300, 777)
    straight = np.interp(hertz, knots, values)
    np.testing.assert_allclose(hats(hertz, knots) @ values, straight, atol=1e-4)


def test_factors_come_to_their_targets_together_and_nothing_else_moves() -> None:
    oblique = MIXED[:, 2:4] + 0.5 * MIXED[:, :2]  # f1 is not orthogonal to f0
    spaces = {"f0": made_up("f0", MIXED[:, :2])[0], "f1": made_up("f1", oblique / oblique.norm(dim=0))[0]}
    assert principal_angles(*spaces.values())[0].item() == pytest.approx(np.degrees(np.arctan(2)), abs=0.1)
    space = Space(LEVEL, spaces, voiced_within=0.1)
    z = torch.randn(5, 8)
    nan = torch.nan
    targets = {"f0": torch.tensor([150, 200, nan, 0, nan]), "f1": torch.tensor([400, nan, 700, 500, nan])}
    moved = space.move(z, targets)
    torch.testing.assert_close(spaces["f0"].of(moved)[:2], spaces["f0"].at(targets["f0"][:2]), atol=1e-4, rtol=0)
    assert spaces["f0"].of(moved)[3].abs().max() < 1e-4, "a whisper"
    here = [0, 2, 3]
    torch.testing.assert_close(spaces["f1"].of(moved)[here], spaces["f1"].at(targets["f1"][here]), atol=1e-4, rtol=0)
    torch.testing.assert_close((moved - z) @ MIXED[:, 4:], torch.zeros(5, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close((moved - z)[1] @ MIXED[:, 2:], torch.zeros(6), atol=1e-4, rtol=0)
    assert torch.equal(moved[4], z[4])
    with pytest.raises(UserError, match="f0 would be 90 Hz: it moves between 100 and 300 Hz"):
        space.move(z, {"f0": torch.full((5,), 90.0)})


def test_discriminants_find_a_factor_beside_one_of_larger_variance() -> None:
    """Another factor, the level, moves latents further, and obliquely to the directions of f0."""
    hertz = torch.from_numpy(GRIDS["f0"]).float()
    curve, level = bent("f0", hertz, MIXED[:, :2]), (MIXED[:, 0] + MIXED[:, 5]) / 2**0.5
    levels = torch.linspace(-6, 6, 12)[:, None, None] * level
    assert levels.var(0).sum() > 4 * curve.var(0).sum()
    subspace, found = fit_subspace("f0", curve + levels, share=0.999), fit_discriminants("f0", curve + levels, 2)
    z, chosen = curve[20:180:10] + levels[3], hertz[20:180:10]
    targets = {"f0": torch.full_like(chosen, 220.0)}
    right = bent("f0", targets["f0"], MIXED[:, :2]) + levels[3]
    components = Space(LEVEL, {"f0": subspace}, 0.1).move(z, targets)
    moved = Discriminants(LEVEL, {"f0": found}, 0.1, torch.zeros(8)).move(z, targets)
    assert (nearest(found, z)[0] - chosen).abs().max() <= 2 < 20 < (nearest(subspace, z)[0] - chosen).abs().mean()
    assert (moved - right).norm(dim=1).max() < 0.1 < 1 < (components - right).norm(dim=1).min()


def test_pitch_is_heard_where_a_frame_lies_near_the_trajectory_and_is_not_quiet() -> None:
    fitted, curve = made_up("f0", MIXED[:, :2])
    model = VAE(dim=8).requires_grad_(False)
    loudness = torch.nn.Linear(8, 513, bias=False)
    loudness.weight.data = MIXED[:, 6].repeat(513, 1)
    model.decoder = torch.nn.Sequential(loudness)
    controller = Controller(model, STFT, [Space(LEVEL, {"f0": fitted}, voiced_within=0.1)])
    z = curve - curve.mean(0) + fitted.mean_L
    far = z[:3] + MIXED[:, 1]
    aside = z + 5 * MIXED[:, 5]
    soft, quiet = z[:3] - 6 * MIXED[:, 6], z[:3] - 8 * MIXED[:, 6]
    frames = torch.cat([z, far, aside, soft, quiet])
    pitch = controller.pitch(Encoded(frames))
    grid = torch.from_numpy(GRIDS["f0"]).float()
    torch.testing.assert_close(pitch, torch.cat([grid, torch.zeros(3), grid, grid[:3], torch.zeros(3)]))
    assert nearest(fitted, far)[1].min() > 0.1
    there = fitted.translated(z, grid, grid.flip(0))
    torch.testing.assert_close(there, z.flip(0), atol=1e-4, rtol=0)


class Principal(nn.Module):
    """Principal components as an encoder."""

    def __init__(self, x_NF: Tensor, dim: int):
        super().__init__()
        self.mean_F, (_, _, basis_FF) = x_NF.mean(0), torch.linalg.svd(x_NF - x_NF.mean(0), full_matrices=False)
        self.basis_FL = nn.Parameter(basis_FF[:dim].T)

    def forward(self, x: Tensor) -> Gaussian:
        mean = (x - self.mean_F) @ self.basis_FL
        return Gaussian(mean, torch.zeros_like(mean))


@pytest.fixture(scope="module")
def taught() -> VAE:
    """Linear in the logarithm of the power above a floor, of vowels at all levels."""
    rng = np.random.default_rng(0)
    model: Any = VAE(dim=64, floor=0.001)
    low, high = np.array([100, 250, 1000, 2100]), np.array([300, 850, 2600, 3100])
    vowels = np.stack([sound(Vowel(*rng.uniform(low, high)), 1024) for _ in range(2000)])
    levels = 0.02 * 30 ** rng.random((2000, 1))
    power = STFT.power(torch.from_numpy((levels * vowels).astype(np.float32)), centred=False)[:, 0]
    model.encoder = encoder = Principal(encoder_input(power, 0.001), 64)
    model.decoder = nn.Sequential(nn.Linear(64, 513))
    model.decoder[0].weight.data, model.decoder[0].bias.data = 2.5 * encoder.basis_FL.data, 2.5 * encoder.mean_F - 4
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def components(taught: VAE) -> Controller:
    return Controller.of(taught, STFT)


@pytest.fixture(scope="module")
def discriminants(taught: VAE) -> Controller:
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(control, "DRAWN", 24)
        return Controller.of(taught, STFT, method="discriminants")


def test_factors_of_held_out_vowels_come_to_their_targets_at_any_level(
    taught: VAE, components: Controller, discriminants: Controller
) -> None:
    """Read from what the model decodes by the vowel that it decodes most alike; errors in percent."""
    controller, setting = components, Vowel(145, 450, 1450, 2550)
    one_level = replace(controller, spaces=[controller.space()])
    for factor, target, most in (("f0", 180, 1), ("f1", 600, 16), ("f2", 1900, 5), ("f3", 2400, 8)):
        grid = torch.from_numpy(GRIDS[factor]).float()[::2]
        sources = grid[len(grid) // 8 : -len(grid) // 8 : 5]
        vowels = [sound(replace(setting, **{factor: y}), 4000) for y in grid.tolist()]
        power, target_T, errors = vowels_of(taught, STFT, vowels), torch.full_like(sources, target), []
        for level in (0.05, 0.12, 0.35):
            z = latents_of(taught, power, level)
            alike = controller.decode(z).log()
            encoded = Encoded(z[torch.isin(grid, sources)], level)
            chosen = (controller, one_level, discriminants)
            ways = [each.move(encoded, {factor: target_T}) for each in chosen]
            for z_TL in (*ways, controller.translate(encoded, factor, sources, target_T)):
                read = grid[torch.cdist(controller.decode(z_TL).log(), alike).argmin(1)]
                errors.append(100 * (read / target - 1).abs().mean().item())
        here, middle, discriminant, translated = (np.array(errors[n::4]) for n in range(4))
        assert (here < most).all() and (translated < most).all() and (discriminant < most).all(), factor
        if factor in ("f1", "f2"):
            assert here.mean() < 0.8 * middle.mean()  # vowels of another level than the sound's mislead it
    steady = torch.from_numpy(sound(setting, 16000))
    half_silent = torch.cat([0.3 * steady, torch.zeros(16000)])
    expected = (steady.square().mean().sqrt() / steady.abs().max()).item()
    assert controller.encode(half_silent).level == pytest.approx(expected, rel=0.05)  # that of the speech, at peak 1


def test_a_whisper_has_no_pitch_and_keeps_its_formants(
    taught: VAE, components: Controller, discriminants: Controller
) -> None:
    setting = Vowel(0, 450, 1450, 2550)
    vowels = [sound(replace(setting, f0=float(f0)), 4000) for f0 in range(120, 280, 8)]
    power = vowels_of(taught, STFT, vowels)
    z = latents_of(taught, power, 0.15)
    for controller in (components, discriminants):
        voiced = Encoded(z, 0.15)
        whisper = replace(voiced, z=controller.move(voiced, {"f0": torch.zeros(len(z))}))
        assert (controller.pitch(voiced) > 0).float().mean() > 0.9 and (
            controller.pitch(whisper) == 0
        ).float().mean() > 0.9
        before, after = (discriminants.decode(each.z).log() for each in (voiced, whisper))
        # What noise between the harmonics adds, it adds in all bands alike, so that the envelope stays.
        rise = torch.stack([(after - before)[:, low:high].mean() for low, high in ((20, 50), (50, 100), (100, 200))])
        assert rise.max() - rise.min() < 1.5


def test_discriminants_generate_speech_whose_factors_are_the_targets(discriminants: Controller) -> None:
    asked = {"f0": 160.0, "f1": 500.0, "f2": 1500.0, "f3": 2600.0}
    made = discriminants.generate({factor: torch.full((3,), hertz) for factor, hertz in asked.items()})
    for factor, hertz in asked.items():
        found = nearest(discriminants.space_to_move_in().subspaces[factor], made)[0]
        torch.testing.assert_close(found, torch.full((3,), hertz), rtol=0.15, atol=0)


def test_the_true_source_is_that_of_the_trimmed_sound(prepared: Summary, tmp_path: Path) -> None:
    corpus, settings = PreparedCorpus(prepared.out, "test"), Evaluation()
    subject = Subject(None, corpus, STFT, None, settings, tmp_path, "")
    for utterance in corpus.utterances[:2]:
        start, stop = trim_silence(corpus.audio(utterance), settings.trim_db or 0)
        before = analyse(corpus.audio(utterance)[start:stop] / np.float32(32768))
        found = {factor: Control(factor)._truth(subject, utterance, len(before["f0"])) for factor in GRIDS}
        assert ((found["f0"] > 0) == (before["f0"] > 0)).mean() > 0.8
        both = (found["f0"] > 0) & (before["f0"] > 0)
        for factor in GRIDS:
            assert np.nanmedian(np.abs(before[factor][both] / found[factor][both] - 1)) < 0.12


@pytest.mark.parametrize(
    "model", [VAE(hidden=[256, 64], dim=16), RVAE(causal=False), DSAE()], ids=lambda m: type(m).__name__
)
def test_any_model_with_a_latent_a_frame_can_be_controlled(model, monkeypatch) -> None:
    if isinstance(model, VAE):
        assert sum(parameter.numel() for parameter in model.parameters()) == 299_681
    for factor in SETTINGS:
        monkeypatch.setitem(SETTINGS, factor, SETTINGS[factor][:1])
        monkeypatch.setitem(GRIDS, factor, GRIDS[factor][::20])
    controller = Controller.of(model.eval().requires_grad_(False), STFT, share=0.5)  # few dimensions, that fit together
    wave = 0.5 * torch.from_numpy(sound(Vowel(150, 500, 1500, 2500), 6000))
    encoded = controller.encode(wave)
    power = STFT.power(wave[None] / wave.abs().max())
    batch = Batch(("",), torch.ones(power.shape[:2], dtype=torch.bool), power=power)
    as_it_is = model.decode(model.infer(batch, mode="mean").z, model.context(batch))["power"].components(power).mean()
    torch.testing.assert_close(controller.decode(encoded.z, encoded.others), as_it_is[0])  # all its latents are kept
    moved = controller.move(encoded, {"f2": torch.full((len(encoded.z),), 1800.0)})
    again = controller.synthesise(moved, encoded, False)
    assert again.shape == wave.shape and again.isfinite().all()
    louder = controller.synthesise(controller.encode(2 * wave).z, controller.encode(2 * wave), False)
    torch.testing.assert_close(louder, 2 * controller.synthesise(encoded.z, encoded, False), rtol=1e-3, atol=1e-3)
    targets = {factor: torch.full((9,), float(GRIDS[factor][3])) for factor in GRIDS}
    made = controller.generate(targets)
    for factor, subspace in controller.space().subspaces.items():
        torch.testing.assert_close(subspace.of(made), subspace.at(targets[factor]), atol=1e-2, rtol=0)
    assert controller.synthesise(made).shape == (8 * 256,)


def test_frames_whose_source_lies_off_the_grid_are_left_out() -> None:
    nan = np.nan
    heard = {"f0": np.array([90.0, 100, 300, 310, nan]), "f1": np.array([500.0, 150, 400, nan, 500])}
    heard |= {"f2": np.full(5, 1500.0), "f3": np.full(5, 2500.0)}
    assert Control("f0")._moves(heard, 180).tolist() == [False, True, True, False, False]
    assert Control("f1")._moves(heard, 600).tolist() == [True, False, True, False, False]
    heard["f2"] = np.array([990.0, 1500, 2810, 1500, 1500])
    assert Control("f2")._moves(heard, 1900).tolist() == [False, True, False, False, False]


def test_vocoders_change_the_pitch_and_listeners_hear_it() -> None:
    wave, times = 0.1 * sound(Vowel(150, 500, 1500, 2500), 9600), np.linspace(0.1, 0.5, 20)
    for move in (move_by_world, move_by_psola):
        moved = move(wave, np.full(len(wave), 210.0))
        assert moved.shape == wave.shape
        for listen in (pitch_praat, pitch_world):
            assert np.median(listen(moved, times)) == pytest.approx(210, rel=0.005)
            assert np.median(listen(wave, times)) == pytest.approx(150, rel=0.005)
    assert (pitch_praat(np.zeros(9600, np.float32), times) == 0).all()


def test_errors_of_pitch_are_counted_as_defined() -> None:
    truth, heard = np.array([100.0, 100, 100, 100, 0, 0]), np.array([101.0, 130, 0, 97, 0, 80])
    found = errors(truth, heard)
    assert found["voicing_error"] == pytest.approx(100 * 2 / 6)
    assert found["gross_error"] == pytest.approx(100 / 3)
    assert found["fine_error"] == pytest.approx(2)


def program(name: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "experiments" / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def nisqa(tmp_path: Path) -> dict[str, str]:
    """An environment in which something that looks like NISQA is installed, and finds all sounds a 2.5."""
    package = tmp_path / "torchmetrics" / "functional" / "audio"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):  # before a real one
        (folder / "__init__.py").touch()
    (package / "nisqa.py").write_text(
        "def non_intrusive_speech_quality_assessment(x, fs): return x.new_full((5,), 2.5)"
    )
    weights = tmp_path / NISQA.relative_to("~")
    weights.parent.mkdir(parents=True)
    weights.touch()
    return {"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}


def test_naturalness_is_unknown_where_nothing_is_installed_to_tell(nisqa, monkeypatch) -> None:
    monkeypatch.setenv("HOME", nisqa["HOME"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torchmetrics", None)
        assert np.isnan(naturalness(np.zeros(16000, np.float32), 16000))
    monkeypatch.syspath_prepend(nisqa["HOME"])
    assert naturalness(np.zeros(16000, np.float32), 16000) == 2.5
    assert np.isnan(naturalness(np.zeros(1600, np.float32), 16000))  # too short for it

    def damaged(x: Tensor, fs: int) -> Tensor:
        raise RuntimeError("unexpected end")

    with monkeypatch.context() as spoilt:
        spoilt.setattr("torchmetrics.functional.audio.nisqa.non_intrusive_speech_quality_assessment", damaged)
        with pytest.raises(UserError, match=r"cannot be used \(unexpected end\): put the weights"):
            naturalness(np.zeros(16000, np.float32), 16000)
    NISQA.expanduser().unlink()
    assert np.isnan(naturalness(np.zeros(16000, np.float32), 16000))  # which torchmetrics would go and fetch


def test_from_training_to_a_controlled_recording(
    prepared: Summary, clip: Path, tmp_path: Path, nisqa: dict[str, str]
) -> None:
    run, wav, out = tmp_path / "run", clip.with_suffix(".wav"), tmp_path / "moved.wav"
    few = ["evaluate.noises=[White]", "evaluate.snrs=[0]", "evaluate.tasks=[control_f0,control_f1,f0]"]
    words = ["exp=sf_vae", "train=debug", f"prepared={prepared.out}", f"run_dir={run}", *few]
    trained = program("run.py", *words, **nisqa)
    assert trained.returncode == 0, trained.stderr
    rows = read_results(run / "results.csv")
    ways = {task: {row.model for row in rows if row.task == task} for task in ("control_f0", "control_f1", "f0")}
    moves = {"sf_vae", *(f"sf_vae {way}" for way in ("discriminants", "translated", "translated_true"))}
    assert ways["control_f0"] == {*moves, "WORLD", "TD-PSOLA"}
    assert ways["control_f1"] == moves and ways["f0"] == {"sf_vae", "Praat", "WORLD"}
    for metric in ("nisqa", "input_nisqa"):
        found = {(row.task, row.model, row.value) for row in rows if row.metric == metric}
        assert found == {(task, way, 2.5) for task in ("control_f0", "control_f1") for way in ways[task]}
    means = {
        (row.model, row.metric): row.value for row in rows if (row.task, row.metric) == ("control_f0", "f0_in_speech")
    }
    assert 0 < means["WORLD", "f0_in_speech"] < 3 and 0 < means["TD-PSOLA", "f0_in_speech"] < 3
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("Trajectories of factors", "Angles between factors", "280 Hz", "whispered"))

    base = [f"run={run}", f"output={out}"]
    done = program("control.py", *base, f"input={wav}", "f0=200", "f1=500", "everywhere=true")
    assert done.returncode == 0, done.stderr
    assert soundfile.info(out).frames == soundfile.info(wav).frames and out.with_suffix(".png").exists()
    subspaces = out.read_bytes()
    words = [*base, f"input={wav}", "f1=500", "everywhere=true"]
    done = program("control.py", *words, "method=discriminants")
    assert done.returncode == 0 and out.read_bytes() != subspaces, done.stderr
    contour = tmp_path / "contour.csv"
    contour.write_text("0,120\n1,200\n")
    done = program("control.py", *base, f"f0={contour}", "f1=500", "f2=1500", "f3=2500", "seconds=0.5")
    assert done.returncode == 0 and soundfile.info(out).duration == pytest.approx(0.5, abs=0.02), done.stderr
    for words, reason in (
        (["f0=90", f"input={wav}", "everywhere=true"], "f0 would be 90 Hz: it moves between 100 and 300 Hz"),
        (["f0=high", f"input={wav}", "everywhere=true"], "f0=high is no frequency"),
        (["f0=180", "whisper=true", f"input={wav}"], "a whisper has no pitch"),
        (["f0=180"], "input= is missing"),
        ([f"input={wav}", "f1=500", "method=lda"], "method=lda: choose from components, discriminants"),
        ([f"input={wav}", "f1=500", "method=discriminants", "share=0.9"], "share=0.9 is a setting of method=comp"),
        ([f"input={wav}"], "nothing is to change"),
    ):
        refused = program("control.py", *base, *words)
        assert refused.returncode == 1 and reason in refused.stderr and refused.stderr.count("\n") == 1
