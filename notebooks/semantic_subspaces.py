# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Semantic subspaces: which meanings do two sites share?
#
# Features that fire on a concept form a subspace. Here it is two layers of all-MiniLM-L6-v2, with the dictionaries that
# come with the package, on a hundred documents: a small version of what `subspace demo` does for two models.

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
import yaml

import jobs.demo
import pipeline
from jobs.demo.models import MINILM
from jobs.demo.text import text
from pipeline.semantics.concepts import load_concepts

logging.basicConfig(level=logging.WARNING)
folder = Path(tempfile.mkdtemp())
(folder / "text.jsonl").write_text("\n".join(text().splitlines()[:100]) + "\n")

# %% [markdown]
# ## Concepts
#
# A concept is a named group of keywords. Some fifty come with the package; a YAML file of your own adds to them or
# replaces them. Keywords are matched as whole words of the text around the token on which a feature fires, whatever the
# tokenizer made of them: "she" is not in "sheen", and "New York" matches when a feature fires on "York".

# %%
concepts = load_concepts("default")
print(len(concepts), "concepts:", ", ".join(concepts))

# %% [markdown]
# ## Run
#
# The rule "at least 2 of the top 5 contexts are at a keyword" determines which features belong to a concept. There are
# two ways to make a subspace: select the concept's pairs from those of the whole space (`global`), or match its features
# among themselves (`within`).

# %%
dictionaries = Path(jobs.demo.__file__).parent / "dictionaries"
side = {"model": str(MINILM.path()), "dictionary": str(dictionaries)}
chosen = ["calendar", "numbers", "people", "pronouns", "countries", "war_and_military", "sport", "politics"]
experiment = {
    "name": "meanings",
    "corpus": {"path": str(folder / "text.jsonl"), "group": "article", "max_length": 128},
    "a": {**side, "sites": ["encoder.layer.1"]},
    "b": {**side, "sites": ["encoder.layer.3"]},
    "compare": {"metrics": ["rsa"], "null_runs": 100},
    "semantics": {"only": chosen, "null_runs": 100, "embedding": None},
}
(folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
result = pipeline.run(folder / "experiment.yaml", run_dir=folder / "run", until="semantics")

# %% [markdown]
# ## The table
#
# Each score is shown next to its chance level. `random_pairs` asks the hardest question: are these pairs more similar
# than the same number of other pairs? p is corrected over all concepts.

# %%
table = pd.read_csv(folder / "run" / "semantics.csv")
shown = table[(table.approach == "global") & (table.metric == "rsa")]
shown.pivot_table(index=["name", "n_pairs", "score"], columns="null", values=["null_mean", "p_holm"]).round(3)

# %%
hardest = shown[shown.null == "random_pairs"].dropna(subset=["score"]).sort_values("score")
plt.barh(hardest.name, hardest.score, label="this meaning")
plt.plot(hardest.null_mean, hardest.name, "k|", markersize=14, label="any pairs of the same number, mean")
plt.xlabel("RSA of the decoder rows")
plt.legend()
# %% [markdown]
# To see the features of a concept, use `subspace report`: it writes a page of concepts with the clearest pairs of each,
# side by side in the text.

# %%
semantics = xr.open_zarr(result.directory.semantics("encoder.layer.1", "encoder.layer.3"))
semantics
