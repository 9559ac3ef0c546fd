"""The sentence on a shared vocabulary follows from the table, names its null, and puts the effect before p."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from pipeline.rematch.run import rematch
from pipeline.report.results import open_run
from pipeline.report.run import report
from pipeline.report.vocabulary import COLUMNS, growth_findings, growth_table, vocabulary_findings, vocabulary_table


def table(*beyond: float, low: float = -0.01, quantity: str = "r_heldout", document: float = 3.0) -> pd.DataFrame:
    """Make a table of pairs of sites whose held-out r of .4 is so much beyond the null."""
    rows = [
        {
            "site_a": "a1", "site_b": f"b{i}", "quantity": name, "digits": 3, "real": 0.4, "token": 0.4 - 0.39 * share,
            "token_low": 0.3, "token_high": 0.35, "document": document, "beyond": share, "beyond_low": share + low,
            "beyond_high": share + 0.01, "p": 1 / 21, "draws": 20, "n_rows": 900, "n_left_out": 100,
        }
        for i, share in enumerate(beyond)
        for name in ("pairs", quantity, "rsa")
    ]  # fmt: skip
    return pd.DataFrame.from_records(rows, columns=list(COLUMNS))


@pytest.mark.parametrize(
    ("shares", "low", "lead"),
    [
        ((0.07, 0.05), -0.01, "Most of the similarity is a shared vocabulary. If B’s rows are permuted"),
        ((0.7, 0.65), -0.01, "Most of the similarity goes beyond a shared vocabulary. If B’s"),
        ((0.7, 0.1), -0.01, "How much of the similarity is a shared vocabulary depends on the sites"),
        ((0.01, 0.02), -0.05, "The similarity is not shown to go beyond a shared vocabulary"),
    ],
)
def test_the_lead_follows_from_the_share(shares, low, lead):
    (sentence,) = vocabulary_findings(table(*shares, low=low))
    assert sentence.startswith(lead)


def test_the_null_is_named_and_the_effect_comes_before_p():
    (sentence,) = vocabulary_findings(table(0.07))
    null, effect, p = (sentence.index(part) for part in ("rows of the same text", "held-out r is 0.400", "p = 0.048"))
    assert effect < p
    assert null < p
    assert "7 % of the held-out r, 7 % of pairs and 7 % of RSA above shuffled pairings are lost" in sentence
    assert "With 20 draws, p cannot be below 0.048." in sentence
    assert sentence.endswith("If whole documents are permuted, 3 pairs are left.")


def test_what_is_not_there_is_not_said():
    assert vocabulary_findings(table()) == []
    (sentence,) = vocabulary_findings(table(float("nan")))
    assert "cannot be said" in sentence
    without = vocabulary_findings(table(0.3, document=float("nan")))[0]
    assert "documents" not in without
    all_rows = vocabulary_findings(table(0.3, quantity="r"))[0]
    assert "30 % of the r," in all_rows
    assert "held-out" not in all_rows


def test_whether_more_text_makes_more_pairs():
    rows = [
        {"site_a": "a", "site_b": "b", "fraction": share, "rows": 100, "pairs": n, "null_pairs": null}
        for share, n, null in ((0.25, 60, 60), (0.5, 100, 90), (1.0, 110, 95))
    ]
    (sentence,) = growth_findings(pd.DataFrame(rows))
    assert sentence == (
        "With 50 % of the text there are 100 pairs per pair of sites, and with all of it 110, a change of 10 %. A "
        "shared vocabulary does not account for 10 and 15 of them, respectively."
    )
    assert growth_findings(pd.DataFrame(rows[2:])) == growth_findings(pd.DataFrame()) == []


def test_the_report_shows_the_table_and_the_sentence_first(write_run, tmp_path, client):
    sites = {"a": ["layers.6"], "b": ["encoder.layer.2"]}
    run = write_run(tmp_path / "run", sites=sites)
    assert vocabulary_table(open_run(run.root)).empty
    pair = "layers.6", "encoder.layer.2"
    stores = run.activations("a", pair[0]), run.activations("b", pair[1])
    given = {"corpus": run.corpus, "draws": 3, "metrics": ["rsa"], "out": run.rematched(*pair), "client": client}
    result = rematch(run.pairs(*pair), run.correlation(*pair), *stores, **given)
    experiment = run.read_experiment()
    run.write_experiment({**experiment, "rematch": {"draws": 3}})
    html = report(run.root).read_text(encoding="utf-8")
    first = re.search(r"<ul class=.verdict.>\s*<li>(.*?)</li>", html[html.index('class="headline"') :], re.DOTALL)[1]
    assert "shared vocabulary" in first
    section = html[html.index('<section id="vocabulary"') :]
    assert section.count("<tr>") >= 5
    assert f"{result.value.sel(null='token', quantity='r_heldout').item():.3f}" in section
    assert np.isfinite(result.beyond.sel(null="token", quantity="r").item())
    assert [growth_table(open_run(run.root))[name].tolist() for name in ("fraction", "pairs")] == [
        result.fraction.values.tolist(), result.size_pairs.values.tolist()
    ]  # fmt: skip
    assert section.index("How the number of pairs grows with the amount of text") < section.index("</section>")
    assert "rematched/layers.6--encoder.layer.2.zarr" in html, "provenance"
