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
# # A sweep over layers: where in one model does the other one's layer live?
#
# all-MiniLM-L6-v2 against a control: the same architecture with weights drawn at random. Every layer of the trained
# model is compared with itself and its neighbours, and with the layers of the random one. Raw units are compared here,
# so no dictionary is needed; to use dictionaries, name them with `dictionary:`. The rest is the same.

# %%
import json
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

import pipeline
from jobs.demo.models import MINILM
from jobs.demo.text import text
from storage import open_result

logging.basicConfig(level=logging.WARNING)
folder = Path(tempfile.mkdtemp())
documents = text().splitlines()[:40]
(folder / "text.jsonl").write_text("\n".join(documents) + "\n")
print(len(documents), "documents, the first:", json.loads(documents[0])["text"][:80], "…")

# %% [markdown]
# An experiment is one YAML file: two sides, and a grid of all pairs of their sites. A model runs once for all of its
# sites, and no deeper than the deepest one.

# %%
sites = [f"encoder.layer.{i}" for i in (0, 2, 4)]
model = {"model": str(MINILM.path()), "dictionary": "identity", "kind": "raw", "sites": sites}
experiment = {
    "name": "layers",
    "corpus": {"path": str(folder / "text.jsonl"), "max_length": 128},
    "a": {**model, "label": "MiniLM"},
    "b": {**model, "label": "MiniLM"},
    "correlate": {"top_k": 4, "keep_above": 0.2},
    "match": {"min_correlation": 0.2},
}
control = {**experiment, "name": "control", "b": {**model, "label": "MiniLM at random", "randomise": 0}}


def grid(settings: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """Run as far as the pairs; return the mean held-out r and the number of pairs for every pair of sites."""
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings))
    result = pipeline.run(path, run_dir=folder / str(settings["name"]), until="match")
    pairs = [[result.pairs(a, b) for b in sites] for a in sites]
    r = np.array([[float(one.r_heldout.mean()) for one in row] for row in pairs])
    return r, np.array([[one.sizes["pair"] for one in row] for row in pairs])


r_trained, n_trained = grid(experiment)
r_control, n_control = grid(control)

# %% [markdown]
# r alone is not enough: a site with few pairs above the minimum can have a high mean. So both are shown.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for axis, r, n, name in zip(
    axes, (r_trained, r_control), (n_trained, n_control), ("itself", "weights at random"), strict=True
):
    axis.imshow(r, vmin=0.2, vmax=1, cmap="viridis")
    axis.set_title(f"MiniLM against {name}")
    axis.set_xticks(range(len(sites)), sites)
    axis.set_yticks(range(len(sites)), sites)
    for i, j in np.ndindex(r.shape):
        axis.text(
            j, i, f"{r[i, j]:.2f}\n{n[i, j]} pairs", ha="center", va="center", color="w" if r[i, j] < 0.7 else "k"
        )
assert (np.diag(r_trained) > 0.99).all(), "a layer against itself is 1"
assert (r_trained[0, 0] > r_trained[0, 1] > r_trained[0, 2]) and (r_trained[0, 2] > r_control.max())

# %% [markdown]
# ## Each feature's best layer
#
# Averages hide that different features are at different depths. For every feature of a side, `best_layer` shows at which
# site of the other side its best partner is, and by how much it is better than the runner-up at another site. (It is
# written to every run directory, as Zarr and as CSV.)

# %%
best = open_result(folder / "control" / "best_layer.zarr")
names, counts = np.unique(best.best_site_a.values, return_counts=True)
dict(zip(names.tolist(), counts.tolist(), strict=True))
