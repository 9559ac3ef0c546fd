"""What the traps of docs/method.md do on the demo: pairs of one word, and any few words taken for a meaning.

::

    python -m benchmarks.demo_traps demo-run     # a finished run of the demo; into benchmarks/results/demo
    python -m benchmarks.demo_traps              # the sentences of the documents again, from the stored result

At the last pair of sites. Of the pairs, how much of r is left in rows of the same word, and of the same two words, in
another document. Of the 120 most frequent words of the text that are letters alone, lists of four to six are drawn at
random, cut out of the pairs, and judged with the nulls, metrics and correction that `semantics` has by default.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import RESULTS, ROOT, insert, percent, update
from pipeline.compare.statistics import LEVEL, benjamini_hochberg
from pipeline.match.identity import token_identity
from pipeline.report.results import open_run
from pipeline.semantics.concepts import Concept
from pipeline.semantics.membership import concept_features
from pipeline.semantics.run import Site, semantics
from pipeline.semantics.tables import JUDGED, VERDICTS, semantics_table
from pipeline.settings.semantics import SubspaceSettings
from storage.rundir import RunDirectory, Side

RESULT = RESULTS / "demo" / "traps.json"
SEMANTICS, METHOD = ROOT / "docs" / "semantics.md", ROOT / "docs" / "method.md"
SIDES: tuple[Side, Side] = ("a", "b")
LISTS, FREQUENT, LENGTHS, RUNS = 200, 120, (4, 5, 6), 200


def draw_lists(texts: list[str], rng: np.random.Generator) -> dict[str, Concept]:
    """Return lists of frequent words, none twice in a list."""
    counted = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 1)
    words = [word for word, _ in counted.most_common(FREQUENT)]
    lists = [tuple(rng.choice(words, rng.choice(LENGTHS), replace=False).tolist()) for _ in range(LISTS)]
    return {f"list {i + 1}": Concept(f"list {i + 1}", of_list) for i, of_list in enumerate(lists)}


def split_r(directory: Path) -> list[dict[str, Any]]:
    """Return what of the held-out r of the pairs is left in rows of the same word, and of the same two."""
    run, paths = open_run(directory), RunDirectory(directory)
    names = run.experiment.site_pairs[-1]
    stores = [paths.activations(side, name) for side, name in zip(SIDES, names, strict=True)]
    lines = []
    for previous in (False, True):
        found = token_identity(paths.pairs(*names), *stores, corpus=paths.corpus, previous=previous)
        beyond = benjamini_hochberg(found["excess_p_heldout"].values) <= LEVEL
        means = {name: float(found[f"{name}_heldout"].mean()) for name in ("r", "token_part")}
        lines.append({"pairs": found.sizes["pair"], **means, "share_beyond": float(np.mean(beyond))})
    return lines


def judge_lists(directory: Path) -> dict[str, Any]:
    """Judge lists of words as concepts."""
    run, paths = open_run(directory), RunDirectory(directory)
    names = run.experiment.site_pairs[-1]
    lists = draw_lists(run.corpus.texts(0, len(run.corpus)), np.random.default_rng(0))
    with tempfile.TemporaryDirectory(prefix="benchmark-random-words-") as temporary:
        sites = []
        for side, name in zip(SIDES, names, strict=True):
            store, contexts, out = (
                paths.activations(side, name),
                paths.contexts(side, name),
                Path(temporary) / f"{side}.zarr",
            )
            concept_features(contexts, store, paths.corpus, lists, out=out)
            sites.append(Site(store, contexts, out))
        out = Path(temporary) / "semantics.zarr"
        settings = SubspaceSettings(metrics=list(JUDGED), null_runs=RUNS, approaches=["global"])
        semantics(paths.pairs(*names), paths.correlation(*names), (sites[0], sites[1]), paths.corpus, settings, out=out)
        table = semantics_table({names: out}).load()
    verdicts = Counter(VERDICTS[verdict] for verdict in table["verdict"].values)
    judged = np.isfinite(table["p_joint"].sel(metric=list(JUDGED)).values).all(axis=1)
    alone = {
        null: [float(np.mean(table["p"].sel(null=null, metric=metric).values[judged] <= 0.05)) for metric in JUDGED]
        for null in ("random_pairs", "random_keywords")
    }
    passed = verdicts["passes_both"] + sum(n for name, n in verdicts.items() if name.endswith("only"))
    return {
        "sites": list(names), "lists": LISTS,
        "pairs": run.site_pairs[-1].pairs.sizes["pair"], "judged": int(judged.sum()), "passed": int(passed),
        "verdicts": dict(verdicts), "metrics": list(JUDGED), "alone": alone,
        "correction": str(table.attrs["correction"]), "tests": int(table.attrs["n_tests"]),
    }  # fmt: skip


def trap_of_tokens(lines: Sequence[dict[str, Any]], sites: Sequence[str]) -> str:
    """Return the trap of r that only says that both know the token."""
    word, two = lines
    return listed(
        14,
        "r that only says “both know the token”.",
        f"On the demo (`{sites[0]}`, `{sites[1]}`, {word['pairs']:,} pairs) the mean held-out r of rows whose word is "
        f"in several documents is {word['r']:.2f}, and it is still {word['token_part']:.2f} if B reads the same word "
        "*in another document*, where all context is another. Only "
        f"{percent(word['share_beyond'])} of the pairs have more in common (p of the excess, Benjamini–Hochberg at "
        f"5 %), and {percent(two['share_beyond'], 1)} if the word before is fixed too. "
        "Rows are compared across documents, and documents are the units ([statistics](statistics.md)).",
    )


def sentence_of_lists(of: dict[str, Any]) -> str:
    """Return what comes of lists of frequent words."""
    rsa = of["metrics"].index("rsa")
    pairs, keywords = (
        f"{percent(of['alone'][null][rsa])} have p ≤ .05 against {name} by RSA and "
        f"{percent(of['alone'][null][1 - rsa])} by SVCCA"
        for null, name in (("random_pairs", "random pairs"), ("random_keywords", "random keywords"))
    )
    return (
        f"Of {of['lists']} lists of four to six of the {FREQUENT} most frequent words of the demo's text, "
        f"{of['judged']} cut out pairs enough and have random keywords to compete with. Of these, {pairs}, and "
        f"{keywords}; {of['passed'] or 'none'} of the {of['lists']} passes by either metric after correction."
    )


def trap_of_words(of: dict[str, Any]) -> str:
    """Return the trap of any few words taken for a meaning."""
    return listed(
        16,
        "Any few words taken for a meaning.",
        "Pairs that fire on one word form a clump in both spaces, and a short list of words cuts out clumps. Random "
        f"*keywords* cut out clumps of the same sizes. {sentence_of_lists(of)} And a concept that beats random "
        "keywords may be shared as a set of *words*: the token null says whether it is more "
        "([semantics](semantics.md#tests), [statistics](statistics.md#concepts-beyond-the-word)).",
    )


def listed(number: int, name: str, text: str) -> str:
    """Return a trap as an item of a list in Markdown.

    >>> print(listed(3, "A trap.", "It is one."))
    3. **A trap.** It is one.
    """
    return textwrap.fill(
        f"{number}. **{name}** {text}", 118, subsequent_indent=" " * len(f"{number}. "), break_on_hyphens=False
    )


def render(page: str, result: dict[str, Any]) -> str:
    """Return the page of method with the traps."""
    page = insert(page, "trap-tokens", trap_of_tokens(result["tokens"], result["words"]["sites"]))
    return insert(page, "trap-words", trap_of_words(result["words"]))


def render_semantics(page: str, result: dict[str, Any]) -> str:
    """Return the page of semantics with what comes of lists of words."""
    return insert(page, "random-words", textwrap.fill(sentence_of_lists(result["words"]), 118, break_on_hyphens=False))


def main() -> None:
    """Read the command line; measure a run, and write the sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run of the demo")
    given = parser.parse_args()
    if given.run is not None:
        result = {
            "command": "python -m benchmarks.demo_traps demo-run",
            "tokens": split_r(given.run),
            "words": judge_lists(given.run),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    update(METHOD, RESULT, render)
    update(SEMANTICS, RESULT, render_semantics)


if __name__ == "__main__":
    main()
