"""Make the pictures and sounds of the documentation, in docs/.

python docs/tools/pictures.py diagrams                diagrams/*.svg, of docs/tools/diagrams.py
python docs/tools/pictures.py before_after RUN        before_after.png, sounds/*.flac: a run of exp=av_rvae
python docs/tools/pictures.py talkers RUN             talkers.png, sounds/talkers_*.flac: a run of exp=av_rvae
python docs/tools/pictures.py tracks EVALUATION       tracks.png, tracks.mp4: a run of exp=tracking, or its evaluation
python docs/tools/pictures.py futures EVALUATION      futures.png, futures.mp4: models of exp=motion_prediction
python docs/tools/pictures.py transfer RUN            transfer.png: a run of exp=vq_mdvae
python docs/tools/pictures.py probe EVALUATION        probe.png: evaluate.tasks=[probe] of a run of exp=vq_mdvae
python docs/tools/pictures.py training RUN RUN ...    training.png: runs with train.best_by=si_sdr, and of train=paper
python docs/tools/pictures.py robustness RUN          robustness.png: a run of exp=robustness
python docs/tools/pictures.py report RUN              report.png: its report in a browser
python docs/tools/pictures.py contact_sheet PREPARED  contact_sheet.png: of preprocessing/lips.py
python docs/tools/pictures.py microphone RUN          microphone.png: the page of `avdvae demo`, with sound that beeps

docs/pictures.json has the command, the version and the SHA-256 of each. tests/test_docs.py fails where a diagram is not
what its script draws, and where a picture of a run is of another version (0.2 for 0.2.1) than the package.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import soundfile
import uvicorn
from diagrams import write as write_diagrams
from matplotlib import rc_context
from PIL import Image
from playwright.sync_api import sync_playwright

import avdvae
from avdvae.enhancement.streaming import Streaming
from avdvae.errors import prepare_process
from avdvae.evaluation.again import evaluate_again
from avdvae.evaluation.results import read_summary
from avdvae.files import replacing
from avdvae.latents.stage import build_enhancer
from avdvae.pictures.figures import difference_curves
from avdvae.pictures.style import LINES, STYLE, legend_above, panels
from avdvae.programs.live import Live, live_app
from avdvae.programs.transfer import transfer_clips
from avdvae.runs import open_run
from avdvae.training.curves import read_curves

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
NOTES = DOCS / "pictures.json"


def diagrams() -> list[Path]:
    return write_diagrams(DOCS / "diagrams")


def before_after(run: str) -> list[Path]:
    """One unseen talker in white noise at -5 dB."""
    measured = {"tasks": ["enhancement"], "noises": ["White"], "snrs": [-5], "lips": ["clean"]}
    return _example(run, measured, "before_after", "")


def talkers(run: str) -> list[Path]:
    """The same talker in a mixture with another, of the other sex."""
    return _example(run, {"tasks": ["separation"], "mixing": ["sum"]}, "talkers", "talkers_")


def _example(run: str, measured: dict[str, Any], picture: str, sounds: str) -> list[Path]:
    how = {"speakers": ["89M"], "per_speaker": 1, "metrics": ["si_sdr"], "examples": 1, "workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        out = evaluate_again(open_run(Path(run)), {"evaluate": measured | how}, out=Path(folder, "out"))
        example = json.loads((out / "examples.json").read_text())[0]
        shutil.copy(out / example["figure"], DOCS / f"{picture}.png")
        audio = example["audio"].items()
        return [
            DOCS / f"{picture}.png",
            *(write_flac(out / wav, DOCS / f"sounds/{sounds}{name}.flac") for name, wav in audio),
        ]


def tracks(evaluation: str) -> list[Path]:
    return _still_and_film(evaluation, "tracks")


def futures(evaluation: str) -> list[Path]:
    return _still_and_film(evaluation, "futures")


def _still_and_film(evaluation: str, name: str) -> list[Path]:
    example = json.loads(Path(evaluation, "examples.json").read_text())[0]
    shutil.copy(Path(evaluation, example["figure"]), DOCS / f"{name}.png")
    shutil.copy(Path(evaluation, example["video"]), DOCS / f"{name}.mp4")
    return [DOCS / f"{name}.png", DOCS / f"{name}.mp4"]


def transfer(run: str) -> list[Path]:
    asked = {"run": run, "source": "251M/tk001", "target": "250F/tk001", "latents": ["w"], "phase": "griffin_lim"}
    with tempfile.TemporaryDirectory() as folder:
        transfer_clips(asked | {"out": f"{folder}/out"})
        shutil.copy(Path(folder, "out/strip.png"), DOCS / "transfer.png")
    return [DOCS / "transfer.png"]


def probe(evaluation: str) -> list[Path]:
    figures = sorted(Path(evaluation, "figures").glob("*probe.png"))
    shutil.copy(figures[0], DOCS / "probe.png")
    return [DOCS / "probe.png"]


def training(*runs: str) -> list[Path]:
    """Validation loss and SI-SDR of runs with train.best_by=si_sdr against steps; those of train=paper dashed."""
    colours: dict[str, str] = {}
    with rc_context(STYLE):
        figure, axes = panels(2)
        for run in map(open_run, map(Path, runs)):
            paper = run.config["train"]["optimiser"] == "adam"
            label = run.config["exp"].removesuffix("_sequences")
            colour = colours.setdefault(label, LINES[len(colours)])
            records, _ = read_curves(run.path / "metrics.jsonl")
            records = [record for record in records if "valid/loss" in record]
            for ax, key in zip(axes, ("valid/loss", "valid/si_sdr"), strict=True):
                steps, values = zip(*((record["step"], record[key]) for record in records), strict=True)
                style = (0, (4, 3)) if paper else "-"
                ax.plot(steps, values, color=colour, linestyle=style, label=label + ", train=paper" * paper)
        axes[0].set(title="validation loss, nats a frame", ylim=(None, 600))
        axes[1].set(title="SI-SDR of resynthesis in dB")
        legend_above(figure, axes[0])
        figure.supxlabel("step", fontsize=10)
        figure.savefig(DOCS / "training.png", dpi=130)
    return [DOCS / "training.png"]


def robustness(run: str) -> list[Path]:
    summary = [item for item in read_summary(Path(run, "summary.json")) if "compared_with" in item]
    first = [item for item in summary if item["compared_with"] == summary[0]["compared_with"]]
    drawn = []
    for metric in ("si_sdr", "estoi"):
        picture = io.BytesIO()
        difference_curves(first, metric).savefig(picture, dpi=100)
        drawn.append(Image.open(picture).convert("RGB"))
    whole = Image.new("RGB", (max(part.width for part in drawn), sum(part.height for part in drawn)), "white")
    for part, top in zip(drawn, (0, drawn[0].height), strict=True):
        whole.paste(part, (0, top))
    whole.save(DOCS / "robustness.png")
    return [DOCS / "robustness.png"]


def report(run: str) -> list[Path]:
    """The top of the page and its examples, side by side."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 720, "height": 900})
        page.goto(f"file://{Path(run).resolve()}/report.html")
        top = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        page.get_by_role("heading", name="Examples").scroll_into_view_if_needed()
        page.evaluate("[...document.querySelectorAll('h2')].find(h => h.textContent == 'Examples').scrollIntoView()")
        examples = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    whole = Image.new("RGB", (top.width + examples.width, top.height), "white")
    whole.paste(top, (0, 0))
    whole.paste(examples, (top.width, 0))
    whole.save(DOCS / "report.png", optimize=True)
    return [DOCS / "report.png"]


def microphone(run: str) -> list[Path]:
    opened = open_run(Path(run))
    enhancer = build_enhancer(opened, opened.load_speech_prior(), {}, films=False, device="cpu")
    server = uvicorn.Server(uvicorn.Config(live_app(Live(enhancer, Streaming())), port=7861, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    devices = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", *devices])
        page = browser.new_page(viewport={"width": 640, "height": 300}, color_scheme="light")
        page.goto("http://127.0.0.1:7861/live/")
        page.locator("#start").click()
        page.wait_for_function("() => parseFloat(document.getElementById('seconds').textContent) > 6")
        page.screenshot(path=DOCS / "microphone.png")
        browser.close()
    server.should_exit = True
    thread.join()
    return [DOCS / "microphone.png"]


def contact_sheet(prepared: str) -> list[Path]:
    shutil.copy(Path(prepared, "contact_sheet.png"), DOCS)
    return [DOCS / "contact_sheet.png"]


def write_flac(path: Path, flac: Path) -> Path:
    flac.parent.mkdir(exist_ok=True)
    samples, rate = soundfile.read(path)
    soundfile.write(flac, samples, rate)
    return flac


COMMANDS: dict[str, Callable[..., Sequence[Path]]] = {
    kind.__name__: kind
    for kind in (
        diagrams,
        before_after,
        talkers,
        tracks,
        futures,
        transfer,
        probe,
        training,
        robustness,
        report,
        contact_sheet,
        microphone,
    )
}


def note(command: str, files: Sequence[Path]) -> None:
    notes: dict[str, Any] = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    former = {DOCS / name for name, about in notes.items() if about["command"] == command}
    notes = {name: about for name, about in notes.items() if about["command"] != command}
    for file in former.difference(files):
        file.unlink(missing_ok=True)
    for file in files:
        hashed = hashlib.sha256(file.read_bytes()).hexdigest()
        notes[str(file.relative_to(DOCS))] = {"command": command, "version": avdvae.__version__, "sha256": hashed}
    with replacing(NOTES) as new:
        new.write_text(json.dumps(dict(sorted(notes.items())), indent=1) + "\n")


if __name__ == "__main__":
    prepare_process()
    name, *words = sys.argv[1:]
    note(f"python docs/tools/pictures.py {name}", COMMANDS[name](*words))
