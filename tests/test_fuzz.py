"""A few cases of `python -m tests.fuzz`, always the same ones."""

from pathlib import Path

import fuzz
import pytest


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    films, sounds = fuzz.write_seeds(tmp_path_factory.mktemp("seeds"))
    return {"films": films, "sounds": sounds}


@pytest.mark.parametrize(("part", "modalities"), [("films", "audio,lips"), ("sounds", "audio")])
def test_damaged_media_are_kept_or_named(part: str, modalities: str, seeds, tmp_path: Path) -> None:
    cases = [fuzz.media_case(5, f"{part}/{number:04d}", seeds[part]) for number in range(24)]
    assert {case.kind for case in cases} >= {"cut", "header", "data", "zeroed"}
    found = fuzz.prepare_cases(cases, seeds[part], tmp_path, ["workers=2", f"data.modalities=[{modalities}]"])
    assert not isinstance(found, str), found
    assert found["kept"] and found["left out"] and not found["unforeseen"]


def test_damaged_files_of_runs_and_corpora_are_named(tmp_path: Path) -> None:
    fuzz.load_libraries()
    made = fuzz.make(tmp_path / "made")
    for number, case in enumerate(fuzz.file_cases(made, 5, 11)):  # each file once
        name, wrong = fuzz.check_file(case, made, tmp_path / str(number), 5)
        assert wrong is None, f"{case.kind} of {case.suffix}, {name}: {wrong}"
