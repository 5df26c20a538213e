"""The tasks that look at faces, on recordings whose speaker, mood and mouth are known, and models whose answers are."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avdvae.configurations import compose
from avdvae.data.shard_files import PreparedClip, write_manifest, write_shard
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.variational import PointEstimate
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.measure import check_tasks, measure
from avdvae.evaluation.results import read_results
from avdvae.evaluation.tasks.task import Evaluation, Subject
from avdvae.latents.probes import Classes, Line, Speakers, correlation
from avdvae.models.mdvae import MDVAE
from avdvae.models.vae import VAE
from avdvae.probability.gaussian import Gaussian
from avdvae.probability.objectives import Elbo, Schedule
from avdvae.probability.observed import Picture
from avdvae.probability.spectrum import ComplexGaussian
from avdvae.protocols import Batch, Context, Inferred, LatentSpec
from avdvae.runs import build_model, open_run
from avdvae.signals.audio import Stft
from avdvae.signals.metrics import psnr, ssim

PROJECT = Path(__file__).parent.parent
MOODS = ("happy", "sad")
COUNTS = {"test": (3, 4), "train": (4, 2), "valid": (1, 2)}  # speakers, and takes of each


class Apart(nn.Module):
    """What stays is the mean over time, of ln |s|^2 and pixels, and what moves is the rest."""

    observes = "power"
    latents = (
        LatentSpec("w", 513 + 12288, None, "audio-visual"),
        LatentSpec("z", 513 + 12288, 1, "audio-visual"),
    )
    sees = ("power", "face")
    can_miss = ()

    def context(self, batch: Batch) -> Context:
        return Context(batch.mask)

    def infer(self, batch: Batch, k: int = 1, mode: str = "sample") -> Inferred:
        heard = (batch.need("power", self) + 1e-6).log()
        x = torch.cat([heard, batch.need("face", self).flatten(2) / 255], -1)[None]
        mean = x.mean(2, keepdim=True)
        z = {"w": mean, "z": x - mean}
        q = {name: Gaussian(value, torch.zeros(1)) for name, value in z.items()}
        return Inferred(z, q, q)

    def decode(self, z, context: Context, feedback: Tensor | None = None):
        heard, seen = (z["w"] + z["z"]).split([513, 12288], -1)
        return {"power": ComplexGaussian(heard), "face": Picture(seen.unflatten(-1, (64, 64, 3)))}

    def log_prior(self, z, context: Context) -> Tensor:
        return z["z"].sum(-1)

    def sample_prior(self, context: Context, k: int = 1, given=None):
        raise NotImplementedError

    def forward(self, batch: Batch, schedule: Schedule) -> Elbo:
        raise NotImplementedError


def clip(split: str, speaker: int, take: int) -> PreparedClip:
    """A voice of one harmonic series and a face of one colour; mouth and eyes open as the voice grows loud."""
    rng, mood = np.random.default_rng([speaker, take]), (speaker + take) % 2
    opening = np.abs(np.sin(np.arange(60) * (0.2 + 0.05 * rng.random()) + take))
    time = np.arange(32_000) / 16_000
    loud = np.interp(time, np.arange(60) / 30, 0.1 + opening)
    voice = sum(np.sin(2 * np.pi * (110 + 25 * speaker) * k * time) / k for k in range(1, 20))
    hiss = (0.02 + 0.3 * mood) * rng.normal(size=32_000)
    face = np.tile(np.array([50 + 25 * speaker, 120, 200 - 20 * speaker]), (60, 64, 64, 1)).astype(float)
    face[:, 40:54, 20:44] *= (1 - 0.8 * opening)[:, None, None, None]
    face[:, 18:24, 14:50] *= (1 - 0.5 * opening)[:, None, None, None]
    face[:, 4:10] += 40 * mood
    face += rng.normal(0, 1, face.shape)
    lips = np.zeros((60, 4, 4), np.uint8)
    return PreparedClip(
        id=f"{split}{speaker}/{take}",
        corpus="made",
        split=split,
        speaker=f"{split}{speaker}",
        labels={"emotion": MOODS[mood]},
        audio=(2000 * loud * (voice + hiss)).clip(-32000, 32000).astype(np.int16),
        lips=lips,
        confidence=np.full(60, 255, np.uint8),
        face=face.clip(0, 255).astype(np.uint8),
        mouth=np.stack([opening, np.ones(60)], 1).astype(np.float32),
        rate=16_000,
        fps=30.0,
        face_rate=1.0,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    (root / "shards").mkdir()
    clips = [clip(split, *both) for split, sizes in COUNTS.items() for both in np.ndindex(sizes)]
    write_manifest(root / "manifest.csv", write_shard(root / "shards" / "00000.safetensors", clips, {}))
    return root


def subject(root: Path, out: Path, model: nn.Module, *tasks: str) -> Subject:
    settings = Evaluation(tasks=tasks, per_speaker=None, metrics=["si_sdr"], examples=0, workers=1)
    vem = Vem(PointEstimate(), iterations=1, rank=2)
    return Subject(model, PreparedCorpus(root, "test"), Stft(533), vem, settings, out, "model")


def test_transfer_measures_whose_voice_face_mouth_and_words_the_result_has(root, tmp_path):
    rows = measure(subject(root, tmp_path, Apart(), "transfer"))
    mean = {metric: np.mean([row.value for row in rows if row.metric == metric]) for metric in {r.metric for r in rows}}
    assert len({row.item for row in rows}) == 12
    kinds = (("kept", "source", "source"), ("w", "donor", "source"), ("z", "source", "donor"))
    for name, speaker, moves in (*kinds, ("moments", "donor", "source")):
        assert all(mean[f"{name}_{what}_of_{speaker}"] > 0.8 for what in ("voice", "face", "mood")), name
        assert mean[f"{name}_opening_as_{moves}"] > 0.95, name
    assert mean["w_voice_of_source"] < 0.2 and mean["z_face_of_donor"] < 0.2
    assert mean["w_cepstra_as_source"] > mean["w_cepstra_as_donor"] + 0.1
    assert mean["z_cepstra_as_donor"] > mean["z_cepstra_as_source"] + 0.1
    assert mean["w_opening_as_donor"] < 0.8 and mean["z_opening_as_source"] < 0.8
    assert not any(metric.startswith("kept") and "donor" in metric for metric in mean)


def test_speaker_classifiers_are_not_enrolled_with_the_clips_they_classify(tmp_path):
    """Where the two clips of a speaker have nothing in common, nobody can be read; one clip of a speaker is too few."""
    clips = [replace(clip("test", n, 0), id=f"{n}", speaker=f"s{n % 4}") for n in range(8)]
    clips += [clip("train", n // 2, n % 2) for n in range(8)]

    def prepared(name: str, chosen: list[PreparedClip]) -> Path:
        (tmp_path / name / "shards").mkdir(parents=True)
        shard = write_shard(tmp_path / name / "shards" / "00000.safetensors", chosen, {})
        write_manifest(tmp_path / name / "manifest.csv", shard)
        return tmp_path / name

    rows = measure(subject(prepared("strangers", clips), tmp_path / "out", Apart(), "transfer"))
    for what in ("voice", "face"):
        assert np.mean([row.value for row in rows if row.metric == f"kept_{what}_of_source"]) < 0.5, what
    single = prepared("single", clips[1:])
    with pytest.raises(UserError, match=r"task transfer: s0 has one utterance .* give two or more of each speaker"):
        check_tasks(subject(single, tmp_path / "out", Apart(), "transfer"))
    lonely = prepared("lonely", clips[:8] + clips[8::2])
    with pytest.raises(UserError, match=r"0 speakers of the train split .* have two utterances or more"):
        check_tasks(subject(lonely, tmp_path / "out", Apart(), "transfer"))


def test_speakers_are_named_by_few_clips_whose_words_differ():
    """Words differ by more than speakers, in other directions; Bayes' rule with the true covariances is the oracle."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=g)
    spread_B, spread_W = torch.tensor([3.0] * 4 + [0.0] * 8), torch.tensor([0.7] * 4 + [2.5] * 8)
    speakers = [f"{n // 2}" for n in range(1200)]
    x = torch.randn(600, 12, generator=g).repeat_interleave(2, 0) * spread_B
    x = (x + torch.randn(1200, 12, generator=g) * spread_W) @ mixing + 7
    fitted = Speakers.fit(x[:1000], speakers[:1000], dims=6)
    torch.testing.assert_close(fitted.between_D[-4:], torch.full((4,), (3 / 0.7) ** 2), rtol=0.4, atol=0)
    assert (fitted.between_D[:2] < 0.5).all()
    back = torch.linalg.inv(mixing)
    right, ideal = [], []
    for first in range(1000, 1200, 20):  # ten speakers, enrolled by a clip each
        name = fitted.enrolled(x[first : first + 20 : 2], speakers[first : first + 20 : 2])
        right += [name(x[n]) == speakers[n] for n in range(first + 1, first + 20, 2)]
        u = (x[first : first + 20] @ back)[:, :4]
        ideal += (torch.cdist(u[1::2], u[::2]).argmin(1) == torch.arange(10)).tolist()
    assert np.mean(right) > np.mean(ideal) - 0.03 > 0.9
    near = ((x[:1000:2] - x[1:1000:2]).square().sum(1)).sqrt().mean()  # two clips of one lie as far apart as of two
    assert near > 0.75 * torch.pdist(x[:1000:2]).mean()


def test_denoising_and_emotion_measure_every_utterance(root, tmp_path):
    torch.manual_seed(0)
    model = MDVAE(size=16, memory=8, width=16, dim=4).eval()
    rows = measure(subject(root, tmp_path, model, "denoising", "emotion"))
    scores = {(row.task, row.metric): row.value for row in rows}
    assert len({row.item for row in rows}) == 12 and all(np.isfinite(row.value) for row in rows)
    for region in ("mouth", "eyes"):
        for how in ("", "_deaf", "_interpolated"):
            assert (
                0 < scores["denoising", f"psnr_{region}{how}"] < 60
                and -1 <= scores["denoising", f"ssim_{region}{how}"] <= 1
            )
    assert np.mean([row.value for row in rows if row.metric == "accuracy_raw_100"]) > 0.8
    assert {metric for task, metric in scores if task == "emotion"} == {
        f"accuracy_{kind}_{percent}" for kind in ("w", "raw") for percent in (1, 5, 10, 100)
    }


def test_models_without_faces_or_a_static_latent_are_refused(root, tmp_path):
    for task, message in (("denoising", "VAE encodes no faces"), ("emotion", "VAE has no latent of a whole utterance")):
        with pytest.raises(UserError, match=message):
            check_tasks(subject(root, tmp_path, VAE(), task))


def test_three_stages_are_trained_in_turn_measured_and_reported(root, tmp_path):
    """The tokenizers first, then the model on them."""
    words = ("exp=vq_mdvae", f"prepared={root}", "train=debug", f"runs={tmp_path}", f"run_dir={tmp_path}/vq_mdvae")
    program = [sys.executable, str(PROJECT / "experiments" / "run.py")]
    done = subprocess.run([*program, *words], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    starts = json.loads((tmp_path / "vq_mdvae/run.json").read_text())["start"]
    assert list(starts) == ["vqvae_audio", "vqvae_face"] and all(Path(path).is_dir() for path in starts.values())
    curves = [json.loads(line) for line in (Path(starts["vqvae_face"]) / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < curve["valid/usage"] <= 1 <= curve["valid/perplexity"] for curve in curves if "valid/usage" in curve)
    tasks = {row.task for row in read_results(tmp_path / "vq_mdvae/results.csv")}
    assert tasks == {"transfer", "denoising", "emotion", "resynthesis"}
    assert "denoising" in (tmp_path / "vq_mdvae/report.html").read_text()
    model: Any = open_run(tmp_path / "vq_mdvae").load_model()
    eye: Any = open_run(Path(starts["vqvae_face"])).load_model()
    assert torch.equal(model.vqvae_v.codebook.words_CL, eye.codebook.words_CL)


def test_the_configurations_of_published_size_have_it():
    for words, count in (
        (["exp=vq_mdvae_paper", "model.paper=true"], 8_484_568 + 512 + 2048),
        (["exp=vqvae_face_paper"], 949_603),
    ):
        model = build_model(compose("config", words)["model"])
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_readers_find_what_is_there():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g)
    labels = ["loud" if value > 0 else "soft" for value in x[:, 2].tolist()]
    classes = Classes.fit(x, labels)
    right = [classes.name(row) == label for row, label in zip(x, labels, strict=True)]
    assert np.mean(right) > 0.97
    torch.testing.assert_close(classes.log_probs(x).exp().sum(-1), torch.ones(200))
    slope = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])
    torch.testing.assert_close(Line.fit(x, x @ slope, 1e-6)(x), x @ slope, atol=1e-3, rtol=1e-3)
    assert correlation(x, 3 * x + 1) == pytest.approx(1) and correlation(x, -x) == pytest.approx(-1)


def test_psnr_and_ssim():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 20, 20, generator=g)
    assert ssim(x, x) == pytest.approx(1) and psnr(x, x + 0.1) == pytest.approx(20, abs=1e-3)
    assert 0.9 < ssim(x, (x + 0.05).clamp(0, 1)) < 1 and abs(ssim(x, torch.rand(2, 3, 20, 20, generator=g))) < 0.1
    # One window, by its definition.
    a, b = x[:1, :1, :7, :7], x[1:, :1, :7, :7]
    covariance = torch.cov(torch.stack([a.flatten(), b.flatten()]))
    expected = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
    expected = expected / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4))
    assert ssim(a, b) == pytest.approx(float(expected), abs=1e-5)
