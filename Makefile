# Every target makes its own environment first: a fresh clone needs python3 (3.10 or newer) with venv, and make.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread per process: two test processes on two cores get in each other's way otherwise. Nothing is downloaded.
# Bytecode is kept: the many processes that tests launch would compile the package anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types docs tables linkcheck bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: PYTHON=python3, VENV=.venv, CONSTRAINTS=constraints.txt (empty: newest versions, GPU build of torch)'

$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "calor_hf needs Python 3.10 or newer, and '$(PYTHON)' is not; pass PYTHON=python3.11 or the like"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[dev]"
	@touch $@

install: $(STAMP) ## Make the environment and install the package into it

demo: $(STAMP) ## Train three models on drawn people and show what leaks (4 minutes on 2 cores, after installing)
	HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(BIN)/python examples/demo.py

test: $(STAMP) ## Run the tests, without the slow ones (6 minutes on 2 cores)
	$(PYTEST) -m "not slow and not gpu" --timeout 300

test-all: $(STAMP) ## Run all tests that need no GPU (an hour at most)
	$(PYTEST) -m "not gpu" --timeout 1800

lint: $(STAMP) ## Check style, format and English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 0 --noconftest tests/test_english.py

types: $(STAMP) ## Check types
	$(BIN)/mypy --strict

docs: $(STAMP) ## Build the documentation into build/docs; warnings are errors
	HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo 'open build/docs/index.html'

tables: $(STAMP) ## Write the generated tables of the guides from the code
	HF_HUB_OFFLINE=1 $(BIN)/python docs/method_tables.py

linkcheck: $(STAMP) ## Check the documentation's links to other sites (needs the internet)
	HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(BIN)/python -m sphinx -q -b linkcheck -c docs . build/linkcheck

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python -m benchmarks

clean: ## Remove caches, build files and .venv; outputs stay
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
