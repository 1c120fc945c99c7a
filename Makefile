# Everything a newcomer needs; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-real test test-all torture paper-tables figures notebooks bench lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# torch first and pinned: on its own a package index may offer a build with gigabytes of GPU libraries
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(BIN)/.installed ## install, fetch the embedded pair, run the main job, print its table and pictures
	$(BIN)/python run.py experiment=demo
	@echo "A pair on which speculation pays clearly, 1.6 GB to fetch: make demo-real"

demo-real: $(BIN)/.installed ## the same on Qwen2.5-Coder 1.5B and 0.5B, two models that people have; needs 6 GB of memory
	$(BIN)/python run.py experiment=demo model_pair=qwen2.5-coder-0.5b-1.5b tasks.limit=1

# A file's tests stay in one process, so that what they share is made once
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: $(BIN)/.installed ## install and run the tests, but for the slow ones and those of the real pair
	$(PYTEST) -m "not slow and not embedded"

test-all: $(BIN)/.installed ## the slow ones too (compilers, wheels, the real pair), with coverage
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

torture: $(BIN)/.installed ## hand commands over a thousand bad inputs and kill runs 200 times, about 10 minutes
	$(BIN)/python scripts/torture.py

paper-tables: $(BIN)/.installed ## rebuild results/tables and results/figures from stored runs, without torch
	$(BIN)/python -m gammatune paper-tables

figures: paper-tables ## the same; pictures are in results/figures

notebooks: $(BIN)/.installed ## execute the notebooks on stored results, into build/notebooks
	mkdir -p build/notebooks && cp notebooks/*.ipynb build/notebooks
	GAMMATUNE_RESULTS=$(CURDIR)/results $(BIN)/jupyter-execute --inplace build/notebooks/*.ipynb
	@echo "Executed notebooks are in build/notebooks"

bench: $(BIN)/.installed ## time this machine: against transformers, against memory, beside the forwards, replay
	$(BIN)/python benchmarks/vs_transformers.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/replay_throughput.py

lint: $(BIN)/.installed ## check style with ruff
	$(BIN)/ruff check .

clean: ## remove caches and build files; runs and the environment stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
