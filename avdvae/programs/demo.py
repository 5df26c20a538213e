"""A local web page, http://127.0.0.1, to transfer latents between clips and to enhance recordings and the microphone.

avdvae demo run=RUN                 needs the extra `demo`: pip install -e '.[demo]'
avdvae demo run=RUN port=8000 max_seconds=60 enhance.iterations=30 streaming.look_ahead=4

The page loads nothing from the network and sends nothing to it. Uploads are deleted when the program ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from avdvae.data.readers.folder import SOUNDS, VIDEOS
from avdvae.enhancement.recordings import Job, read_sound, write_sound
from avdvae.enhancement.streaming import Streaming
from avdvae.errors import UserError, known_settings
from avdvae.latents.stage import PHASES, Stage, build_enhancer
from avdvae.latents.transfer import find_latents, require_latents
from avdvae.parallel import one_thread
from avdvae.programs.live import Live, with_live
from avdvae.programs.program import Program
from avdvae.protocols import PICTURES, Batch, indispensable, is_speech_prior
from avdvae.runs import open_run
from avdvae.signals.video import lasts

CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


def with_content_policy(app: Any) -> Any:
    """ASGI middleware whose header forbids the browser to load anything from other hosts."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-security-policy", CONTENT_POLICY.encode()))
            await send(message)

        await app(scope, receive, with_policy)

    return answer


@contextmanager
def errors_on_the_page() -> Iterator[None]:
    import gradio as gr

    try:
        yield
    except (UserError, FFmpegError, OSError) as error:
        raise gr.Error(str(error), duration=20, print_exception=False) from error


class Demo:
    """The actions of the page; their files are written to `folder`."""

    def __init__(self, stage: Stage, live: Live | None, folder: Path, max_mb: float, max_seconds: float):
        self.stage, self.live, self.folder, self.max_seconds = stage, live, folder, max_seconds
        self.enhancer = live and live.enhancer
        self.limits = f"at most {max_mb:g} MB and {max_seconds:g} s"

    @errors_on_the_page()
    def transfer(
        self,
        source_id: str,
        source_file: str | None,
        target_id: str,
        target_file: str | None,
        latents: list[str],
        percent: float,
        phase: str,
    ) -> tuple[str | None, ...]:
        """Paths of film, strip, and sounds of source, target and result."""
        find_latents(require_latents(self.stage.model), latents)
        source, target = self._clip("source", source_id, source_file), self._clip("target", target_id, target_file)
        result = self.stage.transfer(source, target, latents, percent / 100, phase)
        scenes = {"source": self.stage.original(source), "target": self.stage.original(target), "result": result}
        out = Path(tempfile.mkdtemp(dir=self.folder))
        self.stage.write(out, [scenes])
        names = ("film.mp4", "strip.png", "source.wav", "target.wav", "result.wav")
        return tuple(str(out / name) if (out / name).exists() else None for name in names)

    @errors_on_the_page()
    def enhance(self, file: str | None, progress: Callable[[float], None]) -> tuple[str, str]:
        """Paths of the noisy sound and of the enhanced speech."""
        assert self.enhancer
        if file is None:
            raise UserError("choose a file first")
        path, out = self._checked(file), Path(tempfile.mkdtemp(dir=self.folder))
        write_sound(out / "noisy.wav", read_sound(path))
        done = 0.0

        def advance(part: float) -> None:
            nonlocal done
            done += part
            progress(min(done, 1.0))

        video = path if path.suffix.lower() in VIDEOS else None
        if video is None and (needed := PICTURES & indispensable(self.enhancer.model)):
            name = type(self.enhancer.model).__name__
            raise UserError(f"{path.name}: {name} needs the {' and the '.join(needed)}: give a video of the talker")
        self.enhancer.run(Job(path, video, out / "clean.wav"), advance)
        return str(out / "noisy.wav"), str(out / "clean.wav")

    def _clip(self, role: str, name: str, file: str | None) -> Batch:
        return self.stage.clip(role, str(self._checked(file)) if file else name)

    def _checked(self, file: str) -> Path:
        path = Path(file)
        if path.suffix.lower() not in SOUNDS + VIDEOS:
            raise UserError(f"{path.name} has no suffix of sound or video: give {', '.join(SOUNDS + VIDEOS)}")
        try:
            if (seconds := lasts(path)) > self.max_seconds:
                raise UserError(f"it lasts {seconds:.1f} s, and this page takes {self.max_seconds:g} s at most")
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from error
        return path


def build_page(demo: Demo) -> Any:
    import gradio as gr

    stage, name = demo.stage, type(demo.stage.model).__name__
    ids = [utterance.id for utterance in stage.corpus.utterances]
    own = [spec.name for spec in require_latents(stage.model).latents]
    suffixes = [*SOUNDS, *VIDEOS]
    with gr.Blocks(title=f"{name} demo", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {name}\n{stage.run.name}: latents of the target replace those of the source.")
        with gr.Tab("Transfer"):
            pickers: list[Any] = []
            with gr.Row():
                for role, first in (("source", ids[0]), ("target", ids[-1])):
                    with gr.Column():
                        pickers.append(gr.Dropdown(ids, value=first, label=role, elem_id=role))
                        if not stage.of_poses:
                            label = f"{role}: your own file, used instead if given, {demo.limits}"
                            pickers.append(gr.File(label=label, file_types=suffixes, elem_id=f"{role}_file"))
                        else:
                            pickers.append(gr.State(None))
            latents = gr.CheckboxGroup(own, value=own[:1], label="latents taken from the target", elem_id="latents")
            percent = gr.Slider(0, 100, 100, step=5, label="from source to target, in %", elem_id="percent")
            phase = gr.Radio(PHASES, value=PHASES[0], label="phase of the result", visible=not stage.of_poses)
            make = gr.Button("Transfer", variant="primary", elem_id="make")
            film = gr.Video(show_label=False, buttons=["download"], elem_id="film")
            sounds = []
            with gr.Row(visible=not stage.of_poses):
                sounds = [
                    gr.Audio(label=role, buttons=["download"], elem_id=f"{role}_sound")
                    for role in ("source", "target", "result")
                ]
            strip = gr.Image(show_label=False, buttons=["download", "fullscreen"], elem_id="strip")
            given, shown = [*pickers, latents, percent, phase], [film, strip, *sounds]
            make.click(demo.transfer, given, shown)
            percent.release(demo.transfer, given, shown)
        with gr.Tab("Enhance"):
            if demo.enhancer is None:
                gr.Markdown(f"{name} is no model of speech and cannot enhance recordings.")
            else:
                file = gr.File(
                    label=f"a noisy recording, or a video, {demo.limits}", file_types=suffixes, elem_id="noisy_file"
                )
                clean = gr.Button("Enhance", variant="primary", elem_id="clean")
                with gr.Row():
                    pair = [gr.Audio(label=name, buttons=["download"], elem_id=name) for name in ("noisy", "enhanced")]

                def enhance(path: str | None, progress: Any = gr.Progress()) -> tuple[str, str]:  # noqa: B008
                    return demo.enhance(path, progress)

                clean.click(enhance, file, pair)
        with gr.Tab("Microphone"):
            if demo.live is None:
                gr.Markdown(f"{name} is no model of speech and cannot enhance sound.")
            elif reason := demo.live.why_not():
                gr.Markdown(reason)
            else:
                style = "width: 100%; height: 32rem; border: 0"
                gr.HTML(f'<iframe src="/live/" allow="microphone; camera; autoplay" style="{style}"></iframe>')
    return page


def demo(config: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        serve(config, Path(folder))


def serve(config: Mapping[str, Any], folder: Path) -> None:
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder)}
    try:
        from gradio.themes import Base
        from starlette.middleware import Middleware
    except ImportError as error:
        raise UserError(f"the page needs gradio ({error}): pip install -e '.[demo]'") from error
    if config["run"] is None:
        raise UserError("run= missing: give the folder of a run of experiments/run.py")
    for name in ("port", "max_mb", "max_seconds"):
        if not (isinstance(config[name], int | float) and config[name] > 0):
            raise UserError(f"{name}={config[name]}: give a number above 0")
    run = open_run(Path(str(config["run"])))
    stage, live = Stage(run), None
    middleware = [Middleware(with_content_policy)]
    if is_speech_prior(stage.model):
        one_thread(stage.device)
        enhancer = build_enhancer(run, stage.model, config["enhance"], films=True, device=stage.device)
        live = Live(enhancer, known_settings(Streaming, "streaming", **config["streaming"]))
        middleware.append(Middleware(with_live, live=live))
    page = build_page(Demo(stage, live, folder, config["max_mb"], config["max_seconds"]))
    system = ["system-ui", "sans-serif"]
    print(f"page       http://127.0.0.1:{config['port']}    stop with Ctrl-C", flush=True)
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=int(config["port"]),
            share=False,
            quiet=True,
            inbrowser=config["open"],
            max_file_size=int(config["max_mb"] * 2**20),
            footer_links=[],
            theme=Base(font=system, font_mono=["monospace"]),
            app_kwargs={"middleware": middleware},
            allowed_paths=[str(folder)],
        )
    except OSError as error:
        raise UserError(f"port={config['port']} is not available ({error}): choose another") from error
    finally:
        if live:
            live.close()


main = Program("demo", demo, interrupted="closed")

if __name__ == "__main__":
    main()
