"""Code lengths in bits, and probes of latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_contract import utterances
from test_waveforms import small, sound

from avdvae.data.prepare import Summary
from avdvae.data.shards import PreparedCorpus
from avdvae.enhancement.variational import PointEstimate
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.evaluation.measure import measure
from avdvae.evaluation.results import Result, summarise
from avdvae.evaluation.tasks.task import Evaluation, Subject
from avdvae.latents.likelihood import bits_in_pieces, bound_bits, fitted_dmol, flac_bits, importance_bits
from avdvae.latents.neighbours import neighbours_right
from avdvae.models.cw_vae import CWVAE
from avdvae.models.lstm import LSTM
from avdvae.models.stcn import STCN
from avdvae.models.vae import VAE
from avdvae.pictures.figures import probe_curves
from avdvae.probability.pcm import CODES, DMoL
from avdvae.protocols import why_not_enhancing
from avdvae.signals.audio import Stft


def test_flac_counts_frames_alone():
    import io

    import soundfile

    rng = np.random.default_rng(0)
    noise = rng.integers(-CODES, CODES, 20_000).astype(np.int16)
    soft = (30 * rng.standard_normal(20_000)).astype(np.int16)
    assert flac_bits(np.zeros(20_000, np.int16), 16_000) < 0.1 * 20_000
    assert 16 * 20_000 < flac_bits(noise, 16_000) < 16.2 * 20_000  # nothing can be saved
    entropy = np.log2(30 * np.sqrt(2 * np.pi * np.e))
    assert entropy * 20_000 < flac_bits(soft, 16_000) < (entropy + 0.3) * 20_000
    file = io.BytesIO()
    soundfile.write(file, soft, 16_000, format="FLAC", subtype="PCM_16", compression_level=1.0)
    assert 8 * len(file.getvalue()) - flac_bits(soft, 16_000) > 8 * 42  # the marker and a block of 38 bytes at least


def test_the_fitted_mixture_is_a_distribution_and_fits():
    torch.manual_seed(0)
    true = DMoL.of(torch.tensor([[0.3, -0.3, 0.4, -0.35, -2.0, -2.5]]).expand(30_000, -1), "mu-law", "exact")
    drawn = true.sample()
    bits = fitted_dmol([(drawn * CODES).short().numpy()])
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-9)
    cost = bits[(drawn * CODES).int().numpy() + CODES].mean()
    best = -true.log_prob(drawn).mean().item() / np.log(2)
    assert best - 0.01 < cost < best + 1e-3


@pytest.mark.parametrize("kind", [CWVAE, STCN])
def test_more_draws_bring_the_bound_nearer(kind):
    torch.manual_seed(0)
    model, batch = small(kind), utterances(700, 1100).only("waveform")
    one, many = torch.stack([bound_bits(model, batch) for _ in range(10)]).mean(0), importance_bits(model, batch, 10)
    few = torch.stack([importance_bits(model, batch, 1) for _ in range(15)]).mean(0)
    assert (many < one).all()
    torch.testing.assert_close(few, one, rtol=0.02, atol=0)  # in the mean, one draw is the bound


def test_pieces_are_scored_as_utterances_of_their_own():
    model, batch = small(LSTM), utterances(700, 1100)
    whole, pieces = bound_bits(model, batch), bits_in_pieces(model, batch, 512)
    for b, lengths in enumerate(([512, 188], [512, 512, 76])):
        parts = batch.need("waveform", model)[b].split(512)
        alone = [bound_bits(model, sound(part[None, :n])).item() for part, n in zip(parts, lengths, strict=False)]
        assert pieces[b].item() == pytest.approx(sum(alone), rel=1e-5)
    assert (pieces - whole).abs().min() > 1  # an LSTM without the samples before
    torch.testing.assert_close(bits_in_pieces(model, batch, 2000), whole, rtol=1e-5, atol=0)


def test_bits_are_a_ratio_of_totals():
    def row(item: str, metric: str, value: float) -> Result:
        return Result("r", "m", "likelihood", "c", "test", item, item, "", None, "", metric, value)

    rows = [row("a", "bits_per_frame", 4.0), row("a", "samples", 1000), row("b", "bits_per_frame", 8.0)]
    rows += [row("b", "samples", 3000), row("a", "probe", 4.0), row("b", "probe", 8.0)]
    means = {item["metric"]: item["mean"] for item in summarise(rows)}
    assert means["bits_per_frame"] == 7.0 and means["probe"] == 6.0


def test_neighbours_predict_labels_from_features_that_hold_them_alone():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    features = np.eye(4)[labels] @ rng.standard_normal((4, 10)) + 0.1 * rng.standard_normal((120, 10))
    assert neighbours_right(features, labels, np.arange(120), 3, [1, 9]).mean(1).min() > 0.97
    # On noise with many features, discriminants fitted to all points would predict nearly every label.
    noise, coin = rng.standard_normal((90, 60)), rng.integers(0, 2, 90)
    assert 0.25 < neighbours_right(noise, coin, np.arange(90), 1, [5]).mean() < 0.75
    # Features of the speaker do not predict other speakers' labels, drawn for each.
    speakers = np.repeat(np.arange(30), 4)
    voices = rng.standard_normal((30, 8))[speakers] + 0.01 * rng.standard_normal((120, 8))
    drawn = rng.integers(0, 2, 30)[speakers]
    assert neighbours_right(voices, drawn, np.arange(120), 1, [1]).mean() > 0.95
    assert neighbours_right(voices, drawn, speakers, 1, [1]).mean() < 0.75
    # A label that one speaker alone has cannot be predicted from the others.
    assert not neighbours_right(voices, (speakers == 3).astype(int), speakers, 1, [1])[0, speakers == 3].any()


def subject_of(model: Any, prepared: Summary, out: Path, **settings: Any) -> Subject:
    corpus = PreparedCorpus(prepared.out, "train", verify=False)
    evaluation = Evaluation(**{"split": "train", "workers": 1, "examples": 1, "neighbours": (1, 3), **settings})
    return Subject(
        model, corpus, Stft(256), Vem(PointEstimate(steps=1), iterations=1), evaluation, out, "m", 3, part_size=2
    )


def test_likelihood_from_the_corpus_to_the_rows(prepared, tmp_path):
    asked = {"importance": 2, "pieces": 8192}
    rows = measure(subject_of(small(CWVAE), prepared, tmp_path, tasks=("likelihood",), per_speaker=1, **asked))
    bits = {metric: [r.value for r in rows if r.metric == metric] for metric in {r.metric for r in rows}}
    assert len(bits["bits_per_frame"]) == len({row.item for row in rows}) > 2
    assert all(value == 16 for value in bits["uniform_bits"])
    assert np.mean(bits["bits_in_pieces"]) == pytest.approx(np.mean(bits["bits_per_frame"]), rel=0.1)
    # Talker's recordings have noise of their own: FLAC needs more than 2 bits, and less than one mixture for all.
    assert 2 < np.mean(bits["flac_bits"]) < np.mean(bits["dmol_bits"]) < np.mean(bits["bits_per_frame"]) < 40
    corpus = PreparedCorpus(prepared.out, "train", verify=False)
    for utterance in corpus.choose(1, 1.0).utterances:
        samples = next(r.value for r in rows if (r.item, r.metric) == (utterance.id, "samples"))
        assert 0.5 * len(corpus.audio(utterance)) < samples <= len(corpus.audio(utterance))
    assert len([*tmp_path.glob("audio/*.wav")]) == 4


@pytest.mark.parametrize("model", [small(CWVAE), VAE(dim=4)], ids=["cw_vae", "vae"])
def test_probes_cover_every_latent(model, prepared, tmp_path):
    rows = measure(subject_of(model, prepared, tmp_path, tasks=("probe",), per_speaker=None))
    asked = {row.metric for row in rows}
    latents = {"mel"} | {spec.name for spec in model.latents}
    for label in ("phoneme", "sex", "speaker", "tract"):
        assert {f"{label}_{latent}_k1" for latent in latents} <= asked
    for label in ("phoneme", "sex"):
        assert {f"{label}_{latent}_k3" for latent in latents} <= asked
    assert not {f"emotion_{latent}_k3" for latent in latents} & asked  # an utterance or two have each
    means = {item["metric"]: item["mean"] for item in summarise(rows)}
    assert all(0 <= mean <= 1 for mean in means.values())
    assert means["phoneme_mel_k3"] > 0.25 and means["sex_mel_k1"] > 0.5  # of some thirty phonemes
    assert (tmp_path / "figures" / "m_probe.png").exists()


def test_labels_and_latents_of_several_words_stay_apart_in_the_figure():
    metrics = "height_cm_mel_k1", "height_cm_z_av_k1", "height_cm_z_av_k5", "sex_z_av_k1", "sex_w_k1"
    figure = probe_curves(
        [{"metric": metric, "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6} for metric in metrics], ["sex", "height_cm"]
    )
    assert {ax.get_title("left") for ax in figure.axes} == {"height cm", "sex"}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"mel", "z_av", "w"}


def test_errors_name_the_models_that_a_task_takes(prepared, tmp_path):
    message = "CWVAE cannot enhance, for it is a model of samples, .*: choose a model that has one, such as exp=vae"
    with pytest.raises(UserError, match=message):
        measure(subject_of(small(CWVAE), prepared, tmp_path, tasks=("enhancement",)))
    assert why_not_enhancing(VAE()) is None
    assert "is a model of poses" in (why_not_enhancing(VAE(51, observes="pose")) or "")
    for model, task, why in (
        (VAE(), "likelihood", "VAE gives densities, not probabilities of 16-bit samples"),
        (small(LSTM), "probe", "LSTM has no latents to probe"),
        (small(LSTM), "enhancement", "LSTM cannot enhance, for it is a model of samples"),
    ):
        with pytest.raises(UserError, match=why):
            measure(subject_of(model, prepared, tmp_path, tasks=(task,)))
    with pytest.raises(UserError, match=r"evaluate\.importance=3: give 1, 2, 3, \.\.\. draws of latents, or null"):
        measure(subject_of(small(LSTM), prepared, tmp_path, tasks=("likelihood",), importance=3))
