"""The concepts of the package, and files of one's own."""

from __future__ import annotations

import pytest

from pipeline.semantics.concepts import concepts_hash, inflect, load_concepts, verb_forms
from pipeline.settings.experiment import load_experiment
from storage.errors import FormatError, InputError, MissingInputError

# what the issue asks for
WANTED = {
    "time", "calendar", "months", "numbers", "people", "roles_and_titles", "kinship", "emotions", "nature", "animals",
    "science", "biology", "countries", "body", "food", "colours", "weather", "politics", "money", "sport",
    "law_and_crime", "medicine", "technology", "war_and_military", "religion", "buildings_and_places", "clothing",
    "transport",
}  # fmt: skip


def test_the_package_brings_twenty_groups_of_twenty_five_words() -> None:
    concepts = load_concepts(inflections=False)
    assert set(concepts) >= WANTED
    for concept in concepts.values():
        own = [word.casefold() for word in concept.keywords + concept.exact_case]
        assert len(set(own)) >= 25, concept.name
        assert len(set(own)) == len(own), concept.name


def test_groups_ask_for_inflections() -> None:
    concepts = load_concepts()
    assert {"children", "women"} <= set(concepts["people"].keywords)
    assert {"mothers-in-law", "wives"} <= set(concepts["kinship"].keywords)
    assert "Januaries" not in concepts["months"].keywords
    assert "Januaries" in load_concepts(inflections=True)["months"].keywords
    assert "children" not in load_concepts(inflections=False)["people"].keywords


def test_own_groups_join_replace_and_extend(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pets: [tabby]\nmonths: {keywords: [Nivôse]}\nfood: {keywords: [natto], extend: true}\n")
    joined = load_concepts(["default", file])
    assert joined["pets"].keywords == ("tabby",)
    assert joined["months"].keywords == ("Nivôse",)
    assert {"natto", "bread"} <= set(joined["food"].keywords)
    assert list(load_concepts(file)) == ["pets", "months", "food"]
    assert list(load_concepts(["default", file], only=["pets", "body"])) == ["pets", "body"]


def test_the_hash_is_of_the_content(tmp_path) -> None:
    for name, word in (("one", "cat"), ("two", "cat"), ("three", "dog")):
        (tmp_path / name).write_text(f"pets: [{word}]")
    one, two, three = (concepts_hash(load_concepts(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- cat", "must map names"),
        ("pets: {words: [cat]}", r"pets\.words: Extra inputs"),
        ("answers: [yes, no]", r"answers\.keywords\.0: must be text; put it in quotes \(given: True\)"),
        ("pets: ['...']", "no letter or digit"),
        ("pets: {patterns: ['(']}", "not a regular expression"),
        ("pets: {inflections: [plural]}", "neither keywords"),
        ("pets: {keywords: [cat], inflections: [dual]}", r"pets\.inflections\.0"),
        ("pets: [cat", "not valid YAML"),
        ("pets:", r"pets: "),
    ],
)
def test_wrong_files_are_named_with_the_key(tmp_path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        load_concepts(file)
    assert str(file) in str(caught.value)


def test_missing_files_and_names(tmp_path) -> None:
    with pytest.raises(MissingInputError, match=r"none\.yaml; copy"):
        load_concepts(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"\['colour'\]; those that were read: time"):
        load_concepts(only=["colour"])


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("walk", "walks walked walking"), ("stop", "stops stopped stopping"), ("bake", "bakes baked baking"),
        ("carry", "carries carried carrying"), ("play", "plays played playing"), ("agree", "agrees agreed agreeing"),
        ("watch", "watches watched watching"), ("fix", "fixes fixed fixing"), ("rain", "rains rained raining"),
        ("plan", "plans planned planning"), ("lie", "lies lied lying"), ("dye", "dyes dyed dyeing"),
        ("show", "shows showed showing"), ("veto", "vetoes vetoed vetoing"), ("open", "opens opened opening"),
    ],
)  # fmt: skip
def test_regular_verbs(verb: str, forms: str) -> None:
    assert list(verb_forms(verb)) == forms.split()


def test_the_last_word_of_several_is_inflected() -> None:
    assert inflect("prime minister", ["plural"]) == ["prime ministers"]
    assert inflect("look up", ["verb"])[0] == "look ups"  # no phrasal verbs: the last word is taken
    assert inflect("sheep", ["plural"]) == []


def test_concepts_in_an_experiment(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("pets: [cat]")
    (tmp_path / "e.yaml").write_text(
        "name: e\ncorpus: {path: t.jsonl}\na: {model: m, dictionary: identity, sites: [x]}\n"
        "b: {model: m, dictionary: identity, sites: [x]}\n"
        "semantics: {concepts: [default, mine.yaml], rule: {name: pmi, at_least: 2}}\n"
    )
    semantics = load_experiment(tmp_path / "e.yaml").semantics
    assert semantics.concepts == ["default", str(tmp_path / "mine.yaml")]
    assert semantics.rule.at_least == 2
    assert "pets" in load_concepts(semantics.concepts)
    (tmp_path / "e.yaml").write_text(
        (tmp_path / "e.yaml").read_text().replace("{name: pmi, at_least: 2}", "{at_least: 6, of: 5, name: count}")
    )
    with pytest.raises(InputError, match="at least 6 of 5 contexts can never be"):
        load_experiment(tmp_path / "e.yaml")
