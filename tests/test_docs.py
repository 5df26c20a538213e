"""The documentation: the site builds without a warning, links lead somewhere, and no picture is outdated."""

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import avdvae
from avdvae.evaluation.results import Result, write_results
from avdvae.runs import Run

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
PAGES = {path: path.read_text() for path in (PROJECT / "README.md", *sorted(DOCS.glob("*.md")))}
NOTES = json.loads((DOCS / "pictures.json").read_text())
OF_CLAIMS = "claims/"  # drawn by `avdvae claims`, whose tests compare the page with their file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # which is about a successor of the theme
    done = subprocess.run(mkdocs, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|audio|video|source)[^>]* src=\"?(http[^\"> ]*)", page.read_text())
        loaded += re.findall(
            r"<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]* href=\"?(http[^\"> ]*)", page.read_text()
        )
        assert not loaded, (page.name, loaded)
    assert (
        "TrainedModel" in (tmp_path / "api.html").read_text()
        and "rvae-librispeech" in (tmp_path / "weights.html").read_text()
    )


def test_the_readme_is_one_page_and_its_links_lead_somewhere() -> None:
    readme = PAGES[PROJECT / "README.md"]
    assert readme.count("\n") <= 120
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", readme)
    assert len(links) > 30
    for path, anchor in links:
        assert (PROJECT / path).exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)", (PROJECT / path).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], anchor


def test_every_picture_stands_beside_its_command_and_none_is_outdated() -> None:
    shown = set()
    for page, text in PAGES.items():
        for found in re.finditer(r"!\[[^]]*\]\(([^)]+)\)|src=\"([^\"]+)\"", text):
            name = (found[1] or found[2]).removeprefix("docs/")
            if name.startswith(OF_CLAIMS):
                continue
            shown.add(name)
            about = NOTES[name]
            assert about["command"] in text[max(0, found.start() - 600) : found.end() + 600], (page.name, name)
            assert sha256(DOCS / name) == about["sha256"], f"{name} was changed by hand: {about['command']}"
            same = about["version"].split(".")[:2] == avdvae.__version__.split(".")[:2]
            assert same, f"{name} is of version {about['version']}: {about['command']}"
    files = {
        path.relative_to(DOCS) for kind in ("png", "svg", "flac", "mp3", "mp4") for path in DOCS.rglob(f"*.{kind}")
    }
    assert {str(path) for path in files if path.parts[0] != "claims"} == shown == NOTES.keys()


def test_diagrams_and_the_page_of_published_figures_are_what_their_scripts_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "docs" / "tools")
    for drawn in import_module("diagrams").write(tmp_path / "diagrams"):
        assert drawn.read_bytes() == (DOCS / "diagrams" / drawn.name).read_bytes(), (
            "python docs/tools/pictures.py diagrams"
        )
    assert PAGES[DOCS / "published.md"] == import_module("published_page").page(), "python docs/tools/published_page.py"


def test_a_part_of_the_gallery_is_made_alone_beside_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "docs" / "tools")
    gallery, pictures = import_module("gallery"), import_module("pictures")
    names = ["scene/060 apart 01", "scene/060 crossing 01"]

    def evaluated(run: Run, changes: dict[str, Any], out: Path) -> Path:
        out.mkdir()
        (out / "film.mp4").write_bytes(b"film")
        (out / "still.png").write_bytes(b"still")
        examples = [{"title": f"{name}, tracking", "figure": "still.png", "video": "film.mp4"} for name in names]
        (out / "examples.json").write_text(json.dumps(examples))
        scored = [("Kalman", names[0], 100.0), ("nearest", names[0], 91.11), ("Kalman", names[1], 3.0)]
        rows = [
            Result("run", model, "tracking", "tracks", "test", name, name, "", None, "", metric, value)
            for model, name, value in scored
            for metric in ("mota", "idf1", "misses", "id_switches")
        ]
        write_results(out / "results.csv", rows)
        return out

    for module, name, value in (
        (gallery, "DOCS", tmp_path),
        (pictures, "DOCS", tmp_path),
        (gallery, "MEDIA", tmp_path / "gallery"),
        (pictures, "NOTES", tmp_path / "pictures.json"),
        (gallery, "evaluate_again", evaluated),
        (sys, "argv", ["gallery.py", "tracks=vae-librispeech"]),
    ):
        monkeypatch.setattr(module, name, value)
    command = "python docs/tools/gallery.py tracks=RUN"
    (tmp_path / "gallery").mkdir()
    of = {"old.mp4": command, "kept.png": "python docs/tools/gallery.py lips=RUN"}
    for name in of:
        (tmp_path / "gallery" / name).write_bytes(b"")
    (tmp_path / "pictures.json").write_text(json.dumps({f"gallery/{n}": {"command": of[n]} for n in of}))
    (tmp_path / "gallery.md").write_text("# Gallery\n\nOld.\n\n## Tracks\n\nOld.\n\n### One\n\n## Lips\n\nKept.\n")
    gallery.main()
    page, notes = (tmp_path / "gallery.md").read_text(), json.loads((tmp_path / "pictures.json").read_text())
    assert "Old." not in page and "### One" not in page and page.endswith("\n\n## Lips\n\nKept.\n")
    assert page.index("tracks_0.mp4") < page.index("| Kalman | 100 | 100 | 100 |\n| nearest | 91.1 | 91.1 | 91.1 |\n\n")
    assert page.index(names[1]) < page.index('<video controls src="gallery/tracks_1.mp4"></video>')
    assert page.count("| MOTA, % |") == page.count("Kalman |") == 2 and page.count(f": `{command}`") == 4
    files = {"kept.png", *(f"tracks_{number}.{kind}" for number in (0, 1) for kind in ("png", "mp4"))}
    assert {*notes} == {f"gallery/{name}" for name in files}
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == files
    assert notes["gallery/tracks_1.mp4"]["sha256"] == hashlib.sha256(b"film").hexdigest()
    gallery.main()
    assert (tmp_path / "gallery.md").read_text() == page


def test_no_model_hears_tells_or_knows() -> None:
    """As specified for prose: models encode, condition on, predict, contain."""
    wrong = r"\b(models?|networks?|encoders?|decoders?|latents?|posteriors?) (hears?|tells?|knows?|says?|thinks?)\b"
    found = {(page.name, hit[0]) for page, text in PAGES.items() for hit in re.finditer(wrong, text)}
    assert not {hit for hit in found if hit[0] != "claims.md"}
