#!/usr/bin/env bash
# All that needs a GPU, in at most eight minutes on a bare machine with a driver and Python:
#
#     benchmarks/gpu.sh                      packages from the index that pip is set up for
#     benchmarks/gpu.sh /path/to/wheels      packages from a folder of wheels, without a network
#
# A folder of wheels is made elsewhere by: pip download -c constraints.txt -d wheels '.[dev,gpu]'
# What is measured goes to gpu-results/ (or $OUT): results.json, and the output of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}
mkdir -p "$out"
nvidia-smi | tee "$out/gpu.txt"

sources=()
[ $# -eq 0 ] || sources=(--no-index --find-links "$1")
python3 -m venv .venv-gpu
# lint, documentation and notebooks are not needed here
.venv-gpu/bin/pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt "${sources[@]}" \
    -e '.[gpu]' array-api-strict hypothesis pytest pytest-rerunfailures pytest-timeout pytest-xdist scikit-learn

export NUMBA_CACHE_DIR=$PWD/.numba_cache
# a minute or two; the benchmark has what is left of eight
timeout 150 .venv-gpu/bin/pytest -q -m gpu tests/correlate/test_gpu.py 2>&1 | tee "$out/tests.txt"
timeout 270 .venv-gpu/bin/python -m benchmarks.gpu | tee "$out/results.json"
