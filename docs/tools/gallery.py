"""Make docs/gallery.md with its sounds, pictures and films, from runs.

python docs/tools/gallery.py lips=RUN voices=PREPARED swaps=RUN pitches=RUN tracks=RUN

lips      a run of exp=av_rvae or another model with lips, on Talker
voices    a prepared LibriSpeech, whose unseen talkers are enhanced with the packaged weights
swaps     a run of exp=vq_mdvae
pitches   a run of exp=sf_vae
tracks    a run of exp=tracking

Parts that are not named stay in the page as they are.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
from pictures import DOCS, note

from avdvae.data.shards import PreparedCorpus
from avdvae.errors import prepare_process
from avdvae.evaluation.again import evaluate_again
from avdvae.evaluation.results import Result, read_results
from avdvae.latents.stage import Stage
from avdvae.pictures.stills import triptych
from avdvae.programs.control import control
from avdvae.programs.transfer import transfer_clips
from avdvae.runs import open_run
from avdvae.signals.audio import read_wav, write_wav
from avdvae.signals.clock import RATE
from avdvae.signals.metrics import Look

MEDIA = DOCS / "gallery"
COMMAND = "python docs/tools/gallery.py"
PITCHES = (120, 150, 180, 220, 270)  # Hz, constant
SCENES = ("scene/120 apart 01", "scene/120 crossing 01")
SCORES = ("mota", "idf1", "id_switches")
BEGIN = f"""# Gallery

Sounds, pictures and films of trained models, all made by `{COMMAND}` from runs of the suite. The talkers are not in
the training sets."""


@dataclass
class Section:
    """Markdown that begins with a heading, and the files that it shows, made by `COMMAND name=given`."""

    name: str
    text: list[str]
    given: str = "RUN"
    files: list[Path] = field(default_factory=list)

    @property
    def command(self) -> str:
        return f"{COMMAND} {self.name}={self.given}"

    def sounds(self, named: dict[str, Path]) -> None:
        """A row of players."""
        players = []
        for wav in named.values():
            samples, rate = soundfile.read(wav)
            self.files.append(MEDIA / f"{self.name}_{len(self.files)}.mp3")
            soundfile.write(self.files[-1], samples, rate)
            players.append(f'<audio controls src="gallery/{self.files[-1].name}"></audio>')
        rule = "|---" * len(named) + "|"
        self.text.append(f"| {' | '.join(named)} |\n{rule}\n| {' | '.join(players)} |")

    def copy(self, source: Path, name: str, about: str) -> None:
        """A picture or a film."""
        self.files.append(MEDIA / name)
        shutil.copy(source, MEDIA / name)
        film = f'<video controls src="gallery/{name}"></video>'
        self.text.append(
            f"{film if source.suffix == '.mp4' else f'![{about}](gallery/{name})'}\n\n{about}: `{self.command}`"
        )


def lips(run: str) -> Section:
    section = Section("lips", ["## From sound and lips", "Talker, noise at -5 dB, enhanced by the sound and the lips."])
    measured = {"noises": ["White", "LR"], "snrs": [-5], "lips": ["clean"], "speakers": ["90F", "91M"]}
    enhanced(section, open_run(Path(run)), measured, "lips")
    return section


def voices(prepared: str) -> Section:
    section = Section(
        "voices",
        [
            "## Real voices",
            "LibriSpeech (CC BY 4.0), noise at 0 dB, enhanced with the packaged weights `rvae-librispeech`.",
        ],
        given="PREPARED",
    )
    first = {utterance.speaker: utterance for utterance in reversed(PreparedCorpus(prepared, "test", False).utterances)}
    short = sorted((utterance.seconds, name) for name, utterance in first.items() if utterance.seconds > 3)
    measured = {"noises": ["Car", "White"], "snrs": [0], "speakers": [name for _, name in short[:2]], "trim_db": None}
    enhanced(section, open_run(Path("rvae-librispeech")), measured, "voices", prepared)
    return section


def enhanced(section: Section, run: Any, measured: dict[str, Any], name: str, prepared: str | None = None) -> None:
    how = {"tasks": ["enhancement"], "per_speaker": 1, "metrics": ["si_sdr"], "examples": 9, "workers": 1}
    changes = {"evaluate": how | measured} | ({"prepared": prepared} if prepared else {})
    with tempfile.TemporaryDirectory() as folder:
        out = evaluate_again(run, changes, out=Path(folder, name))
        for number, example in enumerate(json.loads((out / "examples.json").read_text())):
            before, after = (example["scores"][key] for key in ("input_si_sdr", "si_sdr"))
            section.text.append(f"### {example['title']}")
            picture = f"SI-SDR from {before:.1f} to {after:.1f} dB"
            section.copy(out / example["figure"], f"{name}_{number}.png", picture)
            section.sounds({kind: out / example["audio"][kind] for kind in ("noisy", "enhanced", "clean")})


def swaps(run: str) -> Section:
    about = "VQ-MDVAE: the source, the target, and the source with one latent of the target."
    section = Section("swaps", ["## Swapped latents", about])
    asked = {"run": run, "source": "251M/tk001", "target": "250F/tk001", "phase": "griffin_lim"}
    for latent, what in {"w": "static identity", "z_av": "shared dynamics"}.items():
        with tempfile.TemporaryDirectory() as folder:
            transfer_clips(asked | {"latents": [latent], "out": f"{folder}/out"})
            section.copy(Path(folder, "out/film.mp4"), f"swap_{latent}.mp4", f"`{latent}`, {what}, of the target")
    return section


def pitches(run: str) -> Section:
    section = Section(
        "pitches", ["## Five pitches of a sentence", "SF-VAE: the pitch is moved in its subspace of the latent space."]
    )
    stage = Stage(open_run(Path(run)))
    woman = next(u.id for u in stage.corpus.utterances if u.split == "test" and u.speaker.endswith("F"))
    given = dict.fromkeys(("f1", "f2", "f3", "phase", "share")) | {"whisper": False, "everywhere": False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wavs = {"recording": folder / "recording.wav"}
        sound = stage.original(stage.clip("source", woman)).sound
        write_wav(wavs["recording"], torch.from_numpy(sound), RATE)
        for hertz in PITCHES:
            wavs[f"{hertz} Hz"] = folder / f"{hertz}.wav"
            asked = {"run": run, "input": wavs["recording"], "output": wavs[f"{hertz} Hz"], "f0": hertz}
            control(given | asked | {"method": "components"})
        sounds = {pitch: read_wav(wav, RATE).numpy() for pitch, wav in wavs.items()}
        triptych(sounds, RATE, 256).savefig(folder / "pitches.png", dpi=90)
        section.copy(folder / "pitches.png", "pitches.png", "Spectrograms")
        section.sounds(wavs)
    return section


def tracks(run: str) -> Section:
    what = "Scenes of three boxes, by MixDVAE (`tracking`), a Kalman filter in the same EM and nearest detections."
    section = Section("tracks", ["## Tracks", what])
    measured = {"tasks": ["tracking"], "speakers": SCENES, "per_speaker": None, "examples": len(SCENES), "workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        out = evaluate_again(open_run(Path(run)), {"evaluate": measured}, out=Path(folder, "out"))
        results = read_results(out / "results.csv")
        for number, example in enumerate(json.loads((out / "examples.json").read_text())):
            section.text.append(f"### {example['title']}")
            about = "Three moments: detections, true boxes and the three methods"
            section.copy(out / example["figure"], f"tracks_{number}.png", about)
            section.copy(out / example["video"], f"tracks_{number}.mp4", "The whole scene")
            section.text.append(table([row for row in results if example["title"].startswith(row.item)]))
    return section


def table(results: list[Result]) -> str:
    """The scores of one item: a row a method, as in the film."""
    methods: dict[str, dict[str, str]] = {}
    for row in results:
        methods.setdefault(row.model, {})[row.metric] = f"{row.value:.3g}"
    columns = [f"{Look.of(metric).name}, {Look.of(metric).unit}" for metric in SCORES]
    rows = [[name, *(scores[metric] for metric in SCORES)] for name, scores in methods.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (["", *columns], ["---"] * (1 + len(SCORES)), *rows))


SECTIONS: dict[str, Callable[[str], Section]] = {kind.__name__: kind for kind in (lips, voices, swaps, pitches, tracks)}


def main() -> None:
    asked = dict(word.split("=", 1) for word in sys.argv[1:])
    page = DOCS / "gallery.md"
    _, *parts = re.split(r"\n\n(?=## )", page.read_text().strip())
    by_heading = {part.partition("\n")[0]: part for part in parts}
    MEDIA.mkdir(exist_ok=True)
    for name, run in asked.items():
        section = SECTIONS[name](run)
        by_heading[section.text[0]] = "\n\n".join(section.text)
        note(section.command, section.files)
    page.write_text("\n\n".join([BEGIN, *by_heading.values()]) + "\n")


if __name__ == "__main__":
    prepare_process()
    main()
