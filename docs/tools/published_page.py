"""Write docs/published.md, the figures of papers, from avdvae/data/published/*.csv.

python docs/tools/published_page.py
"""

from __future__ import annotations

import csv
from pathlib import Path

from avdvae.evaluation import published

PROJECT = Path(__file__).parents[2]
BEGIN = """# Published figures

Figures of papers, by corpus and protocol, from `avdvae/data/published`. They stand apart from the suite's own
[results](results.md): corpora, noises and protocols differ, so they are compared with each other alone. The reports of
runs on these corpora show them, too.

Made by `python docs/tools/published_page.py`.
"""


def page() -> str:
    files = sorted(published.FOLDER.glob("*.csv"))
    rows = [row for path in files for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
    parts = [BEGIN]
    for corpus, task in dict.fromkeys((row["corpus"], row["task"]) for row in rows):
        parts.append(f"## {corpus}, {task.replace('_', ' ')}\n")
        for title, protocol, table in published.published_on(corpus, [task]):
            (group,) = table.groups
            heads = ["", *(name for name, _ in table.columns)]
            lines = [[name, *(cell.value for cell in cells)] for name, cells in group.rows]
            marks = [["---"] * len(heads)]
            parts.append(f"### {title}\n\n{protocol}.\n")
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in [heads, *marks, *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (PROJECT / "docs/published.md").write_text(page())
