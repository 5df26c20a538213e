"""Docstrings as the site shows them: examples as Python, columns and formulae as they are written."""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, Extension, Object

COLUMNS = re.compile(r"^    |\S {2,}\S", re.MULTILINE)


class Preformatted(Extension):
    """Of mkdocs.yml: puts such paragraphs between fences."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring = Docstring(fenced(obj.docstring.value), parent=obj)


def fenced(text: str) -> str:
    parts = []
    for part in text.split("\n\n"):
        kind = "pycon" if part.startswith(">>>") else "text" if COLUMNS.search(part) else None
        parts.append(part if kind is None else f"```{kind}\n{part}\n```")
    return "\n\n".join(parts)
