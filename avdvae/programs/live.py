"""The microphone on the page of `avdvae demo`: sound, and a camera where the model takes lips, enhanced as they arrive.

The browser posts pieces of sound and pictures, each in its order, and gets the samples that are finished; it plays and
keeps them. Pieces are float32, little-endian, at the rate of the browser; pictures are JPEGs on a constant clock.

    GET  /live/                    the page                    POST /live/ID/sound      a piece of sound
    GET  /live/worklet.js          takes and plays samples     POST /live/ID/picture    a picture, or nothing
    POST /live/begin?rate=48000    a stream, as ID             POST /live/ID/finish     the rest
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from avdvae.enhancement.recordings import Enhancer
from avdvae.enhancement.streaming import Stream, Streaming
from avdvae.enhancement.vem import Vem
from avdvae.errors import UserError
from avdvae.protocols import indispensable, is_speech_prior
from avdvae.signals.arriving import Lips
from avdvae.signals.clock import RATE
from avdvae.signals.lips import ArrivingMouth

FPS = 25.0  # of the camera
STREAMS = 4  # at a time: another ends the oldest
LARGEST = 4 * 2**20  # bytes of a piece of sound, or of a picture
PAGE, WORKLET = (Path(__file__).with_name(name) for name in ("live.html", "live_worklet.js"))


@dataclass
class Session:
    """A stream, the mouth in its pictures, and the pictures that it has not been given yet."""

    stream: Stream
    mouth: ArrivingMouth | None
    crops: list[UInt8[np.ndarray, "H W"]] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    computed: float = 0.0  # seconds
    lock: threading.Lock = field(default_factory=threading.Lock)

    def picture(self, jpeg: bytes) -> bool:
        """Whether there is a face in it; one that is missing, or damaged, is black."""
        assert self.mouth
        with self._computing():
            pixels = np.frombuffer(jpeg, np.uint8)
            picture = cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB) if len(pixels) else None
            black = np.zeros((self.mouth.size, self.mouth.size), np.uint8)
            crop, confidence = (black, 0.0) if picture is None else self.mouth.crop(picture)
            self.crops.append(crop)
            self.confidence.append(confidence)
        return confidence > 0

    def sound(self, samples_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " n"]:
        with self._computing():
            if not self.crops:
                return self.stream.push(samples_N)
            crops, confidence = np.stack(self.crops), np.array(self.confidence, np.float32)
            self.crops.clear()
            self.confidence.clear()
            return self.stream.push(samples_N, crops, confidence)

    def finish(self) -> Float[np.ndarray, " n"]:
        last = self.sound(np.zeros(0, np.float32))
        with self._computing():
            rest = np.concatenate([last, self.stream.finish()])
        self.close()
        return rest

    def close(self) -> None:
        with self.lock:
            if self.mouth:
                self.mouth.close()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self.lock:
            began = time.perf_counter()
            try:
                yield
            finally:
                self.computed += time.perf_counter() - began


@dataclass
class Live:
    """The streams of a model, by id."""

    enhancer: Enhancer
    settings: Streaming
    sessions: dict[str, Session] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def camera(self) -> str:
        """Whether the model takes lips, and whether it can do without: "needed", "wanted" or ""."""
        model = self.enhancer.model
        return "needed" if "lips" in indispensable(model) else "wanted" if "lips" in model.sees else ""

    def stream(self, rate: int, camera: bool) -> Stream:
        own = self.enhancer
        if not (is_speech_prior(own.model) and isinstance(own.settings, Vem)):
            raise UserError(f"{type(own.model).__name__} has no latents, with which a stream goes on: give another run")
        pictures = Lips(FPS, own.crop_size) if camera else None
        return Stream(own.model, own.stft, own.settings, self.settings, rate, pictures, own.device)

    def begin(self, rate: int, camera: bool) -> str:
        stream, mouth = self.stream(rate, camera), None
        first = self.stream(rate, camera)  # the first steps of a process take a second, for which the sound would wait
        first.push(np.random.default_rng(0).standard_normal(rate // 4))
        first.finish()
        if camera:
            assert self.enhancer.face_model
            mouth = ArrivingMouth(self.enhancer.face_model, FPS, self.enhancer.crop_size)
            mouth.crop(np.zeros((480, 640, 3), np.uint8))
        with self.lock:
            while len(self.sessions) >= STREAMS:
                self.end(next(iter(self.sessions)))
            self.sessions[name := secrets.token_urlsafe(16)] = Session(stream, mouth)
        return name

    def end(self, name: str) -> Float[np.ndarray, " n"]:
        return self.sessions.pop(name).finish()

    def close(self) -> None:
        while self.sessions:
            self.sessions.popitem()[1].close()

    def why_not(self) -> str | None:
        """Why the page cannot be had with this model and these settings."""
        try:
            self.stream(RATE, bool(self.camera))
        except UserError as error:
            return str(error)
        return None


def live_app(live: Live) -> Any:
    """The page and its streams, below /live/."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    page = PAGE.read_text(encoding="utf-8").replace("CAMERA", live.camera).replace("FPS", f"{FPS:g}")

    async def given(request: Request) -> bytes:
        """The body. Pages of other hosts may ask for nothing."""
        origin = request.headers.get("origin")
        if origin and origin.partition("://")[2] != request.headers.get("host"):
            raise HTTPException(403, "this page takes sound from itself alone")
        pieces, size = [], 0
        async for piece in request.stream():
            pieces.append(piece)
            if (size := size + len(piece)) > LARGEST:
                raise HTTPException(413, f"a piece has {LARGEST / 2**20:g} MB at most")
        return b"".join(pieces)

    def session(request: Request) -> Session:
        if found := live.sessions.get(request.path_params["name"]):
            return found
        raise HTTPException(404, "this stream has ended: start again")

    async def answer(make: Callable[[], Any]) -> Any:
        try:
            return await run_in_threadpool(make)
        except UserError as error:
            raise HTTPException(400, str(error)) from error

    def samples(clean_N: Float[np.ndarray, " n"], computed: float) -> Response:
        headers = {"x-computed": f"{computed:.4f}"}
        return Response(clean_N.astype("<f4").tobytes(), media_type="application/octet-stream", headers=headers)

    async def begin(request: Request) -> Response:
        await given(request)
        asked = request.query_params
        rate, camera = asked.get("rate", ""), asked.get("camera") == "1"
        if not rate.isdecimal():
            raise HTTPException(400, f"rate={rate}: give the sample rate in Hz")
        name = await answer(lambda: live.begin(int(rate), camera))
        return JSONResponse({"id": name, "latency": live.sessions[name].stream.latency})

    async def sound(request: Request) -> Response:
        body, own = await given(request), session(request)
        if len(body) % 4:
            raise HTTPException(400, f"{len(body)} bytes: a sample has 4")
        return samples(await answer(lambda: own.sound(np.frombuffer(body, "<f4"))), own.computed)

    async def picture(request: Request) -> Response:
        body, own = await given(request), session(request)
        if own.mouth is None:
            raise HTTPException(400, "this stream was begun without a camera")
        return JSONResponse({"face": await answer(lambda: own.picture(body))})

    async def finish(request: Request) -> Response:
        await given(request)
        own = session(request)
        return samples(await answer(lambda: live.end(request.path_params["name"])), own.computed)

    async def front(request: Request) -> Response:
        return HTMLResponse(page)

    async def worklet(request: Request) -> Response:
        return FileResponse(WORKLET, media_type="text/javascript")

    posts = {"begin": begin, "{name}/sound": sound, "{name}/picture": picture, "{name}/finish": finish}
    routes = [Route("/live/", front), Route("/live/worklet.js", worklet)]
    return Starlette(routes=routes + [Route(f"/live/{path}", to, methods=["POST"]) for path, to in posts.items()])


def with_live(app: Any, live: Live) -> Any:
    """ASGI middleware that answers below /live/."""
    own = live_app(live)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        chosen = own if scope["type"] == "http" and scope["path"].startswith("/live/") else app
        await chosen(scope, receive, send)

    return answer
