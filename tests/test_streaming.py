"""Enhancement as the sound arrives: in any pieces, after an interruption, through pipes, near the offline result."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drawn_faces import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly
from test_enhance import make_run

from avdvae.data.prepare import Summary
from avdvae.enhancement.learned import Learned, LearnedPosterior
from avdvae.enhancement.markov_chains import Langevin
from avdvae.enhancement.separation import Pictures, separate
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.enhancement.variational import FrameAdam, FreeGaussian
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.again import evaluate_again
from avdvae.evaluation.results import read_results
from avdvae.models.av_vae import AVVAE
from avdvae.models.dkf import DKF
from avdvae.models.dsae import DSAE
from avdvae.models.rvae import RVAE
from avdvae.models.srnn import SRNN
from avdvae.models.vae import VAE
from avdvae.models.vae_mm import VAEMM
from avdvae.protocols import Batch
from avdvae.runs import build_vem, open_run
from avdvae.signals.arriving import Frames, Lips, OverlapAdd, Resampler
from avdvae.signals.audio import Stft
from avdvae.signals.metrics import score, si_sdr

STFT = Stft(256)
VEM = Vem(FreeGaussian(final_draws=2), rank=2)
QUICK = Streaming(block=0.16, look_ahead=1, iterations=1, forgetting=0.9)
PROGRAM = Path(__file__).parent.parent / "experiments" / "enhance.py"


def vae() -> Any:
    torch.manual_seed(0)
    return VAE(hidden=8, dim=4, floor=1.0).eval().requires_grad_(False)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """Noise with bursts of a tone, and a gap of digital silence."""
    rng, time = np.random.default_rng(seed), np.arange(samples) / 16_000
    mixed = 0.05 * rng.standard_normal(samples) + 0.3 * np.sin(2500 * time) * (np.sin(9 * time) > 0)
    mixed[samples // 2 : samples // 2 + 2500] = 0
    return mixed.astype(np.float32)


def streamed(stream: Stream, *pieces: np.ndarray) -> np.ndarray:
    return np.concatenate([*(stream.push(piece) for piece in pieces), stream.finish()])


def av_vae() -> Any:
    torch.manual_seed(0)
    return AVVAE(hidden=8, dim=4).eval().requires_grad_(False)


def learned(then: FreeGaussian | None) -> Vem:
    torch.manual_seed(1)
    network = LearnedPosterior(vae(), width=8)
    for last in (network.share_head, network.heads["z"][-1]):  # type: ignore[index]
        torch.nn.init.normal_(last.weight, std=0.1)
    return replace(VEM, estep=Learned(then=then, network=network.eval().requires_grad_(False)))


ESTEPS: dict[str, Any] = {
    "free Gaussian": lambda: VEM,
    "learned": lambda: learned(FreeGaussian(final_draws=2)),
    "learned, the encoder alone": lambda: learned(None),
}
FPS = 25.0


def mouths(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops that change, and their confidence, of which some is 0."""
    crops = np.random.default_rng(3).integers(0, 256, (count, 67, 67), np.uint8)
    return crops, (np.arange(count) % 5 > 0).astype(np.float32)


@pytest.mark.parametrize("rates", [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (8_000, 16_000)])
@given(cuts=st.lists(st.integers(0, 3001), max_size=8))
@settings(max_examples=10, deadline=None)
def test_resampling_in_pieces_is_that_of_the_whole(rates, cuts):
    samples = sound(3001)
    whole, cut = Resampler(*rates), Resampler(*rates)
    expected = torch.cat([whole.push(torch.from_numpy(samples)), whole.finish()]).numpy()
    np.testing.assert_allclose(expected, resample_poly(samples, rates[1], rates[0]), atol=1e-6)
    pieces = [cut.push(torch.from_numpy(piece)) for piece in np.split(samples, sorted(cuts))]
    np.testing.assert_array_equal(torch.cat([*pieces, cut.finish()]).numpy(), expected)
    assert len(cut.samples) < 200


@pytest.mark.parametrize(("hop", "synthesis"), [(256, 1024), (533, 1024), (128, 256), (256, 512)])
@pytest.mark.parametrize("length", [1, 300, 512, 513, 514, 1000, 4096, 5003])
def test_the_stft_in_pieces_is_that_of_the_whole_and_its_inverse_gives_the_sound(hop, synthesis, length):
    stft, samples = Stft(hop), torch.from_numpy(sound(length))
    frames, added = Frames(stft), OverlapAdd(stft, synthesis)
    spectra, made = [], []
    for number, piece in enumerate([*samples.split(700), None]):
        if piece is None:
            added.length = frames.given
            frames.end()
        else:
            frames.push(piece)
        while frames.ready:
            spectra.append(frames.take(1))
            made.append(added.add(spectra[-1]))
        late = min(700 * (number + 1), length) - sum(map(len, made))
        assert late < max(synthesis + hop, 513), "the latency is that of the window"
    expected = stft.analyse(samples[None])
    torch.testing.assert_close(torch.cat(spectra), expected[0])
    back = torch.cat([*made, added.finish()])
    reference = stft.synthesise(expected, length)[0] if synthesis == 1024 else samples
    torch.testing.assert_close(back, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("estep", ESTEPS)
@given(cuts=st.lists(st.integers(0, 6000), max_size=12), saved=st.integers(0, 12))
@settings(max_examples=5, deadline=None)
def test_neither_the_pieces_nor_an_interruption_change_the_output(estep, cuts, saved):
    settings, samples, vem = replace(QUICK, move=2), sound(6000), ESTEPS[estep]()
    expected = streamed(Stream(vae(), STFT, vem, settings, 22_050), samples)
    assert len(expected) == len(samples) and np.isfinite(expected).all()
    stream, got = Stream(vae(), STFT, vem, settings, 22_050), []
    for number, piece in enumerate(np.split(samples, sorted(cuts))):
        if number == saved:
            state = pickle.loads(pickle.dumps(stream.state_dict()))
            stream.push(samples)  # which the state does not share
            stream = Stream(vae(), STFT, vem, settings, 22_050)
            stream.load_state_dict(state)
        got.append(stream.push(piece))
    np.testing.assert_array_equal(np.concatenate([*got, stream.finish()]), expected)


@cache
def by_a_film(shown: float) -> np.ndarray:
    (crops, confidence), samples = mouths(9), sound(4800)  # which lasts 7.5 pictures
    film = Pictures((shown * crops).astype(np.uint8), (255 * confidence).astype(np.uint8), FPS)
    return streamed(Stream(av_vae(), STFT, VEM, QUICK, pictures=film), samples)


@given(
    cuts=st.lists(st.integers(0, 4800), min_size=5, max_size=5),
    looks=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    saved=st.integers(0, 6),
)
@settings(max_examples=5, deadline=None)
def test_lips_that_arrive_are_those_of_a_film_however_sound_and_pictures_are_cut(cuts, looks, saved):
    assert np.abs(by_a_film(shown=1) - by_a_film(shown=0)).max() > 1e-4
    stream, got, (crops, confidence) = Stream(av_vae(), STFT, VEM, QUICK, pictures=Lips(FPS)), [], mouths(9)
    pieces, seen = np.split(sound(4800), sorted(cuts)), np.split(np.arange(9), sorted(looks))
    for number, (piece, look) in enumerate(zip(pieces, seen, strict=True)):
        if number == saved:
            state = pickle.loads(pickle.dumps(stream.state_dict()))
            stream = Stream(av_vae(), STFT, VEM, QUICK, pictures=Lips(FPS))
            stream.load_state_dict(state)
        got.append(stream.push(piece, crops[look], confidence[look]))
    np.testing.assert_array_equal(np.concatenate([*got, stream.finish()]), by_a_film(shown=1))


def test_sound_waits_for_its_pictures_and_without_any_the_lips_are_black():
    samples, (crops, _) = sound(3600), mouths(4)
    stream = Stream(av_vae(), STFT, VEM, QUICK, pictures=Lips(FPS))
    assert not len(stream.push(samples)), "no picture has arrived"
    first = stream.push(samples[:0], crops)  # until 0.14 s, 2240 samples
    assert 2240 - 1024 - 2 * 256 < len(first) <= 2240
    assert len(first) + len(stream.finish()) == len(samples), "the last is repeated"
    black = Pictures(np.zeros((1, 67, 67), np.uint8), np.zeros(1, np.uint8), FPS)
    none = streamed(Stream(av_vae(), STFT, VEM, QUICK, pictures=Lips(FPS)), samples)
    np.testing.assert_array_equal(none, streamed(Stream(av_vae(), STFT, VEM, QUICK, pictures=black), samples))


def test_new_frames_begin_at_the_learned_posterior_and_keep_their_place():
    """By an E-step after it that does not move: each frame stays as it was encoded when it was the newest."""
    vem, encoded = learned(FreeGaussian(lr=0.0, final_draws=2)), []
    estep: Any = vem.estep

    class Watched(LearnedPosterior):
        def infer(self, noisy_BTF, noise_BTF, batch):
            assert noisy_BTF.shape == noise_BTF.shape and len(batch.mask[0]) == noisy_BTF.shape[1] <= 16
            encoded.append((inferred := super().infer(noisy_BTF, noise_BTF, batch)).q["z"].mean)
            return inferred

    estep.network.__class__ = Watched
    stream = Stream(vae(), STFT, vem, QUICK)
    stream.push(sound(8000)[:3800])
    assert stream.block and len(encoded) == stream.moved > 10
    newest = torch.cat([mean[:, -1:] for mean in encoded], 1)
    held = stream.block.latents["z"][0][0]
    torch.testing.assert_close(held, newest[:, -held.shape[1] :], rtol=0, atol=0)
    assert not torch.equal(encoded[-1][:, -2], held[:, -2]), "encoded anew, it would differ"


def bytes_held(state: Any) -> int:
    if isinstance(state, dict):
        return sum(map(bytes_held, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(bytes_held, state))
    return state.untyped_storage().nbytes() if isinstance(state, torch.Tensor) else 8


@pytest.mark.parametrize("kind", [*ESTEPS, "lips"])
def test_the_state_does_not_grow_and_the_latency_is_what_it_says(kind):
    vem, held, late = ESTEPS.get(kind, lambda: VEM)(), [], []
    stream = Stream(vae(), STFT, vem, QUICK)
    if kind == "lips":
        stream = Stream(av_vae(), STFT, vem, QUICK, pictures=Lips(16_000 / 700))
    for number in range(40):
        lips = mouths(1) if kind == "lips" else ()
        out = stream.push(np.resize(sound(1000), 700) * np.float32(0.5 + number % 3), *lips)
        late.append(stream.given - stream.came_out)
        assert np.isfinite(out).all()
        if number % 10 == 9:
            stream.push(np.zeros((-stream.given) % 256, np.float32))
            held.append(bytes_held(stream.state_dict()))
    assert max(held[1:]) <= held[1] + 4 * 1024, "but for sound that waits for the rest of its frame"
    assert stream.latency == pytest.approx(1000 * (1024 + 256) / 16_000)
    assert max(late) < 1024 + 2 * 256 + (700 if kind == "lips" else 0), "and as long as the next picture"


MODELS: dict[str, Any] = {
    "rvae": lambda: RVAE(hidden=8, dim=4),
    "dkf": lambda: DKF(hidden=8, dim=4),
    "autoregressive": lambda: SRNN(hidden=8, dim=4, wide=8),
    "latent of the utterance": lambda: DSAE(hidden=8, dim=4, dim_v=3, narrow=(8,)),
    "lips": lambda: AVVAE(hidden=8, dim=4),
    "mixture": lambda: VAEMM(VAE(hidden=8, dim=4), AVVAE(hidden=8, dim=4)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_any_model_streams(kind):
    torch.manual_seed(0)
    model, crops = MODELS[kind]().eval().requires_grad_(False), np.zeros((3, 67, 67), np.uint8)
    pictures = Pictures(crops, np.full(3, 255, np.uint8), 10.0) if "lips" in model.sees else None
    samples = sound(8000)
    clean = streamed(Stream(model, STFT, VEM, QUICK, pictures=pictures), *np.split(samples, [900, 6000]))
    assert len(clean) == 8000 and np.isfinite(clean).all() and not clean[5000:5400].any(), "silence stays silent"
    assert 0 < np.square(clean).sum() < np.square(samples).sum()


def test_each_move_has_two_iterations_and_one_by_the_learned_e_step():
    steps = []

    class Counted(FreeGaussian):
        def step(self, target, state, random):
            steps.append(1)
            return super().step(target, state, random)

    for vem, each in ((replace(VEM, estep=Counted()), 2), (learned(Counted()), 1)):
        stream = Stream(vae(), STFT, vem, Streaming(block=0.16))
        stream.push(sound(8000)[:3000])
        assert len(steps) == each * stream.moved > 0
        steps.clear()


def packaged() -> tuple[Any, Vem]:
    run = open_run(Path("vae-librispeech"))
    return run.load_speech_prior(), build_vem(run.config["enhance"])


def decoded(model: Any, frames: int, seed: int) -> torch.Tensor:
    """Speech as the model might have decoded it."""
    generator = torch.Generator().manual_seed(seed)
    z_KBTL = torch.randn(1, 1, frames // 8, 16, generator=generator).repeat_interleave(8, 2)
    context = model.context(Batch(("a",), torch.ones(1, frames).bool()))
    power_BTF = model.decode({"z": z_KBTL}, context)["power"].expected[0]
    speech = STFT.with_phase(power_BTF, 6.3 * torch.rand(power_BTF.shape, generator=generator), (frames - 1) * 256)[0]
    return speech / speech.abs().max()


def test_in_a_long_block_the_result_is_nearly_that_of_the_whole():
    model, vem = packaged()
    speech = decoded(model, 96, 0)
    noisy = speech + 0.1 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, STFT.frames(len(noisy)), dtype=torch.bool)
    batch = Batch(("a",), mask, mixture=noisy[None], lengths=torch.tensor([len(noisy)]))
    whole = separate(model, batch, STFT, vem).speech[0].numpy()

    def from_whole(**given: Any) -> float:
        stream = Stream(model, STFT, vem, Streaming(iterations=2, forgetting=1.0, **given))
        return score(whole, streamed(stream, noisy.numpy()), 16_000, ["si_sdr"])["si_sdr"]

    long, short = from_whole(block=3.0, look_ahead=120), from_whole(block=0.3, look_ahead=0)
    assert long > 15 and long > short + 3


def test_after_a_change_of_noise_the_output_is_better_than_the_mixture_within_a_second():
    model, vem = packaged()
    rng, gains = np.random.default_rng(2), []
    for seed in (0, 2):  # which speak in the piece that is scored
        speech, change = decoded(model, 160, seed).numpy(), 80 * 256
        speech *= np.sin(np.arange(len(speech)) / 2500).clip(0)  # with pauses
        noise = rng.standard_normal(len(speech))
        noise[:change] = np.convolve(noise, np.full(16, 1 / 16), "same")[:change]  # without high frequencies
        noisy = (speech + 0.1 * noise).astype(np.float32)
        clean = streamed(Stream(model, STFT, vem), noisy)
        after = slice(change + 4000, change + 16_000)
        gains.append(si_sdr(speech[after], clean[after]) - si_sdr(speech[after], noisy[after]))
    assert min(gains) > 2, gains


def test_adam_with_ages_is_that_of_torch_and_a_new_frame_begins_as_if_alone():
    torch.manual_seed(0)
    own = [torch.zeros(1, 1, 5, 3), torch.zeros(1, 1, 5, 2)]
    theirs, alone = [z.clone() for z in own], [z[..., 4:, :].clone() for z in own]
    torch_adam = torch.optim.Adam(theirs, 0.05, maximize=True)
    adam, apart = FrameAdam(own, 0.05), FrameAdam(alone, 0.05)
    slopes = [[10**step * torch.randn(z.shape) for z in own] for step in (-3, 1, 0, -1, 2, 0)]
    for step in slopes:
        for z, other, slope in zip(own, theirs, step, strict=True):
            z.grad = other.grad = slope
        adam.step()
        torch_adam.step()
    for z, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(z, other, atol=1e-6, rtol=0)
    for z in (*own, *adam.moments):  # the last frame leaves, and another joins
        z[..., 4:, :] = 0
    for z in alone:
        z.zero_()
    for step in slopes:
        for z, one, slope in zip(own, alone, step, strict=True):
            z.grad, one.grad = slope, slope[..., 4:, :]
        adam.step()
        apart.step()
    for z, one in zip(own, alone, strict=True):
        torch.testing.assert_close(z[..., 4:, :], one, atol=1e-6, rtol=0)


def test_silence_numbers_that_are_none_and_changes_of_level_are_survived():
    stream, samples = Stream(vae(), STFT, VEM, QUICK), sound(4000)
    broken = samples.copy()
    broken[[100, 200, 300]] = np.nan, np.inf, 1e30
    pieces = [np.zeros(3000, np.float32), broken, 1e-4 * samples, np.zeros(0, np.float32), 100 * samples, samples]
    clean = streamed(stream, *pieces)
    assert len(clean) == sum(map(len, pieces)) and np.isfinite(clean).all()
    assert not clean[:2000].any() and np.abs(clean[7500:10_000]).max() < 1e-3 < np.abs(clean[11_500:14_000]).max()
    twin = streamed(Stream(vae(), STFT, VEM, QUICK), 8 * samples)
    np.testing.assert_allclose(twin, 8 * streamed(Stream(vae(), STFT, VEM, QUICK), samples), atol=1e-4)
    assert (
        not len(streamed(Stream(vae(), STFT, VEM, QUICK))) and len(streamed(Stream(vae(), STFT, VEM), samples[:7])) == 7
    )


def test_mistakes_are_explained():
    wrong: dict[str, Any]
    for wrong, complaint in (
        ({"block": 0.01}, "streaming.block=0.01: give 0.1 to 60"),
        ({"forgetting": 1.5}, "streaming.forgetting=1.5: give 0 to 1"),
        ({"iterations": 0}, "streaming.iterations=0"),
        ({"block": 0.2, "look_ahead": 30}, "do not hold look_ahead=30 .* give 0.51 seconds or more"),
        ({"synthesis": 300}, "streaming.synthesis=300: give 512 to 1024 samples"),
    ):
        with pytest.raises(UserError, match=complaint):
            Stream(vae(), STFT, VEM, Streaming(**wrong))
    model: Any
    for model, vem, rate, complaint in (
        (vae(), replace(VEM, estep=Langevin()), 16_000, "Langevin cannot follow a sound: give enhance.estep.name=free"),
        (vae(), replace(VEM, estep=Learned(then=Langevin())), 16_000, "Langevin cannot follow a sound"),
        (vae(), replace(VEM, paper=True), 16_000, "a stream takes enhance.paper=false"),
        (AVVAE(hidden=8, dim=4), VEM, 16_000, "AVVAE needs the lips, and a stream of sound has none"),
        (vae(), VEM, 100, "a sample rate of 100 Hz"),
    ):
        with pytest.raises(UserError, match=complaint):
            Stream(model, STFT, vem, QUICK, rate)
    stream = Stream(vae(), STFT, VEM, QUICK)
    with pytest.raises(UserError, match=r"samples of shape \(4, 2\)"):
        stream.push(np.zeros((4, 2)))
    with pytest.raises(UserError, match="begun without a camera"):
        stream.push(sound(4), mouths(1)[0])
    with pytest.raises(UserError, match=r"lips of shape \(2, 66, 67\) and type uint8, .* give \(2, 67, 67\)"):
        Stream(av_vae(), STFT, VEM, QUICK, pictures=Lips(FPS)).push(sound(4), np.zeros((2, 66, 67), np.uint8))
    with pytest.raises(UserError, match="rate=16000 and this one 8000"):
        Stream(vae(), STFT, VEM, QUICK, 8000).load_state_dict(stream.state_dict())
    stream.finish()
    with pytest.raises(UserError, match="the stream is finished"):
        stream.push(np.zeros(4))


def test_raw_sound_goes_through_pipes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "VAE")
    samples = (2**15 * sound(12_001)).astype("<i2")
    words = ["-", "-", f"run={run}", "rate=8000", "streaming.iterations=1", "streaming.block=0.3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, PROGRAM, *words], stdin=-1, stdout=-1, stderr=-1, cwd=tmp_path, env=environment
    ) as program:
        assert program.stdin and program.stdout and program.stderr
        program.stdin.write(samples[:10_000].tobytes() + b"\0")  # half a sample
        program.stdin.flush()
        first = program.stdout.read(16_000)  # comes while the input is open
        program.stdin.write(samples[10_000:].tobytes()[1:])
        program.stdin.close()
        rest, said = program.stdout.read(), program.stderr.read()
    assert program.returncode == 0, said
    clean = np.frombuffer(first + rest, "<i2")
    assert len(clean) == 12_001 and np.abs(clean).max() > 0
    assert b"latency    98 ms" in said and b"enhanced   1.5 s of sound" in said


def test_the_page_on_streaming_runs(tmp_path: Path) -> None:
    """docs/streaming.md, without ffmpeg, and its task on a small corpus."""
    page = (PROGRAM.parents[1] / "docs/streaming.md").read_text()
    (piped,), (block, with_lips) = (
        re.findall(r"\| avdvae (enhance .*) \\", page),
        re.findall(r"```python\n(.*?)```", page, re.DOTALL),
    )
    raw = (2**15 * sound(4_000)).astype("<i2").tobytes()
    words = [sys.executable, PROGRAM, *piped.split()[1:]]
    done = subprocess.run(words, input=raw, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout) == len(raw), done.stderr
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.stdout == "96 ms\n", done.stderr
    run, picture = SimpleNamespace(stft=STFT), draw_face(6)
    made: dict[str, Any] = {"model": av_vae(), "vem": VEM, "run": run, "picture": picture, "piece": sound(4_000)}
    made |= {"Stream": Stream, "np": np}
    exec(with_lips, made)
    assert made["confidence"] > 0.9 and made["stream"].moved == 2, "frames nearest to the first picture"


def test_streaming_is_measured_by_latency(tmp_path: Path, prepared: Summary) -> None:
    how = {
        "tasks": ["streaming"],
        "noises": ["White"],
        "snrs": [0],
        "per_speaker": 1,
        "workers": 1,
        "metrics": ["si_sdr"],
    }
    run = open_run(make_run(tmp_path / "run", "VAE"))
    changes = {"prepared": str(prepared.out), "evaluate": how, "enhance": {"iterations": 2}}
    rows = read_results(evaluate_again(run, changes, out=tmp_path / "out") / "results.csv")
    scores = {row.model: row.value for row in rows if row.metric == "si_sdr"}
    assert len(scores) == 4 and np.isfinite([*scores.values()]).all() and len({*scores.values()}) == 4


def test_mistakes_with_pipes_are_explained(avdvae_command, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "CVAE")
    assert "belong together" in avdvae_command("enhance", "-", "clean.wav", f"run={run}")
    assert "rate=None: raw sound has no rate of its own" in avdvae_command("enhance", "-", "-", f"run={run}")
    assert "CVAE needs the lips" in avdvae_command("enhance", "-", "-", f"run={run}", "rate=16000")
    assert "streaming.block=90" in avdvae_command("enhance", "-", "-", "rate=16000", "streaming.block=90")
