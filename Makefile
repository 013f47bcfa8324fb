# Works on a fresh machine with python3 (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-stamp

export OMP_NUM_THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint trusted format bench experiments docs clean distclean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## create .venv and install lipcert with its tools (again only when pyproject.toml changes)

# torch goes first and pinned, so that no later requirement chooses another build of it.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lipcert needs Python 3.11 or newer; try: make PYTHON=python3.11 setup" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e '.[dev,examples]'
	$(BIN)/python -m pip install --quiet --no-deps neuralfoil==0.3.3  # only its weights, for an example
	@touch $@

demo: setup ## bound, breakdown, lower bound, certificate and its verification for two MNIST networks
	$(BIN)/python examples/demo.py

test: setup ## the fast tests; COVERAGE=1 reports how much of the sources they run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=15 $(if $(COVERAGE),--cov=lipcert --cov-report=term)

test-slow: setup ## the tests marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

lint: setup ## ruff, mypy and the layer rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

trusted: setup ## the files that the check of each kind of certificate imports, with their lengths
	$(BIN)/python docs/trusted.py $(CHECK)

format: setup ## rewrite the sources the way `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmarks/bench_*.py, one after another
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps digit-recognizer-py==0.1.0  # only its weights
	@set -e; for script in benchmarks/bench_*.py; do \
		test -e "$$script" || { echo "no benchmarks/bench_*.py yet" >&2; exit 1; }; \
		echo "== $$script"; $(BIN)/python "$$script"; \
	done

# The options of the AlexNet run; `make experiments ALEXNET=` adds LipSDP, which takes many minutes more.
ALEXNET ?= --skip lipsdp

experiments: setup ## the 2018 paper's experiments, into experiments/results (docs/paper.md)
	$(BIN)/python -m pip install --quiet -e '.[report,examples]'
	@set -e; for name in greedy_lies gaussian_process ideal_spectra mnist_cnn trained_imagenet; do \
		echo "== $$name"; $(BIN)/python -m experiments.$$name; \
	done
	$(BIN)/python -m experiments.alexnet $(ALEXNET)

docs: setup ## run the examples of the pages, write docs/constants.md, and build the site, in build/site
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python docs/make_constants.py
	OMP_NUM_THREADS=1 $(BIN)/python docs/run_examples.py
	OMP_NUM_THREADS=1 $(BIN)/python docs/run_notebook.py
	$(BIN)/python -m docs.make_site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove what the other targets made, except .venv
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache .coverage
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV)
