"""A run on one page: report.html, which needs nothing but itself to be read, heard and passed on."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from avdvae.errors import UserError, reading
from avdvae.evaluation.published import published_on
from avdvae.evaluation.results import NOISE_GROUPS, ranking, read_examples, read_results, read_summary
from avdvae.files import replacing
from avdvae.pictures.figures import difference_curves, metric_curves, training_curves
from avdvae.signals.metrics import ALL_NOISES, FAILED, INPUT, LOOKS, Look
from avdvae.training.curves import read_curves

if TYPE_CHECKING:
    import matplotlib.figure

_CURVES = ("si_sdr", "pesq_wb", "estoi")
_POOLED = (ALL_NOISES, *NOISE_GROUPS)
_Item = Mapping[str, Any]  # of summary.json


def write_report(run: Path) -> Path:
    """Write report.html into a run's directory from the files there; what has no file has no section."""
    if not run.is_dir():
        raise UserError(f"there is no run in {run}: name the directory that a run has written")
    summary = read_summary(run / "summary.json") if (run / "summary.json").is_file() else []
    own = [item for item in summary if "compared_with" not in item]
    compared = [item for item in summary if "compared_with" in item]
    examples = read_examples(run / "examples.json") if (run / "examples.json").is_file() else []
    sections = {
        "Results": _results(own),
        "By signal-to-noise ratio": _curves(*([i for i in items if i["snr"] is not None] for items in (own, compared))),
        "Compared with other runs": _comparisons(compared),
        "Examples": "".join(_example(run, example) for example in examples),
        "Training": _training(run / "metrics.jsonl"),
        **_other_figures(run, {example.get("figure") for example in examples}),
        "Published figures": _published(run / "config.yaml"),
        "Configuration": _config(run / "config.yaml"),
    }
    sections = {name: html for name, html in sections.items() if html}
    title, head = _head(run)
    links = "".join(f'<a href="#part{i}">{escape(name)}</a>' for i, name in enumerate(sections))
    body = "".join(
        f'<section id="part{i}">\n<h2>{escape(name)}</h2>\n{html}\n</section>\n'
        for i, (name, html) in enumerate(sections.items())
    )
    path = run / "report.html"
    with replacing(path) as new:
        page = _PAGE.format(title=escape(title), look=_CSS, head=head, links=links, body=body)
        new.write_text(page, encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _head(run: Path) -> tuple[str, str]:
    config = _read_names(run / "config.yaml", yaml.safe_load)
    about = _read_names(run / "run.json", json.loads)
    rows = read_results(run / "results.csv") if (run / "results.csv").is_file() else []
    model = about.get("model") or (rows[0].model if rows else "")
    corpus = about.get("corpus") or (rows[0].corpus if rows else "")
    title = str(config.get("exp") or run.resolve().name)
    facts = {
        "Parameters": f"{about['parameters']:,}" if "parameters" in about else "",
        "Evaluated on": f"{len({row.item for row in rows})} utterances ({rows[0].split})" if rows else "",
        **{f"Time to {name}": _duration(seconds) for name, seconds in about.get("seconds", {}).items()},
        "Device": about.get("device", ""),
        "Seed": config.get("seed", ""),
        "Started": about.get("started", "").replace("T", " "),
    }
    terms = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd></div>"
        for name, fact in facts.items()
        if fact not in ("", None)
    )
    lead = " on the corpus ".join(filter(None, (model, corpus)))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>' if lead else "",
        f"<dl>{terms}</dl>" if terms else "",
        f"<pre>{escape(str(about['command']))}</pre>" if "command" in about else "",
        f'<p class="note">{_GENERATED}</p>' if corpus in ("talker", "gait") else "",
    ]
    return title, "\n".join(filter(None, parts))


def _results(own: Sequence[_Item]) -> str:
    tasks = list(dict.fromkeys(item["task"] for item in own))
    parts = []
    for task in tasks:
        parts += [f"<h3>{escape(_TASKS[task])}</h3>"] if len(tasks) > 1 else []
        items = [item for item in own if item["task"] == task]
        parts.append(_in_noise(items) if any(item["noise"] for item in items) else _ranked(items, task))
    return "\n".join(parts)


def _ranked(items: Sequence[_Item], task: str) -> str:
    """A row a model, the best one first; a row a metric, where these would not fit beside each other."""
    models, metrics = dict(ranking(items, task)), _outputs(item["metric"] for item in items)
    cells = [[_result_cell(measured, metric) for metric in metrics] for measured in models.values()]
    head, names = _columns(metrics), list(models)
    if len(metrics) > _MOST_COLUMNS:
        head = f"<thead><tr><th></th>{''.join(f'<th>{escape(name)}</th>' for name in models)}</tr></thead>"
        names, cells = [Look.of(metric).name for metric in metrics], [list(row) for row in zip(*cells, strict=True)]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>\n'
        for name, row in zip(names, cells, strict=True)
    )
    note = f"Means over {_sample(items, 'items')}. In brackets the 95 % interval, {_between(items)}.{_failures(items)}"
    table = f"<table>\n{head}\n<tbody>\n{rows}</tbody>\n</table>"
    return f'<p>{escape(note)}</p>\n<div class="wide">{table}</div>\n'


def _in_noise(own: Sequence[_Item]) -> str:
    noises = [noise for noise in dict.fromkeys(item["noise"] for item in own) if noise not in _POOLED]
    headline = [item for item in own if item["noise"] == ALL_NOISES] or own
    over = f" and {len(noises)} noises" if len(noises) > 1 else f" in the noise {noises[0]}"
    arrow = ": unprocessed input → output" if any(item["metric"].startswith(INPUT) for item in own) else ""
    note = (
        f"Means over {_sample(headline, 'utterances')}{over}{arrow}. In brackets the output's 95 % interval, "
        f"{_between(headline)}.{_failures(own)}"
    )
    table = f"<p>{escape(note)}</p>\n{_table(headline, _result_cell)}"
    return table if len(noises) == 1 else table + _each_noise(own, _result_cell)


def _sample(items: Sequence[_Item], what: str) -> str:
    largest = max(items, key=lambda item: item["n"])
    return f"{largest['n']} {what} of {largest['speakers']} speaker{'s' * (largest['speakers'] > 1)}"


def _between(items: Sequence[_Item]) -> str:
    """What an interval generalises to."""
    return (
        "between speakers" if any(item["speakers"] > 1 for item in items) else "between utterances of this one speaker"
    )


def _failures(items: Sequence[_Item]) -> str:
    counted = [item for item in items if item["metric"] == FAILED and item["noise"] not in _POOLED]
    if not counted:
        return ""
    failed, all_of_them = round(sum(item["mean"] * item["n"] for item in counted)), sum(item["n"] for item in counted)
    if not failed:
        return " No estimate failed."
    return (
        f" {failed} of {all_of_them} estimates failed: silent or not finite, they count with each metric's worst value."
    )


def _comparisons(compared: Sequence[_Item]) -> str:
    if not compared:
        return ""
    parts = [
        f"<p>This run minus the other, on the same utterances, noises and SNRs; in brackets the 95 % interval, "
        f"{_between(compared)}. Bold: the interval leaves out zero.</p>"
    ]
    pairs = dict.fromkeys((item["compared_with"], item["task"]) for item in compared)
    several = len({task for _, task in pairs}) > 1
    for other, task in pairs:
        items = [item for item in compared if (item["compared_with"], item["task"]) == (other, task)]
        pooled = [item for item in items if item["noise"] in _POOLED]
        what = f", {_TASKS[task].lower()}" if several else ""
        parts.append(f"<h3>minus {escape(other + what)}</h3>")
        if differs := items[0].get("differs"):
            parts.append(f"<p>The other run was measured with {escape(differs)}.</p>")
        parts.append(_table(pooled or items, _difference_cell))
        if pooled:
            parts.append(_each_noise(items, _difference_cell))
    return "\n".join(parts)


def _each_noise(items: Sequence[_Item], cell: _Cell) -> str:
    table = _table([item for item in items if item["noise"] not in _POOLED], cell)
    return f"<details><summary>Each noise by itself</summary>\n{table}</details>"


def _curves(own: Sequence[_Item], compared: Sequence[_Item]) -> str:
    """Of several models, how far they lie above the first, for the curves themselves would lie on each other."""
    models = list(dict.fromkeys(item["model"] for item in own))
    if len(models) > 1:
        above = [item for item in compared if Path(item["compared_with"]).name == models[0]]
        metrics = [metric for metric in _CURVES if any(item["metric"] == metric for item in above)]
        figures = [_figure(difference_curves(above, metric), Look.of(metric).name) for metric in metrics]
        about = f"Above {models[0]}, on the same mixtures, all noises together. Bands are 95 % intervals."
        return f"<p>{escape(about)}</p>\n{''.join(figures)}" if figures else ""
    measured = {item["metric"] for item in own if item["snr"] is not None}
    figures = [_figure(metric_curves(own, metric), Look.of(metric).name) for metric in _CURVES if metric in measured]
    return f"<p>Bands are 95 % intervals.</p>\n{''.join(figures)}" if figures else ""


def _example(run: Path, example: Mapping[str, Any]) -> str:
    picture = _data_url(run, example.get("figure", ""), "image/png")
    video = _data_url(run, example.get("video", ""), "video/mp4")
    sounds = {name: _data_url(run, path, "audio/wav") for name, path in example.get("audio", {}).items()}
    players = "".join(
        f'<div><span>{escape(name)}</span><audio controls preload="metadata" src="{url}"></audio></div>'
        for name, url in sounds.items()
        if url
    )
    scores = example.get("scores", {})
    index = {metric: {"mean": value} for metric, value in scores.items()}
    scores = "".join(
        f"<li>{escape(Look.of(metric).name)} {_from_input(index, metric)} {Look.of(metric).unit}</li>"
        for metric in _outputs(scores)
    )
    parts = [
        f"<h3>{escape(str(example.get('title', example.get('key', ''))))}</h3>",
        _image(picture, "what was heard or seen, and what came out") if picture else "",
        f'<video controls loop muted src="{video}"></video>' if video else "",
        f'<div class="players">{players}</div>' if players else "",
        f'<ul class="scores">{scores}</ul>' if scores else "",
    ]
    return "<article>\n" + "\n".join(filter(None, parts)) + "\n</article>\n"


def _training(path: Path) -> str:
    records, lost = read_curves(path)
    if lost > 1:  # a run that was killed leaves half a line
        print(f"note       {path} is damaged: {lost} of its records are not in the training curves")
    return _figure(training_curves(records), "training curves") if records else ""


def _other_figures(run: Path, shown: set[str | None]) -> dict[str, str]:
    paths = [path.relative_to(run).as_posix() for path in sorted(run.glob("figures/*.png"))]
    titles = {path: Path(path).stem.replace("_", " ") for path in paths if path not in shown}
    return {
        (title[0].upper() + title[1:]).replace("Em ", "EM "): _image(_data_url(run, path, "image/png"), title)
        for path, title in titles.items()
    }


def _published(path: Path) -> str:
    """What was published on the corpus of a run; beside a comparison of models on another, what was on such models."""
    config = _read_names(path, yaml.safe_load)
    tasks, corpus = config.get("evaluate", {}).get("tasks", ()), config.get("data", {}).get("reader", "")
    if here := published_on(corpus, tasks):
        return "<p>As printed elsewhere; look at the protocol before you set them beside the results.</p>\n" + here
    if config.get("models"):
        elsewhere = (
            "As printed elsewhere, on recorded corpora and at other levels: not to be set beside the results above."
        )
        return f"<p>{elsewhere}</p>\n{published_on('ntcd_timit', ['enhancement'], 'mixtures.csv')}"
    return ""


def _config(path: Path) -> str:
    if not path.is_file():
        return ""
    text = escape(path.read_text(encoding="utf-8"))
    return f"<details><summary>{path.name}</summary>\n<pre>{text}</pre></details>"


# ---------------------------------------------------------------------------------------------------------------------
# Tables

_Cell = Callable[[Mapping[str, _Item], str], str]  # from what was measured in one condition, and a metric


def _table(items: Sequence[_Item], cell: _Cell) -> str:
    """A row an SNR, a column a metric; models, noises and states of the lips, where several, below each other."""
    metrics = _outputs(item["metric"] for item in items)
    conditions: dict[tuple[str, str, str], dict[float | None, dict[str, _Item]]] = {}
    for item in items:
        snrs = conditions.setdefault((item["model"], item["noise"], item["lips"]), {})
        snrs.setdefault(item["snr"], {})[item["metric"]] = item
    several = [len(set(names)) > 1 for names in zip(*conditions, strict=True)]
    bodies = []
    for (model, noise, lips), snrs in conditions.items():
        names = [model, f"{noise} noises" if noise in _POOLED else noise, f"lips {lips}" if lips else "without lips"]
        group = ", ".join(name for name, needed in zip(names, several, strict=True) if needed)
        rows = f'<tr class="group"><th colspan="{len(metrics) + 1}">{escape(group)}</th></tr>\n' if group else ""
        for snr, measured in sorted(snrs.items(), key=lambda row: row[0] or 0):
            cells = "".join(f"<td>{cell(measured, metric)}</td>" for metric in metrics)
            rows += f'<tr><th scope="row">{"" if snr is None else f"{_number(snr)} dB"}</th>{cells}</tr>\n'
        bodies.append(f"<tbody>\n{rows}</tbody>\n")
    corner = "SNR" if any(item["snr"] is not None for item in items) else ""
    return f'<div class="wide"><table>\n{_columns(metrics, corner)}\n{"".join(bodies)}</table></div>\n'


def _columns(metrics: Sequence[str], corner: str = "") -> str:
    looks = [Look.of(metric) for metric in metrics]
    names = "".join(f'<th scope="col">{escape(look.name)} <small>{look.unit}</small></th>' for look in looks)
    return f'<thead><tr><th scope="col">{corner}</th>{names}</tr></thead>'


def _result_cell(measured: Mapping[str, _Item], metric: str) -> str:
    if metric not in measured:
        return ""
    return f"{_from_input(measured, metric)}<br>{_interval(measured[metric], Look.of(metric).digits)}"


def _difference_cell(measured: Mapping[str, _Item], metric: str) -> str:
    if metric not in measured:
        return ""
    item = measured[metric]
    digits = max(2, Look.of(metric).digits)
    text = _number(item["mean"], digits, sign="+")
    clear = item["ci_low"] is not None and (item["ci_low"] > 0 or item["ci_high"] < 0)
    return f"{f'<b>{text}</b>' if clear else text} {_interval(item, digits)}"


def _from_input(measured: Mapping[str, _Item], metric: str) -> str:
    """What it was and what it became."""
    digits = Look.of(metric).digits
    before = measured.get(INPUT + metric)
    arrow = f'<span class="input">{_number(before["mean"], digits)} →</span> ' if before else ""
    return f"{arrow}<b>{_number(measured[metric]['mean'], digits)}</b>"


def _interval(item: _Item, digits: int) -> str:
    if item["ci_low"] is None:
        return ""
    return f"<small>[{_number(item['ci_low'], digits)}, {_number(item['ci_high'], digits)}]</small>"


def _outputs(metrics: Iterable[str]) -> list[str]:
    """The metrics of the output, in the order in which they are always shown."""
    known = list(LOOKS)
    outputs = {metric for metric in metrics if not metric.startswith(INPUT) and metric != FAILED}
    return sorted(outputs, key=lambda metric: (known.index(metric) if metric in known else len(known), metric))


def _number(value: float | None, digits: int | None = None, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:{sign}g}" if digits is None else f"{value:{sign}z.{digits}f}").replace("-", "−")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.3g} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _read_names(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The names and values of a file; none where there is no file."""
    with reading(path, "file of a run", "restore it from a copy, or delete it, and evaluate the run again"):
        named = (parse(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
        if not isinstance(named, dict):
            raise ValueError("it has no names with values")
    return named


def _data_url(run: Path, name: str, kind: str) -> str:
    """The file as part of the page; nothing where it is missing or lies outside the run."""
    path = run / name
    if not path.is_file() or not path.resolve().is_relative_to(run.resolve()):
        return ""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _figure(figure: matplotlib.figure.Figure, title: str) -> str:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "avdvae"}):  # equal runs give equal pages
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _image(f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}", title)


def _image(url: str, title: str) -> str:
    return f'<div class="wide"><img src="{url}" alt="{escape(title)}"></div>\n'


# ---------------------------------------------------------------------------------------------------------------------
# The page

_MOST_COLUMNS = 8
_TASKS = {
    "enhancement": "Enhancement",
    "resynthesis": "Resynthesis",
    "resynthesis_true_past": "Resynthesis, given the true past",
    "transfer": "Transfer: what is whose after one latent changed hands",
    "denoising": "Denoising of hidden mouths and eyes",
    "emotion": "Emotion from few labels",
    "motion": "Motion",
    "motion_true_past": "Motion, given the true past",
    **{f"control_{factor}": f"Control of {factor}: relative errors" for factor in ("f0", "f1", "f2", "f3")},
    "f0": "Pitch heard in the latents, and by others",
}
_GENERATED = (
    "This is a corpus that the suite generates: results on it say how methods compare on it and are not to be set "
    "beside figures published for recorded corpora."
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{look}</style>
</head>
<body>
<header>
{head}
</header>
<nav>{links}</nav>
<main>
{body}</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #62666e; --line: #dfe1e5; --tint: #f4f5f7; --page: #fff;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ec; --soft: #a2a7b0; --line: #363a42; --tint: #22252b; --page: #17191d; --link: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .6rem; font-size: 1.35rem; letter-spacing: -0.01em; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 1rem; max-width: 46rem; color: var(--soft); }
.lead { font-size: 1.15rem; }
.note { padding: .65rem .9rem; border-left: 3px solid #e69f00; background: var(--tint); color: var(--ink); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1.25rem 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 1rem 0; padding: .75rem .9rem; background: var(--tint); font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; padding: .7rem 0; border: solid var(--line);
  border-width: 1px 0; font-size: .9rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
.wide img { display: block; width: 100%; max-width: 62rem; min-width: 34rem; background: #fff; padding: .5rem; }
table { border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 0 .4rem 1.2rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: baseline; line-height: 1.35; }
th:first-child { padding-left: 0; text-align: left; position: sticky; left: 0; background: var(--page); }
thead th { border-color: var(--ink); font-weight: 600; }
tbody th { font-weight: 400; }
.group th { padding-top: 1.1rem; font-weight: 600; }
small { font-size: .8em; }
small, .input { color: var(--soft); font-weight: 400; }
summary { cursor: pointer; color: var(--link); padding: .4rem 0; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem 1.25rem; }
.players span { display: block; color: var(--soft); font-size: .85rem; }
audio { width: 100%; }
video { max-width: 100%; }
.scores { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: .75rem 0 2.5rem; padding: 0; list-style: none;
  font-size: .92rem; font-variant-numeric: tabular-nums; }
"""
