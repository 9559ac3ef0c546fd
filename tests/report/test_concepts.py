"""The page of concepts: complete, readable, and safe whatever the text and the names of concepts hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.report.concepts import CLEAREST, CLEAREST_OF_CLUSTER, Meanings, read_meanings
from pipeline.report.results import open_run
from pipeline.report.run import report
from pipeline.semantics.stage import run_semantics
from pipeline.settings.experiment import Experiment
from pipeline.settings.semantics import SemanticsSettings
from storage.rundir import RunDirectory

HOSTILE_NAME = "<img src=x onerror=alert(1)> & co"


class Tags(HTMLParser):
    """Collects tags, attributes and ids; checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def run(write_run: Callable[..., RunDirectory], tmp_path_factory: pytest.TempPathFactory, client: Any) -> RunDirectory:
    folder = tmp_path_factory.mktemp("concepts-report")
    directory = write_run(folder / "run", sites={"a": ["layers.6"], "b": ["encoder.layer.2", "encoder.layer.10"]})
    topics = {
        "weather": ["rain", "storm", "wind", "flood", "snow", "drought", "cloud", "thunder"],
        "court": ["judge", "trial", "court", "lawyer", "verdict", "appeal", "sentence", "jury"],
        HOSTILE_NAME: ["bank", "market", "shares", "profit", "price", "tax", "dollar", "budget"],
        "nothing": ["zyzzyva"],
    }
    file = folder / "concepts.yaml"
    file.write_text(yaml.safe_dump({name: {"keywords": words} for name, words in topics.items()}, sort_keys=False))
    settings = SemanticsSettings(
        concepts=str(file), embedding=None, null_runs=20, min_pairs=4, clusters=3, metrics=["svcca:k=4", "rsa"]
    )
    config = Experiment.model_validate(directory.read_experiment()).model_copy(update={"semantics": settings})
    directory.write_experiment(config.model_dump(mode="json"))
    run_semantics(config, directory, client)
    report(directory.root)
    return directory


@pytest.fixture(scope="module")
def meanings(run: RunDirectory) -> Meanings:
    result = read_meanings(open_run(run.root))
    assert result is not None
    return result


@pytest.fixture(scope="module")
def page(run: RunDirectory) -> str:
    return run.concepts_page.read_text(encoding="utf-8")


def test_no_markup_of_text_or_names_acts(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert not {"script", "img", "iframe", "object", "form"} & set(tags.tags)
    assert not tags.handlers
    assert HOSTILE_NAME not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; co" in page
    assert "default-src 'none'" in page


def test_links_lead_somewhere(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert len(set(tags.ids)) == len(tags.ids)
    cells = [link for link in tags.links if link.startswith("report.html#a=layers.6&b=encoder.layer.")]
    assert any(link.endswith("&concept=weather") for link in cells)
    files = {"report.html", "semantics.csv", "semantics.tex"}
    for link in set(tags.links) - set(cells):
        assert link in files or link.removeprefix("#") in tags.ids, link


def test_every_concept_and_site_pair_is_there(meanings: Meanings, page: str) -> None:
    assert meanings.names == ["weather", "court", HOSTILE_NAME, "nothing"]
    assert len(meanings.grid) == 4 * 2 * 2
    for name in ("weather", "court", "nothing"):
        assert name == "nothing" or re.search(rf'<th scope="row">(<a[^>]*>)?{name}', page)
    assert re.search(
        r"<summary>1 concept with too few pairs at every pair of sites</summary>\s*<p[^>]*>.*: nothing 0", page
    )
    shown = {view.shown.name for view in meanings.concepts}
    assert {"weather", HOSTILE_NAME} <= shown
    assert "nothing" not in shown, "a concept without pairs is in the table only"
    assert len(meanings.clusters) == 3 * 2


def test_the_clearest_pairs_stand_side_by_side(meanings: Meanings) -> None:
    for view in meanings.concepts:
        assert 0 < len(view.pairs) <= CLEAREST
        rank = [
            (pair.one_word, -min(pair.r, pair.r_heldout)) for pair in view.pairs if pair.r_heldout == pair.r_heldout
        ]
        assert rank == sorted(rank), "one-word pairs come last"
    tested = [view.shown.tested for view in meanings.concepts]
    assert tested == sorted(tested, reverse=True), "what could not be tested comes last"
    assert all(len(view.pairs) <= CLEAREST_OF_CLUSTER for view in meanings.clusters)
    weather = next(view for view in meanings.concepts if view.shown.name == "weather")
    words = {token.lower() for pair in weather.pairs for token in (*pair.a.tokens, *pair.b.tokens)}
    assert words & {"rain", "storm", "wind", "flood", "snow", "drought", "cloud", "thunder"}


def test_the_report_leads_to_it(run: RunDirectory) -> None:
    html = run.report.read_text(encoding="utf-8")
    assert 'href="concepts.html"' in html
    assert "Concept subsets of all matched pairs: " in html


def test_the_report_holds_the_table_itself(run: RunDirectory, page: str) -> None:
    """It may be sent alone."""
    html = run.report.read_text(encoding="utf-8")
    of_report, of_page = (re.findall(r'<table class="meanings">.*?</table>', text, re.DOTALL) for text in (html, page))
    assert len(of_report) == 2
    assert [text.replace('href="concepts.html#', 'href="#') for text in of_report] == [
        text.replace('href="report.html#', 'href="#') for text in of_page
    ]
    assert HOSTILE_NAME not in html
    for anchor in re.findall(r'href="concepts.html#([^"]+)"', html):
        assert f'id="{anchor}"' in page


def test_tables_beside_the_report(run: RunDirectory) -> None:
    for suffix in (".csv", ".html", ".tex"):
        text = run.semantics_table.with_suffix(suffix).read_text(encoding="utf-8")
        assert "weather" in text
        assert suffix == ".csv" or HOSTILE_NAME not in text


def test_the_verb_goes_on_where_it_was(run: RunDirectory) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.root.glob("semantics/*.zarr/**/*")}
    done = CliRunner().invoke(app, ["semantics", str(run.root), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout.splitlines()[-1])
    assert len(printed["lines"]) == (4 * 2 + 3) * 2
    assert {"Concept", "Pairs", "RSA", "RSA p shuffled", "Verdict"} <= set(printed["lines"][0])
    assert {file: file.stat().st_mtime_ns for file in run.root.glob("semantics/*.zarr/**/*")} == before


def test_the_verb_names_what_is_wrong(run: RunDirectory) -> None:
    done = CliRunner().invoke(app, ["semantics", str(run.root), "--approach", "sideways"])
    assert done.exit_code == 2
    assert "approaches" in done.stderr
    done = CliRunner().invoke(app, ["semantics", str(run.root / "nowhere")])
    assert "is not a run directory" in done.stderr


def test_without_concepts_there_is_no_page(write_run: Callable[..., RunDirectory], tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", sites={"a": ["layers.6"], "b": ["encoder.layer.2"]})
    html = report(directory.root).read_text(encoding="utf-8")
    assert not directory.concepts_page.exists()
    assert "concepts.html" not in html
