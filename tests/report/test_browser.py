"""The report in a real browser: headless Chromium, driven by playwright.

Chromium is Debian's ``chromium``; without it these tests are skipped, unless ``SUBSPACE_REQUIRE_CHROMIUM=1`` is set.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pytest

import storage
from benchmarks.explorer import SEARCH, chromium, launched, open_report, word, write_large_run
from pipeline.report.run import report
from storage.errors import MissingDependencyError

N_PAIRS = 30_000
MOST_MILLISECONDS = 200
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
COLOURS = ("light", "dark")
COLOURS_OF_BODY = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
NARROWED = """() => {
  const [shown, , all] = document.getElementById("x-count").textContent.split(" ");
  return shown !== all;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        chromium()
    except MissingDependencyError as error:
        if os.environ.get("SUBSPACE_REQUIRE_CHROMIUM"):
            pytest.fail(f"Chromium is required here, but: {error}")
        pytest.skip(str(error))
    with launched() as one:
        yield one


@pytest.fixture(scope="module")
def opened(browser) -> Callable[..., Any]:
    """Return a context: a page that fails the test on any console message, dialog, or request but its own."""

    @contextmanager
    def open_page(
        file: Path, size: tuple[int, int] = WIDTHS["desk"], colours: str = "light", address: str = ""
    ) -> Iterator[Any]:
        width, height = size
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=colours, reduced_motion="reduce"
        )
        seen: list[str] = []
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: seen.append(f"request: {request.url}"))
        try:
            open_report(page, file, address)
            yield page
            assert [one.split("#")[0] for one in seen] == [f"request: {file.resolve().as_uri()}"]
        finally:
            page.close()

    return open_page


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("browser") / "run")


@pytest.fixture(scope="module")
def file(run) -> Path:
    return report(run.root)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return report(write_large_run(tmp_path_factory.mktemp("large") / "run", N_PAIRS).root)


@pytest.fixture(scope="module")
def pairs(run, file) -> pd.DataFrame:
    """The pairs of the first sites, in the order in which they are worth reading."""
    table = pd.read_csv(run.pairs_table)
    return table[(table["site_a"] == "layers.6") & (table["site_b"] == "encoder.layer.2")]


def labels(pairs: pd.DataFrame) -> list[str]:
    return [f"A {a} B {b}" for a, b in zip(pairs["feature_a"], pairs["feature_b"], strict=True)]


def shown(page: Any) -> list[str]:
    """Return the labels of the rows drawn in the list, from the top."""
    rows = page.locator(".x-row").all()
    return [" ".join(row.locator(".id").all_inner_texts()) for row in rows]


def search(page: Any, query: str) -> str:
    page.evaluate(SEARCH, query)
    return str(page.locator("#x-count").inner_text())


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("size", WIDTHS)
def test_opens_quietly_and_fits(opened, file, size, colours) -> None:
    with opened(file, WIDTHS[size], colours) as page:
        assert page.locator("#x-app").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size][0]
        paper, ink = page.evaluate(COLOURS_OF_BODY)
        brightness = [sum(map(float, colour[4:-1].split(","))) for colour in (paper, ink)]
        assert (brightness[0] > brightness[1]) == (colours == "light")


PAPER = {"width": 700, "height": 1000}
CUT_OFF = """(width) => [...document.querySelectorAll("main *")].filter((one) => one.checkVisibility() &&
  one.getBoundingClientRect().right > width + 1 && !one.closest("svg")).map((one) => one.outerHTML.slice(0, 80))"""


def test_on_paper_nothing_is_dark_shut_or_cut_off(browser, file) -> None:
    page = browser.new_page(viewport=PAPER, color_scheme="dark")
    try:
        page.goto(file.resolve().as_uri())
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(COLOURS_OF_BODY) == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
        assert page.evaluate(CUT_OFF, PAPER["width"]) == []
        # every pair with the first of its contexts, though it is folded on the screen
        folded = page.locator(".pairs details:not([open])")
        assert folded.count() > 0
        for one in folded.all()[:3]:
            contexts = one.locator(".contexts").first.locator("li")
            assert [contexts.nth(i).is_visible() for i in range(min(4, contexts.count()))] == [True] * 3 + [False]
        assert page.locator("article details.more > :not(summary)").first.is_visible()
        assert not page.locator("nav").first.is_visible()
        assert not page.locator("#x-app").is_visible(), "what cannot be used on paper is left out"
        assert "pairs.csv" in page.locator("#explorer").inner_text()
        for part in (
            "#verdict .headline",
            "#verdict svg",
            "#grid table",
            "#scores table",
            "article svg",
            "#provenance table",
        ):
            assert page.locator(part).first.is_visible(), part
        assert page.pdf(format="A4").startswith(b"%PDF")
    finally:
        page.close()


def test_the_list_is_worth_reading_first_and_one_word_pairs_are_folded(opened, file, pairs) -> None:
    varied, one_word = (pairs[pairs["one_word"] == folded] for folded in (False, True))
    with opened(file) as page:
        rows = shown(page)
        assert len(rows) >= 5
        assert rows == labels(varied)[: len(rows)]
        assert page.locator("#x-count").inner_text() == f"{len(varied)} of {len(pairs)} pairs"
        assert page.locator("label[for=x-easy]").inner_text() == f"Show {len(one_word)} one-word pairs"
        page.check("#x-easy")
        page.wait_for_function(
            "(n) => document.getElementById('x-count').textContent.startsWith(n)", arg=f"{len(pairs)} of"
        )
        assert "words=1" in page.url
        best = pairs.assign(lower=pairs[["r", "r_heldout"]].min(axis=1, skipna=False).fillna(-1))
        assert shown(page)[0] == labels(best.sort_values("lower", ascending=False, kind="stable"))[0]
        page.locator("details.more", has_text="one-word pair").first.locator("> summary").click()
        folded = page.locator("article").first.locator("details.more ol.pairs > li")
        assert folded.count() == min(10, len(one_word))
        assert folded.first.is_visible()


STATE = """() => {
  const value = (id) => document.getElementById(id).value, text = (id) => document.getElementById(id).textContent;
  return {q: value("x-search"), sort: value("x-sort"), min: value("x-min"), sites: value("x-sites"),
    words: document.getElementById("x-easy").checked, title: text("x-title"), count: text("x-count")};
}"""


def test_the_address_holds_what_is_shown_and_back_returns(opened, file, run) -> None:
    with opened(file) as page:
        assert "#" not in page.url, "nothing was done yet"
        first = page.evaluate(STATE)
        for act, noted in (
            (lambda: page.select_option("#x-sites", index=3), "b=encoder.layer.10"),
            (lambda: page.select_option("#x-sort", "heldout"), "sort=heldout"),
            (lambda: page.check("#x-easy"), "words=1"),
            (lambda: page.fill("#x-min", "0.3"), "min=0.3"),
            (lambda: page.fill("#x-search", "c"), "q=c&"),
            (lambda: page.fill("#x-search", "co"), "q=co&"),
        ):
            act()
            page.wait_for_function("(noted) => location.hash.includes(noted)", arg=noted)
        page.locator(".x-row").nth(2).click()
        page.wait_for_function("() => document.querySelector('[aria-selected=true]').id === 'x-row-2'")
        address, state = page.evaluate("location.hash"), page.evaluate(STATE)
        page.go_back()
        page.wait_for_function("() => document.querySelector('[aria-selected=true]').id === 'x-row-0'")
        assert page.evaluate(STATE)["q"] == "co"
        page.go_back()
        page.wait_for_function("() => document.getElementById('x-search').value === ''")
        assert page.evaluate(STATE)["min"] == "0.3", "a word takes one step back, however long it is"
        for _ in range(4):
            page.go_back()
        page.wait_for_function("() => location.hash === '' && document.getElementById('x-sites').value === '0'")
        assert page.evaluate(STATE) == first
    assert dict(parse_qsl(address[1:])).keys() == {"a", "b", "q", "sort", "min", "words", "pair"}
    with opened(file, address=address) as page:
        page.wait_for_function(
            "(title) => document.getElementById('x-title')?.textContent === title", arg=state["title"]
        )
        assert page.evaluate(STATE) == state
        assert page.evaluate("document.getElementById('x-detail').getBoundingClientRect().top < innerHeight")
        page.evaluate("location.hash = '#scores'")
        assert page.evaluate(STATE) == state, "an anchor is none of the explorer's addresses"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("#a=nowhere&b=<img src=x onerror=alert(1)>", "no pair of sites nowhere – <img src=x onerror=alert(1)>"),
        ("#a=layers.6&b=encoder.layer.2&pair=99999-1", "no pair 99999-1"),
        ("#a=layers.6&b=encoder.layer.2&sort=__proto__&min=x&concept=none", ""),
    ],
)
def test_an_address_that_leads_nowhere_says_so(opened, file, address, said) -> None:
    uri = file.resolve().as_uri()
    with opened(file, address=address) as page:
        page.wait_for_function("(said) => document.getElementById('x-wait').textContent.includes(said)", arg=said)
        assert page.url.startswith(f"{uri}#a=")
        assert page.evaluate(STATE)["sort"] == "both"
        assert page.locator(".x-row").count() > 0


def test_cells_of_the_maps_open_the_explorer_at_their_sites(opened, file) -> None:
    with opened(file) as page:
        page.locator("table.map").nth(1).locator("tbody tr").nth(1).locator("a").nth(0).click()
        page.wait_for_function("() => document.querySelector('#x-map-title-a').textContent.startsWith('layers.12')")
        assert page.locator("#x-map-title-b").inner_text().startswith("encoder.layer.2")
        page.wait_for_function("document.getElementById('x-list').getBoundingClientRect().top < innerHeight")
        assert page.evaluate("document.activeElement.id") == "x-list"
        address = page.locator("article ol.pairs a").first.get_attribute("href")
        page.evaluate("(hash) => { location.hash = hash }", address)
        page.wait_for_function("(ids) => location.hash.endsWith(ids)", arg=address.split("pair=")[1])
        a, b = address.split("pair=")[1].split("-")
        page.wait_for_function(
            "(title) => document.getElementById('x-title').textContent === title", arg=f"A {a} and B {b}"
        )


def test_partners_at_other_sites_lead_there(opened, file, run) -> None:
    table = pd.read_csv(run.pairs_table)
    with opened(file) as page:
        feature = int(page.locator("#x-title").inner_text().split()[1])
        page.locator(".x-elsewhere summary").click()
        page.wait_for_function("() => document.querySelectorAll('.x-elsewhere tbody th').length === 2")
        cells = page.locator(".x-elsewhere tbody tr").first.locator("td").all_inner_texts()
        of_feature = table[(table["site_a"] == "layers.6") & (table["feature_a"] == feature)].set_index("site_b")
        partner = of_feature["feature_b"].get("encoder.layer.10")
        assert cells[0] == "encoder.layer.10"
        assert cells[1].split("\n")[0] == ("not matched" if partner is None else f"B {partner}")
        link = page.locator(".x-elsewhere a").first
        said = link.inner_text()
        link.click()
        page.wait_for_function("(said) => document.getElementById('x-title').textContent.includes(said)", arg=said)
        assert page.locator(".x-elsewhere").get_attribute("open") is not None, "it stays open"


def test_what_is_listed_can_be_exported_and_linked(browser, file, pairs, tmp_path) -> None:
    context = browser.new_context(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    try:
        open_report(page, file)
        search(page, "co")
        with page.expect_download() as event:
            page.click("#x-csv")
        assert event.value.suggested_filename == "pairs-layers.6-encoder.layer.2.csv"
        event.value.save_as(tmp_path / "exported.csv")
        exported = pd.read_csv(tmp_path / "exported.csv")
        assert 0 < len(exported) < len(pairs)
        stored = pairs.set_index(["feature_a", "feature_b"]).loc[
            list(zip(exported.feature_a, exported.feature_b, strict=True))
        ]
        for name in ("r", "r_heldout", "n_active_a", "n_active_b"):
            np.testing.assert_allclose(exported[name], stored[name], rtol=1e-6)
        for name in ("site_a", "site_b", "one_word"):
            assert exported[name].tolist() == stored[name].tolist()
        assert (
            exported["tokens_a"].map(json.loads).map(lambda tokens: tokens[:5]).tolist()
            == stored["tokens_a"].map(json.loads).tolist()
        )
        page.click("#x-link")
        page.wait_for_function("() => document.getElementById('x-done').textContent.startsWith('Copied')")
        assert page.evaluate("navigator.clipboard.readText()") == page.url
        assert "q=co" in page.url
    finally:
        context.close()


CONTROLS = (
    *("link", "button", "searchbox", "combobox", "checkbox", "listbox", "region", "spinbutton", "image", "canvas"),
    *("DisclosureTriangle", "textbox"),
)


def test_the_accessibility_tree_names_everything(browser, file) -> None:
    page = browser.new_page()
    try:
        open_report(page, file)
        nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    finally:
        page.close()
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    ]
    controls = [(role, name) for role, name in named if role in CONTROLS]
    assert len(controls) > 50
    assert [role for role, name in controls if not name.strip()] == []
    cells = [name for role, name in named if role == "link" and "chance" in name]
    assert len(cells) == 4 * 4
    headings = [int(prop["value"]["value"]) for node in nodes if node.get("role", {}).get("value") == "heading"
                for prop in node.get("properties", []) if prop["name"] == "level"]  # fmt: skip
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_search_finds_words_and_ids(opened, file, pairs) -> None:
    feature = pairs["feature_b"].iloc[0]
    with opened(file) as page:
        page.check("#x-easy")
        assert search(page, f"B {feature}").startswith(f"{(pairs['feature_b'] == feature).sum()} of ")
        assert any(f"B {feature}" in row for row in shown(page))
        listed = " ".join(page.locator(".x-row *").all_inner_texts()).lower()
        words = sorted(set(re.findall(r"[a-z]{5,}", listed)))
        token = next(text for text in words if not search(page, text).startswith("0 of"))
        assert all(token in text.lower() for text in page.locator(".x-row").all_inner_texts())
        few, more = (int(search(page, query).split()[0]) for query in (token, token[:-1]))
        assert more >= few
        assert search(page, "no such word at all").startswith("0 of")
        assert page.locator(".x-none").inner_text() == "No pairs match these filters."
        assert search(page, "").split()[0] == str(len(pairs))


def test_both_sides_of_a_pair_are_shown_with_what_was_measured(opened, file, run) -> None:
    with opened(file) as page:
        label = shown(page)[0].split()
        a, b = int(label[1]), int(label[3])
        contexts = storage.open_result(run.contexts("a", "layers.6")).sel(feature=a).load()
        store = storage.open_activations(run.activations("a", "layers.6"))
        side = page.locator("#x-detail .side-a").first
        values = side.locator(".contexts .value").all_inner_texts()
        assert values == [f"{value:.2f}" for value in contexts["value"].values if value > 0]
        row = int(contexts["row"][0])
        text = storage.open_corpus(run.corpus).text(int(store["document"][row]))
        token = text[int(store["char_start"][row]) : int(store["char_end"][row])]
        assert side.locator("mark.p").first.inner_text() == token
        passage = side.locator(".contexts .text").first.inner_text().replace("⇄", "").strip(" …")
        assert " ".join(passage.replace("↵", " ").split()) in " ".join(text.split())
        correlation = storage.open_result(run.correlation("layers.6", "encoder.layer.2"))
        near = page.locator("#x-detail .side-a .x-near tbody th").all_inner_texts()
        assert near == [f"B {int(one)}" for one in correlation["best_b"].sel(feature_a=a).values]
        assert f"B {b}" in near
        assert page.locator("#x-detail .x-bars rect").count() == 2 * 20


def test_keyboard_alone(opened, file) -> None:
    with opened(file) as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "x-search"
        page.keyboard.type("co")
        page.wait_for_function(NARROWED)
        assert int(page.locator("#x-count").inner_text().split()[0]) > 1
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "x-list"
        first = page.locator("#x-title").inner_text()
        page.keyboard.press("ArrowDown")
        assert page.locator("#x-list").get_attribute("aria-activedescendant") == "x-row-1"
        assert page.locator("[aria-selected=true]").get_attribute("id") == "x-row-1"
        second = page.locator("#x-title").inner_text()
        assert second != first
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "x-title"
        page.keyboard.press("Escape")
        page.keyboard.press("Home")
        assert page.locator("#x-title").inner_text() == first
        page.keyboard.press("Tab")
        assert page.evaluate("document.getElementById('x-detail').contains(document.activeElement)")
        reached = {page.evaluate("document.activeElement.id")}
        for _ in range(60):
            page.keyboard.press("Shift+Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"x-list", "x-easy", "x-min", "x-sort", "x-sites", "x-search"} <= reached


def test_filters_sites_and_sorting(opened, file) -> None:
    with opened(file) as page:
        page.check("#x-easy")
        page.fill("#x-min", "0.9")
        page.wait_for_function(NARROWED)
        figures = [float(text.split("\n")[-1]) for text in page.locator(".x-row").all_inner_texts()]
        assert figures
        assert min(figures) >= 0.89
        page.select_option("#x-sites", index=3)
        page.wait_for_function("() => document.querySelector('#x-map-title-a').textContent.startsWith('layers.12')")
        page.fill("#x-min", "")
        page.select_option("#x-sort", "a")
        page.wait_for_function("() => document.querySelector('#x-row-0 .id').textContent.match(/^A [012]$/)")
        ids = [int(row.split()[1]) for row in shown(page)]
        assert ids == sorted(ids)


def test_neighbours_lead_to_their_own_pair(opened, file) -> None:
    with opened(file) as page:
        jump = page.locator(".x-jump").first
        label = jump.inner_text().removeprefix("paired with ").split(",")[0]
        jump.click()
        page.wait_for_function("(label) => document.getElementById('x-title').textContent.includes(label)", arg=label)
        assert page.evaluate("document.activeElement.id") == "x-title"


def test_the_maps_open_the_pair_that_is_clicked(opened, file) -> None:
    drawn = """(id) => { const map = document.getElementById(id);
      return map.getContext("2d").getImageData(0, 0, map.width, map.height).data.some((value) => value) }"""
    with opened(file) as page:
        page.locator("#x-map-b").scroll_into_view_if_needed()
        page.wait_for_function(drawn, arg="x-map-a")
        page.wait_for_function(drawn, arg="x-map-b")
        before = page.locator("#x-title").inner_text()
        box = page.locator("#x-map-b").bounding_box()
        for step in range(1, 40):
            page.mouse.move(box["x"] + box["width"] * step / 40, box["y"] + box["height"] / 2)
            said = page.locator("#x-hover").inner_text()
            if said.strip() and " and ".join(said.split()[:2]) not in before:
                page.mouse.down()
                page.mouse.up()
                break
        title = page.locator("#x-title").inner_text()
        assert title.split(" and ")[0] == " ".join(said.split()[:2])


def test_markup_in_the_corpus_is_text_and_runs_nothing(opened, file) -> None:
    with opened(file) as page:
        page.check("#x-easy")
        search(page, "onerror")
        search(page, "alert")
        page.wait_for_function("() => document.querySelectorAll('.x-row').length > 0")
        texts = page.locator("#x-detail .text").all_inner_texts()
        assert any("<script>alert" in text for text in texts)
        assert page.locator("#explorer script, #explorer img, #explorer b b, #explorer iframe").count() == 0
        assert page.locator("article script, article img").count() == 0
        for text in ("<img src=x", "</script>", '"><b>'):
            search(page, text)
        assert page.evaluate("typeof window.pwned") == "undefined"


def test_the_list_is_no_taller_than_its_pairs(opened, large) -> None:
    with opened(large) as page:
        height = "document.getElementById('x-list').clientHeight"
        tall = page.evaluate(height)
        assert tall > 300
        page.check("#x-easy")
        assert search(page, "A 1234").startswith("1 of")
        page.wait_for_function(f"{height} === 44")
        search(page, "")
        page.wait_for_function(f"{height} === {tall} && document.querySelectorAll('.x-row').length > {tall} / 44")


def test_thirty_thousand_pairs(opened, large) -> None:
    with opened(large) as page:
        page.check("#x-easy")
        page.wait_for_function("document.getElementById('x-count').textContent === '30,000 of 30,000 pairs'")
        assert page.locator(".x-row").count() < 60, "only what can be seen is in the page"
        page.locator("#x-list").focus()
        page.keyboard.press("End")
        page.wait_for_selector("#x-row-29999")
        times = []
        session = page.context.new_cdp_session(page)
        # the page's own processor time: what else runs on the machine does not count
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        for query in (word(17), "kat", "st", "A 1234", "qui"):
            before = busy(session)
            assert int(search(page, query).split()[0].replace(",", "")) > 0
            times.append(1e3 * (busy(session) - before))
        assert statistics.median(times) < MOST_MILLISECONDS, times
        result = search(page, f"{word(17)} {word(18)}").split()[0]
        assert int(result) < int(search(page, word(17)).split()[0])


def busy(session: Any) -> float:
    """Return the seconds that the page's main thread has been busy."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


def test_a_large_explorer_stands_in_a_folder(opened, write_run, tmp_path, monkeypatch) -> None:
    run = write_run(tmp_path / "run", sites={"a": ["x.1", "x.2"], "b": ["y.1"]}, n_documents=8)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("pipeline.report.explorer_page"), "MOST_INLINE", 1000)
        text = report(run.root).read_text(encoding="utf-8")
    assert "<script" not in text
    pages = sorted(run.explorer.iterdir())
    assert [f'href="explorer/{page.name}"' in text for page in pages] == [True, True]
    with opened(pages[1]) as page:
        assert page.locator("h1").inner_text() == "x.2 – y.1"
        assert not search(page, "the").startswith("0 of")
    report(run.root)
    assert not run.explorer.exists(), "a folder that is no longer referred to is removed"
