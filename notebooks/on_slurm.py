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
# # On Slurm
#
# The same code, other workers. A profile of `cluster.yaml` describes a job; `--cluster PROFILE` on the command line, or
# `connect` in Python, starts it. If this notebook runs without Slurm, processes of this machine replace the jobs;
# everything else (TLS, the scheduler, the results) is the same.

# %%
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import pipeline
import storage
from jobs.cluster import connect

logging.basicConfig(level=logging.WARNING)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Your site
#
# List only the keys that differ from the file shipped with the package. You can inspect the job script before anything
# is submitted:

# %%
(folder / "mine.yaml").write_text(
    """
jobqueue:
  slurm-gpu: {partition: gpu, account: lab, walltime: "04:00:00", modules: [python/3.11, cuda/12]}
"""
)
# on the command line: subspace cluster job-script slurm-gpu --cluster-file mine.yaml
command = ["cluster", "job-script", "slurm-gpu", "--cluster-file", str(folder / "mine.yaml")]
print(subprocess.run([sys.executable, "-m", "jobs.cli", *command], capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# A worker retires before its walltime ends, and a lost job is replaced. Scheduler and workers use TLS with certificates
# that only you can read.
#
# ## A correlation on workers

# %%
rng = np.random.default_rng(0)
a = sp.random_array((20_000, 500), density=0.02, format="csr", dtype="float32", rng=rng)
for name, order in (("A", np.arange(500)), ("B", rng.permutation(500))):
    storage.write_activations(folder / f"{name}.zarr", a[:, order])
here = pipeline.correlate(folder / "A.zarr", folder / "B.zarr", top_k=4, out=folder / "here.zarr")

# %%
profile = "processes"  # on a cluster: "slurm-cpu" or "slurm-gpu", with connect(profile, folder / "mine.yaml")
with connect(profile) as client:
    print(len(client.scheduler_info()["workers"]), "workers at", client.scheduler.address.split("://")[0] + "://…")
    there = pipeline.correlate(folder / "A.zarr", folder / "B.zarr", top_k=4, out=folder / "there.zarr", client=client)

# %% [markdown]
# Results do not depend on the workers, neither on their location nor on their number.

# %%
assert here.identical(there.assign_attrs(here.attrs))
float(here.r_b.isel(rank=0).min())

# %% [markdown]
# ## Whole runs
#
# ```bash
# subspace run experiment.yaml --cluster slurm-cpu --cluster-file mine.yaml   # the driver here, workers as jobs
# subspace submit experiment.yaml --cluster slurm-cpu                         # the driver as a job, too
# subspace submit experiment.yaml --array 16                                  # job arrays, no scheduler at all
# subspace cluster up night --profile slurm-cpu                               # workers that stay
# subspace run experiment.yaml --cluster night
# subspace status runs/NAME                                                   # what is done, what is to come
# subspace cluster down night
# ```
#
# If a run was killed, even with its driver, the same command resumes it. While it runs, the dashboard shows every task;
# the `ssh` command for the tunnel to it is printed at the start.

# %%
print("Slurm here:", shutil.which("sbatch") or "none")
