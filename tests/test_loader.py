"""Batches hold what the whole utterances hold, in an order that can be had again."""

# What a test reads of a batch is there, or the test fails.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from avdvae.data.loader import Loader, seen_by
from avdvae.data.shard_files import PreparedClip, Utterance, read_shard, write_manifest, write_shard
from avdvae.data.shards import PreparedCorpus
from avdvae.errors import UserError
from avdvae.models.cvae import CVAE
from avdvae.models.vae import VAE
from avdvae.protocols import Batch
from avdvae.signals.audio import Stft, trim_silence

RATE, FPS = 16_000, 30_000 / 1001
HOPS = pytest.mark.parametrize("hop", [256, 533])
FRAMES = pytest.mark.parametrize("frames", [1, 7, None])


def write_corpus(root: Path, sounds: list[np.ndarray], lips: list[np.ndarray]) -> PreparedCorpus:
    """Two clips a shard, so that batches draw from several."""
    (root / "shards").mkdir()
    clips = [
        PreparedClip(
            id=f"clip{n}",
            corpus="made",
            split="train",
            speaker=f"speaker{n}",
            labels={"number": n},
            audio=sound,
            lips=pictures,
            confidence=np.full(len(pictures), 255 - n, np.uint8),
            rate=RATE,
            fps=FPS if len(pictures) else 0.0,
            face_rate=1.0 if len(pictures) else 0.0,
        )
        for n, (sound, pictures) in enumerate(zip(sounds, lips, strict=True))
    ]
    rows = []
    for start in range(0, len(clips), 2):
        rows += write_shard(root / "shards" / f"{start:05}.safetensors", clips[start : start + 2], {})
    write_manifest(root / "manifest.csv", rows)
    return PreparedCorpus(root)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> PreparedCorpus:
    """Five clips of 0.02 to 1.1 s (the first shorter than half an STFT window), noise for sound and for pictures."""
    rng = np.random.default_rng(0)
    lengths = [300, 9_000, 17_056, 12_287, 12_288]
    sounds = [rng.integers(-9999, 9999, n, dtype=np.int16) for n in lengths]
    lips = [rng.integers(1, 255, (1 + round(n / RATE * FPS), 4, 5), dtype=np.uint8) for n in lengths]
    return write_corpus(tmp_path_factory.mktemp("corpus"), sounds, lips)


def load(corpus: PreparedCorpus, hop: int = 256, frames: int | None = 1, **settings) -> Loader:
    return Loader(corpus, Stft(hop), frames, **({"batch_size": 3, "seed": 0, "shuffle": True} | settings))


def peak_normalised(corpus: PreparedCorpus, utterance: Utterance) -> torch.Tensor:
    audio = torch.from_numpy(corpus.audio(utterance).astype(np.float32))
    return audio / audio.abs().max()


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a.ids == b.ids and a.labels == b.labels
        for name in ("mask", "lengths", "waveform", "power", "lips", "confidence", "pose"):
            one, two = getattr(a, name), getattr(b, name)
            assert one is two is None or torch.equal(one, two), name


@HOPS
@pytest.mark.parametrize("frames", [1, 2, 7, 500])
@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_are_pieces_of_the_whole(corpus, hop, frames, shuffle):
    """Each window consists of frames of the whole utterance, and every frame that is promised comes exactly once."""
    wholes = {u.id: Stft(hop).power(peak_normalised(corpus, u)[None])[0] for u in corpus.utterances}
    unseen = {name: torch.ones(len(whole), dtype=torch.int) for name, whole in wholes.items()}
    loader = load(corpus, hop, frames, shuffle=shuffle)
    for (utterance, first), batch, b in (
        (item, batch, b) for items, batch in zip(loader._batches(), loader, strict=True) for b, item in enumerate(items)
    ):
        row = corpus.utterances[utterance]
        whole, waveform = wholes[row.id], peak_normalised(corpus, row)
        real = min(frames, len(whole) - first)
        assert batch.ids[b] == row.id and batch.labels[b] == {"speaker": row.speaker, "number": utterance}
        assert batch.mask[b].tolist() == [True] * real + [False] * (frames - real) and batch.starts[b] == first
        torch.testing.assert_close(batch.power[b, :real], whole[first : first + real], atol=1e-5, rtol=1e-5)
        heard = waveform[first * hop : (first + frames) * hop]
        assert batch.lengths[b] == len(heard) and torch.equal(batch.waveform[b, : len(heard)], heard)
        torch.testing.assert_close(batch.confidence[b, :real], torch.full((real,), (255 - utterance) / 255))
        for padding in (
            batch.power[b, real:],
            batch.lips[b, real:],
            batch.confidence[b, real:],
            batch.waveform[b, len(heard) :],
        ):
            assert not padding.any()
        unseen[row.id][first : first + real] -= 1
    for missed in unseen.values():
        assert missed.min() >= 0
        assert missed.sum() == (len(missed) % frames if shuffle and len(missed) >= frames else 0)


def test_every_phase_has_its_epoch(corpus):
    loader = load(corpus, frames=7)
    starts = set()
    for loader.epoch in range(40):
        starts.update(int(first) for items in loader._batches() for utterance, first in items if utterance == 2)
        assert len(loader._batches()) == len(loader)
    assert starts == {7 * window + phase for window in range(9) for phase in range(5)}  # 67 frames: 4 to spare


@HOPS
@pytest.mark.parametrize("trim_db", [None, 30])
@pytest.mark.parametrize("frames", [1, 40, None])
def test_pictures_keep_to_the_clock(tmp_path, hop, trim_db, frames):
    """Pictures carry their number in their pixels and the sound its own time: 20 ms of level k in the k-th 20 ms."""
    seconds, tick = 75, 320
    number = np.arange(round(seconds * FPS) + 1)
    lips = np.stack([number // 256, number % 256], axis=1).astype(np.uint8)[:, None]
    level = np.repeat(np.arange(1, seconds * RATE // tick + 1), tick) * 8
    spoken = (np.arange(level.size) > 11_111) & (np.arange(level.size) < 70.3 * RATE)
    loud = np.where(spoken, level, level % 3).astype(np.int16)
    corpus = write_corpus(tmp_path, [loud], [lips])
    loader = load(corpus, hop, frames, batch_size=64, trim_db=trim_db, shuffle=False)
    peak = int(loud.max())
    origin = trim_silence(loud)[0] if trim_db else 0
    assert (origin > 8000) == (trim_db is not None)
    compared = 0
    for items, batch in zip(loader._batches(), loader, strict=True):
        seen = batch.lips[..., 0, 0].numpy() * 256.0 + batch.lips[..., 0, 1].numpy()
        for b, (_, first) in enumerate(items):
            for t in range(int(batch.mask[b].sum())):
                centre = origin + (first + t) * hop
                assert abs(seen[b, t] / FPS - centre / RATE) <= 0.5 / FPS + 1e-9
                if t * hop < batch.lengths[b] and spoken[centre]:  # the sound's own word for the time
                    heard = round(float(batch.waveform[b, t * hop]) * peak) / 8
                    assert 0 <= seen[b, t] / FPS - (heard - 1) * tick / RATE + 0.5 / FPS <= (tick / RATE) + 1 / FPS
                    compared += 1
    assert compared > 60 * RATE / hop


@FRAMES
def test_order_follows_from_seed_and_epoch(corpus, frames):
    loader, again = load(corpus, frames=frames), load(corpus, frames=frames)
    first, second = list(loader), list(loader)
    assert_same(first, list(again))
    assert_same(second, list(again))
    other_seed = list(load(corpus, frames=frames, seed=1))
    assert len(first) == len(second) == len(other_seed) == len(loader)
    power = [[batch.power.sum().item() for batch in epoch] for epoch in (first, second, other_seed)]
    assert power[0] != power[1] and power[0] != power[2]
    in_order = load(corpus, frames=frames, shuffle=False)
    assert_same(list(in_order), list(in_order))


@FRAMES
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_equals_going_on(corpus, frames, workers):
    """Stopped after one batch of the second epoch, with workers ahead; the third epoch follows. The global generator is
    left alone, for a trainer restores it before it goes on."""
    settings = {"batch_size": 2, "level_db": (-30.0, 0.0)}
    loader = load(corpus, 533, frames, **settings)
    list(loader)
    second, third = list(loader), list(loader)
    stopped = load(corpus, 533, frames, **settings, workers=workers)
    random_state = torch.get_rng_state()
    list(stopped)
    begun = list(islice(stopped, 1))
    state = stopped.state_dict()
    assert state == {"epoch": 1, "batches": 1}
    resumed = load(corpus, 533, frames, **settings, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(begun + list(resumed), second)
    assert_same(list(resumed), third)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_epoch_stopped_after_its_last_batch_is_not_repeated(corpus):
    loader = load(corpus, frames=None)
    every = list(islice(loader, len(loader)))
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert list(loader) == [] and loader.epoch == 1 and len(every) == len(loader)


@FRAMES
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_shares_of_all_ranks_are_the_batches_of_one_process(corpus, frames, shuffle):
    settings = {"frames": frames, "shuffle": shuffle, "batch_size": 4, "level_db": (-30.0, 0.0)}
    alone, world = load(corpus, **settings), 3
    ranks = [load(corpus, **settings, rank=rank, world=world) for rank in range(world)]

    def assert_shared(batches: list[Batch], shares: list[list[Batch]]) -> None:
        left = [iter(own) for own in shares]
        for batch in batches:
            if shuffle and len(batch.ids) < world:
                continue  # left out by all
            for rank in range(min(world, len(batch.ids))):
                share, mine = next(left[rank]), slice(rank, None, world)
                t, n = share.mask.shape[1], share.waveform.shape[1]  # what its own longest item needs
                assert share.ids == batch.ids[mine] and share.labels == batch.labels[mine]
                assert torch.equal(share.mask, batch.mask[mine, :t]) and not batch.mask[mine, t:].any()
                assert torch.equal(share.waveform, batch.waveform[mine, :n])
                assert torch.equal(share.lips, batch.lips[mine, :t])
                torch.testing.assert_close(share.power, batch.power[mine, :t], atol=1e-5, rtol=1e-5)
        assert not [share for own in left for share in own]

    for _ in range(2):
        shares = [list(loader) for loader in ranks]
        assert [len(loader) for loader in ranks] == [len(own) for own in shares]
        whole = list(alone)
        assert_shared(whole, shares)
    if shuffle:
        assert len(set(map(len, ranks))) == 1
    for loader in (alone, *ranks):  # again in the middle of the second epoch
        loader.load_state_dict({"epoch": 1, "batches": 1})
    assert_shared(list(alone), [list(loader) for loader in ranks])


def test_batches_left_out_count_where_a_rank_goes_on(corpus):
    """Batches of four and of one: wherever the one comes it is left out, and nothing is given twice."""
    loader = load(corpus, frames=None, batch_size=4, rank=1, world=2)
    places = set()
    for epoch in range(6):
        loader.load_state_dict({"epoch": epoch, "batches": 0})
        assert [len(batch.ids) for batch in islice(loader, 1)] == [2]
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert list(loader) == []
        places.add(state["batches"])
    assert places == {1, 2}


def test_levels_are_drawn_for_every_item(corpus):
    def condition(utterance, start, waveform, lips):
        return waveform[::-1] + 0.5, lips

    settings = {"frames": None, "hop": 533, "condition": condition}
    plain, levelled = load(corpus, **settings), load(corpus, **settings, level_db=(-30.0, -10.0))
    gains = []
    for _ in range(4):
        for one, two in zip(plain, levelled, strict=True):
            gain_B1 = two.waveform.abs().amax(1, keepdim=True) / one.waveform.abs().amax(1, keepdim=True)
            for name in ("waveform", "mixture"):
                torch.testing.assert_close(getattr(two, name), getattr(one, name) * gain_B1)
            for name in ("power", "noisy"):
                expected = getattr(one, name) * gain_B1[..., None].square()
                torch.testing.assert_close(getattr(two, name), expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(two.lips, one.lips)
            gains += (20 * gain_B1.log10()).flatten().tolist()
    assert -30 - 1e-4 <= min(gains) < -25 and -15 < max(gains) <= -10 + 1e-4
    assert len({round(gain, 3) for gain in gains}) == len(gains) == 20
    for changed in ({"frames": None, "condition": condition}, {"level_db": (-30.0, -10.0)}):
        assert next(iter(load(corpus, **changed))).starts is None  # what is heard is not what the corpus holds


@FRAMES
def test_mere_sound_gives_the_same_batches_without_lips(corpus, tmp_path, frames):
    sounds = [corpus.audio(u) for u in corpus.utterances]
    deaf = write_corpus(tmp_path, sounds, [np.zeros((0, 1, 1), np.uint8)] * len(sounds))

    def condition(utterance, start, waveform, lips):
        assert (lips is None) == (not utterance.fps)
        return -waveform, lips

    for settings in ({"trim_db": 30}, {"workers": 1}, *([{"condition": condition}] if frames is None else [])):
        for one, two in zip(load(corpus, 533, frames, **settings), load(deaf, 533, frames, **settings), strict=True):
            assert one.lips is not None and two.lips is None and two.confidence is None
            assert_same([one.only("waveform", "power")], [two])
            if "condition" in settings:
                assert torch.equal(two.mixture, -two.waveform)


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> PreparedCorpus:
    """Five sequences of 3 to 60 poses of two joints, no two of which are alike."""
    root = tmp_path_factory.mktemp("figures")
    (root / "shards").mkdir()
    rng, rows, counts = np.random.default_rng(0), [], (20, 60, 3, 41, 7)
    for n, count in enumerate(counts):
        pose = rng.normal(size=(count, 2, 3)).astype(np.float32)
        clip = PreparedClip(f"clip{n}", "made", "train", f"s{n}", {"number": n}, pose=pose, fps=25.0)
        other = PreparedClip(f"other{n}", "made", "valid", "s", {}, pose=pose + 1, fps=25.0)
        rows += write_shard(root / "shards" / f"{n}.safetensors", [other, clip], {})
    write_manifest(root / "manifest.csv", rows)
    return PreparedCorpus(root, "train")


@pytest.mark.parametrize("frames", [1, 7, 500, None])
@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_of_poses_are_pieces_of_the_whole(figures, frames, shuffle):
    unseen = {u.id: np.ones(u.pose_stop - u.pose_start, int) for u in figures.utterances}
    loader = load(figures, 533, frames, shuffle=shuffle, trim_db=30, workers=1)
    for items, batch in zip(loader._batches(), loader, strict=True):
        assert batch.only("pose") == batch and batch.pose.shape[2] == 6
        for b, (utterance, first) in enumerate(items):
            row = figures.utterances[utterance]
            whole = torch.from_numpy(figures.poses(row).reshape(-1, 6).copy())
            window = whole[first:] if frames is None else whole[first : first + frames]
            real, length = len(window), batch.mask.shape[1]
            assert batch.ids[b] == row.id and batch.labels[b] == {"speaker": row.speaker, "number": utterance}
            assert batch.mask[b].tolist() == [True] * real + [False] * (length - real)
            assert torch.equal(batch.pose[b, :real], window) and not batch.pose[b, real:].any()
            assert frames is None or length == frames
            unseen[row.id][first : first + real] -= 1
    for missed in unseen.values():
        assert missed.min() >= 0
        assert missed.sum() == (len(missed) % frames if shuffle and frames and len(missed) >= frames else 0)


def test_poses_resume_and_are_shared_as_sound_is(figures):
    settings = {"frames": 7, "batch_size": 5}
    alone = load(figures, **settings)
    first, second = list(alone), list(alone)
    assert_same(first, list(load(figures, **settings)))
    assert not torch.equal(first[0].pose, second[0].pose)
    resumed = load(figures, **settings)
    resumed.load_state_dict({"epoch": 1, "batches": 2})
    assert_same(list(resumed), second[2:])
    for rank in (0, 1):
        for whole, share in zip(first, load(figures, **settings, rank=rank, world=2), strict=True):
            assert share.ids == whole.ids[rank::2] and torch.equal(share.pose, whole.pose[rank::2])


def test_poses_take_no_noise_and_no_levels(figures):
    for settings in ({"frames": None, "condition": lambda *given: given[2:]}, {"level_db": (-20.0, 0.0)}):
        with pytest.raises(UserError, match="has poses and no sound: give neither a condition nor a level_db"):
            load(figures, **settings)


def test_company_changes_nothing(corpus):
    alone = {batch.ids[0]: batch for batch in load(corpus, 533, None, batch_size=1)}
    together = next(iter(load(corpus, 533, None, batch_size=9)))
    assert sorted(together.ids) == sorted(alone) and not together.mask.all()
    for b, name in enumerate(together.ids):
        single = alone[name]
        frames, samples = single.mask.shape[1], single.waveform.shape[1]
        assert together.mask[b].sum() == frames == 1 + samples // 533 and together.lengths[b] == samples
        torch.testing.assert_close(together.power[b, :frames], single.power[0], atol=1e-5, rtol=1e-5)
        for field, length in (("waveform", samples), ("lips", frames), ("confidence", frames), ("power", frames)):
            if field != "power":
                assert torch.equal(getattr(together, field)[b, :length], getattr(single, field)[0])
            assert not getattr(together, field)[b, length:].any()


def test_neighbours_in_length_share_a_batch(corpus):
    batches = list(load(corpus, frames=None, batch_size=2))
    frames = sorted(sorted(batch.mask.sum(1).tolist()) for batch in batches)
    assert [n for group in frames for n in group] == sorted(n for group in frames for n in group)


def test_codes_come_as_they_were_recorded(corpus):
    for frames in (7, None):
        for batch in load(corpus, frames=frames, shuffle=False, pcm=True):
            for name, length, waveform in zip(batch.ids, batch.lengths, batch.waveform, strict=True):
                codes = (waveform[:length] * 32768).to(torch.int16).numpy()
                assert torch.equal(torch.from_numpy(codes) / 32768, waveform[:length])
                audio = corpus.audio(next(u for u in corpus.utterances if u.id == name))
                windows = np.lib.stride_tricks.sliding_window_view(audio, len(codes))
                assert (windows == codes).all(1).any()


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_capped_by_what_they_hold_with_padding(corpus, shuffle):
    """Each utterance comes once an epoch, in as many batches each time; only one that is too long itself exceeds."""
    loader = load(corpus, frames=None, batch_frames=100, shuffle=shuffle)
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == len(loader) < 5
        assert sorted(name for batch in batches for name in batch.ids) == [u.id for u in corpus.utterances]
        assert all(batch.mask.numel() <= 100 or len(batch.ids) == 1 for batch in batches)
    assert_same(
        list(load(corpus, frames=None, batch_frames=10**6, shuffle=False)),
        list(load(corpus, frames=None, batch_size=5, shuffle=False)),
    )
    with pytest.raises(UserError, match="batch_frames=100 caps batches of whole utterances"):
        load(corpus, frames=5, batch_frames=100)


def test_a_condition_mixes_noise_and_spoils_lips(corpus):
    def condition(utterance, start, waveform, lips):
        noise = np.random.default_rng(len(utterance.id)).standard_normal(len(waveform)).astype(np.float32)
        return waveform + noise, 255 - lips

    clean = list(load(corpus, frames=None, trim_db=30))
    for one, two in zip(clean, load(corpus, frames=None, trim_db=30, condition=condition), strict=True):
        assert one.ids == two.ids and torch.equal(one.waveform, two.waveform) and torch.equal(one.power, two.power)
        assert torch.equal(two.lips[one.mask], 255 - one.lips[one.mask]) and not two.lips[~one.mask].any()
        for b, samples in enumerate(one.lengths.tolist()):
            noise = np.random.default_rng(len(one.ids[b])).standard_normal(samples).astype(np.float32)
            mixture = one.waveform[b, :samples] + torch.from_numpy(noise)
            torch.testing.assert_close(two.mixture[b, :samples], mixture)
            expected = Stft(256).power(mixture[None])[0]
            torch.testing.assert_close(two.noisy[b, : len(expected)], expected, atol=1e-4, rtol=1e-4)
            assert not two.mixture[b, samples:].any() and not two.noisy[b, len(expected) :].any()


def test_impossible_settings_are_refused(corpus):
    for settings, sentence in (
        ({"frames": 0}, "window of 0 frames"),
        ({"batch_size": 0}, "batch of 0 items"),
        ({"trim_db": 0}, "trim_db=0 would cut speech"),
        ({"frames": 9, "condition": lambda *given: given[2:]}, "not into windows of 9 frames"),
        ({"hop": 1024}, "hop is 1024 samples"),
        ({"rank": 2, "world": 2}, "rank=2 of world=2"),
        ({"rank": -1}, "rank=-1 of world=1"),
        ({"level_db": (0.0, -20.0)}, "the lower and the higher end"),
        ({"level_db": (0.0, float("nan"))}, "the lower and the higher end"),
        ({"world": 4}, "202 items in batches of 3 give none to some of 4 processes"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(corpus, **settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@FRAMES
def test_a_gpu_gives_the_same_batches(corpus, frames):
    for cpu, gpu in zip(
        load(corpus, frames=frames), load(corpus, frames=frames, device="cuda", workers=2), strict=True
    ):
        assert gpu.power.device.type == "cuda" and cpu.ids == gpu.ids
        torch.testing.assert_close(gpu.power.cpu(), cpu.power, atol=1e-4, rtol=1e-4)
        assert torch.equal(gpu.lips.cpu(), cpu.lips) and torch.equal(gpu.waveform.cpu(), cpu.waveform)


def test_faces_come_with_the_lips_where_asked_for(tmp_path, corpus):
    (tmp_path / "shards").mkdir()
    rows = []
    for number, path in enumerate(sorted((corpus.root / "shards").iterdir())):
        clips = [
            replace(clip, face=np.repeat(clip.lips[..., None], 3, -1), mouth=np.zeros((len(clip.lips), 2), np.float32))
            for clip in read_shard(path)[0]
        ]
        rows += write_shard(tmp_path / "shards" / f"{number:05}.safetensors", clips, {})
    write_manifest(tmp_path / "manifest.csv", rows)
    faced = PreparedCorpus(tmp_path)
    for frames in (1, 7, None):
        for batch in load(faced, frames=frames, faces=True):
            assert batch.face.shape == (*batch.lips.shape, 3)
            assert torch.equal(batch.face, batch.lips[..., None].expand_as(batch.face))
    assert next(iter(load(faced))).face is None
    with pytest.raises(UserError, match="no faces: prepare a corpus of videos"):
        load(corpus, faces=True)


def test_what_a_model_does_not_use_is_not_gathered(corpus):
    everything, sound = (list(load(corpus, frames=7, **seen_by(model))) for model in (CVAE(hidden=4), VAE(hidden=4)))
    for one, other in zip(everything, sound, strict=True):
        assert one.lips is not None and other.lips is other.confidence is other.face is None
        assert torch.equal(one.power, other.power) and one.ids == other.ids


def test_spectra_of_single_frames_are_kept_and_are_those_that_would_be_made_again(corpus, monkeypatch):
    keeping, cutting = load(corpus, lips=False), load(corpus, lips=False)
    cutting.spectra_MF = None
    keeping.load_state_dict({"epoch": 0, "batches": 2})  # so that the first epoch does not pass every frame
    cutting.load_state_dict({"epoch": 0, "batches": 2})
    for epoch in range(4):
        if epoch == 2:  # all frames have passed
            monkeypatch.setattr(keeping.cutter, "__getitems__", None, raising=False)
        for one, two in zip(keeping, cutting, strict=True):
            assert one.ids == two.ids and one.labels == two.labels
            assert torch.equal(one.mask, two.mask) and torch.equal(one.starts, two.starts)
            assert torch.equal(one.power, two.power)
    monkeypatch.setattr(Loader, "KEPT", 1000)
    assert load(corpus, lips=False).spectra_MF is None
