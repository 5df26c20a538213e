"""Conditions of a test: what was asked for, the same in every run, whatever shares the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avdvae.data.conditions import Condition
from avdvae.data.loader import Loader
from avdvae.data.mixing import NOISES
from avdvae.data.prepare import Summary
from avdvae.data.shard_files import read_shard, write_manifest, write_shard
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.signals.audio import Stft


def noisy(corpus: PreparedCorpus, condition: Condition, batch_size: int, workers: int = 0) -> dict:
    loader = Loader(corpus, Stft(533), None, batch_size, seed=0, shuffle=False, workers=workers, condition=condition)
    out = {}
    for batch in loader:
        assert batch.lengths is not None and batch.mixture is not None
        assert batch.waveform is not None
        for b, name in enumerate(batch.ids):
            n, t = int(batch.lengths[b]), int(batch.mask[b].sum())
            lips = None if batch.lips is None else batch.lips[b, :t]
            out[name] = batch.waveform[b, :n], batch.mixture[b, :n], lips
    return out


def test_every_noise_has_the_snr_asked_for_and_is_the_same_whatever_shares_the_batch(prepared: Summary) -> None:
    corpus = PreparedCorpus(prepared.out)
    for name in NOISES:
        condition = Condition(corpus, name, snr_db=-5, lips="occluded", seed=3)
        alone, together = noisy(corpus, condition, batch_size=1), noisy(corpus, condition, batch_size=5, workers=1)
        assert len(alone) == len(corpus.utterances)
        for utterance, (clean, mixture, lips) in alone.items():
            snr = 10 * torch.log10(clean.square().sum() / (mixture - clean).square().sum())
            assert abs(snr + 5) < 0.01, (name, utterance)
            assert torch.equal(mixture, together[utterance][1]) and torch.equal(lips, together[utterance][2])


def test_seed_and_utterance_decide_and_nothing_else(prepared: Summary) -> None:
    corpus = PreparedCorpus(prepared.out, split="test")
    one, louder, other = (
        noisy(corpus, Condition(corpus, "White", snr, seed=seed), 2) for snr, seed in ((0, 0), (-6, 0), (0, 1))
    )
    noises = [{name: mixture - clean for name, (clean, mixture, _) in run.items()} for run in (one, louder, other)]
    for name, noise in noises[0].items():
        torch.testing.assert_close(noises[1][name], noise * 10 ** (6 / 20), atol=1e-4, rtol=1e-3)  # only louder
        assert abs(np.corrcoef(noise, noises[2][name])[0, 1]) < 0.1
    first, second = list(noises[0].values())[:2]
    common = min(len(first), len(second))
    assert abs(np.corrcoef(first[:common], second[:common])[0, 1]) < 0.1


def test_babble_is_made_of_other_speakers(prepared: Summary) -> None:
    corpus = PreparedCorpus(prepared.out)
    condition = Condition(corpus, "Babble", 0)
    for utterance in corpus.utterances:
        own = [corpus.audio(u) / np.float32(32768) for u in corpus.utterances if u.speaker == utterance.speaker]
        talkers = condition._talkers(utterance)
        assert len(talkers) == min(12, len(corpus.utterances) - len(own))
        assert not any(np.array_equal(talker, voice) for talker in talkers for voice in own)


def test_mere_sound_meets_the_same_noise_and_no_spoilt_lips(prepared: Summary, tmp_path: Path) -> None:
    seen = PreparedCorpus(prepared.out)
    clips, _ = read_shard(prepared.out / "shards" / "00000.safetensors")
    nothing = {"lips": np.zeros((0, 1, 1), np.uint8), "confidence": np.zeros(0, np.uint8), "fps": 0.0, "face_rate": 0.0}
    (tmp_path / "shards").mkdir()
    rows = write_shard(tmp_path / "shards" / "00000.safetensors", [replace(clip, **nothing) for clip in clips], {})
    write_manifest(tmp_path / "manifest.csv", rows)
    heard = PreparedCorpus(tmp_path)
    for name in ("White", "Babble"):
        one, two = (noisy(corpus, Condition(corpus, name, -5), batch_size=4) for corpus in (seen, heard))
        assert one.keys() == two.keys() and len(two) == 12
        for utterance, (_, mixture, lips) in two.items():
            assert lips is None and torch.equal(mixture, one[utterance][1])
    with pytest.raises(UserError, match=r"lips='occluded' needs lips and .* has only sound"):
        Condition(heard, "White", -5, lips="occluded")
