"""The microphone and the camera of the demo, in a real browser with devices that play files: what was played is what a
`Stream` gives of what was taken."""

import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import correlate

from avdvae.enhancement.markov_chains import Langevin
from avdvae.enhancement.recordings import Enhancer
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.enhancement.variational import FreeGaussian
from avdvae.enhancement.vem import Vem
from avdvae.models.av_vae import AVVAE
from avdvae.models.mdvae import MDVAE
from avdvae.models.vae import VAE
from avdvae.signals.arriving import Lips
from avdvae.signals.audio import Stft
from avdvae.signals.faces import find_face_model
from avdvae.signals.video import read_frames, to_rgb

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed: pip install -e '.[demo,test]'", allow_module_level=True)

from avdvae.programs.live import FPS, STREAMS, Live, live_app  # noqa: E402

STFT, VEM = Stft(256), Vem(FreeGaussian(final_draws=2), rank=2)
QUICK = Streaming(block=0.16, look_ahead=1, iterations=1)
in_a_browser = pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="no browser to drive: apt-get install chromium, pip install -e '.[test]'",
)


@pytest.fixture
def live() -> Iterator[Callable[..., Live]]:
    made = []

    def make(kind: Any = VAE, vem: Vem = VEM, **sizes: int) -> Live:
        torch.manual_seed(0)
        model = kind(**(sizes or {"hidden": 8, "dim": 4})).eval().requires_grad_(False)
        face_model = find_face_model() if "lips" in model.sees else None
        made.append(Live(Enhancer(model, STFT, vem, 1, "cpu", face_model, 67), QUICK))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Live], str]]:
    """The address of the page, in this process."""
    import uvicorn

    servers: list[tuple[Any, threading.Thread]] = []

    def begin(of: Live) -> str:
        server = uvicorn.Server(uvicorn.Config(live_app(of), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/live/"

    yield begin
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def noise_with_a_tone(path: Path) -> np.ndarray:
    time_N = np.arange(48_000 * 3) / 48_000
    sound_N = 0.3 * np.sin(2000 * time_N * (1 + 0.1 * np.sin(3 * time_N))) * (np.sin(7 * time_N) > 0)
    sound_N += 0.03 * np.random.default_rng(0).standard_normal(len(sound_N))
    soundfile.write(path, sound_N, 48_000, subtype="PCM_16")
    return sound_N


def enhanced_in_the_browser(address: str, folder: Path, *devices: str) -> dict[str, Any]:
    """What the page shows after 1.5 s of sound, and the recordings that it saves, at their rate."""
    from playwright.sync_api import sync_playwright

    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", *devices]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *fake])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator("#start").click()
        page.wait_for_function("() => parseFloat(document.getElementById('seconds').textContent) > 1.5")
        page.locator("#stop").click()
        page.wait_for_selector("#save:enabled")
        shown = {name: page.locator(f"#{name}").inner_text() for name in ("latency", "factor", "found", "message")}
        saved: list[Any] = []
        page.on("download", lambda download: saved.append(download))
        page.locator("#save").click()
        page.wait_for_timeout(100)
        while len(saved) < 2:
            page.wait_for_timeout(50)
        for download in saved:
            download.save_as(folder / download.suggested_filename)
        browser.close()
    noisy, rate = soundfile.read(folder / "noisy.wav", dtype="float32")
    enhanced, _ = soundfile.read(folder / "enhanced.wav", dtype="float32")
    return shown | {"noisy": noisy, "rate": rate, "enhanced": enhanced}


@in_a_browser
def test_what_the_page_plays_is_the_stream_of_what_the_microphone_takes(live, serve, tmp_path: Path) -> None:
    true = noise_with_a_tone(tmp_path / "true.wav")
    own = live()
    got = enhanced_in_the_browser(serve(own), tmp_path, f"--use-file-for-fake-audio-capture={tmp_path / 'true.wav'}")
    noisy, rate = got["noisy"], got["rate"]
    assert not got["message"] and len(noisy) > 1.5 * rate and not own.sessions
    stream = Stream(own.enhancer.model, STFT, VEM, QUICK, rate)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got["enhanced"], np.concatenate([stream.push(noisy), stream.finish()]))
    assert got["latency"] == f"{stream.latency:.0f} ms" and float(got["factor"]) > 0

    piece = noisy[rate // 2 : rate]
    file = np.tile(true, 2)[np.rint(np.arange(0, 2 * len(true) - 1, 48_000 / rate)).astype(int)]
    power = np.convolve(file**2, np.ones(len(piece)), "valid")
    alike = correlate(file, piece, "valid") / np.sqrt(power) / np.linalg.norm(piece)
    assert alike.max() > 0.9, "it is in the file, which the device plays again and again"


@in_a_browser
def test_the_lips_of_a_camera_enter_the_stream(live, serve, clip: Path, tmp_path: Path, monkeypatch) -> None:
    noise_with_a_tone(tmp_path / "true.wav")
    film = tmp_path / "camera.mjpeg"
    with film.open("wb") as file:
        for frame in read_frames(clip):
            file.write(jpeg(to_rgb(frame, 640)))
    own, pushed, push = live(AVVAE), [], Stream.push

    def recorded(self, samples, *lips):
        pushed.extend(lips and [lips])
        return push(self, samples, *lips)

    monkeypatch.setattr(Stream, "push", recorded)
    devices = [
        f"--use-file-for-fake-{kind}-capture={file}"
        for kind, file in (("audio", tmp_path / "true.wav"), ("video", film))
    ]
    got = enhanced_in_the_browser(serve(own), tmp_path, *devices)
    monkeypatch.undo()
    crops, confidence = (np.concatenate(each) for each in zip(*pushed, strict=True))
    pictures = int(len(got["noisy"]) / got["rate"] * FPS) + 1
    assert not got["message"] and len(crops) == pictures and confidence[5:].min() > 0.5 and crops[5:].std() > 20
    assert np.abs(np.diff(crops[5:].astype(float), axis=0)).mean() > 0.1, "the film moves"
    assert got["found"] == f"{(confidence > 0).sum()} of {pictures}"
    stream = Stream(own.enhancer.model, STFT, VEM, QUICK, got["rate"], Lips(FPS))  # type: ignore[arg-type]
    expected = np.concatenate([stream.push(got["noisy"], crops, confidence), stream.finish()])
    np.testing.assert_array_equal(got["enhanced"], expected)


def jpeg(picture: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()


def test_requests_that_are_wrong_get_a_sentence_and_the_oldest_stream_ends(live, clip: Path) -> None:
    from starlette.testclient import TestClient

    own = live(AVVAE)
    client = TestClient(live_app(own))

    def post(path: str, body: bytes = b"", **headers: str) -> Any:
        return client.post(f"/live/{path}", content=body, headers=headers)

    assert 'data-camera="needed"' in client.get("/live/").text and "Live" in client.get("/live/worklet.js").text
    first = post("begin?rate=16000&camera=1").json()
    for reply, status, words in (
        (post("begin?rate=16000", origin="http://elsewhere.org"), 403, "from itself alone"),
        (post("begin?rate=many"), 400, "rate=many: give the sample rate"),
        (post("begin?rate=100&camera=1"), 400, "a sample rate of 100 Hz"),
        (post("begin?rate=16000"), 400, "AVVAE needs the lips, and a stream of sound has none"),
        (post(f"{first['id']}/sound", b"abc"), 400, "3 bytes: a sample has 4"),
        (post(f"{first['id']}/sound", bytes(5 * 2**20)), 413, "at most"),
        (post("nobody/sound"), 404, "start again"),
    ):
        assert reply.status_code == status and words in reply.text
    (frame, *_) = read_frames(clip)
    seen = [post(f"{first['id']}/picture", body).json()["face"] for body in (b"", b"damaged", jpeg(to_rgb(frame, 640)))]
    assert seen == [False, False, True] and own.sessions[first["id"]].confidence[:2] == [0, 0]
    assert not own.sessions[first["id"]].crops[0].any() and own.sessions[first["id"]].crops[2].std() > 20
    same = {"origin": "http://testserver"}
    sounds = [
        post(f"{first['id']}/{path}", body, **same).content
        for path, body in (("sound", np.zeros(4000, "<f4").tobytes()), ("finish", b""))
    ]
    assert sum(map(len, sounds)) == 4 * 4000
    for _ in range(STREAMS + 1):
        post("begin?rate=16000&camera=1")
    assert len(own.sessions) == STREAMS and first["id"] not in own.sessions


def test_why_a_model_has_no_page(live) -> None:
    assert live().why_not() is None and live(AVVAE).why_not() is None and live().camera == ""
    assert "Langevin cannot follow a sound" in (live(vem=Vem(Langevin())).why_not() or "")
    faces = live(MDVAE, size=8, memory=4, width=8, dim=2)
    assert "needs the face, and a stream of sound has none" in (faces.why_not() or "")
