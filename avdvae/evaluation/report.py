"""The report of a run: report.html, one file that contains its pictures and sounds and loads nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from avdvae.data.clips import GENERATED
from avdvae.errors import UserError, reading
from avdvae.evaluation.published import published_on
from avdvae.evaluation.results import read_examples, read_results, read_summary
from avdvae.evaluation.tables import POOLED, Item, Table, by_model, by_snr, difference_cell, result_cell, scores_of
from avdvae.files import replacing
from avdvae.pictures.figures import difference_curves, metric_curves, training_curves
from avdvae.pictures.style import drawn
from avdvae.signals.metrics import ALL_NOISES, FAILED, INPUT, Look
from avdvae.training.curves import best_epoch, read_curves

if TYPE_CHECKING:
    import matplotlib.figure

_CURVES = ("si_sdr", "pesq_wb", "estoi")
_EACH_NOISE = "Each noise separately"
TITLES = {
    "enhancement": "Enhancement",
    "streaming": "Enhancement as the sound arrives, by latency",
    "separation": "Separation",
    "resynthesis": "Resynthesis",
    "resynthesis_true_past": "Resynthesis with the true past (teacher forcing)",
    "inpainting": "Inpainting: frames that are filled in",
    "calibration": "Calibration: coverage of intervals of posterior draws",
    "transfer": "Transfer of one latent: agreement with source and donor",
    "denoising": "Denoising of occluded mouths and eyes",
    "emotion": "Emotion classification from few labels",
    "likelihood": "Likelihood: bits per sample",
    "probe": "Labels predicted from latents",
    "motion": "Motion",
    "motion_true_past": "Motion with the true past (teacher forcing)",
    "prediction": "Prediction of motion: draws of the future after an observed beginning",
    "latent_use": "Latent use: KL in nats a frame, share of the output's variance in %",
    "motion_latent_use": "Latent use in motion: KL in nats a frame, share of the output's variance in %",
    **{f"control_{factor}": f"Control of {factor}: relative errors" for factor in ("f0", "f1", "f2", "f3")},
    "tracking": "Tracking",
    "f0": "Pitch estimated from latents, by Praat and by WORLD",
}


class Section(NamedTuple):
    """`kind`: the macro of templates/sections.html that shows `content`."""

    title: str
    kind: str
    content: Any


class Passage(NamedTuple):
    """One part of a section of tables. `more`: a table that opens on a click, and its title."""

    title: str
    note: str
    table: Table
    more: tuple[str, Table] | None = None


class Picture(NamedTuple):
    url: str
    title: str


def write_report(run: Path) -> Path:
    """Write report.html into a run's directory from the files there; what has no file has no section."""
    if not run.is_dir():
        raise UserError(f"there is no run in {run}: name the directory that a run has written")
    path = run / "report.html"
    with replacing(path) as new:
        new.write_text(page(_head(run), _sections(run)), encoding="utf-8")
    return path


def page(head: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """A page of HTML. `head`: title, lead, facts, command, and whether the corpus is `generated`."""
    return rendered("report.html", head=head, sections=sections)


def rendered(template: str, **content: Any) -> str:
    """A file of templates/ with this content."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("avdvae.evaluation"),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(**content)


def _sections(run: Path) -> list[Section]:
    summary = read_summary(run / "summary.json") if (run / "summary.json").is_file() else []
    own = [item for item in summary if "compared_with" not in item]
    compared = [item for item in summary if "compared_with" in item]
    examples = read_examples(run / "examples.json") if (run / "examples.json").is_file() else []
    sections = [
        Section("Results", "tables", _results(own)),
        Section("By signal-to-noise ratio", "pictures", _curves(own, compared)),
        Section("Compared with other runs", "tables", _comparisons(compared)),
        Section("Examples", "examples", [_example(run, example) for example in examples]),
        Section("Training", "pictures", _training(run / "metrics.jsonl")),
        *_other_figures(run, {example.get("figure") for example in examples}),
        Section("Published figures", "tables", _published(run / "config.yaml")),
        Section("Configuration", "file", _config(run / "config.yaml")),
    ]
    return [section for section in sections if section.content]


# ---------------------------------------------------------------------------------------------------------------------
# The content of each section; empty where there is nothing to show


def _head(run: Path) -> dict[str, Any]:
    config = _read_names(run / "config.yaml", yaml.safe_load)
    about = _read_names(run / "run.json", json.loads)
    rows = read_results(run / "results.csv") if (run / "results.csv").is_file() else []
    model = about.get("model") or (rows[0].model if rows else "")
    corpus = about.get("corpus") or (rows[0].corpus if rows else "")
    records, _ = read_curves(run / "metrics.jsonl")
    best = best_epoch(records)
    facts = {
        "Parameters": f"{about['parameters']:,}" if "parameters" in about else "",
        "Best epoch": f"{best} of {records[-1]['epoch']}" if best else "",
        "Evaluated on": f"{len({row.item for row in rows})} utterances ({rows[0].split})" if rows else "",
        **{f"Time to {name}": _duration(seconds) for name, seconds in about.get("seconds", {}).items()},
        "Device": about.get("device", ""),
        "Seed": config.get("seed", ""),
        "Started": about.get("started", "").replace("T", " "),
    }
    return {
        "title": str(config.get("exp") or run.resolve().name),
        "lead": " on the corpus ".join(filter(None, (model, corpus))),
        "facts": {name: fact for name, fact in facts.items() if fact not in ("", None)},
        "command": about.get("command", ""),
        "generated": corpus in GENERATED,
    }


def _results(own: Sequence[Item]) -> dict[str, Any]:
    parts, tasks = [], _grouped(own, "task")
    for (task,), items in tasks.items():
        title = TITLES.get(task, task) if len(tasks) > 1 else ""
        parts.append(_in_noise(items, title) if any(i["noise"] for i in items) else _in_quiet(items, task, title))
    return {"note": "", "parts": parts} if parts else {}


def _in_quiet(items: Sequence[Item], task: str, title: str) -> Passage:
    note = f"Means over {sample_of(items, 'items')}. {intervals_of(items)}{_failures(items)}"
    return Passage(title, note, by_model(items, task))


def _in_noise(own: Sequence[Item], title: str) -> Passage:
    noises = [noise for noise in dict.fromkeys(item["noise"] for item in own) if noise not in POOLED]
    headline = [item for item in own if item["noise"] == ALL_NOISES] or own
    several, one, each = "noises", "in the noise", _EACH_NOISE
    if own[0]["task"] == "separation":
        several, one, each = "kinds of mixtures", "in mixtures of the kind", "Each kind of mixture separately"
    over = f" and {len(noises)} {several}" if len(noises) > 1 else f" {one} {noises[0]}"
    arrow = ", unprocessed input → output" if any(item["metric"].startswith(INPUT) for item in own) else ""
    note = f"Means over {sample_of(headline, 'utterances')}{over}{arrow}. {intervals_of(headline)}{_failures(own)}"
    alone = (each, by_snr(_of_one_noise(own), result_cell)) if len(noises) > 1 else None
    return Passage(title, note, by_snr(headline, result_cell), alone)


def sample_of(items: Sequence[Item], what: str) -> str:
    largest = max(items, key=lambda item: item["n"])
    return f"{largest['n']} {what} of {largest['speakers']} speaker{'s' * (largest['speakers'] > 1)}"


def intervals_of(items: Sequence[Item]) -> str:
    several = any(item["speakers"] > 1 for item in items)
    return f"Brackets: 95 % intervals, {'between speakers' if several else 'between utterances of this one speaker'}."


def _failures(items: Sequence[Item]) -> str:
    counted = [item for item in _of_one_noise(items) if item["metric"] == FAILED]
    if not counted:
        return ""
    failed, all_of_them = round(sum(item["mean"] * item["n"] for item in counted)), sum(item["n"] for item in counted)
    if not failed:
        return " No estimate failed."
    return f" {failed} of {all_of_them} estimates failed (silent or not finite) and count as the worst value."


def _grouped(items: Iterable[Item], *keys: str) -> dict[tuple[str, ...], list[Item]]:
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), []).append(item)
    return groups


def _of_one_noise(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if item["noise"] not in POOLED]


def _comparisons(compared: Sequence[Item]) -> dict[str, Any]:
    pairs = _grouped(compared, "compared_with", "task")
    several = len({task for _, task in pairs}) > 1
    parts = []
    for (other, task), items in pairs.items():
        pooled = [item for item in items if item["noise"] in POOLED]
        differs = items[0].get("differs")
        parts.append(
            Passage(
                f"This run minus {other}{f', {TITLES.get(task, task)}' if several else ''}",
                f"The other run was measured with {differs}." if differs else "",
                by_snr(pooled or items, difference_cell),
                (_EACH_NOISE, by_snr(_of_one_noise(items), difference_cell)) if pooled else None,
            )
        )
    note = f"Mean differences on the same mixtures or utterances. {intervals_of(compared)} Bold: zero lies outside."
    return {"note": note, "parts": parts} if parts else {}


def _curves(own: Sequence[Item], compared: Sequence[Item]) -> dict[str, Any]:
    """Of several models, the differences to the first: the curves themselves would cover each other."""
    own, compared = ([item for item in items if item["snr"] is not None] for items in (own, compared))
    models, note = list(dict.fromkeys(item["model"] for item in own)), "Bands: 95 % intervals."
    shown, draw = own, metric_curves
    if len(models) > 1:
        shown = [item for item in compared if Path(item["compared_with"]).name == models[0]]
        note, draw = f"Differences to {models[0]} on the same mixtures, over all noises. {note}", difference_curves
    measured = {item["metric"] for item in shown}
    pictures = [picture_of(draw(shown, metric), Look.of(metric).name) for metric in _CURVES if metric in measured]
    return {"note": note, "pictures": pictures} if pictures else {}


def _example(run: Path, example: Mapping[str, Any]) -> dict[str, Any]:
    sounds = {name: _data_url(run, path, "audio/wav") for name, path in example.get("audio", {}).items()}
    title = "the signals of the example"
    return {
        "title": str(example.get("title", example.get("key", ""))),
        "picture": Picture(_data_url(run, example.get("figure", ""), "image/png"), title),
        "video": _data_url(run, example.get("video", ""), "video/mp4"),
        "sounds": {name: url for name, url in sounds.items() if url},
        "scores": scores_of(example.get("scores", {})),
    }


def _training(path: Path) -> dict[str, Any]:
    records, lost = read_curves(path)
    if lost > 1:  # a run that was killed leaves half a line
        print(f"note       {path} is damaged: {lost} of its records are not in the training curves")
    return {"note": "", "pictures": [picture_of(training_curves(records), "training curves")]} if records else {}


def _other_figures(run: Path, shown: set[str | None]) -> list[Section]:
    paths = [path.relative_to(run).as_posix() for path in sorted(run.glob("figures/*.png"))]
    titles = {path: Path(path).stem.replace("_", " ") for path in paths if path not in shown}
    return [
        Section(
            (title[0].upper() + title[1:]).replace("Em ", "EM "),
            "pictures",
            {"note": "", "pictures": [Picture(_data_url(run, path, "image/png"), title)]},
        )
        for path, title in titles.items()
    ]


def _published(path: Path) -> dict[str, Any]:
    """Figures published on the run's corpus; for a comparison of models on another corpus, those for NTCD-TIMIT."""
    config = _read_names(path, yaml.safe_load)
    tasks, corpus = config.get("evaluate", {}).get("tasks", ()), config.get("data", {}).get("reader", "")
    tables = published_on(corpus, tasks)
    note = "As printed in the literature. Compare the protocol before you compare the figures."
    if not tables and config.get("models"):
        tables = published_on("ntcd_timit", ["enhancement"], "mixtures.csv")
        note = "As printed in the literature, for recorded corpora and other SNRs: not comparable with these results."
    return {"note": note, "parts": [Passage(*table) for table in tables]} if tables else {}


def _config(path: Path) -> dict[str, str]:
    return {"name": path.name, "text": path.read_text(encoding="utf-8")} if path.is_file() else {}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.3g} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _read_names(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping in a file; empty where there is no file."""
    with reading(path, "file of a run", "restore it from a copy, or delete it, and evaluate the run again"):
        named = (parse(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
        if not isinstance(named, dict):
            raise ValueError("it is no mapping of names to values")
    return named


def _data_url(run: Path, name: str, kind: str) -> str:
    """The file as a data URL; empty where it is missing or lies outside the run."""
    path = run / name
    if not path.is_file() or not path.resolve().is_relative_to(run.resolve()):
        return ""
    return _encoded(path.read_bytes(), kind)


def picture_of(figure: matplotlib.figure.Figure, title: str) -> Picture:
    return Picture(_encoded(drawn(figure, "svg"), "image/svg+xml"), title)


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
