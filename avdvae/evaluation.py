"""The tasks that a model is measured on, condition by condition.

enhancement              the split's utterances in each noise, at each SNR, with each state of the lips: separated, then
                         scored beside the mixture that was heard
resynthesis              the clean utterances through the latents and back; a model that hears the past hears its own
resynthesis_true_past    the same where such a model is given the true past (teacher forcing): it need not remember, and
                         its figures stand beside no others
motion                   poses through the latents and back, and motion_true_past: mean distance of the joints, MPJPE

Blocks (a task, a state of the lips, a noise) are written to results.csv as soon as they are scored, and an evaluation
that was interrupted goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from avdvae.audio import Stft, write_wav
from avdvae.data.conditions import Condition
from avdvae.data.corpora import ensure_prepared
from avdvae.data.loader import Loader
from avdvae.data.mixing import NOISES, NoiseFolder
from avdvae.data.poses import FPS, SKELETONS
from avdvae.data.shards import PreparedCorpus, replacing
from avdvae.data.twins import NoisyTwins
from avdvae.distributions import Joints
from avdvae.errors import UserError
from avdvae.inference.resynth import move_again, resynthesise
from avdvae.inference.separation import RATE, separate
from avdvae.inference.vem import Vem
from avdvae.metrics import INPUT, METRICS, ScoreJob, score_all
from avdvae.protocols import Autoregressive, Batch, SpeechPrior, indispensable
from avdvae.report import write_report
from avdvae.results import Result, read_results, summarise, write_results, write_summary
from avdvae.results import compare as compare_rows
from avdvae.runs import Run, build_vem
from avdvae.video import write_mp4
from avdvae.viz import cost_curves, pose_strip, stick_figures, triptych, write_png

TASKS = ("enhancement", "resynthesis", "resynthesis_true_past", "motion", "motion_true_past")
OF_MOTION = ("motion", "motion_true_past")
Noise = str | NoiseFolder | NoisyTwins
ENOUGH = 200  # signals that are worth starting processes for
SHOWN_SNR = 0.0  # the example is taken at the SNR nearest to this


@dataclass(frozen=True)
class Evaluation:
    tasks: Sequence[str] = ("enhancement",)
    split: str = "test"
    noises: Sequence[str] = tuple(NOISES)
    snrs: Sequence[float] = (-10, -5, 0, 5, 10, 15)
    lips: Sequence[str] = ("clean", "occluded")  # for models that look at them
    per_speaker: int | None = 2
    min_seconds: float = 1.0
    trim_db: float | None = 30.0
    seed: int = 0
    metrics: Sequence[str] = METRICS
    examples: int = 3  # of each state of the lips
    workers: int | None = None  # None: one a core

    def __post_init__(self) -> None:
        if unknown := set(self.tasks) - set(TASKS):
            raise UserError(f"no task is called {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
        if "enhancement" in self.tasks and not (self.noises and self.snrs and self.lips):
            raise UserError("evaluate.noises, evaluate.snrs and evaluate.lips must each name something")


@dataclass(frozen=True)
class _Block:
    task: str
    lips: str = ""  # "" for models that do not look at them
    noise: str = ""


class _Measured(NamedTuple):
    """An utterance that waits to be scored."""

    block: _Block
    item: str
    snr: float | None
    job: ScoreJob
    rtf: float | None = None


class Evaluator:
    """Measures one model; `name` and `run` head its rows in results.csv, which lies in the folder `out`."""

    def __init__(
        self,
        model: SpeechPrior,
        corpus: PreparedCorpus,
        stft: Stft,
        vem: Vem,
        settings: Evaluation,
        out: Path,
        name: str,
        batch_size: int = 4,
        device: str = "cpu",
    ):
        self.model, self.stft, self.vem, self.settings, self.out = model, stft, vem, settings, out
        self.name, self.batch_size, self.device = name, batch_size, device
        self.corpus, self.chosen = corpus, corpus.choose(settings.per_speaker, settings.min_seconds)
        if wrong := [task for task in settings.tasks if (task in OF_MOTION) != corpus.has_poses]:
            holds, fit = ("poses", OF_MOTION) if corpus.has_poses else ("sound", TASKS[:-2])
            raise UserError(
                f"evaluate.tasks={','.join(wrong)}: {corpus.root} holds {holds}, so choose from {', '.join(fit)}"
            )
        if "lips" in model.sees and not corpus.has_lips:
            raise UserError(f"{type(model).__name__} looks at lips and {corpus.root} has none: give a corpus of videos")
        self.workers = settings.workers or os.cpu_count() or 1
        self.rows: list[Result] = []
        self.examples: list[dict[str, Any]] = []
        self.costs: dict[str, list[float]] = {}

    def run(self) -> float:
        """All that is not in results.csv yet; returns the seconds that the model itself took."""
        results, spent = self.out / "results.csv", 0.0
        self.rows = read_results(results) if results.exists() else []
        self.examples = json.loads(path.read_text()) if (path := self.out / "examples.json").exists() else []
        done = {_Block(row.task, row.lips, row.noise) for row in self.rows}
        for folder in ("audio", "figures", "videos") if self.corpus.has_poses else ("audio", "figures"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        todo = [block for block in self._blocks() if block not in done]
        waiting: list[_Measured] = []
        for number, block in enumerate(todo, start=1):
            label = ", ".join(filter(None, (block.noise, block.lips and f"{block.lips} lips")))
            label = label or ("poses" if block.task in OF_MOTION else "clean speech")
            print(f"{block.task} {number}/{len(todo)}: {label}", flush=True)
            start = time.monotonic()
            if block.task in OF_MOTION:
                self.rows += self._move(block)
            else:
                waiting += self._enhance(block) if block.task == "enhancement" else self._resynthesise(block)
            spent += time.monotonic() - start
            if len(waiting) >= ENOUGH or number == len(todo):
                self._score(waiting)
                waiting.clear()
                write_results(results, self.rows)
                with replacing(self.out / "examples.json") as new:
                    new.write_text(json.dumps(self.examples, indent=1))
        if self.costs:
            cost_curves(self.costs).savefig(self.out / "figures" / "em_cost.png", dpi=150)
        return spent

    def _blocks(self) -> Iterator[_Block]:
        states = self.settings.lips if "lips" in self.model.sees else ("",)
        for task in self.settings.tasks:
            if task == "enhancement":
                yield from (_Block(task, lips, _label(noise)) for lips in states for noise in self.settings.noises)
            elif not task.endswith("true_past") or isinstance(self.model, Autoregressive):
                yield _Block(task, lips=states[0] and "clean")

    def _loader(self, condition: Condition | None) -> Loader:
        s = self.settings
        return Loader(
            self.chosen,
            self.stft,
            frames=None,
            batch_size=self.batch_size,
            seed=s.seed,
            shuffle=False,
            trim_db=s.trim_db,
            device=self.device,
            condition=condition,
        )

    def _enhance(self, block: _Block) -> list[_Measured]:
        s, measured = self.settings, []
        noise = next(noise for noise in s.noises if _label(noise) == block.noise)
        source = self._source(noise)
        snrs = [None] if isinstance(source, NoisyTwins) and not source.levels else s.snrs
        shown_snr = min(snrs, key=lambda snr: abs((snr or 0) - SHOWN_SNR))
        shown = [_label(n) for n in s.noises].index(block.noise)
        known = self._known_inputs(block)
        unseen = block.lips == "none" and "lips" not in indispensable(self.model)
        spoilt = None if unseen or block.lips in ("", "clean") else block.lips
        with _progress("enhancing", len(snrs) * len(self.chosen.utterances)) as advance:
            for snr, batch in self._mixtures(source, snrs, spoilt):
                batch = replace(batch, lips=None) if unseen else batch
                start = time.perf_counter()
                separated = separate(self.model, batch, self.stft, self.vem)
                speech = separated.speech.cpu().numpy()  # waits for the device
                assert batch.waveform is not None and batch.mixture is not None and batch.lengths is not None
                rtf = (time.perf_counter() - start) * RATE / int(batch.lengths.sum())
                clean, mixture = batch.waveform.cpu().numpy(), batch.mixture.cpu().numpy()
                for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                    estimates = {"": speech[b, :n]}
                    if (item, snr) not in known:
                        estimates[INPUT] = mixture[b, :n]
                    job = ScoreJob(clean[b, :n], estimates, RATE, tuple(s.metrics))
                    measured.append(_Measured(block, item, snr, job, rtf))
                    wanted = self.chosen.utterances[shown % len(self.chosen.utterances)].id
                    if snr == shown_snr and shown < s.examples and item == wanted:
                        signals = {"clean": clean[b, :n], "noisy": mixture[b, :n], "enhanced": speech[b, :n]}
                        self._keep_example(block, item, snr, signals, batch, b, separated.switch)
                        label = filter(None, (block.noise, "" if snr is None else f"{snr:g} dB", block.lips))
                        self.costs[" ".join(label)] = separated.cost[:, b].tolist()
                advance(len(batch.ids))
        return measured

    def _source(self, noise: str) -> Noise:
        """A noise by name, or what a folder holds."""
        if noise in NOISES:
            return noise
        return NoisyTwins.of(Path(noise), self.chosen.utterances[0]) or NoiseFolder(Path(noise))

    def _mixtures(
        self, noise: Noise, snrs: Sequence[float | None], lips: str | None
    ) -> Iterator[tuple[float | None, Batch]]:
        for snr in snrs:
            for batch in self._loader(Condition(self.corpus, noise, snr, lips, self.settings.seed)):
                yield snr, batch

    def _resynthesise(self, block: _Block) -> list[_Measured]:
        measured, shown = [], {utterance.id for utterance in self.chosen.utterances[: self.settings.examples]}
        torch.manual_seed(self.settings.seed)
        for batch in self._loader(None):
            true_past = block.task == "resynthesis_true_past"
            speech = resynthesise(self.model, batch, self.stft, true_past).cpu().numpy()
            assert batch.waveform is not None and batch.lengths is not None
            clean = batch.waveform.cpu().numpy()
            for b, (item, n) in enumerate(zip(batch.ids, batch.lengths.tolist(), strict=True)):
                job = ScoreJob(clean[b, :n], {"": speech[b, :n]}, RATE, (*self.settings.metrics, "rmse"))
                measured.append(_Measured(block, item, None, job))
                if item in shown:
                    signals = {"clean": clean[b, :n], "resynthesised": speech[b, :n]}
                    self._keep_example(block, item, None, signals, batch, b, None)
        return measured

    def _move(self, block: _Block) -> list[Result]:
        rows, shown = [], {utterance.id for utterance in self.chosen.utterances[: self.settings.examples]}
        torch.manual_seed(self.settings.seed)
        for batch in self._loader(None):
            pose_BTD = batch.need("pose", self.model)
            again_BTD = move_again(self.model, batch, block.task.endswith("true_past"))
            errors_BT = Joints(again_BTD).distances(pose_BTD).mean(-1) * 1000
            for b, item in enumerate(batch.ids):
                seen = batch.mask[b]
                error = errors_BT[b][seen].mean().item()
                rows.append(self._row(block, item, None, "mpjpe_mm", error))
                if item in shown:
                    key = _key(block, item, None)
                    figures = {
                        name: pose_TD[seen].unflatten(-1, (-1, 3)).cpu().numpy()
                        for name, pose_TD in (("true", pose_BTD[b]), ("by the model", again_BTD[b]))
                    }
                    pictures = stick_figures(figures, SKELETONS[self.corpus.utterances[0].corpus])
                    write_mp4(self.out / f"videos/{key}.mp4", pictures, Fraction(FPS))
                    write_png(self.out / f"figures/{key}.png", pose_strip(pictures))
                    example = {"key": key, "title": f"{item}, {block.task.replace('_', ' ')}", "audio": {}}
                    example |= {"figure": f"figures/{key}.png", "video": f"videos/{key}.mp4"}
                    self.examples.append(example | {"scores": {"mpjpe_mm": error}})
        return rows

    def _known_inputs(self, block: _Block) -> dict[tuple[str, float | None], dict[str, float]]:
        """Metrics of mixtures that were heard before, with the lips in another state."""
        known: dict[tuple[str, float | None], dict[str, float]] = {}
        for row in self.rows:
            if (row.task, row.noise) == (block.task, block.noise) and row.metric.startswith(INPUT):
                known.setdefault((row.item, row.snr), {})[row.metric] = row.value
        return known

    def _score(self, waiting: Sequence[_Measured]) -> None:
        inputs = {block: self._known_inputs(block) for block in {measured.block for measured in waiting}}
        scored = score_all([measured.job for measured in waiting], self.workers)
        for (block, item, snr, _, rtf), scores in zip(waiting, scored, strict=True):
            scores = inputs[block].get((item, snr), {}) | scores
            if "si_sdr" in scores and f"{INPUT}si_sdr" in scores:
                scores["si_sdr_improvement"] = scores["si_sdr"] - scores[f"{INPUT}si_sdr"]
            if rtf is not None:
                scores["rtf"] = rtf
            self.rows += [self._row(block, item, snr, metric, value) for metric, value in scores.items()]
            for example in self.examples:
                if example["key"] == _key(block, item, snr):
                    example["scores"] = {metric: value for metric, value in scores.items() if np.isfinite(value)}

    def _row(self, block: _Block, item: str, snr: float | None, metric: str, value: float) -> Result:
        corpus = self.chosen.utterances[0].corpus
        where = (str(self.out), self.name, block.task, corpus, self.settings.split, item, block.noise)
        return Result(*where, snr, block.lips, metric, value)

    def _keep_example(
        self,
        block: _Block,
        item: str,
        snr: float | None,
        signals: Mapping[str, np.ndarray],
        batch: Batch,
        b: int,
        switch_BTM: torch.Tensor | None,
    ) -> None:
        key = _key(block, item, snr)
        loudest = max(np.abs(signal).max() for signal in signals.values())
        audio = {name: f"audio/{key}.{name}.wav" for name in signals}
        for name, path in audio.items():
            write_wav(self.out / path, torch.from_numpy(signals[name] * (0.9 / loudest)), RATE)
        frames = batch.mask[b].cpu()
        sees = "lips" in self.model.sees and batch.lips is not None and batch.sure is not None
        lips = batch.lips[b].cpu()[frames].numpy() if sees and batch.lips is not None else None
        sure = batch.sure[b].cpu()[frames].numpy() if sees and batch.sure is not None else None
        shares = None
        if switch_BTM is not None:
            names: Sequence[str] = getattr(self.model, "components", [f"component {m}" for m in range(9)])
            shares = dict(zip(names, switch_BTM[b].cpu()[frames].numpy().T, strict=False))
        figure = f"figures/{key}.png"
        triptych(signals, RATE, self.stft.hop, lips, sure, shares).savefig(self.out / figure, dpi=150)
        level = "" if snr is None else f" at {snr:g} dB"
        what = block.noise or block.task.replace("_", " ")
        title = f"{item}, {what}{level}" + (f", {block.lips} lips" if block.lips else "")
        self.examples.append({"key": key, "title": title, "audio": audio, "figure": figure})


def find_corpus(config: Mapping[str, Any]) -> Path:
    """The folder of the prepared corpus that a run's configuration asks for; it is prepared if it is not yet."""
    if config["prepared"]:
        return Path(config["prepared"])
    return ensure_prepared(config["data"], size=config["lips"]["size"], face=config["lips"].get("face"))


def find_other_runs(compare: Sequence[str]) -> list[Path]:
    """The runs to be compared with, all of them evaluated."""
    for other in compare:
        if not (Path(other) / "results.csv").is_file():
            raise UserError(f"compare={other} has no results.csv: name runs that have been evaluated")
    return [Path(other) for other in compare]


def evaluate_run(run: Run, out: Path, prepared: Path, compare: Sequence[str]) -> None:
    """Measure a run's model as its configuration says, summarise, hold it against other runs, and report, in `out`."""
    device = "cuda" if torch.cuda.is_available() and run.config["train"]["accelerator"] != "cpu" else "cpu"
    model = run.load_speech_prior(device)
    others = find_other_runs(compare)
    settings, enhance = Evaluation(**run.config["evaluate"]), run.config["enhance"]
    corpus = PreparedCorpus(prepared, settings.split, verify=False)
    vem, name = build_vem(enhance), run.config["exp"]
    evaluator = Evaluator(model, corpus, run.stft, vem, settings, out, name, enhance["batch_size"], device)
    start = time.monotonic()
    seconds = evaluator.run()
    spent = {"enhance": seconds, "score": time.monotonic() - start - seconds}
    Run(out, run.config).note(device=device, corpus=corpus.utterances[0].corpus, seconds=spent)

    summary = summarise(evaluator.rows, run.config["seed"])
    for other in others:
        summary += compare_rows(evaluator.rows, read_results(other / "results.csv"), seed=run.config["seed"])
    write_summary(out / "summary.json", summary)
    write_report(out)


def join_evaluations(out: Path, parts: Mapping[str, Path], seed: int) -> list[dict[str, Any]]:
    """One page, in `out`, of evaluations that lie in folders below it: the models beside each other; its summary."""
    rows = [row for part in parts.values() for row in read_results(part / "results.csv")]
    summary, examples = summarise(rows, seed), []
    for name, part in parts.items():
        summary += [item for item in json.loads((part / "summary.json").read_text()) if "compared_with" in item]
        for example in json.loads((part / "examples.json").read_text()):
            where = part.relative_to(out)
            audio = {kind: str(where / path) for kind, path in example["audio"].items()}
            examples.append(
                {**example, "title": f"{name}: {example['title']}", "audio": audio}
                | {kind: str(where / example[kind]) for kind in ("figure", "video") if kind in example}
            )
    write_results(out / "results.csv", rows)
    write_summary(out / "summary.json", summary)
    with replacing(out / "examples.json") as new:
        new.write_text(json.dumps(examples, indent=1))
    write_report(out)
    return summary


@contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _label(noise: str) -> str:
    return noise if noise in NOISES else Path(noise).name


def _key(block: _Block, item: str, snr: float | None) -> str:
    level = "" if snr is None else f"{snr:g}dB"
    parts = (item.replace("/", "_").replace(" ", "_"), block.noise or block.task, level, block.lips)
    return "_".join(filter(None, parts))
