"""Clocks, uprightness and synchrony of what is read from files."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from avdvae.errors import UserError
from avdvae.signals import video as film
from avdvae.signals.clock import nearest_frames

RATE = 16_000
NTSC = Fraction(30_000, 1001)


def levels(count, side=64):
    """Pictures whose grey level gives their number."""
    return [np.full((side, side, 3), 16 + 4 * number, np.uint8) for number in range(count)]


def tone(seconds, rate=RATE, pitch=440.0, peak=8000):
    return (peak * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def remux(source, target, moved=lambda packet, start: None, **options):
    """Copy a file packet by packet; `moved` may change a packet's times, given where its stream starts."""
    with av.open(str(source)) as before, av.open(str(target), "w", **options) as after:
        streams = {stream: after.add_stream_from_template(stream) for stream in before.streams}
        for packet in before.demux():
            if packet.size:
                moved(packet, packet.stream.start_time)
                packet.stream = streams[packet.stream]
                after.mux(packet)


@pytest.mark.parametrize("fps", [Fraction(25), NTSC, Fraction(60)])
def test_pictures_and_rate_survive_a_file(tmp_path, fps):
    clip = tmp_path / "clip.mp4"
    film.write_mp4(clip, levels(50), fps, tone(50 / fps))
    info = film.probe(clip)
    assert (info.fps, info.announced, info.start) == (fps, 50, 0)
    assert info.end == pytest.approx(50 / fps)
    times, pictures = zip(*film.read_pictures(clip, longest=32), strict=True)
    np.testing.assert_array_equal(film.shown(np.array(times), info.fps), np.arange(50))
    assert pictures[0].shape == (32, 32, 3)
    for picture, grey, level in zip(pictures, film.read_grey(clip), levels(50), strict=True):
        assert grey.shape == (64, 64)
        assert abs(grey.mean() - level.mean()) < 2 and abs(picture.mean() - level.mean()) < 4


def test_the_same_pictures_give_the_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        film.write_mp4(tmp_path / name, levels(20), NTSC, tone(1))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_an_interrupted_file_leaves_nothing_behind(tmp_path):
    def interrupted():
        yield from levels(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.write_mp4(tmp_path / "c.mp4", interrupted(), NTSC)
    assert not list(tmp_path.iterdir())


def test_a_variable_rate_is_put_on_a_constant_clock(tmp_path):
    gaps = np.random.default_rng(0).integers(10, 90, 49)
    stamps = np.concatenate([[0], np.cumsum(gaps)])
    with av.open(str(tmp_path / "vfr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width, stream.height = 64, 64
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, stamp in zip(levels(50), stamps.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = film.probe(tmp_path / "vfr.mp4")
    assert float(info.fps) == pytest.approx(49_000 / stamps[-1], rel=1e-4)
    times = np.array([time for time, _ in film.read_pictures(tmp_path / "vfr.mp4", 64)])
    np.testing.assert_allclose(times - times[0], stamps / 1000, atol=2e-4)
    source = film.shown(times, info.fps)
    ticks = np.arange(50) / float(info.fps)
    nearest = np.abs(stamps / 1000 - ticks[:, None]).argmin(1)
    np.testing.assert_array_equal(source, nearest)
    assert len(set(nearest.tolist())) < 50  # some pictures are skipped: the clock is not 1:1


def test_jittered_timestamps_keep_the_named_rate():
    rng = np.random.default_rng(1)
    times = 3 + (np.arange(2000) + rng.uniform(-0.1, 0.1, 2000)) / float(NTSC)
    assert film.constant_rate(times, [Fraction(30), NTSC]) == NTSC
    np.testing.assert_array_equal(film.shown(times, NTSC), np.arange(2000))


def test_stft_frames_take_the_picture_nearest_in_time():
    centres = 533 / RATE * np.arange(1801)  # a minute at 30.02 frames a second
    frames = nearest_frames(centres, float(NTSC), 1798)
    assert frames.dtype == np.int64
    assert frames[0] == 0 and frames[-1] == 1797 and nearest_frames(centres[:601], float(NTSC), 1798)[-1] == 599
    assert np.abs(frames[:1790] / float(NTSC) - centres[:1790]).max() <= 0.5 / float(NTSC) + 1e-9


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_metadata_gives_upright_pictures(tmp_path, turn):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32] = 255  # white at the top left
    clip = tmp_path / "clip.mp4"
    film.write_mp4(clip, [stored] * 12, Fraction(25))
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    fixed = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    content = clip.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40  # tkhd version 0: the display matrix follows 40 bytes of other things
    clip.write_bytes(content[:matrix] + struct.pack(">9i", *fixed) + content[matrix + 36 :])
    upright = np.rot90(stored, -turn // 90)  # the matrix turns clockwise
    (_, picture), grey = next(film.read_pictures(clip, 64)), next(film.read_grey(clip))
    assert film.upright_size(next(film.read_frames(clip))) == (grey.shape[1], grey.shape[0])
    np.testing.assert_array_equal(film.probe(clip).key_pictures[0], picture)
    assert np.abs(picture.astype(int) - upright).mean() < 4
    assert np.abs(grey.astype(int) - upright[..., 0]).mean() < 4


@pytest.mark.parametrize("name", ["moved.mp4", "moved.mkv"])
@pytest.mark.parametrize("later", [0.0, 0.25, -0.25])
def test_a_click_stays_with_its_flash(tmp_path, later, name):
    """Flash and click at picture 30; then the sound stream is moved, and the click with it."""
    pictures, sound = levels(60), np.zeros(2 * RATE + 32, np.int16)
    pictures[30] = np.full_like(pictures[0], 255)
    flash = 30 / float(NTSC)
    sound[round(flash * RATE) :][:80] = 20_000
    film.write_mp4(tmp_path / "sync.mp4", pictures, NTSC, sound)

    def moved(packet, start):
        if (packet.stream.type == "audio") == (later > 0):  # the one that starts later is the one to move
            packet.pts += round(abs(later) / packet.time_base)
            packet.dts += round(abs(later) / packet.time_base)

    clip = tmp_path / name
    remux(tmp_path / "sync.mp4", clip, moved)
    info = film.probe(clip, sound=True)
    seen = int(np.argmax([grey.mean() for grey in film.read_grey(clip)])) / float(info.fps)
    sound = film.clip_sound(info, None)
    click = int(np.argmax(np.abs(sound.samples))) / RATE
    assert seen == pytest.approx(flash, abs=1e-3)
    assert click - seen == pytest.approx(later, abs=0.006)
    shift = sound.offset_ms - 1000 * later
    assert min(abs(shift), abs(shift + 64)) < 2  # AAC starts with 64 ms of silence, which mp4 may hide
    assert sound.drift_ms == pytest.approx(1000 * later, abs=66)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (48_000, 2), (44_100, 6)])
def test_sound_is_resampled_and_averaged(tmp_path, rate, channels):
    import soundfile

    left = tone(1, rate, 1000)
    sound = (
        np.stack([left] + [np.zeros_like(left)] * (channels - 1), 1)
        if channels == 2
        else np.stack([left] * channels, 1)
    )
    soundfile.write(tmp_path / "tone.wav", sound, rate)
    samples, start = film.read_mono(tmp_path / "tone.wav")
    assert start == 0 and samples.dtype == np.int16 and abs(len(samples) - RATE) <= 1
    expected = 8000 * np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / RATE) / (2 if channels == 2 else 1)
    np.testing.assert_allclose(samples[500:-500], expected[500:-500], atol=12)


def test_what_lies_above_the_new_band_is_filtered_out(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "high.wav", tone(1, 48_000, 9000), 48_000)
    assert np.abs(film.read_mono(tmp_path / "high.wav")[0][500:-500]).max() < 40


def test_sound_of_its_own_starts_with_the_picture(tmp_path):
    import soundfile

    film.write_mp4(tmp_path / "clip.mp4", levels(25), Fraction(25))
    soundfile.write(tmp_path / "clip.wav", tone(1.1), RATE)
    sound = film.clip_sound(film.probe(tmp_path / "clip.mp4"), tmp_path / "clip.wav")
    assert sound.offset_ms == 0 and sound.drift_ms == pytest.approx(100)
    np.testing.assert_array_equal(sound.samples, tone(1.1))


def test_every_unreadable_file_is_explained(tmp_path):
    import soundfile

    whole, early = tmp_path / "whole.mp4", tmp_path / "early.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (120, 64, 64, 3), np.uint8)
    film.write_mp4(whole, noise, Fraction(25))
    remux(whole, early, options={"movflags": "faststart"})

    def broken(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    (tmp_path / "folder.mp4").mkdir()
    soundfile.write(tmp_path / "voice.wav", tone(1), RATE)
    for path, sentence in {
        broken("empty.mp4", b""): r"^the file is empty",
        broken("text.mp4", b"Dear diary, this is no video.\n" * 50): "neither a video nor a sound file",
        broken("cut.mp4", whole.read_bytes()[:50_000]): r"truncated: its index \(moov\) is missing",
        tmp_path / "missing.mp4": "cannot be read .*No such file",
        tmp_path / "folder.mp4": "cannot be read .*Is a directory",
        tmp_path / "voice.wav": "it has sound but no picture",
    }.items():
        with pytest.raises(UserError, match=sentence):
            film.probe(path)
    with pytest.raises(UserError, match="it has pictures but no sound"):
        film.read_mono(whole)
    with pytest.raises(UserError, match="it has pictures but no sound"):
        film.probe(whole, sound=True)

    content = early.read_bytes()
    cut = broken("early-cut.mp4", content[: len(content) * 2 // 5])
    info, decoded = film.probe(cut), sum(1 for _ in film.read_grey(cut))
    assert 30 < decoded < 60
    with pytest.raises(UserError, match=rf"truncated: {decoded} of 120 frames can be read"):
        film.check_complete(decoded, info)
