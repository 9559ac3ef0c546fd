"""The report's explorer with tens of thousands of pairs, in a real browser.

::

    python -m benchmarks.explorer --pairs 30000

Needs Chromium and playwright (which drives it; no browser is downloaded). The last line is one JSON object: seconds to
write the report (``seconds``), its size, and milliseconds in the page: until the pairs are listed, until all words are
indexed, and the median and worst answer to a search, from the keystroke until the list shows it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import xarray as xr

import storage
from pipeline.report.run import report
from storage.errors import MissingDependencyError
from storage.rundir import RunDirectory, Side

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SITES: dict[Side, str] = {"a": "layers.6", "b": "layers.8"}
WORDS_A_DOCUMENT = 120
CONTEXTS = 8
RANKS = 6
BINS = 200
SYLLABLES = ("ka", "to", "mi", "re", "sun", "ver", "pol", "an", "dis", "gra", "lo", "ne", "qui", "ba", "ster", "um")

#: Types a query and waits until the list shows the answer; returns milliseconds.
SEARCH = """async (query) => {
  const app = document.getElementById("x-app"), input = document.getElementById("x-search");
  const before = app.dataset.ready, start = performance.now();
  input.value = query;
  input.dispatchEvent(new Event("input"));
  while (app.dataset.ready === before) await new Promise((resolve) => setTimeout(resolve, 1));
  return performance.now() - start;
}"""


def word(number: int) -> str:
    """Return a made-up word, a different one for each number below 65,536.

    >>> word(0), word(17)
    ('kakaka', 'totoka')
    """
    return "".join(SYLLABLES[number // 16**i % 16] for i in range(3)) + ("s" if number >= 16**3 else "")


def write_large_run(root: Path, n_pairs: int, seed: int = 0) -> RunDirectory:
    """Write a run directory of one pair of sites in which every feature fires on one word, and all are matched.

    Parameters
    ----------
    root
        Where; must not exist.
    n_pairs
        Pairs of features, each side has as many features.
    seed
        Of the text and the figures.
    """
    run, rng = RunDirectory(root), np.random.default_rng(seed)
    model = {"model": "toy/model", "dictionary": "toy"}
    sides: dict[str, Any] = {side: {**model, "sites": [site]} for side, site in SITES.items()}
    run.write_experiment({"name": "large", "corpus": {"path": "texts.jsonl"}, **sides})
    rows, of_word = _write_text(run, rng, max(8 * n_pairs // 10, 4000))
    features = _features(rng, of_word, n_pairs)
    for side in SITES:
        _write_site(run, side, features, rows, rng)
    _write_pair(run, n_pairs, rng)
    return run


def _write_text(run: RunDirectory, rng: np.random.Generator, n_rows: int) -> tuple[dict[str, Any], np.ndarray]:
    n_documents = -(-n_rows // WORDS_A_DOCUMENT)
    numbers = rng.integers(0, 4096, (n_documents, WORDS_A_DOCUMENT))
    words = [[word(number) for number in document] for document in numbers.tolist()]
    storage.write_corpus(run.corpus, [" ".join(document) for document in words], overwrite=True)
    lengths = np.array([[len(one) for one in document] for document in words])
    ends = (lengths + 1).cumsum(1) - 1
    rows = {
        "document": np.repeat(np.arange(n_documents, dtype=np.int32), WORDS_A_DOCUMENT),
        "char_start": (ends - lengths).ravel().astype(np.int64),
        "char_end": ends.ravel().astype(np.int64),
    }
    variables = {name: ("token", values) for name, values in rows.items()}
    storage.write_result(xr.Dataset(variables), run.rows, storage.new_manifest("rows", {}, {}), overwrite=True)
    return rows, numbers.ravel()


def _features(rng: np.random.Generator, of_word: np.ndarray, n: int) -> np.ndarray:
    """Return the rows on which each feature fires, shape (n, CONTEXTS): two words, now and then the same."""
    order = np.argsort(of_word, kind="stable")
    first = np.searchsorted(of_word[order], np.arange(4096))
    count = np.bincount(of_word, minlength=4096).clip(min=1)
    chosen = np.stack([np.arange(n) % 4096, rng.integers(0, 4096, n)], axis=1).repeat(CONTEXTS // 2, axis=1)
    place = first[chosen] + rng.integers(0, 1 << 30, chosen.shape) % count[chosen]
    found: np.ndarray = np.sort(order[place.clip(max=len(order) - 1)], axis=1)
    return found


def _write_site(
    run: RunDirectory, side: Side, features: np.ndarray, rows: dict[str, Any], rng: np.random.Generator
) -> None:
    site, (n, width) = SITES[side], features.shape
    values = rng.uniform(1, 9, features.shape).astype(np.float32)
    active = sp.coo_array(
        (values.ravel(), (features.ravel(), np.repeat(np.arange(n), width))), (len(rows["document"]), n)
    )
    store = run.activations(side, site)
    decoder = rng.standard_normal((n, 32)).astype(np.float32)
    attrs = {"model": "toy/model", "site": site, "dictionary": "toy", "kind": "post"}
    storage.write_activations(store, active.tocsr(), tokens=rows, decoder=decoder, attrs=attrs, overwrite=True)
    found = xr.Dataset({"row": (("feature", "rank"), features), "value": (("feature", "rank"), values)})
    storage.write_result(found, run.contexts(side, site), storage.new_manifest("contexts", {}, {}), overwrite=True)


def _write_pair(run: RunDirectory, n: int, rng: np.random.Generator) -> None:
    r = np.sort(rng.uniform(0.1, 1, n))[::-1].copy()
    near = np.concatenate([np.arange(n)[:, None], rng.integers(0, n, (n, RANKS - 1))], axis=1)
    near_r = np.concatenate([r[:, None], np.sort(rng.uniform(0, 0.1, (n, RANKS - 1)))[:, ::-1]], axis=1)
    edges = np.linspace(-1, 1, BINS + 1)
    correlation: dict[str, Any] = {"histogram": ("bin", np.ones(BINS, dtype=np.int64))}
    correlation |= {"bin_left": ("bin", edges[:-1]), "bin_right": ("bin", edges[1:])}
    pairs: dict[str, Any] = {"r": ("pair", r), "r_heldout": ("pair", r * 0.95)}
    for side, other in (("a", "b"), ("b", "a")):
        dims = (f"feature_{side}", "rank")
        correlation |= {f"best_{other}": (dims, near.astype(np.int32)), f"r_{other}": (dims, near_r)}
        correlation |= {f"r_heldout_{other}": (dims, near_r * 0.95)}
        correlation[f"defined_{side}"] = (f"feature_{side}", np.ones(n, dtype=bool))
        flags = {"flag_values": [0, 1], "flag_meanings": "matched dead"}
        pairs[f"fate_{side}"] = xr.Variable(f"id_{side}", np.zeros(n, dtype=np.int8), flags)
        pairs[f"feature_{side}"] = ("pair", np.arange(n, dtype=np.int32))
    rows = {"n_rows_select": 1, "n_rows_heldout": 1, "keep_above": 0.1, "n_kept": n, "measure": "pearson"}
    where = SITES["a"], SITES["b"]
    kept = xr.Dataset(correlation, attrs=rows)
    storage.write_result(kept, run.correlation(*where), storage.new_manifest("correlate", {}, {}), overwrite=True)
    matched = xr.Dataset(pairs, attrs={"min_correlation": 0.1})
    storage.write_result(matched, run.pairs(*where), storage.new_manifest("match", {}, {}), overwrite=True)
    storage.write_result(_scores(rng, n), run.scores(*where), storage.new_manifest("compare", {}, {}), overwrite=True)


def _scores(rng: np.random.Generator, n: int) -> xr.Dataset:
    null = rng.normal(0, 0.01, (1, 1, 1000))
    by_null = {"null_mean": null.mean(2), "null_std": null.std(2), "z": np.full((1, 1), 40.0)}
    by_null |= {f"null_q{q:02}": np.quantile(null, q / 100, axis=2) for q in (5, 95)}
    by_null |= {"difference": 0.4 - null.mean(2), "p": np.full((1, 1), 1 / 1001)}
    return xr.Dataset(
        {
            "score": ("metric", [0.4]),
            "low": ("metric", [np.nan]),
            "high": ("metric", [np.nan]),
            "null_score": (("null", "metric", "run"), null),
            **{name: (("null", "metric"), values) for name, values in by_null.items()},
            "note": ("metric", np.array([""], object)),
            "n_pairs": ((), n),
        },
        coords={"metric": np.array(["rsa"], object), "null": np.array(["shuffled"], object)},
    )


def chromium() -> str:
    """Return the path of the installed browser.

    Raises
    ------
    MissingDependencyError
        If there is none.
    """
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        raise MissingDependencyError(f"None of {', '.join(BROWSERS)} is on PATH; install Debian's chromium")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """Start the installed browser without a window, and stop it."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - optional, and only this needs it

    # root may not use Chromium's own sandbox, and containers' /dev/shm is small
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def open_report(page: Page, file: Path, address: str = "") -> tuple[float, float]:
    """Open a report; return milliseconds until its pairs are listed, and until all of their words are indexed."""
    start = time.perf_counter()
    page.goto(file.resolve().as_uri() + address)
    page.wait_for_selector("#x-app[data-ready]", timeout=60_000)
    listed = time.perf_counter()
    page.wait_for_selector("#x-app[data-indexed]", timeout=60_000)
    return 1e3 * (listed - start), 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Write a run, report on it, search it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=30_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = write_large_run(Path(folder) / "run", options.pairs)
        start = time.perf_counter()
        file = report(run.root)
        seconds = time.perf_counter() - start
        queries = [word(17), "kat", "st", "A 1234", word(99)[:3], f"{word(17)} {word(18)[:4]}", "", "qui"]
        with launched() as browser:
            page = browser.new_page()
            listed, indexed = open_report(page, file)
            answers = [page.evaluate(SEARCH, query) for query in queries * 3]
        figures = {
            "name": "explorer",
            "pairs": options.pairs,
            "seconds": seconds,
            "page_mb": file.stat().st_size / 1e6,
            "listed_ms": listed,
            "indexed_ms": indexed,
            "search_ms": {"median": statistics.median(answers), "worst": max(answers)},
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
