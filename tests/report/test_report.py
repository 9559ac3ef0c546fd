"""The whole report of a small synthetic run: the page is parsed, the tables are read back."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import importlib.resources
import itertools
import json
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import storage
from pipeline.match.run import match
from pipeline.report.explorer import MAX_SHOWN
from pipeline.report.explorer_data import explorer_data
from pipeline.report.export import export_figures
from pipeline.report.results import open_run
from pipeline.report.run import report
from pipeline.text.words import base_form
from pipeline.work.usage import StageUsage
from storage.errors import FormatError, MissingInputError
from storage.rundir import RunDirectory

VOID = {"meta", "br", "img", "link", "input", "hr", "area", "base", "col", "embed", "source", "track", "wbr"}
LARGEST_BYTES = 6_000_000
ONE_PAIR = {"a": ["x"], "b": ["y"]}


@dataclass
class Element:
    """A tag with what is in it."""

    tag: str
    attrs: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, **attrs: str) -> list[Element]:
        result = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and all(child.attrs.get(k.rstrip("_")) == v for k, v in attrs.items()):
                    result.append(child)
                result += child.all(tag, **attrs)
        return result

    def walk(self) -> list[Element]:
        return [self, *(e for child in self.children if isinstance(child, Element) for e in child.walk())]


class Page(HTMLParser):
    """Parses a page and insists that every element is closed where it was opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root], f"never closed: {[e.tag for e in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def html(run) -> str:
    return report(run.root).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return Page(html).root


def test_these_files_and_nothing_else(run, html) -> None:
    made = {path.name for path in run.root.iterdir() if path.is_file()}
    assert made == {
        "experiment.json", "report.html", "report.json", "pairs.csv", "scores.csv", "scores.tex", "written.json"
    }  # fmt: skip
    assert len(html.encode()) < LARGEST_BYTES


def test_the_same_results_give_the_same_page(run, html) -> None:
    assert report(run.root).read_text(encoding="utf-8") == html


def test_title_models_and_sites(page) -> None:
    assert page.all("h1")[0].text == "toy-a-vs-toy-b"
    header = page.all("header")[0].text
    for name in ("toy/model-a", "toy/model-b", "layers.6", "layers.12", "encoder.layer.2", "encoder.layer.10"):
        assert name in header


def test_headings_are_in_order(page) -> None:
    levels = [int(e.tag[1]) for e in page.walk() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_pair_of_sites_has_a_section(page) -> None:
    titles = [e.text for e in page.all("h3")]
    for a in ("layers.6", "layers.12"):
        for b in ("encoder.layer.2", "encoder.layer.10"):
            assert f"{a} – {b}" in titles


def test_figures_are_described(page) -> None:
    figures = [figure for figure in page.all("figure") if figure.all("svg")]
    assert len(figures) == 1 + 4 * (3 + 3)
    for figure in figures:
        (svg,) = figure.all("svg")
        assert svg.attrs["role"] == "img"
        assert len(svg.attrs["aria-label"]) > 20
        assert figure.all("figcaption")[0].text.strip()
        assert svg.all("text")


def test_maps_share_one_scale_and_their_cells_lead_to_the_explorer(page) -> None:
    svcca, rsa, first_component, r, n_pairs = page.all("table", class_="map")
    for table in (svcca, rsa):
        cells = [cell.text for cell in table.all("td")]
        assert len(cells) == 4
        assert all("chance " in text and "p 0.0" in text and "✓" in text for text in cells)
    assert all("✓" not in cell.text and "p 0" not in cell.text for cell in first_component.all("td")), "no evidence"
    assert {cell.attrs["class"] for cell in first_component.all("td")} == {"grey"}
    shades = {
        name: [float(cell.attrs["style"][4:-1]) for cell in table.all("td")]
        for name, table in {"s": svcca, "r": r}.items()
    }
    share = [[float(text) for text in re.findall("[0-9.]{4,}", cell.text)[:2]] for cell in svcca.all("td")]
    for shade, (score, chance) in zip(shades["s"], share, strict=True):
        assert shade == pytest.approx(4 + 51 * (score - chance) / (1 - chance), abs=0.5)
    assert min(shades["r"]) > max(shades["s"]), "r goes more of the way from chance to 1"
    links = [link.attrs["href"] for link in n_pairs.all("a")]
    assert links[1] == "#a=layers.6&b=encoder.layer.10"
    assert len(set(links)) == 4


def test_ids_are_unique_and_links_lead_somewhere(page) -> None:
    ids = [e.attrs["id"] for e in page.walk() if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    wanted = [e.attrs[name] for e in page.walk() for name in ("href", "aria-labelledby") if name in e.attrs]
    files, states = {name for name in wanted if name.endswith(".csv")}, {name for name in wanted if "=" in name}
    assert files == {"pairs.csv", "scores.csv"}
    assert states
    wanted = [name for name in wanted if name not in files | states]
    clips = [
        result for e in page.walk() for value in e.attrs.values() for result in re.findall(r"url\(#(.*?)\)", value)
    ]
    assert {name.lstrip("#") for name in wanted + clips} <= set(ids)
    assert len(wanted) > 10


def test_nothing_is_loaded_and_only_the_explorer_runs(html, page) -> None:
    elements = page.walk()
    forbidden = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "image"}
    assert not forbidden & {e.tag for e in elements}
    for element in elements:
        for name, value in element.attrs.items():
            assert not name.startswith("on"), name
            if name in {"href", "src", "xlink:href", "action", "data", "srcset"}:
                assert value.startswith("#") or value in {"pairs.csv", "scores.csv"}
            if name == "style":
                assert "url(" not in value.replace("url(#", "")
    css = page.all("style")[0].text
    assert "url(" not in css
    assert "@import" not in css
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy.attrs["content"].split(";"))
    running = [e.text for e in page.all("script") if "type" not in e.attrs]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert rules == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
    }  # fmt: skip
    package = importlib.resources.files("pipeline.report")
    assert running == [
        package.joinpath(*path).read_text(encoding="utf-8")
        for path in (("vendor", "libraries.js"), ("templates", "explorer.js"))
    ]
    assert html.index("Content-Security-Policy") < html.index("<style")


def test_markup_in_the_corpus_shows_as_text(html, page) -> None:
    shown = [e.text for e in page.all("span", class_="text")]
    assert any('<script>alert("pwned")</script>' in text for text in shown)
    assert any("</textarea></style>" in text for text in shown)
    static = html[: html.index('<script type="application/json"')]
    assert "<script" not in static
    assert "\x00" not in html
    tokens = [e.text for e in page.all("span", class_="tokens")]
    assert any("script" in text for text in tokens)


def test_markup_in_names_shows_as_text(write_run, tmp_path) -> None:
    sites = {"a": ["<em>$x_1$&amp;"], "b": ['"><script>2']}
    run = write_run(tmp_path / "run", sites=sites, n_documents=12)
    html = report(run.root).read_text(encoding="utf-8")
    page = Page(html).root
    assert "em" not in {e.tag for e in page.walk()}
    assert {e.attrs.get("type") for e in page.all("script")} == {None, "application/json", "application/octet-stream"}
    assert '<em>$x_1$&amp; – "><script>2' in [e.text for e in page.all("h3")]
    assert "<em>$x_1$&amp;" in [e.text for e in page.all("table", class_="map")[0].all("th")]


def test_contexts_stand_side_by_side_with_the_token_marked(run, page) -> None:
    article = page.all("article")[0]
    table = pd.read_csv(run.root / "pairs.csv")
    pairs = table[(table["site_a"] == "layers.6") & (table["site_b"] == "encoder.layer.2")]
    varied, one_word = (listed.all("details") for listed in article.all("ol", class_="pairs"))
    assert len(varied) == (~pairs["one_word"]).sum()
    assert (
        f"{pairs['one_word'].sum()} one-word pairs" in article.all("details", class_="more")[0].all("summary")[0].text
    )
    assert len(one_word) == 10, "of those that are folded, the best are enough"
    best, first = pairs.iloc[0], varied[0]
    assert [e.text for e in first.all("span", class_="id num")] == [f"A {best.feature_a}", f"B {best.feature_b}"]
    assert first.all("a")[0].attrs["href"].endswith(f"&pair={best.feature_a}-{best.feature_b}")
    contexts = storage.open_result(run.contexts("a", "layers.6")).sel(feature=best.feature_a)
    rows = storage.open_activations(run.activations("a", "layers.6"))
    listed = first.all("ol", class_="contexts")[0].all("li")
    assert len(listed) == int((contexts["row"] >= 0).sum())
    for item, row, value in zip(listed, contexts["row"].values, contexts["value"].values, strict=True):
        document, start, end = (int(rows[name][row]) for name in ("document", "char_start", "char_end"))
        token = storage.open_corpus(run.corpus).text(document)[start:end]
        (marked,) = [mark for mark in item.all("mark") if "p" in mark.attrs["class"].split()]
        assert marked.text == token
        assert item.all("span", class_="value num")[0].text == f"{value:.2f}"


def test_pairs_csv_holds_every_pair(run, html) -> None:
    table = pd.read_csv(run.root / "pairs.csv")
    assert list(table) == [
        "site_a", "site_b", "feature_a", "feature_b", "r", "r_heldout", "n_active_a", "n_active_b", "one_word",
        "tokens_a", "tokens_b", "context_a", "context_b",
    ]  # fmt: skip
    for (site_a, site_b), rows in table.groupby(["site_a", "site_b"]):
        stored = storage.open_result(run.pairs(site_a, site_b))
        both = [rows, stored[list(rows)[2:6]].to_dataframe()]
        both = [part.sort_values(["feature_a", "feature_b"]) for part in both]
        for name in ("feature_a", "feature_b", "r", "r_heldout"):
            np.testing.assert_allclose(both[0][name], both[1][name])
        active = storage.open_activations(run.activations("a", site_a))["n_active"].values
        np.testing.assert_array_equal(rows["n_active_a"], active[rows["feature_a"]])
    assert len(table.groupby(["site_a", "site_b"])) == 4
    assert table["one_word"].is_monotonic_increasing, "one-word pairs come last"
    lower = table[["r", "r_heldout"]].min(axis=1, skipna=False).fillna(-1)
    assert all(lower[table["one_word"] == last].is_monotonic_decreasing for last in (False, True))
    last = table[table["one_word"]]
    words = [
        {base_form(word) for text in pair for word in json.loads(text)}
        for pair in zip(last.tokens_a, last.tokens_b, strict=True)
    ]
    assert {len(forms) for forms in words} == {1}
    texts = table[["tokens_a", "tokens_b", "context_a", "context_b"]].stack()
    assert set(texts.str[0]) == {"[", "“"}, "a spreadsheet must not take text for a formula"
    assert table["tokens_a"].map(json.loads).map(len).between(1, 5).all()
    assert table["context_b"].str.contains("⟦.+⟧", regex=True).all()


def test_scores_csv_is_tidy_and_corrected_over_the_grid(run, html) -> None:
    table = pd.read_csv(run.root / "scores.csv")
    assert len(table) == 4 * 3
    p = table["p"].to_numpy()
    for one, holm, bh in table[["p", "p_holm", "p_bh"]].itertuples(index=False):
        # straight from the definitions: step-down over smaller p, step-up over larger ones
        steps = [(p >= other).sum() * other for other in p[p <= one]]
        assert holm == pytest.approx(min(1, max(steps)))
        assert bh == pytest.approx(min(1, *(len(p) * other / (p <= other).sum() for other in p[p >= one])))
    stored = storage.open_result(run.scores("layers.12", "encoder.layer.2"))
    rows = table[(table["site_a"] == "layers.12") & (table["site_b"] == "encoder.layer.2")].set_index("metric")
    for metric in stored["metric"].values:
        for name in ("score", "null_mean", "null_std", "null_q05", "null_q95", "z", "p"):
            assert rows.loc[metric, name] == pytest.approx(float(stored.sel(null="shuffled")[name].sel(metric=metric)))


def test_provenance_names_every_result(run, page) -> None:
    (section,) = page.all("section", id="provenance")
    for path in sorted(run.root.rglob("*.zarr")):
        assert path.relative_to(run.root).as_posix() in section.text
        assert storage.read_manifest(path).fingerprint[:12] in section.text
    for fact in ("0.210", "0.480", "toy/layers.6", "numpy ", "top_n", "min_correlation: 0.2"):
        assert fact in section.text
    sinks = int(storage.open_activations(run.activations("a", "layers.6"))["sink"].sum())
    assert [str(sinks)] * 4 == [row.all("td")[7].text for row in section.all("table")[0].all("tbody")[0].all("tr")]


def test_seeds_and_times_are_said(run, page) -> None:
    facts = {e.all("dt")[0].text: e.all("dd")[0].text for e in page.all("dl", class_="facts")[0].all("div")}
    assert facts["Seeds"] == "0"
    made = storage.read_manifest(run.scores("layers.12", "encoder.layer.10")).created
    assert made[:16].replace("T", " ") in facts["Made (UTC)"]


def test_time_and_memory_of_the_stages_are_said_to_be_unknown(page) -> None:
    (section,) = page.all("section", id="provenance")
    assert "no record of time and memory" in section.text


def keep_usage(run: RunDirectory, *stages: StageUsage) -> None:
    run.usage.mkdir()
    content = {"stages": [dataclasses.asdict(one) for one in stages]}
    (run.usage / "1.json").write_text(json.dumps(content), encoding="utf-8")


def test_planned_against_measured_memory(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", sites=ONE_PAIR, n_documents=8)
    begun = "2026-01-02T03:04:05.678+00:00"
    keep_usage(
        run,
        StageUsage("harvest", begun, 81.26, "slurm-gpu", "finished", 3, 12, 0, 2.0e9, 1_500_000_000, 4_100_000_000, 9),
        StageUsage("correlate", begun, 12.0, "slurm-gpu", "finished", 3, 12, 1, 1.0e9, 1_200_000_000, 3_000_000_000),
        StageUsage("match", begun, 0.5, "slurm-gpu", "stopped by KeyboardInterrupt", 3, 12),
    )
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    (table,) = page.all("table", id="usage")
    rows = [[cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]
    harvest, correlate, match = rows[1:]
    assert harvest[:6] == ["harvest", "2026-01-02 03:04:05", "slurm-gpu", "3", "12", "81.3"]
    assert harvest[6:10] == ["2.00 GB", "1.50 GB", "75 %", "4.10 GB"]
    assert correlate[8] == "120 %", "more than planned is not hidden"
    assert "1 process was gone" in correlate[-1]
    assert match[6:10] == ["–"] * 4
    assert "stopped by KeyboardInterrupt" in match[-1]
    assert "beyond their plan: correlate" in page.all("section", id="provenance")[0].text
    table = export_figures(run.root, tmp_path / "paper", [])
    usage = pd.read_csv(tmp_path / "paper" / "usage.csv")
    assert tmp_path / "paper" / "usage.tex" in table
    assert usage.loc[usage["stage"] == "harvest", "planned"].item() == 2e9


def test_a_session_that_could_measure_nothing(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", sites=ONE_PAIR, n_documents=8)
    keep_usage(run, StageUsage("report", "2026-01-02T03:04:05.678+00:00", 3.0, "local"))
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    (table,) = page.all("table", id="usage")
    assert [cell.text for cell in table.all("tr")[1].all("td")[5:10]] == ["–"] * 5


def test_heldout_r_that_took_part_in_the_choice_is_marked_wherever_it_is_quoted(write_run, tmp_path) -> None:
    filters = [{"name": "min_heldout_r", "value": 0.1}]
    run = write_run(tmp_path / "run", sites=ONE_PAIR, n_documents=12, filters=filters)
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    note = "took part in choosing these pairs (min_heldout_r)"
    for section in ("scores", "pairs"):
        assert note in page.all("section", id=section)[0].text, section
    (figure,) = [one for one in page.all("figure") if "Mean r of matched pairs, held out" in one.text]
    assert note in figure.text
    assert "which took part in the selection" in page.all("article", id="pair-1")[0].text
    assert pd.read_csv(run.root / "pairs.csv")["heldout_in_choice"].all()
    export_figures(run.root, tmp_path / "paper", [])
    assert pd.read_csv(tmp_path / "paper" / "matching.csv")["heldout_in_choice"].all()
    opened = open_run(run.root)
    assert explorer_data(opened, opened.site_pairs).index["site_pairs"][0]["heldout_in_choice"]


def test_the_licences_of_the_libraries_come_along(page) -> None:
    (result,) = [one for one in page.all("details") if "Licences" in one.all("summary")[0].text]
    for holder in ("Tanner Linsley", "Mike Bostock", "Luca Ongaro"):
        assert holder in result.text


def test_real_scores(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", score=None, null_runs=40, sites=ONE_PAIR, n_documents=20)
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    assert len([figure for figure in page.all("figure") if figure.all("svg")]) == 1 + 3 + 3
    assert "SVCCA" in page.all("section", id="verdict")[0].text
    scores = storage.open_result(run.scores(ONE_PAIR["a"][0], ONE_PAIR["b"][0]))
    assert 3 < scores.n_effective.item() < scores.n_pairs.item()
    assert np.isfinite(scores.p.sel(null="shuffled_words", metric="rsa").item())


def test_labels_stand_beside_features(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", sites=ONE_PAIR, n_documents=12)
    site = ONE_PAIR["a"][0]
    feature = int(storage.open_result(run.pairs(site, ONE_PAIR["b"][0]))["feature_a"][0])
    named = xr.Dataset({"label": ("feature", ["<b>storms</b>"])}, {"feature": [feature]})
    storage.write_result(named, run.labels("a", site), storage.new_manifest("labels", {}, {}), overwrite=True)
    html = report(run.root).read_text(encoding="utf-8")
    result = {e.text for e in Page(html).root.all("span", class_="label")}
    assert result == {"<b>storms</b>"}
    assert "<b>storms" not in html
    assert f"labels/a/{site}.zarr" in html


def test_without_held_out_rows_it_says_so(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", heldout=False, sites=ONE_PAIR, n_documents=12)
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    assert "inflated by the selection" in page.all("aside")[0].text
    assert pd.read_csv(run.root / "pairs.csv")["r_heldout"].isna().all()


def test_no_pairs_at_all(write_run, tmp_path) -> None:
    run = write_run(tmp_path / "run", min_correlation=0.999, noise=0.1, score=None, sites=ONE_PAIR, n_documents=12)
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    assert "No pair of features reached" in page.all("section", id="verdict")[0].text
    assert pd.read_csv(run.root / "pairs.csv").empty


def test_large_grids_show_fewer_pairs_and_link_from_the_section(write_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.import_module("pipeline.report.explorer"), "MAX_SHOWN", 14)
    sites = {"a": ["x.1"], "b": [f"y.{i}" for i in range(7)]}
    run = write_run(tmp_path / "run", sites=sites, n_documents=8, null_runs=20)
    page = Page(report(run.root).read_text(encoding="utf-8")).root
    assert {len(article.all("ol", class_="pairs")[0].all("details")) for article in page.all("article")} == {2}
    assert len(page.all("nav")) == 2
    assert "Benjamini–Hochberg" in page.all("ul", class_="verdict")[0].text
    assert MAX_SHOWN > 100


def test_a_missing_stage_is_named(run, html, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.root, copy)
    shutil.rmtree(copy / "scores" / "layers.6--encoder.layer.2.zarr")
    page = Page(report(copy).read_text(encoding="utf-8")).root
    assert "Not finished" in page.all("aside")[0].text
    assert "layers.6 – encoder.layer.2" in page.all("aside")[0].text
    assert len(page.all("article")) == 3
    shutil.rmtree(copy / "scores")
    with pytest.raises(MissingInputError, match="no pair of sites with all of correlation, pairs, scores"):
        report(copy)
    shutil.rmtree(copy / "contexts" / "b")
    with pytest.raises(MissingInputError, match=re.escape("contexts/b/encoder.layer.2.zarr")):
        report(copy)


def test_no_run_directory(tmp_path) -> None:
    with pytest.raises(MissingInputError, match="subspace run"):
        report(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="not a run directory"):
        report(tmp_path)
    (tmp_path / "experiment.json").write_text('{"name": "x"}')
    with pytest.raises(FormatError, match="is damaged, or of another version"):
        report(tmp_path)


def test_a_failed_report_leaves_the_old_one(run, html, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report(run.root)
    assert run.report.read_text(encoding="utf-8") == html
    assert not list(run.root.glob("*.partial"))


def test_r_on_other_text_has_a_column_in_the_page_and_the_table(write_run, tmp_path):
    run, other = (write_run(tmp_path / f"{seed}", sites=ONE_PAIR, n_documents=10, seed=seed) for seed in range(2))
    stores = other.activations("a", "x"), other.activations("b", "y")
    pairs = match(
        run.correlation("x", "y"), min_correlation=0.2, check_on=stores, out=run.pairs("x", "y"), overwrite=True
    )
    html = report(run.root).read_text(encoding="utf-8")
    table = pd.read_csv(run.pairs_table)
    stored = pairs["r_check"].to_dataframe().set_index([pairs["feature_a"].values, pairs["feature_b"].values])
    np.testing.assert_allclose(
        table["r_check"], stored.loc[[*zip(table.feature_a, table.feature_b, strict=True)], "r_check"]
    )
    assert f"their mean r is {np.nanmean(pairs['r_check']):.2f}." in html
    assert '<th scope="col" class="num">Other text</th>' in html
    assert f'<td class="num">{pairs.attrs["n_rows_check"]:,}</td>' in html
