"""What of a matching a shared vocabulary gives: its table, and the sentence that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from pipeline.report.results import Run, SitePair
from pipeline.report.verdict import listed, metric_name, number, p_number, span

#: The nulls that the table shows beside the real values.
TOKEN, DOCUMENT = "token", "document"
#: What is held against the nulls, as people call it; metrics are called as elsewhere.
NAMES = {"pairs": "pairs", "r": "r", "r_heldout": "held-out r", "decoder_cosine": "cosine of decoders"}
#: A share from which on most of the likeness is more than a vocabulary.
MOST = 0.5
#: The conclusions.
NOT_SHOWN = "The similarity is not shown to go beyond a shared vocabulary"
MOSTLY_MORE = "Most of the similarity goes beyond a shared vocabulary"
MOSTLY_WORDS = "Most of the similarity is a shared vocabulary"
DEPENDS = "How much of the similarity is a shared vocabulary depends on the sites"
COLUMNS = (
    *("site_a", "site_b", "quantity", "digits", "real", "token", "token_low", "token_high", "document"),
    *("beyond", "beyond_low", "beyond_high", "p", "draws", "n_rows", "n_left_out"),
)


def vocabulary_table(run: Run) -> pd.DataFrame:
    """Return what the permutations of B's rows left, one row for each pair of sites and quantity.

    ``real`` is of the rows that the null ``token`` uses, ``token`` and ``document`` are means over draws (NaN where the
    null was not drawn). Scores are those above shuffled pairings. The other columns are those of
    :func:`pipeline.rematch`, of the null ``token``. Empty where that was not drawn.
    """
    records = [record for pair in run.site_pairs for record in _records(pair)]
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))


def _records(pair: SitePair) -> Iterator[dict[str, Any]]:
    result = pair.rematched
    nulls = [] if result is None else result["null"].values.tolist()
    if result is None or TOKEN not in nulls:
        return
    token = result.sel(null=TOKEN)
    for quantity in result["quantity"].values.tolist():
        values = token.sel(quantity=quantity)
        document = result["null_mean"].sel(null=DOCUMENT, quantity=quantity).item() if DOCUMENT in nulls else math.nan
        yield {
            "site_a": pair.a.name,
            "site_b": pair.b.name,
            "quantity": quantity,
            "digits": 0 if quantity == "pairs" else 3,
            "real": values["value"].item(),
            "token": values["null_mean"].item(),
            "token_low": values["null_low"].item(),
            "token_high": values["null_high"].item(),
            "document": document,
            **{name: values[name].item() for name in ("beyond", "beyond_low", "beyond_high", "p")},
            "draws": int(result.attrs["n_draws"]),
            "n_rows": int(token["n_rows"]),
            "n_left_out": int(token["n_left_out"]),
        }


def growth_table(run: Run) -> pd.DataFrame:
    """Return how many pairs there are of shares of the text, one row for each pair of sites and share.

    ``pairs`` are of the rows that the null ``token`` uses, ``null_pairs`` of one draw of it (of all text, the
    mean of all draws). Empty where it was not drawn, or not first.
    """
    names = {"fraction": "fraction", "rows": "size_rows", "pairs": "size_pairs", "null_pairs": "size_null_pairs"}
    records = [
        {"site_a": pair.a.name, "site_b": pair.b.name, **dict(zip(names, of_size, strict=True))}
        for pair in run.site_pairs
        if pair.rematched is not None and "size" in pair.rematched.sizes and pair.rematched["null"].values[0] == TOKEN
        for of_size in zip(*(pair.rematched[key].values.tolist() for key in names.values()), strict=True)
    ]
    return pd.DataFrame.from_records(records, columns=["site_a", "site_b", *names])


def growth_findings(table: pd.DataFrame) -> list[str]:
    """Return the sentence on whether more text makes more pairs, as a list; empty where no share was matched."""
    sizes = sorted(set(table["fraction"])) if len(table) else []
    if len(sizes) < 2:
        return []
    before, after = (table[table["fraction"] == size].set_index(["site_a", "site_b"]) for size in sizes[-2:])
    pairs = 100 * (after["pairs"] / before["pairs"] - 1)
    beyond = [(rows["pairs"] - rows["null_pairs"]).reindex(pairs.index) for rows in (before, after)]
    return [
        f"With {100 * sizes[-2]:g} % of the text there are {span(before['pairs'], 0)} pairs per pair of sites, and "
        f"with all of it {span(after['pairs'], 0)}, a change of {span(pairs, 0)} %. A shared vocabulary does not "
        f"account for {span(beyond[0], 0)} and {span(beyond[1], 0)} of them, respectively."
    ]


def quantity_name(quantity: str) -> str:
    """Return how a quantity is written in prose.

    >>> quantity_name("r_heldout"), quantity_name("rsa")
    ('held-out r', 'RSA')
    """
    return NAMES.get(quantity) or metric_name(quantity)


def vocabulary_findings(table: pd.DataFrame) -> list[str]:
    """Return the sentence on what is more than a shared vocabulary, as a list; empty where there is no table.

    It is about the held-out r, or r where no rows were held out. The effect comes before p.
    """
    if table.empty:
        return []
    main, defined = _main(table)
    name = quantity_name(main)
    if defined.empty:
        return [
            f"Whether the models share more than a vocabulary cannot be said: the {name} of the pairs is not above 0."
        ]
    (best,) = defined[defined.index == defined["beyond"].idxmax()].to_dict("records")
    by_chance = table[(table["quantity"] == "pairs") & table["document"].notna()]["document"]
    document = f" If whole documents are permuted, {span(by_chance, 0)} pairs are left." if len(by_chance) else ""
    shares = [f"{span(100 * defined['beyond'], 0)} % of the {name}"]
    shares += [
        f"{span(100 * rows['beyond'], 0)} % of {quantity_name(str(quantity))}"
        f"{'' if quantity in NAMES else ' above shuffled pairings'}"
        for quantity, rows in table.groupby("quantity", sort=False)
        if quantity not in (main, "r") and rows["beyond"].notna().any()
    ]
    return [
        f"{_lead(defined)}. If B’s rows are permuted among rows of the same text, and everything is correlated and "
        f"matched again, {listed(shares)} are lost. The share is largest at {best['site_a']} – {best['site_b']}: the "
        f"{name} is {number(best['real'], 3)}, and {number(best['token'], 3)} with rows of the same text permuted "
        f"({number(best['token_low'], 3)} to {number(best['token_high'], 3)} is expected if nothing but words is "
        f"shared); p = {p_number(best['p'])}. With {best['draws']} draws, p cannot be below "
        f"{p_number(1 / (best['draws'] + 1))}.{document}"
    ]


def shares_more_than_words(table: pd.DataFrame) -> str:
    """Return in a clause what part of the match goes beyond a shared vocabulary; empty where that is not known."""
    rows = _main(table)[1] if len(table) else table
    clauses = {
        NOT_SHOWN: "not shown to go beyond a shared vocabulary",
        MOSTLY_MORE: "mostly beyond a shared vocabulary",
        MOSTLY_WORDS: "mostly through a shared vocabulary",
        DEPENDS: "through a shared vocabulary to an extent that depends on the sites",
    }
    return clauses[_lead(rows)] if len(rows) else ""


def _main(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return held-out r, or r where no rows were held out, and the rows on it for which the share is defined."""
    heldout = table[(table["quantity"] == "r_heldout") & table["real"].notna()]
    main = table[table["quantity"] == "r"] if heldout.empty else heldout
    return str(main["quantity"].iloc[0]), main[main["beyond"].notna()]


def _lead(defined: pd.DataFrame) -> str:
    """Return the conclusion: where nothing is beyond the null, most of it, or a part of it."""
    clear = defined["beyond_low"] > 0
    if not clear.any():
        return NOT_SHOWN
    if (clear & (defined["beyond"] >= MOST)).all():
        return MOSTLY_MORE
    if (defined["beyond"] < MOST).all():
        return MOSTLY_WORDS
    return DEPENDS
