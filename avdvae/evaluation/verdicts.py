"""Whether a claim holds: contrasts between measurements of the same items, with intervals between speakers.

A contrast claims that left - right is `at_least` or `at_most` X, the smallest effect that counts. With

    d_i        the difference of item i as claimed: left - right for at_least, right - left for at_most
    e          the smallest effect as claimed: X for at_least, -X for at_most; below 0: "no worse than by"
    m, [l, u]  the mean of d and its 95 % interval between speakers, of results.py

it    holds       if l > min(e, 0) and m >= e
      fails       if u < e
      undecided   otherwise, and where there is no interval

So it holds by chance in at most 2.5 % of the cases if there is no effect (for e < 0: if the loss is |e| or more), and
fails by chance in at most 2.5 % if the effect is e or more. A claim holds if all of its contrasts hold, fails if one
fails, and is undecided otherwise; what could not be measured leaves it undecided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from avdvae.errors import UserError, check_settings, in_file, reading
from avdvae.evaluation.results import SAME_INPUT, Result, mixture_in_words, summarise
from avdvae.signals.metrics import INPUT, WEIGHTS, Look

Verdict = Literal["holds", "fails", "undecided", "not measured"]


@dataclass(frozen=True)
class Side:
    """What is measured: a metric of an experiment's model in a task. Noises and SNRs are all, unless one is given.

    method     whose rows of the task, where it measures others than the model, such as WORLD
    lips       the state of the lips, for models with lips; None: clean
    settings   words of `avdvae train` that differ, of the training or the evaluation
    beside     words of the training of a second model, of the other source in a mixture: exp=srnn_gm data=flute
    over       another side, in a file what differs in it, whose values are subtracted, item by item: {lips: none} for
               what lips add
    """

    model: str
    task: str
    metric: str
    method: str | None = None
    noise: str | None = None
    snr: float | None = None
    lips: str | None = None
    settings: Sequence[str] = ()
    beside: Sequence[str] = ()
    over: Side | None = None

    @property
    def in_words(self) -> str:
        return ", ".join(filter(None, _described(self).values()))


@dataclass(frozen=True)
class Contrast:
    """`left` or `right` may be a known number."""

    left: Side | float
    right: Side | float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def sides(self) -> list[Side]:
        """All that are measured; those that are subtracted come last."""
        sides = [side for side in (self.left, self.right) if isinstance(side, Side)]
        return sides + [side.over for side in sides if side.over]

    @property
    def metric(self) -> str:
        return self.sides[0].metric

    @property
    def bound(self) -> float:
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return bound

    @property
    def sign(self) -> int:
        """By which differences and their bound become those as claimed."""
        return 1 if self.at_most is None else -1

    @property
    def in_words(self) -> str:
        """The sides where they differ, then what they share."""
        if not isinstance(self.left, Side) or not isinstance(self.right, Side):
            model, *others = _described(self.sides[0]).values()
            names = [model if isinstance(side, Side) else f"{side:g}" for side in (self.left, self.right)]
            return f"{names[0]} − {names[1]}: {', '.join(filter(None, others))}"
        left, right = _described(self.left), _described(self.right)
        differ = [name for name in left if left[name] != right[name]]
        both = [", ".join(side[name] for name in differ if side[name]) or side["model"] for side in (left, right)]
        return f"{both[0]} − {both[1]}: {', '.join(left[name] for name in left if left[name] and name not in differ)}"


@dataclass(frozen=True)
class Claim:
    """A file of configs/claims.

    statement   one sentence
    source      the paper, and its section
    published   the published figures, in words
    expected    the corpora on which it is expected to hold
    settings    words of `avdvae train` for all trainings and evaluations of this claim
    tried       what was tried where it fails, a sentence each
    """

    statement: str
    source: str
    contrasts: Sequence[Contrast]
    published: str | None = None
    expected: Sequence[str] = ()
    settings: Sequence[str] = ()
    tried: Sequence[str] = ()
    notes: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Of a contrast. `mean` and its interval are of left - right, `left` and `right` the means of both."""

    contrast: Contrast
    verdict: Verdict
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    left: float = math.nan
    right: float = math.nan
    n: int = 0
    speakers: int = 0
    reason: str = ""  # why it could not be measured


@dataclass(frozen=True)
class Tested:
    """A claim at a place: a corpus, with models that are trained on it or with published weights."""

    name: str
    claim: Claim
    place: str
    outcomes: Sequence[Outcome]
    protocol: Sequence[str]  # sentences
    command: str

    @property
    def verdict(self) -> Verdict:
        return overall([outcome.verdict for outcome in self.outcomes])


class Rows(NamedTuple):
    """The results of a side's model in its task. `name`: of the model in them."""

    name: str
    rows: Sequence[Result]


# ---------------------------------------------------------------------------------------------------------------------
# The file of a claim


def read_claim(path: Path) -> Claim:
    with reading(path, "claim", "write it like those of configs/claims"):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError("it has no names with values")
    with in_file(path):
        return _claim(given)


def read_tested(path: Path) -> list[Tested]:
    """Those that `stored` gave."""
    if not path.exists():
        return []
    with reading(path, "list of tested claims", "delete it"):
        each = json.loads(path.read_text(encoding="utf-8"))
        return [
            Tested(
                **{
                    **one,
                    "claim": _claim(one["claim"]),
                    "outcomes": [
                        Outcome(**{**o, "contrast": _contrast("contrast", o["contrast"])}) for o in one["outcomes"]
                    ],
                }
            )
            for one in each
        ]


def stored(tested: Sequence[Tested]) -> str:
    """As JSON, a line each."""
    return "[\n" + ",\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in tested) + "\n]\n"


def _claim(given: Mapping[str, Any]) -> Claim:
    _check(Claim, "the claim", given)
    contrasts = [_contrast(f"contrasts[{n}]", each) for n, each in enumerate(given["contrasts"])]
    if not contrasts:
        raise UserError("contrasts is empty: give one or more")
    lists = {name: tuple(given.get(name, ())) for name in ("expected", "settings", "tried")}
    return Claim(**{**given, **lists, "contrasts": contrasts})


def _contrast(place: str, given: Mapping[str, Any]) -> Contrast:
    _check(Contrast, place, given)
    if (given.get("at_least") is None) == (given.get("at_most") is None):
        raise UserError(f"{place}: give either at_least, the smallest difference that counts, or at_most")
    left, right = given["left"], given["right"]
    kinds = {type(left), type(right)}
    if dict not in kinds or not kinds <= {dict, int, float}:
        raise UserError(f"{place}: left and right are {left} and {right}: give what is measured, one may be a number")
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        right = {**left, **right}
    sides = [
        _side(f"{place}.{name}", side) if isinstance(side, Mapping) else float(side)
        for name, side in (("left", left), ("right", right))
    ]
    return Contrast(sides[0], sides[1], given.get("at_least"), given.get("at_most"))


def _side(place: str, given: Mapping[str, Any]) -> Side:
    _check(Side, place, given)
    if not isinstance(over := given.get("over"), Mapping | None):
        raise UserError(f"{place}.over={over}: give what differs in the side that is subtracted, as {{lips: none}}")
    given = {**given, **{name: tuple(given.get(name, ())) for name in ("settings", "beside")}, "over": None}
    return Side(**{**given, "over": None if over is None else _side(f"{place}.over", {**given, **over})})


def _check(kind: Any, place: str, given: Mapping[str, Any]) -> None:
    check_settings(kind, place, **given)
    if missing := [field.name for field in fields(kind) if field.default is MISSING and field.name not in given]:
        raise UserError(f"{place} lacks {', '.join(missing)}")


def _described(side: Side) -> dict[str, str]:
    described = _described_alone(side)
    if side.over:
        other = _described_alone(side.over)
        words = (word for name, word in other.items() if word and word != described[name])
        described["over"] = f"over {', '.join(words)}"
    return described


def _described_alone(side: Side) -> dict[str, str]:
    return {
        "model": side.method or side.model,
        "task": side.task.replace("_", " "),
        "metric": Look.of(side.metric).name,
        "noise": side.noise or "",
        "snr": "" if side.snr is None else f"{side.snr:g} dB",
        "lips": f"lips {side.lips}" if side.lips else "",
        "settings": " ".join(side.settings),
        "beside": " ".join(["beside", *side.beside]) if side.beside else "",
        "over": "",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def judge(contrast: Contrast, left: Rows | None, right: Rows | None) -> Outcome:
    """`left` and `right` are None of a number."""
    pairs = _pairs(contrast, left, right)
    weights = [row for rows in (left, right) if rows for row in rows.rows if row.metric in WEIGHTS.values()]
    mean, one, two = (
        _mean([row for row, *_ in pairs], values, weights)
        for values in ([a - b for _, a, b in pairs], [a for _, a, _ in pairs], [b for *_, b in pairs])
    )
    low, high = mean["ci_low"], mean["ci_high"]
    verdict = verdict_of(contrast, mean["mean"], low, high)
    counts = mean["n"], mean["speakers"]
    return Outcome(contrast, verdict, mean["mean"], low, high, one["mean"], two["mean"], *counts)


def gains(side: Side, measured: Rows, over: Rows) -> Rows:
    """Those of a side, less those of the side that is subtracted."""
    assert side.over
    pairs = _pairs(Contrast(replace(side, over=None), side.over), measured, over)
    others = [row for row in measured.rows if row.metric != side.metric]
    return Rows(measured.name, others + [replace(row, value=one - two) for row, one, two in pairs])


def verdict_of(contrast: Contrast, mean: float, low: float, high: float) -> Verdict:
    """Of the mean of left - right and its interval."""
    effect = contrast.sign * contrast.bound
    mean, (low, high) = contrast.sign * mean, sorted((contrast.sign * low, contrast.sign * high))
    if low > min(effect, 0) and mean >= effect:
        return "holds"
    return "fails" if high < effect else "undecided"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim, from those of its contrasts."""
    if "fails" in verdicts:
        return "fails"
    if set(verdicts) == {"holds"} or set(verdicts) == {"not measured"}:
        return verdicts[0]
    return "undecided"


def _selected(side: Side, measured: Rows) -> list[Result]:
    rows = [
        row
        for row in measured.rows
        if (row.task, row.metric, row.model) == (side.task, side.metric, side.method or measured.name)
        and side.noise in (None, row.noise)
        and side.snr in (None, row.snr)
        and row.lips in ("", side.lips or "clean")
    ]
    if not rows:
        metrics = sorted({row.metric for row in measured.rows if row.task == side.task})
        found = f"the task has {', '.join(metrics)}" if metrics else f"the task {side.task} measures nothing of it"
        raise UserError(f"{side.in_words} was not measured: {found}")
    return rows


def _pairs(contrast: Contrast, left: Rows | None, right: Rows | None) -> list[tuple[Result, float, float]]:
    """A row, whose item and speaker are those of the pair, and the values on the left and on the right."""
    chosen = [
        _selected(side, rows) if isinstance(side, Side) and rows else None
        for side, rows in ((contrast.left, left), (contrast.right, right))
    ]
    match chosen, contrast.left, contrast.right:
        case [list(lefts), None], _, float(number):
            pairs = [(row, row.value, number) for row in lefts]
        case [None, list(rights)], float(number), _:
            pairs = [(row, number, row.value) for row in rights]
        case [list(lefts), list(rights)], Side(), Side():
            if left and right:
                _check_inputs(left, right)
            pairs = _matched(contrast, lefts, rights)
        case _:
            raise ValueError("each side that is no number needs rows")
    pairs = [(row, one, two) for row, one, two in pairs if math.isfinite(one) and math.isfinite(two)]
    if not pairs:
        raise UserError(f"{contrast.in_words}: no item was measured on both sides")
    return pairs


def _matched(contrast: Contrast, left: Sequence[Result], right: Sequence[Result]) -> list[tuple[Result, float, float]]:
    """By item, and by noise and SNR where both sides have those and neither is given another one."""
    same_noise, same_snr = (
        len({getattr(side, name) for side in contrast.sides}) == 1
        and all(getattr(row, name) not in ("", None) for row in (*left, *right))
        for name in ("noise", "snr")
    )

    def key(row: Result) -> tuple:
        return row.item, same_noise and row.noise, same_snr and row.snr

    others: dict[tuple, float] = {}
    for row in right:
        if key(row) in others:
            raise UserError(f"{contrast.in_words}: {row.item} has several values on the right: give its noise and SNR")
        others[key(row)] = row.value
    return [(row, row.value, others[key(row)]) for row in left if key(row) in others]


def _check_inputs(left: Rows, right: Rows) -> None:
    """Refuse results of different mixtures."""
    inputs = {
        (row.task, row.item, row.noise, row.snr, row.metric): row.value
        for row in left.rows
        if row.metric.startswith(INPUT)
    }
    for row in right.rows:
        mixture = row.task, row.item, row.noise, row.snr
        if abs(inputs.get((*mixture, row.metric), row.value) - row.value) > SAME_INPUT:
            where = mixture_in_words(*mixture)
            raise UserError(f"{left.name} and {right.name} were measured on different mixtures of {where}")


def _mean(rows: Sequence[Result], values: Sequence[float], weights: Sequence[Result]) -> Mapping[str, Any]:
    """Of the values, over all items, with an interval between speakers; `weights`: the samples of items."""
    one = rows[0]
    found = [replace(row, model="", task="", value=value) for row, value in zip(rows, values, strict=True)]
    found += [replace(row, model="", task="") for row in weights]
    (mean,) = [item for item in summarise(found, overall=True) if item["metric"] == one.metric]
    return mean
