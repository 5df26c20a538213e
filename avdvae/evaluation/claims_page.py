"""The page of the claims: verdicts, contrasts with intervals, figures, protocol; as HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avdvae.evaluation.report import Section, page, picture_of, rendered
from avdvae.evaluation.tables import Cell, Group, Table, interval, number
from avdvae.evaluation.verdicts import Outcome, Side, Tested, read_tested, stored
from avdvae.files import locked, replacing
from avdvae.pictures.figures import contrasts_forest
from avdvae.pictures.style import colours_of, drawn
from avdvae.signals.metrics import LOOKS, Look

NOTE = (
    "A contrast claims that a difference between two measurements of the same items is at least, or at most, the "
    "smallest effect that counts. It holds if the mean reaches this effect and the 95 % interval between speakers lies "
    "beyond zero, or beyond the effect where the claim is to be no worse than by that much. It fails if the interval "
    "excludes the effect. Otherwise it is undecided. A claim holds if all of its contrasts hold; it fails if one fails."
)
STORE = "claims.json"
COLUMNS = ("left", "right", "left − right", "claimed", "verdict", "items", "speakers")


def add_to_page(tested: Sequence[Tested], out: Path) -> None:
    """Store tested claims in the folder `out`, for `write_page`, in place of earlier verdicts at the same places."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", "writes the page"), replacing(out / STORE) as new:
        both = {(each.name, each.place): each for each in (*read_tested(out / STORE), *tested)}
        new.write_text(stored([both[key] for key in sorted(both)]), encoding="utf-8")


def write_page(out: Path) -> None:
    """Write claims.html, claims.md, claims.csv and claims/*.svg of all claims that are stored in the folder `out`."""
    tested = read_tested(out / STORE)
    places = sorted({each.place for each in tested})
    files: dict[str, bytes] = {}
    claims = []
    for name in dict.fromkeys(each.name for each in tested):
        own = [each for each in tested if each.name == name]
        content = _content(own)
        if groups := _groups(own):
            figure = contrasts_forest(groups, colours_of(places))
            files[f"claims/{name}.svg"] = drawn(figure, "svg")
            content |= {"figure": f"claims/{name}.svg", "picture": picture_of(figure, "differences with intervals")}
        claims.append(content)
    head = {
        "title": "Claims",
        "lead": f"{len(claims)} claim{'' if len(claims) == 1 else 's'} of the field, tested",
        "facts": {},
        "command": "",
        "generated": any(place.startswith("talker") for place in places),
    }
    overview = Section("Verdicts", "verdicts", {"note": NOTE, "places": places, "claims": claims})
    sections = [Section(claim["name"], "claim", claim) for claim in claims]
    files["claims.html"] = page(head, [overview, *sections]).encode()
    files["claims.md"] = rendered("claims.md", note=NOTE, places=places, claims=claims).encode()
    files["claims.csv"] = _csv(tested).encode()
    (out / "claims").mkdir(exist_ok=True)
    for name, text in files.items():
        with replacing(out / name) as new:
            new.write_bytes(text)


def _content(own: Sequence[Tested]) -> dict[str, Any]:
    """Of a claim, at all places."""
    claim = own[0].claim
    facts = {
        "Source": claim.source,
        "Published": claim.published,
        "Expected to hold on": ", ".join(claim.expected),
    }
    return {
        "name": own[0].name,
        "statement": claim.statement,
        "verdicts": {each.place: each.verdict for each in own},
        "facts": {name: fact for name, fact in facts.items() if fact},
        "picture": None,
        "figure": "",
        "table": _table(own),
        "rows": [[text.replace("|", "\\|") for text in _row(each, o)] for each in own for o in each.outcomes],
        "reasons": list(dict.fromkeys(o.reason for each in own for o in each.outcomes if o.reason)),
        "tried": claim.tried,
        "notes": claim.notes,
        "protocol": [f"{each.place}: {sentence}" for each in own for sentence in each.protocol],
        "commands": list(dict.fromkeys(each.command for each in own)),
    }


def _groups(own: Sequence[Tested]) -> dict[str, list[dict[str, Any]]]:
    """The measured contrasts by unit, as contrasts_forest draws them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in own:
        for o in each.outcomes:
            if o.verdict != "not measured":
                row = {"label": o.contrast.in_words, "place": each.place, "holds": o.verdict == "holds"}
                row |= {"mean": o.mean, "ci_low": o.low, "ci_high": o.high}
                row |= {"bound": o.contrast.bound, "sign": o.contrast.sign}
                groups.setdefault(_unit(o), []).append(row)
    return groups


def _unit(outcome: Outcome) -> str:
    """Of its axis; metrics without a look of their own are shares and correlations."""
    look = LOOKS.get(outcome.contrast.metric)
    if look is None:
        return "difference"
    return f"{look.name} in {look.unit}" if look.unit else look.name


def _table(own: Sequence[Tested]) -> Table:
    groups = []
    for each in own:
        rows = []
        for o in each.outcomes:
            digits = max(2, Look.of(o.contrast.metric).digits)
            difference = Cell(number(o.mean, digits, "+"), "", interval({"ci_low": o.low, "ci_high": o.high}, digits))
            sides = [Cell(number(value, digits)) for value in (o.left, o.right)]
            counts = [Cell(str(count)) for count in (o.n, o.speakers)]
            rows.append((o.contrast.in_words, [*sides, difference, Cell(_claimed(o)), Cell(o.verdict), *counts]))
        groups.append(Group(each.place, rows))
    return Table([(name, "") for name in COLUMNS], groups, stacked=True)


def _row(each: Tested, o: Outcome) -> list[str]:
    digits = max(2, Look.of(o.contrast.metric).digits)
    ends = interval({"ci_low": o.low, "ci_high": o.high}, digits)
    difference = f"{number(o.mean, digits, '+')} {ends}".strip()
    sides = [number(value, digits) for value in (o.left, o.right)]
    return [o.contrast.in_words, each.place, *sides, difference, _claimed(o), o.verdict]


def _claimed(outcome: Outcome) -> str:
    return f"{'≥' if outcome.contrast.sign > 0 else '≤'} {number(outcome.contrast.bound)}"


def _csv(tested: Sequence[Tested]) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    sides = [f"{side}_{name}" for side in ("left", "right") for name in Side.__dataclass_fields__]
    numbers = ("left", "right", "mean", "low", "high", "n", "speakers")
    writer.writerow(["claim", "place", *sides, "at_least", "at_most", *numbers, "verdict", "claim_verdict", "reason"])
    for each in tested:
        for o in each.outcomes:
            described = [
                _text(getattr(side, name)) if isinstance(side, Side) else ""
                for side in (o.contrast.left, o.contrast.right)
                for name in Side.__dataclass_fields__
            ]
            bounds = [_text(o.contrast.at_least), _text(o.contrast.at_most)]
            values = [getattr(o, name) for name in numbers]
            writer.writerow([each.name, each.place, *described, *bounds, *values, o.verdict, each.verdict, o.reason])
    return table.getvalue()


def _text(value: Any) -> str:
    return "" if value is None else " ".join(value) if isinstance(value, tuple) else str(value)
