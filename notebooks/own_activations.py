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
# # Bring your own activations
#
# You already have activations of two models: as `.npy` files, SciPy matrices, or in another program's cache. The only
# requirement is that row *i* of both is the same token. Everything else is optional and improves the answer.

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pipeline
import storage
from pipeline.correlate.convergence import convergence
from pipeline.correlate.intervals import intervals

logging.basicConfig(level=logging.ERROR)  # hides the warning about stores without coordinates
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# Two files as another program may have written them: 300 documents of 40 tokens, with 90 and 70 dense features that mix
# 30 common causes.

# %%
n_documents, length = 300, 40
topic = rng.normal(size=(n_documents, 30)).repeat(length, axis=0)  # tokens of a document have a lot in common
causes = topic + rng.normal(size=topic.shape)
np.save(
    folder / "a.npy", (causes @ rng.normal(size=(30, 90)) + 3 * rng.normal(size=(len(causes), 90))).astype("float32")
)
np.save(
    folder / "b.npy", (causes @ rng.normal(size=(30, 70)) + 3 * rng.normal(size=(len(causes), 70))).astype("float32")
)

# %% [markdown]
# Import reads slab by slab, so files may be larger than memory. The coordinates of the rows (document and characters)
# make two stores comparable: their hashes are compared before anything is computed.

# %%
start = np.tile(np.arange(length), n_documents) * 5
rows = pd.DataFrame(
    {
        "document": np.arange(n_documents).repeat(length),
        "position": np.tile(np.arange(length), n_documents),
        "char_start": start,
        "char_end": start + 4,
    }
)
rows.to_csv(folder / "rows.csv", index=False)
for side in "ab":
    storage.import_activations(folder / f"{side}.npy", folder / f"{side.upper()}.zarr", tokens=folder / "rows.csv")
storage.open_activations(folder / "A.zarr")

# %% [markdown]
# On the command line:
#
# ```bash
# subspace import a.npy --tokens rows.csv --out A.zarr
# subspace import b.npy --tokens rows.csv --out B.zarr
# subspace correlate A.zarr B.zarr --out C.zarr
# subspace match C.zarr --out pairs.zarr
# ```

# %%
cor = pipeline.correlate(folder / "A.zarr", folder / "B.zarr", top_k=5, out=folder / "C.zarr")
pairs = pipeline.match(cor, method="greedy", out=folder / "pairs.zarr")
print(f"{pairs.sizes['pair']} pairs; mean r {float(pairs.r.mean()):.3f}, held out {float(pairs.r_heldout.mean()):.3f}")
assert pairs.sizes["pair"] > 30

# %% [markdown]
# ## How certain is r?
#
# Tokens of one document are not independent, so the units are whole documents. With single tokens as units, the
# intervals would be too narrow.

# %%
certain = intervals(folder / "pairs.zarr", folder / "A.zarr", folder / "B.zarr")
certain

# %%
order = np.argsort(-pairs.r.values)[:40]
low, high = (certain[name].values[order] for name in ("r_heldout_low", "r_heldout_high"))
plt.vlines(np.arange(len(order)), low, high)
plt.plot(pairs.r.values[order], "o", label="r, selection half")
plt.plot(pairs.r_heldout.values[order], "x", label="r, held-out half")
plt.xlabel("pairs, best first")
plt.legend()
# %% [markdown]
# ## Do you have enough text?
#
# r of the pairs from more and more documents: where the curve is flat, more text would not change the answer.

# %%
curve = convergence(folder / "pairs.zarr", folder / "A.zarr", folder / "B.zarr")
plt.plot(curve.n_rows, curve.mean_r.sel(half="heldout"), "o-", label="held-out half")
plt.plot(curve.n_rows, curve.mean_r.sel(half="select"), "o-", label="selection half")
plt.xlabel("rows")
plt.ylabel("mean r of the pairs")
plt.legend()
print(curve.attrs["verdict"], "–", curve.attrs["explanation"])
