"""Figures and tables as files."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.report import plots
from pipeline.report.export import export_figures, to_latex
from storage.errors import InputError


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("export") / "run", sites={"a": ["x.1"], "b": ["y.1"]}, n_documents=8)


def test_every_figure_in_every_format(run, tmp_path) -> None:
    arguments = ["report", str(run.root), "--figures", str(tmp_path / "paper"), "--format", "pdf", "--format", "png"]
    done = CliRunner().invoke(app, [*arguments, "--format", "svg", "--json"])
    assert done.exit_code == 0, done.output
    made = sorted((tmp_path / "paper").iterdir())
    assert json.loads(done.stdout.splitlines()[-1])["files"] == len(made)
    figures = {path.stem for path in made if path.suffix == ".png"}
    assert len(figures) == 6 + 3 + 3
    assert {path.stem for path in made if path.suffix == ".pdf"} == figures
    for path in made:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 200
                assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            assert "<text" in text
            assert not any(stand_in in text for stand_in in plots.PALETTE)
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
    assert not run.report.exists(), "figures alone were asked for"


def test_tables_as_latex_and_csv(run, tmp_path) -> None:
    files = export_figures(run.root, tmp_path, [])
    assert {path.name for path in files} == {
        f"{name}.{ending}" for name in ("scores", "matching", "fates", "sites") for ending in ("tex", "csv")
    }
    latex = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    assert not re.search(r"(?<!\\)_", latex)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert latex.count(r" \\") == len(table) + 1


def test_latex_escapes() -> None:
    assert r"50\% \& \$x\_1\$" in to_latex(pd.DataFrame({"note": ["50% & $x_1$"]}))


def test_the_same_run_gives_the_same_files(run, tmp_path) -> None:
    first, second = (export_figures(run.root, tmp_path / name, ["pdf", "svg"]) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("content", ["ten years", "of ours"])
def test_nothing_is_written_where_one_file_stays(run, tmp_path, content) -> None:
    """Be it somebody else's, or ours with other content: then it needs --overwrite."""
    first = export_figures(run.root, tmp_path / "first", ["svg"])
    for file in first[::5]:
        folder = tmp_path / file.stem / file.suffix
        folder.mkdir(parents=True)
        before = content if content == "ten years" else file.read_text() + "x"
        (folder / file.name).write_text(before)
        with pytest.raises(InputError, match=f"{file.name} is there"):
            export_figures(run.root, folder, ["svg"])
        assert [path.name for path in folder.iterdir()] == [file.name]
        assert (folder / file.name).read_text() == before
    if content == "of ours":
        export_figures(run.root, folder, ["svg"], overwrite=True)
        assert (folder / file.name).read_text() == file.read_text()


def test_an_unknown_format(run, tmp_path) -> None:
    with pytest.raises(InputError, match="'gif'"):
        export_figures(run.root, tmp_path / "none", ["gif"])
    assert not (tmp_path / "none").exists()
