"""Every notebook says what the script beside it says, and the README lists it."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest

from benchmarks.table import README

NOTEBOOKS = sorted((README.parent / "notebooks").glob("*.ipynb"))


def cells(file: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(file).cells]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_are_the_same(notebook: Path) -> None:
    script = notebook.with_suffix(".py")
    assert cells(notebook) == cells(script), f"run: jupytext --sync {script}"
    assert all(not cell.get("outputs") for cell in jupytext.read(notebook).cells), "outputs are made by running it"


def test_the_readme_lists_every_notebook() -> None:
    text = README.read_text(encoding="utf-8")
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        assert f"(notebooks/{notebook.name})" in text
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in NOTEBOOKS[0].parent.glob("*.py")}
