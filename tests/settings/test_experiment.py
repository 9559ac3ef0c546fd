"""The experiment file: what is accepted, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings.experiment import load_experiment
from storage.errors import InputError, MissingInputError

MINIMAL: dict[str, Any] = {
    "name": "toy",
    "corpus": {"path": "texts.jsonl"},
    "a": {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]},
    "b": {"model": "gpt2", "dictionary": "saes/{site}", "sites": ["layers.2"]},
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, **changes}


def test_defaults(tmp_path: Path) -> None:
    config = load_experiment(write(tmp_path, MINIMAL))
    assert config.correlate.keep_above == 0.1
    assert config.match.method == "greedy"
    assert config.b.dictionary_of("layers.2") == "saes/layers.2"


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "saes").mkdir()
    config = load_experiment(write(tmp_path, MINIMAL))
    assert config.corpus.path == str(tmp_path / "texts.jsonl")
    assert config.a.model == "gpt2", "a hub id is no path"
    assert config.b.dictionary == str(tmp_path / "saes" / "{site}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(mach={}), r"mach: unknown key; did you mean 'match'\?"),
        (changed(correlate={"topk": 3}), r"correlate.topk: unknown key; did you mean 'top_k'\?"),
        (changed(corpus={"path": "x", "dataset": "y"}), "exactly one of 'dataset' and 'path'"),
        (changed(align={"pool": "sum"}), "align.pool: must be 'last', 'max' or 'mean' .*given: 'sum'"),
        (changed(corpus={"path": "x", "tokens": 0}), "corpus.tokens: .* greater than 0"),
        (changed(correlate={"top_k": 0}), "correlate.top_k: .* greater than or equal to 1 .*given: 0"),
        (changed(match={"min_correlation": 0.05}), "below correlate.keep_above"),
        (
            changed(match={"method": "gredy"}),
            "no matching method 'gredy'; did you mean 'greedy'",
        ),
        (
            changed(compare={"nulls": ["shuffle"]}),
            "nulls.0: there is no null 'shuffle'; did you mean",
        ),
        (changed(compare={"metrics": ["svka"]}), "there is no metric 'svka'; did you mean"),
        (changed(compare={"nulls": ["random_pairs"]}), "random_pairs needs a larger matching"),
        (changed(semantics={"nulls": ["random_dictionary"]}), "random_dictionary needs a control store"),
        (changed(match={"max_uses": 2}), "max_uses belongs to the method 'unique', not 'greedy'"),
        (
            changed(match={"filters": [{"name": "nope"}]}),
            "filters.0: there is no filter 'nope'; there are min_r",
        ),
        (changed(match={"filters": [{"name": "max_uses", "k": 1, "n": 2}]}), r"max_uses.k: unknown key; .*n"),
        (changed(match={"filters": [{"name": "min_r", "value": 0.2, "wen": "after"}]}), r"wen: .*did you mean 'when'"),
        (changed(a={**MINIMAL["a"], "sites": ["x", "x"]}), "named twice"),
        ({"name": "toy"}, "corpus: is required"),
        ("- a list", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, content))


WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("name", 5, "must be text; put it in quotes (given: 5)"),
    ("corpus.max_length", "many", "must be a whole number (given: 'many')"),
    ("corpus.streaming", "perhaps", "must be true or false (given: 'perhaps')"),
    ("a.sites", "layers.1", "must be a list (given: 'layers.1')"),
    ("b", [1, 2], "must be a section of keys and values (given: [1, 2])"),
    ("correlate.memory", [1], "must be text or a whole number (given: [1])"),
    ("match.min_correlation", "abc", "must be a number (given: 'abc')"),
    ("match.filters", [{"name": "min_r", "value": "x"}], "must be a number (given: 'x')"),
    ("compare.null_runs", 1.5, "must be a whole number (given: 1.5)"),
    ("semantics.concepts", 12, "must be text; put it in quotes or a list (given: 12)"),
    ("semantics.rule", {"name": "x"}, "'name' must be one of 'count', 'share', 'pmi', 'probe' (given: {'name': 'x'})"),
    ("semantics.rule", {"name": "count", "of": []}, "must be a whole number (given: [])"),
    ("semantics.judged", ["rsa"], "must have at least 2 items, not 1 (given: ['rsa'])"),
    ("report", "nope", "must be a section of keys and values (given: 'nope')"),
    ("report.pairs", None, "must be a whole number (given: None)"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG_TYPES)
def test_a_value_of_another_type(tmp_path: Path, place: str, value: Any, message: str) -> None:
    section, _, key = place.partition(".")
    content = {**MINIMAL, section: {**MINIMAL.get(section, {}), key: value} if key else value}
    with pytest.raises(InputError) as caught:
        load_experiment(write(tmp_path, content))
    assert str(caught.value).startswith(f"{tmp_path / 'experiment.yaml'}:\n  {place}")
    assert str(caught.value).endswith(f": {message}")
    assert len(str(caught.value).splitlines()) == 2


def test_filters_keep_their_order_and_their_lists_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- the\n")
    filters = [{"name": "non_concept", "tokens": "mine.yaml"}, {"name": "min_r", "value": 0.3, "when": "after"}]
    config = load_experiment(write(tmp_path, changed(match={"filters": filters})))
    assert [(item.name, item.when) for item in config.match.filters] == [("non_concept", "before"), ("min_r", "after")]
    assert config.match.model_dump()["filters"][0]["tokens"] == str(tmp_path / "mine.yaml")
    assert config.match.needs_contexts


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.yaml"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_a_site_without_dictionary(tmp_path: Path) -> None:
    side = {**MINIMAL["a"], "dictionary": {"layers.9": "x"}}
    config = load_experiment(write(tmp_path, changed(a=side)))
    with pytest.raises(InputError, match=r"layers\.1.*layers\.9"):
        config.a.dictionary_of("layers.1")


def test_concepts_ask_for_semantics(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, MINIMAL)).semantics is None
    config = load_experiment(write(tmp_path, changed(concepts="default")))
    assert config.semantics is not None
    assert config.semantics.concepts == "default"
    assert config.semantics.approaches == ["global", "within"]
    # what a run directory keeps reads the same
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again == config


def test_files_of_semantics_start_at_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("x: {keywords: [y]}\n")
    (tmp_path / "vectors.txt").write_text("y 1 2\n")
    section = {"embedding": "gensim:vectors.txt", "clusters": 3}
    config = load_experiment(write(tmp_path, changed(concepts=["default", "mine.yaml"], semantics=section)))
    assert config.semantics is not None
    assert config.semantics.concepts == ["default", str(tmp_path / "mine.yaml")]
    assert config.semantics.embedding == f"gensim:{tmp_path / 'vectors.txt'}"
    assert config.semantics.clusters == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(concepts="default", semantics={"concepts": "default"}), "'concepts' is given twice"),
        (changed(semantics={"embedding": "word2vec"}), "semantics.embedding: it is model:a, model:b"),
        (changed(semantics={"judged": ["cka", "rsa"]}), "judged names 'cka', which is not among the metrics"),
        (changed(semantics={"rule": {"name": "count", "of": 9}}), "semantics.rule looks at 9 top contexts"),
        (changed(semantics={"approach": []}), r"semantics.approach: unknown key; did you mean 'approaches'\?"),
    ],
)
def test_wrong_semantics(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_experiment(write(tmp_path, content))
