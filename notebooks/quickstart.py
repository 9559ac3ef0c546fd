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
# # Quickstart: are these two feature spaces the same?
#
# Two models, one text, and we know the truth: model B has 300 of A's 800 features, under other names and rotated in its
# own space; its other features are not shared. Can we find this out from activations alone?

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
import xarray as xr

import pipeline
import storage

logging.basicConfig(level=logging.WARNING)
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())

n_tokens, n_features, n_shared = 24_000, 800, 300
partner = rng.permutation(n_features)[:n_shared]  # shared feature i of A is feature partner[i] of B

# %% [markdown]
# Sparse activations: a feature fires on 1 % of the tokens. The shared ones fire on the same tokens in both models,
# most of the time, and not equally strongly.


# %%
def fire(n: int) -> sp.csc_array:
    """Return activations of `n` features over all tokens."""
    return sp.random_array((n_tokens, n), density=0.01, format="csc", dtype="float32", rng=rng)


def noisy(x: sp.csc_array) -> sp.csc_array:
    """Drop a fifth of the activations and change the rest by a third."""
    y = x.copy()
    y.data *= (rng.random(len(y.data)) > 0.2) * rng.lognormal(0, 0.3, len(y.data))
    y.eliminate_zeros()
    return y


a = fire(n_features)
b = fire(n_features).tolil()
b[:, partner] = noisy(a[:, :n_shared]).tolil()

decoder_a = rng.normal(size=(n_features, 64)).astype("float32")
rotation = np.linalg.qr(rng.normal(size=(96, 64)))[0]
decoder_b = rng.normal(size=(n_features, 96)).astype("float32")
decoder_b[partner] = decoder_a[:n_shared] @ rotation.T + 0.3 * rng.normal(size=(n_shared, 96))

# %% [markdown]
# A store is a Zarr group. Sparse activations stay sparse on disk, and any xarray user can read them.

# %%
storage.write_activations(folder / "A.zarr", a.tocsr(), decoder=decoder_a)
storage.write_activations(folder / "B.zarr", b.tocsr().astype("float32"), decoder=decoder_b)
xr.open_zarr(folder / "A.zarr")

# %% [markdown]
# ## Correlate
#
# Every feature of A with every feature of B, exactly. Half of the rows select partners; `r_heldout` is measured on the
# other half.

# %%
cor = pipeline.correlate(folder / "A.zarr", folder / "B.zarr", top_k=8, out=folder / "C.zarr")
cor

# %%
best = cor.r_b.isel(rank=0).values
plt.hist(best[:n_shared], bins=40, alpha=0.7, label="shared features")
plt.hist(best[n_shared:], bins=40, alpha=0.7, label="A's own features")
plt.xlabel("best r with any feature of B")
plt.ylabel("features of A")
_ = plt.legend()
# %% [markdown]
# ## Match one to one
#
# `greedy` takes the best pair of all, then the best pair of the remaining features, and so on.

# %%
pairs = pipeline.match(cor, method="greedy", min_correlation=0.2)
truth = dict(enumerate(partner))
right = sum(truth.get(int(i)) == j for i, j in zip(pairs.feature_a.values, pairs.feature_b.values, strict=True))
print(f"{pairs.sizes['pair']} pairs, {right} of the {n_shared} true ones")
print(f"mean r {float(pairs.r.mean()):.3f} (selection half), {float(pairs.r_heldout.mean()):.3f} (held-out half)")
assert right > 0.99 * n_shared

# %% [markdown]
# ## Compare with chance
#
# Are the decoder directions of the pairs arranged similarly? Each score is shown next to that of shuffled pairings.

# %%
scores = pipeline.compare(pairs, folder / "A.zarr", folder / "B.zarr", metrics=["svcca", "rsa"], null_runs=200)
scores[["score", "null_mean", "null_std", "p"]].to_dataframe()

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for axis, metric in zip(axes, scores.metric.values, strict=True):
    axis.hist(scores.null_score.sel(metric=metric, null="shuffled").values, bins=30, label="shuffled pairings")
    axis.axvline(float(scores.score.sel(metric=metric)), color="tab:red", label="observed")
    axis.set_title(metric)
    axis.legend()
assert float(scores.p.max()) < 0.05

# %% [markdown]
# Note how high SVCCA is for shuffled pairings: with few pairs, two clouds of random vectors can always be rotated onto
# each other. That is why no score is shown alone here.
