"""Published numbers beside a run: sites that are there, sites that are not, runs that stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from distributed import Client
from typer.testing import CliRunner

from jobs.cli import app
from jobs.verbs import reproduce
from jobs.verbs.reproduce import beside_published, published_figures
from pipeline.experiment.run import RunResult, run
from pipeline.settings.experiment import load_experiment
from storage import new_manifest, open_result, write_result

SITES = {"a": ["layers.3"], "b": ["layers.5", "layers.4"]}


@pytest.fixture(scope="module")
def finished(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory, client: Client) -> RunResult:
    """A run of two toy models of six blocks, at a published pair of sites and another one."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("published")
    tokenizer = AutoTokenizer.from_pretrained(tiny_inputs / "llama")
    for name, width in (("small", 16), ("large", 24)):
        sizes = {"hidden_size": width, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 6}
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copy(tiny_inputs / "texts.jsonl", folder)
    experiment = {
        "name": "toy",
        "corpus": {"path": "texts.jsonl", "max_length": 40},
        "a": {"model": "small", "dictionary": "random:64:8", "sites": SITES["a"]},
        "b": {"model": "large", "dictionary": "random:64:8", "sites": SITES["b"]},
        "store": {"shard_rows": 256},
        "correlate": {"top_k": 4, "keep_above": 0.05},
        "match": {"min_correlation": 0.05},
        "compare": {"null_runs": 20, "metrics": ["svcca_pc1", "rsa"]},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(experiment))
    return run(folder / "mine.yaml", run_dir=folder / "run", client=client)


def test_published_numbers_stand_beside_those_of_the_run(finished: RunResult) -> None:
    table = beside_published("pythia", finished.directory.root)
    assert len(table) == len(published_figures("pythia"))
    here = table[(table.site_a == "layers.3") & (table.site_b == "layers.5") & (table.concept == "")].set_index(
        "quantity"
    )
    assert here.published.to_dict() == {
        "best_r": 0.698, "mean_r": 0.552, "pairs": 4793, "svcca_pc1": 0.661, "svcca_pc1_null": 0.014, "rsa": 0.2,
    }  # fmt: skip
    pairs, scores = finished.pairs("layers.3", "layers.5"), finished.scores("layers.3", "layers.5")
    assert here.ours["pairs"] == pairs.sizes["pair"]
    assert here.ours["mean_r"] == pytest.approx(float(pairs.r.mean()))
    assert here.ours["svcca_pc1"] == float(scores.score.sel(metric="svcca_pc1"))
    assert here.ours["svcca_pc1_null"] == float(scores.null_mean.sel(metric="svcca_pc1", null="shuffled"))
    assert here.published_as["svcca_pc1"] == "SVCCA"
    best = finished.directory.correlation("layers.3", "layers.5")
    assert here.ours["best_r"] == pytest.approx(float(np.nanmean(open_result(best)["r_a"].isel(rank=0))))


def test_what_the_run_lacks_is_said(finished: RunResult, tmp_path: Path) -> None:
    table = beside_published("pythia", finished.directory.root)
    absent = table[table.site_a == "layers.2"]
    assert absent.ours.isna().all()
    assert (absent.note == reproduce.NOT_RUN).all()
    assert beside_published("gemma", finished.directory.root).ours.isna().all()
    shutil.copytree(finished.directory.root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "scores")
    stopped = beside_published("pythia", tmp_path / "run")
    here = stopped[(stopped.site_a == "layers.3") & (stopped.concept == "")].set_index("quantity")
    assert np.isfinite(here.ours[["best_r", "mean_r", "pairs"]].to_numpy(float)).all()
    assert here.note["svcca_pc1"].startswith("not computed")


def test_concepts_stand_beside_those_of_the_study(finished: RunResult, tmp_path: Path) -> None:
    shutil.copytree(finished.directory.root, tmp_path / "run")
    rows = [("layers.3", "layers.5", name, how) for name in ("time", "months") for how in ("global", "within")]
    columns = dict(zip(("site_a", "site_b", "name", "approach"), zip(*rows, strict=True), strict=True))
    table = xr.Dataset(
        {
            **{key: ("row", np.array(values, object)) for key, values in columns.items()},
            "n_pairs": ("row", [5, 17, 6, 8]),
            "score": (("row", "metric"), [[0.1], [0.25], [0.3], [0.4]]),
        },
        {"metric": ["rsa"]},
    )
    write_result(table, tmp_path / "run" / "semantics.zarr", new_manifest("semantics-table", {}, {}), overwrite=True)
    result = {(row.concept, row.quantity): row for row in beside_published("pythia", tmp_path / "run").itertuples()}
    assert result["time", "rsa"].ours == 0.25
    assert result["time", "rsa"].published == 0.097
    assert result["time", "pairs"].ours == 17
    assert "not asked for" in result["time", "svcca_pc1"].note
    assert result["nature", "rsa"].note == reproduce.NO_CONCEPT


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_the_table_of_a_run(finished: RunResult) -> None:
    root = finished.directory.root
    mine = root.parent / "mine.yaml"
    text = call("reproduce", "pythia", "--table", "--run-dir", root)
    for part in ("SVCCA", "svcca_pc1", "0.661", "4,793", "does not have these sites", "layers.3"):
        assert part in text
    numbers = json.loads(call("reproduce", "pythia", "--table", "--run-dir", root, "--json"))["numbers"]
    assert {line["published_as"] for line in numbers} >= {"SVCCA", "RSA", "mean max r, all pairs"}
    # a finished run is gone through again, and only the table is new
    assert "0.661" in call("reproduce", "pythia", "--experiment", mine, "--run-dir", root)
    assert "layers.12 – layers.18" in call("reproduce", "gemma", "--table", "--run-dir", root)


def test_experiments_come_with_the_package() -> None:
    listed = json.loads(call("reproduce", "--list", "--json"))["experiments"]
    assert [(line["name"], line["pairs_of_sites"]) for line in listed] == [("pythia", 55), ("gemma", 24)]
    assert "EleutherAI/pythia-70m" in call("reproduce", "--list")
    for name in reproduce.NAMES:
        shown = yaml.safe_load(call("reproduce", name, "--show"))
        assert shown["a"]["sites"]
        config = load_experiment(reproduce.FOLDER / f"{name}.yaml")
        assert Path(config.match.filters[0].tokens).is_file()
        grid = set(config.site_pairs)
        assert all((figure.site_a, figure.site_b) in grid for figure in published_figures(name))
        for site in config.b.sites:
            config.b.dictionary_of(site)


def test_scores_are_printed_in_every_form(finished: RunResult) -> None:
    root = finished.directory.root
    table = call("scores", root)
    for part in ("layers.4", "svcca_pc1", "p (Holm)", "chance", "±"):
        assert part in table
    assert "20 null runs cannot give p below" in table
    assert call("scores", root, "--csv") == (root / "scores.csv").read_text()
    assert call("scores", root, "--latex") == (root / "scores.tex").read_text()
    result = json.loads(call("scores", root, "--json"))
    assert len(result["scores"]) == 4
    assert result["power"]["shuffled"].endswith("run at least 79")


def test_activations_are_compared_by_a_verb(finished: RunResult, tmp_path: Path) -> None:
    directory = finished.directory
    a, b, pairs = (
        directory.activations("a", "layers.3"),
        directory.activations("b", "layers.5"),
        directory.pairs("layers.3", "layers.5"),
    )
    options = ("--metric", "svcca", "--null-runs", 19, "--blocks", 8, "--out", tmp_path / "s.zarr", "--json")
    result = json.loads(call("compare-activations", a, b, "--pairs", pairs, *options))
    assert 0 < result["svcca"]["score"] <= 1
    assert 0.05 <= result["svcca"]["p"] <= 1
    assert result["tokens"] > 500
