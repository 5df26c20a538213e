"""The report of a run, and its pictures."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from avdvae.errors import UserError
from avdvae.evaluation.report import TITLES, write_report
from avdvae.evaluation.results import Result, compare, summarise, write_results, write_summary
from avdvae.evaluation.tasks import TASKS
from avdvae.pictures.figures import cost_curves, difference_curves, metric_curves, training_curves
from avdvae.pictures.stills import lip_strip, spectrogram, triptych, write_png
from avdvae.signals.audio import write_wav

HOSTILE = "<script>alert('x')</script>\"&"
RNG = np.random.default_rng(0)


def _rows(gain: float, run: str = "mine", noises: tuple[str, ...] = ("Car", "White"), snrs=(-5.0, 5.0)) -> list[Result]:
    return [
        Result(run, "cvae", "enhance", "talker", "test", f"u{i}", f"s{i}", noise, snr, "", metric, value)
        for i, ease in enumerate((-1.0, 1.0))
        for noise in noises
        for snr in snrs
        for metric, value in (("si_sdr", (snr or 0) + ease + gain), ("input_si_sdr", (snr or 0) + ease))
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a small run, with strings that would break unescaped HTML."""
    run = tmp_path / "run"
    for folder in ("audio", "figures"):
        (run / folder).mkdir(parents=True)
    write_results(run / "results.csv", _rows(4))
    write_summary(run / "summary.json", [*summarise(_rows(4)), *compare(_rows(4), _rows(1.5, f"other {HOSTILE}"))])
    for name in ("clean", "noisy", "enhanced"):
        write_wav(run / f"audio/{name}.wav", torch.from_numpy(RNG.normal(0, 0.1, 1600).astype(np.float32)), 16_000)
    write_wav(tmp_path / "secret.wav", torch.zeros(160), 16_000)
    for name in ("u0", "em_cost"):
        write_png(run / f"figures/{name}.png", RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8))
    audio = {name: f"audio/{name}.wav" for name in ("clean", "noisy", "enhanced")}
    example = {
        "title": HOSTILE,
        "audio": audio,
        "figure": "figures/u0.png",
        "scores": {"si_sdr": 8.04, "input_si_sdr": -5},
    }
    elsewhere = {"key": "u1", "audio": {"clean": "../secret.wav", "noisy": "audio/lost.wav"}}
    (run / "examples.json").write_text(json.dumps([example, elsewhere]))
    records = [{"epoch": 1, "train/loss": 3.0, "train/kl_z": 1.0}]
    records += [{"epoch": epoch, "valid/loss": loss} for epoch, loss in ((1, 5.0), (2, 4.0), (3, 4.5))]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records) + '{"epoch": 2, "tra')
    (run / "config.yaml").write_text(yaml.safe_dump({"exp": f"first {HOSTILE}", "model": {"target": HOSTILE}}))
    about = {"model": "cvae", "parameters": 2566785, "corpus": "talker", "seconds": {"train": 5400}, "command": HOSTILE}
    (run / "run.json").write_text(json.dumps(about))
    return run


class _Page(HTMLParser):
    """The parsed page. Tags that are not closed in order are an error."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute))]


def test_the_report_contains_everything_and_loads_nothing_else(run: Path) -> None:
    path = write_report(run)
    page = _Page(path)
    assert path == run / "report.html"
    assert page.texts["h1"] == [f"first {HOSTILE}"] and page.texts["title"] == page.texts["h1"]
    assert page.texts["h2"] == [
        "Results",
        "By signal-to-noise ratio",
        "Compared with other runs",
        "Examples",
        "Training",
        "EM cost",
        "Configuration",
    ]
    (header,) = page.texts["header"]
    facts = ("2,566,785", "2 of 3", "1 h 30 min", "2 utterances (test)", HOSTILE, "not comparable")
    assert all(text in header for text in facts)

    headline, each_noise, differences, each_difference = page.texts["table"]
    assert "−5 dB−5.0 → −1.0[−13.7, 11.7]" in headline and "5 dB5.0 → 9.0" in headline and "Car" not in headline
    assert each_noise.index("Car") < each_noise.index("White")
    assert "all noises\n−5 dB+2.50 [2.50, 2.50]" in differences and "stationary noises" in differences
    assert page.texts["h3"] == [f"This run minus other {HOSTILE}", HOSTILE, "u1"] and "Car" in each_difference
    assert page.texts["li"] == ["SI-SDR −5.0 → 8.0 dB"]
    assert yaml.safe_load(page.texts["pre"][-1])["model"]["target"] == HOSTILE

    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object"} & set(names) and "onerror" not in path.read_text()
    assert names.count("img") == 4  # one metric, an example, training, EM
    sources = page.values("src")
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import", "".join(page.texts["style"]))
    targets = {f"#{name}" for name in page.values("id")}
    assert set(page.values("href")) == targets and len(targets) == 7
    sounds = [base64.b64decode(source.split(",")[1]) for source in sources if source.startswith("data:audio/wav")]
    assert sounds == [(run / f"audio/{name}.wav").read_bytes() for name in ("clean", "noisy", "enhanced")]  # no other
    before = path.read_bytes()
    assert write_report(run).read_bytes() == before


@pytest.mark.parametrize(
    ("lost", "heading"),
    [
        ("summary.json", "Results"),
        ("summary.json", "Compared with other runs"),
        ("summary.json", "By signal-to-noise ratio"),
        ("examples.json", "Examples"),
        ("metrics.jsonl", "Training"),
        ("figures/em_cost.png", "EM cost"),
        ("config.yaml", "Configuration"),
    ],
)
def test_a_section_without_its_file_is_left_out(run: Path, lost: str, heading: str) -> None:
    (run / lost).unlink()
    page = _Page(write_report(run))
    assert heading not in page.texts["h2"] and "Configuration" in [*page.texts["h2"], heading]


def test_a_report_of_an_empty_run_and_of_one_utterance(tmp_path: Path) -> None:
    page = _Page(write_report(tmp_path))
    assert page.texts["h1"] == [tmp_path.name] and "h2" not in page.texts
    write_summary(tmp_path / "summary.json", summarise(_rows(4, noises=("",), snrs=(None,))[:2]))
    page = _Page(write_report(tmp_path))  # a resynthesis of one utterance: no noise, no SNR, no interval
    assert page.texts["h2"] == ["Results"]
    (table,) = page.texts["table"]
    assert "−1.0 → 3.0" in table and "[" not in table and "SNR" not in table
    with pytest.raises(UserError, match=r"there is no run in .*nowhere"):
        write_report(tmp_path / "nowhere")


def test_the_report_states_what_its_intervals_are_over_and_what_failed(tmp_path: Path) -> None:
    rows = _rows(4)
    rows += [replace(row, metric="failed", value=float(row.item == "u1")) for row in rows if row.metric == "si_sdr"]
    write_summary(tmp_path / "summary.json", summarise(rows))
    text = write_report(tmp_path).read_text()
    assert "2 utterances of 2 speakers and 2 noises" in text and "95 % intervals, between speakers." in text
    assert "4 of 8 estimates failed" in text and "failed</th>" not in text
    write_summary(tmp_path / "summary.json", summarise([replace(row, speaker="s", value=0.0) for row in rows]))
    text = write_report(tmp_path).read_text()
    assert "between utterances of this one speaker. No estimate failed." in text


def test_every_task_has_a_title() -> None:
    assert set(TITLES) == set(TASKS)


def test_spectrograms_and_lips_as_pictures() -> None:
    power = np.full((50, 513), 1e-12, np.float32)
    power[:, 100] = 1
    power[:, 400] = 1e-3  # 30 dB below
    brightness = spectrogram(power).sum(axis=2, dtype=int)
    height, width = brightness.shape
    assert height == 513 and 1.5 < width / height < 2.5
    rows = brightness[:, width // 2]
    assert rows.argmax() == 512 - 100 and rows[512 - 400] > 200 and rows[0] == rows.min() == brightness[256].max()
    assert (spectrogram(1e-6 * power) == spectrogram(power)).all() and spectrogram(0 * power).max() < 10
    lips = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None], 8, axis=1).repeat(6, axis=2)
    strip = lip_strip(lips, count=3)
    assert strip.shape == (8, 18, 3) and strip[0, ::6, 0].tolist() == [10, 30, 50]
    assert lip_strip(lips[:2]).shape == (8, 12, 3)


def test_all_panels_of_a_triptych_share_the_clock() -> None:
    click = np.zeros(32_000, np.float32)
    click[16_000] = 1
    lips, confidence = np.zeros((60, 9, 9), np.uint8), np.ones(60, np.float32)
    confidence[30:45] = 0  # from 1 s to 1.5 s
    off = np.where(confidence > 0, 0.1, 0.9)
    weights = {"sound": off, "both": 1 - off}
    figure = triptych({"clean": click, "louder": 10 * click}, 16_000, 533, lips, confidence, confidence == 0, weights)
    clean, louder, strip, switch, *_ = figure.axes
    assert [ax.get_title(loc="left") for ax in (clean, louder, strip)] == ["clean", "louder", "lips"]
    assert {ax.get_xlim() for ax in (clean, louder, strip, switch)} == {(0.0, 2.0)}
    band = np.asarray(switch.collections[0].get_paths()[0].vertices)
    high = band[band[:, 1] > 0.5, 0]
    assert (high.min(), high.max()) == pytest.approx((1, 1.5), abs=0.05)
    picture = np.asarray(louder.images[0].get_array())
    left, right, *_ = louder.images[0].get_extent()
    loudest = left + (picture.max(axis=0).argmax() + 0.5) * (right - left) / picture.shape[1]
    assert loudest == pytest.approx(1, abs=533 / 16_000)
    assert np.asarray(clean.images[0].get_array()).max() == pytest.approx(picture.max() - 20, abs=0.01)
    for ax in (strip, switch):  # the edges of the corrupted frames
        assert [np.asarray(line.get_xdata())[0] for line in ax.lines] == pytest.approx([1, 1.5], abs=533 / 16_000)
    lost = strip.collections[0].get_datalim(strip.transData)
    assert (lost.x0, lost.x1) == pytest.approx((1, 1.5))
    assert len(triptych({"clean": click}, 16_000, 256).axes) == 2  # with the colour bar


def _lines(ax: Any) -> dict[str, list[list[float]]]:
    return {line.get_label(): np.column_stack(line.get_data()).tolist() for line in ax.lines}


def test_curves_show_the_means(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    car, white, *others = metric_curves(summary, "si_sdr").axes
    assert not others and car.get_title(loc="left") == "Car" and white.get_title(loc="left") == "White"
    assert _lines(car) == {"unprocessed input": [[-5, -5], [5, 5]], "cvae": [[-5, -1], [5, 9]]}
    assert car.get_ylim() == white.get_ylim()

    records = [{"epoch": e, "step": s, "train/kl_z": 9, "train/loss": e + s} for e in (1, 2) for s in (0, 2)]
    loss, kl = training_curves([*records, {"epoch": 2, "valid/loss": 7, "lr": 0.1}]).axes
    assert _lines(loss) == {"train": [[1, 2], [2, 3]], "valid": [[2, 7]]}
    assert _lines(kl)["train"] == [[1, 9], [2, 9]]

    (few,) = cost_curves({"a": [3, 2, 1], "b": [4]}).axes
    assert _lines(few) == {"a": [[1, 3], [2, 2], [3, 1]], "b": [[1, 4]]}
    (many,) = cost_curves({str(i): [i, i] for i in range(20)}).axes
    assert len({line.get_color() for line in many.lines}) == 1


def test_a_legend_fits_into_its_figure_in_as_many_columns_as_it_can() -> None:
    short, long = (cost_curves({f"{name} {i}": [i, i] for i in range(4)}) for name in ("one", "89M/tk001, White" * 3))
    for figure in (short, long):
        (legend,) = figure.legends
        assert legend.get_window_extent().width <= figure.bbox.width
    assert short.legends[0].get_window_extent().height < 0.6 * long.legends[0].get_window_extent().height


def test_of_several_models_the_report_shows_the_differences_to_the_first(tmp_path: Path) -> None:
    first = _rows(1.5, "both/vae")
    other = [replace(row, model="vae_mm", lips=lips) for lips in ("clean", "none") for row in _rows(4, "both/vae_mm")]
    first = [replace(row, model="vae") for row in first]
    summary = [*summarise([*first, *other]), *compare(other, first)]
    write_summary(tmp_path / "summary.json", summary)
    page = write_report(tmp_path).read_text()
    assert "Differences to vae on the same mixtures" in page
    figure = difference_curves([item for item in summary if "compared_with" in item], "si_sdr")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["lips clean", "lips none"]
    for ax in figure.axes:
        curve = next(line for line in ax.get_lines() if line.get_label() == "vae_mm")
        np.testing.assert_allclose(np.asarray(curve.get_ydata()), 2.5)
