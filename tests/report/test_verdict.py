"""The verdict follows the corrected p-values and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pandas as pd
import pytest

from pipeline.compare.statistics import benjamini_hochberg, holm
from pipeline.report.statements import Tables, answer, concept_findings, statements
from pipeline.report.verdict import EasyPairs, concept_limits, criterion, limits, r_findings

NO_EASY = EasyPairs(10, 0)


def scores(p: dict[tuple[str, str], float], null_runs: int = 1000, note: str = "", **columns: float) -> pd.DataFrame:
    """Make a table of scores from p by (site of B, metric)."""
    table = pd.DataFrame(
        [
            {
                "site_a": "a1", "site_b": site, "metric": metric, "null": "shuffled", "score": 0.5,
                "null_mean": 0.2, "null_q95": 0.3, "p": one, "null_runs": null_runs, "note": note, **columns,
            }
            for (site, metric), one in p.items()
        ]
    )  # fmt: skip
    table["tests"] = table["p"].notna().sum()
    return table.assign(p_holm=holm(table["p"].to_numpy()), p_bh=benjamini_hochberg(table["p"].to_numpy()))


def matching(**columns: float) -> pd.DataFrame:
    """Make a table of one pair of sites."""
    usual = {
        "n_pairs": 80, "possible": 100, "r_mean": 0.62, "r_heldout_mean": 0.55, "replicated": 0.9, "r_random": 0.001,
        "rows_heldout": 500, "heldout_in_choice": False,
    }  # fmt: skip
    return pd.DataFrame([{**usual, **columns}])


@dataclass
class Verdict:
    """What the report says of some tables: on significance, and further."""

    headline: str
    findings: list[str]
    limits: list[str]


def judge(table: pd.DataFrame, matched: pd.DataFrame, sites: pd.DataFrame, easy: EasyPairs, left: list[str]) -> Verdict:
    _, headline, *findings = statements(Tables(table, matched, *[pd.DataFrame()] * 3))
    return Verdict(headline, findings, limits(table, matched, sites, easy, left))


SITES = pd.DataFrame({"side": ["A"], "site": ["a1"], "fvu": [0.2]})
LOW, HIGH = 0.001, 0.4


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ({("b1", "svcca"): LOW, ("b1", "rsa"): LOW}, "At the one pair of sites, matched"),
        ({("b1", "svcca"): LOW, ("b2", "svcca"): LOW}, "At all 2 pairs of sites, matched"),
        ({("b1", "svcca"): HIGH, ("b1", "rsa"): HIGH}, "No evidence"),
        ({("b1", "svcca"): LOW, ("b1", "rsa"): HIGH}, "At 1 of 1 pairs"),
        ({("b1", "svcca"): LOW, ("b1", "rsa"): LOW, ("b2", "svcca"): HIGH, ("b2", "rsa"): HIGH}, "At 1 of 2 pairs"),
        ({("b1", "svcca"): float("nan"), ("b1", "rsa"): float("nan")}, "No evidence"),
    ],
)
def test_headline(p: dict[tuple[str, str], float], expected: str) -> None:
    assert judge(scores(p), matching(), SITES, NO_EASY, []).headline.startswith(expected)


def test_a_partial_win_says_by_which_share() -> None:
    headline = judge(scores({("b1", "svcca"): LOW, ("b1", "rsa"): HIGH}), matching(), SITES, NO_EASY, []).headline
    assert headline.endswith("but at none by all of these metrics.")
    p = {(site, metric): LOW for site in ("b1", "b2") for metric in ("svcca", "rsa")} | {("b2", "rsa"): HIGH}
    headline = judge(scores(p), matching(), SITES, NO_EASY, []).headline
    assert headline.startswith("At 1 of 2 pairs")
    assert headline.endswith("at 1 more by some of these metrics only.")


def test_a_metric_that_is_nowhere_defined_does_not_enter() -> None:
    table = scores({("b1", "svcca"): LOW, ("b1", "rsa"): float("nan")})
    table.loc[table["metric"] == "rsa", "score"] = float("nan")
    verdict = judge(table, matching(), SITES, NO_EASY, [])
    assert verdict.headline.startswith("At the one pair of sites")
    assert "RSA" not in verdict.headline
    assert "RSA is undefined at every pair of sites." in verdict.findings


def test_the_first_component_alone_proves_nothing() -> None:
    table = scores({("b1", "svcca"): HIGH, ("b1", "svcca_pc1"): LOW})
    assert judge(table, matching(), SITES, NO_EASY, []).headline.startswith("No evidence")


def test_a_significant_score_below_chance_does_not_count() -> None:
    assert judge(scores({("b1", "svcca"): LOW}, score=0.1), matching(), SITES, NO_EASY, []).headline.startswith("No ev")


def test_uncorrected_significance_is_not_enough() -> None:
    table = scores({(f"b{i}", "svcca"): 0.03 if i == 0 else HIGH for i in range(10)})
    assert judge(table, matching(), SITES, NO_EASY, []).headline.startswith("No evidence")


def test_too_few_runs_for_holm_fall_back_to_false_discoveries_and_say_so() -> None:
    table = scores({(f"b{i}", "svcca"): 1 / 101 for i in range(10)}, null_runs=100)
    assert criterion(table) == "p_bh"
    verdict = judge(table, matching(), SITES, NO_EASY, [])
    assert "Benjamini–Hochberg" in verdict.headline
    assert any("too few for Holm" in limit for limit in verdict.limits)


def test_findings_state_chance_and_the_fall_of_r() -> None:
    findings = " ".join(judge(scores({("b1", "svcca"): LOW}), matching(), SITES, NO_EASY, []).findings)
    for part in (
        "0.500 against 0.200 on average",
        "80 % of",
        "0.62",
        "0.55",
        "a change of −0.07",
        "90 % of them",
        "0.001",
        " % of the way from chance to 1; p = 0.001",
    ):
        assert part in findings


def test_limits_are_named() -> None:
    poor = SITES.assign(fvu=0.6)
    table = scores({("b1", "svcca"): LOW, ("b2", "svcca"): LOW}, note="saturated: few pairs")
    limits = " ".join(judge(table, matching(rows_heldout=0), poor, EasyPairs(10, 4), ["a1 – b9"]).limits)
    for part in ("a1 – b9", "inflated by the selection", "4 are one-word pairs", "saturated: few pairs", "0.60 of the"):
        assert part in limits


def test_heldout_r_that_took_part_in_the_choice_is_not_called_held_out_from_it() -> None:
    table = scores({("b1", "svcca"): LOW})
    plain, filtered = (judge(table, matching(heldout_in_choice=is_read), SITES, NO_EASY, []) for is_read in (0, 1))
    assert "on the held-out half" in " ".join(plain.findings)
    assert "took part in choosing" not in " ".join(plain.limits)
    assert "held-out half" not in " ".join(filtered.findings)
    assert "the other half, which a filter of the pairs reads" in " ".join(filtered.findings)
    assert "took part in choosing the pairs: their held-out r is biased" in " ".join(filtered.limits)


def test_no_pairs() -> None:
    nan = float("nan")
    empty = matching(n_pairs=0, r_mean=nan, r_heldout_mean=nan, replicated=nan)
    verdict = judge(scores({("b1", "svcca"): nan}, score=nan), empty, SITES, EasyPairs(0, 0), [])
    assert "No pair of features reached" in " ".join(verdict.findings)


@pytest.mark.parametrize(
    ("score", "p", "sentence", "headline"),
    [
        (0.9, HIGH, "SVCCA is not shown to exceed shuffled pairings: it is significant at none of 1", "No evidence"),
        (
            0.21,
            LOW,
            "SVCCA exceeds shuffled pairings at 1 of 1 pairs of sites, but only slightly",
            "At the one pair of sites",
        ),
        (0.9, LOW, "SVCCA exceeds shuffled pairings at 1 of 1", "At the one pair of sites"),
    ],
)
def test_neither_a_large_effect_nor_a_small_p_is_enough_alone(score, p, sentence, headline) -> None:
    verdict = judge(scores({("b1", "svcca"): p}, score=score), matching(), SITES, NO_EASY, [])
    (finding,) = [finding for finding in verdict.findings if finding.startswith("SVCCA")]
    assert finding.startswith(sentence)
    assert finding.index(f"{score:.3f}") < finding.index("% of the way") < finding.index("p = ")
    assert verdict.headline.startswith(headline)
    assert p == HIGH or verdict.headline.index(f"{score - 0.2:.2f} higher") < verdict.headline.index("p < 0.05")


def test_r_on_other_text_follows_r_where_pairs_were_chosen() -> None:
    said = " ".join(r_findings(matching(r_check_mean=0.31, rows_check=12_000)))
    assert "12,000 rows that were not used to select pairs (match.check_on), their mean r is 0.31." in said
    assert "other text" not in " ".join(r_findings(matching()))
    assert "other text" not in " ".join(r_findings(matching(r_check_mean=float("nan"), rows_check=12_000)))


def outcome(approach: str, verdict: str, subspaces: int, names: str = "") -> dict[str, object]:
    """Make a row of the table of concepts."""
    kind = "cluster" if approach == "cluster" else "concept"
    return {
        "kind": kind, "approach": approach, "verdict": verdict, "subspaces": subspaces, "names": names,
        "above_first": 0.3, "above_second": 0.2, "first": "svcca:k=4", "second": "rsa", "correction": "p_bh",
        "tests": 66, "nulls": "shuffled, random_pairs" + (", random_keywords" if kind == "concept" else ""),
    }  # fmt: skip


def test_every_approach_is_listed_whatever_came_of_it() -> None:
    outcomes = [
        outcome("global", "passes_both", 1, "time"),
        outcome("global", "second_only", 2, "space_relations, numbers"),
        outcome("global", "neither", 5),
        outcome("global", "too_few_pairs", 9),
        outcome("within", "not_judged", 7),
        outcome("cluster", "neither", 80),
    ]
    cut_out, within, clusters = concept_findings(pd.DataFrame(outcomes))
    assert cut_out.startswith(
        "Concept subsets of all matched pairs: 8 of 17 subspaces can be judged (9 have too few pairs)."
    )
    assert "exceed all of shuffled pairings, random pairs and random keywords: 1 by both SVCCA (k=4) and" in cut_out
    assert "RSA (time; median 0.30 and 0.20 above the nearest null); none by SVCCA (k=4) alone; 2 by RSA" in cut_out
    assert "2 by RSA alone (space relations, numbers; median 0.20 above the nearest null)" in cut_out
    assert cut_out.index("0.20 above") < cut_out.index("largest p < 0.05, Benjamini–Hochberg-corrected over 66 tests")
    assert within == (
        "Concepts whose features were matched among themselves: none of 7 subspaces can be judged (7 have no null for "
        "a verdict)."
    )
    assert clusters.startswith(
        "Clusters of matched pairs: 80 of 80 subspaces can be judged. None exceeds all of shuffled"
    )


@pytest.mark.parametrize(
    ("draws", "beyond", "names", "sentence"),
    [
        (
            20, (0, 1), "time",
            "Compared with rows of the same text permuted, the median of these 4 is 0.10 by SVCCA (k=4) (95 %: −0.05 "
            "to 0.25) and 0.02 by RSA (95 %: −0.04 to 0.08) above the draws; 1 (time) is above all 20 draws by both "
            "metrics. This is an estimate, not a test: Benjamini–Hochberg-corrected over 66 tests, 1,320 draws are "
            "needed to show that one goes beyond its words.",
        ),
        (
            1500, (2, 0), "time, numbers",
            "2 of these 4 (time, numbers) go beyond the word, as tested against rows of the same text permuted (p < "
            "0.05, Benjamini–Hochberg-corrected over 66 tests); the median of these 4 is",
        ),
        (None, None, None, "Whether they go beyond shared words is unknown: that requires rows of the same text"),
    ],
)  # fmt: skip
def test_what_is_more_than_words_is_an_estimate_until_draws_suffice(draws, beyond, names, sentence) -> None:
    passing = outcome("global", "passes_both", 4, "time, numbers")
    if draws is not None:
        passing |= {"draws": draws, "draws_needed": 1320, "beyond": beyond[0], "open": beyond[1], "beyond_names": names}
        passing |= {"token_first": 0.1, "token_first_low": -0.05, "token_first_high": 0.25}
        passing |= {"token_second": 0.02, "token_second_low": -0.04, "token_second_high": 0.08}
    table = pd.DataFrame([passing, outcome("within", "not_judged", 7)])
    said = next(concept_findings(table))
    assert sentence in said
    assert said.index("above the nearest null") < said.index(sentence[:12]), "the nulls of the verdict come first"
    limit = " ".join(concept_limits(table))
    if draws == 20:
        assert "With 20 draws of rows of the same text permuted, p of a concept cannot be below 0.048;" in limit
    assert (limit == "") == (draws == 1500)


def test_stored_tables_make_the_same_sentences() -> None:
    table = scores({("b1", "svcca"): LOW, ("b1", "rsa"): float("nan")})
    concepts = pd.DataFrame([outcome("within", "neither", 1)])
    tables = Tables(table, matching(r_random=float("nan")), pd.DataFrame(), concepts, pd.DataFrame())
    stored = json.loads(json.dumps(tables.to_records(), allow_nan=False))
    assert statements(Tables.from_records(stored)) == statements(tables)


@pytest.mark.parametrize(
    ("score", "p", "r", "part"),
    [
        (0.9, LOW, 0.6, ("strongly (mean r 0.60", "strongly similar (SVCCA 87 %")),
        (0.52, LOW, 0.35, ("moderately", "moderately similar")),
        (0.25, LOW, 0.15, ("weakly", "hardly similar (SVCCA 6 % of the way from chance to 1)")),
        (
            0.9,
            HIGH,
            0.05,
            ("hardly", "geometry is not shown to be similar (by SVCCA, nowhere above shuffled pairings)"),
        ),
    ],
)
def test_the_answer_names_effects_and_no_p(score, p, r, part) -> None:
    tables = Tables(scores({("b1", "svcca"): p}, score=score), matching(r_heldout_mean=r), *[pd.DataFrame()] * 3)
    features, geometry, meanings = answer(tables)
    assert features.startswith(f"Matched features correspond {part[0]}")
    assert features.endswith("not tested against a shared vocabulary")
    assert part[1] in geometry
    assert meanings == "meanings were not tested"
    assert "p <" not in (said := statements(tables)[0])
    assert said == f"{features}; {geometry}; {meanings}."


def test_the_answer_says_where_most_and_what_meanings_go_beyond_their_words() -> None:
    table = scores({("b1", "svcca"): LOW, ("b2", "svcca"): LOW})
    table.loc[1, "score"] = 0.8
    passing = outcome("global", "passes_both", 1, "time, food_drink") | {"draws": 2000, "draws_needed": 9, "beyond": 1}
    judged = [passing, outcome("global", "neither", 9), outcome("global", "too_few_pairs", 50)]
    tables = Tables(table, matching(), pd.DataFrame(), pd.DataFrame(judged), pd.DataFrame())
    _, geometry, meanings = answer(tables)
    assert geometry.endswith("(SVCCA 37 to 75 % of the way from chance to 1), most at a1 – b2")
    assert meanings == (
        "few of the meanings tested are shared (1 of 10 subspaces of concepts exceed chance: time, food drink), and 1 "
        "of these goes beyond its words (p < 0.05)"
    )
    between = {"quantity": ["svcca"], "normalised": [0.6], "score": [0.7], "floor_name": ["f"], "ceiling_name": ["c"]}
    assert "; SVCCA 60 % from floor to ceiling)" in answer(replace(tables, yardsticks=pd.DataFrame(between)))[1]
    none = replace(tables, concepts=pd.DataFrame([outcome("global", "neither", 9)]))
    assert answer(none)[2] == "no meaning is shown to be shared (none of 9 subspaces of concepts exceeds chance)"
