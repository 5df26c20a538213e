"""The diagrams of the documentation, as SVG: boxes of text in a plane, and arrows between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

INK, LINE, DATA, NET, LIKELY = "#222222", "#666666", "#eef3fb", "#fdf1e3", "#e9f6ee"
LETTER, LEADING = 7.2, 17  # pixels: width and height of a letter
STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:13px"


@dataclass(frozen=True)
class Box:
    """Centred at (x, y)."""

    x: float
    y: float
    text: str
    fill: str = NET

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @property
    def half(self) -> tuple[float, float]:
        return max(map(len, self.lines)) * LETTER / 2 + 12, len(self.lines) * LEADING / 2 + 9

    def edge(self, towards: tuple[float, float]) -> tuple[float, float]:
        """Where a line from the centre towards a point leaves the box."""
        dx, dy = towards[0] - self.x, towards[1] - self.y
        share = min(half / abs(d) for half, d in zip(self.half, (dx, dy), strict=True) if d)
        return self.x + share * dx, self.y + share * dy

    def draw(self) -> str:
        w, h = self.half
        frame = f'<rect x="{self.x - w:.1f}" y="{self.y - h:.1f}" width="{2 * w:.1f}" height="{2 * h:.1f}" rx="6"'
        top = self.y - (len(self.lines) - 1) * LEADING / 2 + 4.5
        texts = [
            f'<text x="{self.x:.1f}" y="{top + i * LEADING:.1f}" text-anchor="middle">{escape(line)}</text>'
            for i, line in enumerate(self.lines)
        ]
        return "\n".join([f'{frame} fill="{self.fill}" stroke="{LINE}"/>', *texts])


@dataclass(frozen=True)
class Arrow:
    """Through the points `by`, or upright `shift` pixels beside the centres; `label` beside its middle."""

    start: Box
    end: Box
    label: str = ""
    by: tuple[tuple[float, float], ...] = ()
    shift: float = 0.0

    def draw(self) -> str:
        inner = [*self.by]
        first = self.start.edge(inner[0] if inner else (self.end.x, self.end.y))
        last = self.end.edge(inner[-1] if inner else (self.start.x, self.start.y))
        points = [(x + self.shift, y) for x, y in (first, *inner, last)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn = f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'
        if not self.label:
            return drawn
        (x0, y0), (x1, y1) = points[(len(points) - 1) // 2], points[(len(points) - 1) // 2 + 1]
        upright = abs(x1 - x0) < abs(y1 - y0)
        x, y = (x0 + x1) / 2 + (8 if upright else 0), (y0 + y1) / 2 + (4 if upright else -7)
        anchor = "start" if upright else "middle"
        return (
            drawn + f'\n<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{LINE}">{escape(self.label)}</text>'
        )


def svg(width: int, height: int, parts: Iterable[Box | Arrow], title: str) -> str:
    tip = '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'{head} role="img" style="{STYLE}" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            f'<defs>{tip}<path d="M0,0 L10,5 L0,10 z" fill="{LINE}"/></marker></defs>',
            '<rect width="100%" height="100%" rx="8" fill="white"/>',
            *(part.draw() for part in parts),
            "</svg>\n",
        ]
    )


def contract() -> str:
    batch, context = Box(80, 60, "Batch\npower, lips, ...", DATA), Box(300, 60, "context\nconditions, once")
    infer, z = Box(300, 160, "infer\nq(z | x)"), Box(470, 160, "z\nlatents by name", DATA)
    decode, likely = Box(470, 60, "decode"), Box(650, 60, "likelihood\np(x | z)", LIKELY)
    prior, elbo = (
        Box(650, 160, "log_prior\nln p(z)", LIKELY),
        Box(850, 110, "forward: Elbo\nnats of an utterance", LIKELY),
    )
    uses = Box(650, 245, "EM, transfer, control, generation", DATA)
    arrows = [Arrow(batch, context), Arrow(batch, infer, by=((80, 160),)), Arrow(context, decode), Arrow(infer, z)]
    arrows += [Arrow(context, infer), Arrow(z, decode), Arrow(decode, likely), Arrow(z, prior), Arrow(likely, elbo)]
    arrows += [Arrow(prior, elbo), Arrow(z, uses, by=((470, 245),))]
    boxes = [batch, context, infer, z, decode, likely, prior, elbo, uses]
    return svg(960, 285, [*arrows, *boxes], "The contract of a model")


def em() -> str:
    noisy, start = Box(85, 130, "noisy spectrum\nx = sqrt(g) s + b", DATA), Box(275, 60, "encoder\nfirst latents")
    level = Box(275, 200, "quieter frames\nfirst noise")
    e_step = Box(480, 60, "E-step\ndraws of z given x, noise", NET)
    m_step = Box(480, 200, "M-step\nW, H of the noise, gain g", NET)
    wiener, speech = Box(725, 130, "Wiener filter\ng S / (g S + W H)", LIKELY), Box(910, 130, "speech", DATA)
    arrows = [Arrow(noisy, start), Arrow(noisy, level), Arrow(start, e_step), Arrow(level, m_step)]
    arrows += [Arrow(e_step, m_step, "variances S", shift=-60), Arrow(m_step, e_step, "noise", shift=50)]
    arrows += [Arrow(e_step, wiener), Arrow(m_step, wiener), Arrow(wiener, speech)]
    return svg(980, 260, [*arrows, noisy, start, level, e_step, m_step, wiener, speech], "The EM of enhancement")


def architecture() -> str:
    films, shards = Box(70, 60, "films, sounds", DATA), Box(290, 60, "shards", DATA)
    batch, loop = Box(500, 60, "Batch", DATA), Box(740, 60, "training/loop.py")
    run, vem = Box(740, 150, "run directory", DATA), Box(500, 150, "enhancement/vem.py")
    speech, results = Box(290, 150, "speech", DATA), Box(290, 235, "results.csv", DATA)
    report = Box(500, 235, "report.html", DATA)
    arrows = [
        Arrow(films, shards, "prepare"),
        Arrow(shards, batch, "data/loader.py"),
        Arrow(batch, loop, "forward: Elbo"),
    ]
    arrows += [Arrow(loop, run), Arrow(batch, vem, "infer, decode"), Arrow(run, vem, "weights")]
    arrows += [
        Arrow(vem, speech, "Wiener filter"),
        Arrow(speech, results, "signals/metrics.py"),
        Arrow(results, report),
    ]
    boxes = [films, shards, batch, loop, run, vem, speech, results, report]
    return svg(850, 275, [*arrows, *boxes], "From films to a report")


def write(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    written = []
    for draw in (architecture, contract, em):
        path = folder / f"{draw.__name__}.svg"
        path.write_text(draw())
        written.append(path)
    return written
