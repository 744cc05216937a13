# densegen: what one can do with a clone. `make` alone prints the targets.
PYTHON ?= python3
SCALE ?= cpu
# lectures at the same time; the cores are shared out among them
JOBS ?= 2
# of the tests, which wait a third of their time for processes that they start
WORKERS ?= $(shell expr $(JOBS) + 1)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# image sets that lie beside the checkout are used; the course also runs without
BESIDE := $(wildcard $(abspath ../shared/data))
ifneq ($(BESIDE),)
export DENSEGEN_DATA ?= $(BESIDE)
endif

.PHONY: help course test quick lab site export mutants bench clean
.DEFAULT_GOAL := help

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

$(READY): settings.ini constraints.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

course: $(READY) ## run the lectures (SCALE=smoke is a tour of a minute or two)
	$(BIN)/densegen run --scale $(SCALE) --jobs $(JOBS)

test: $(READY) ## all that CI runs: sources in sync, unit tests, every lecture at scale cpu, the book
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
	$(BIN)/densegen run --scale cpu --jobs $(JOBS)

quick: $(READY) ## the same at scale smoke, for everyday work
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
	$(BIN)/densegen run --scale smoke --jobs $(JOBS)

lab: $(READY) ## open JupyterLab on the index
	$(BIN)/densegen lab

site: $(READY) ## build the book into _site
	$(BIN)/densegen site

export: $(READY) ## write densegen/*.py and README.md from the notebooks, clean the notebooks
	find densegen -name '*.py' -not -name '__*__.py' -delete
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/densegen readme

mutants: $(READY) ## test the tests: break the package in small ways, each of which a test must notice
	$(BIN)/python tests/mutants.py

bench: $(READY) ## time flows, samplers, metrics and the road detector, beside peers where there are some
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	$(BIN)/python tests/benchmarks/coupling.py
	$(BIN)/python tests/benchmarks/flows.py
	$(BIN)/python tests/benchmarks/matching.py
	$(BIN)/python tests/benchmarks/sampling.py
	$(BIN)/python tests/benchmarks/metrics.py
	$(BIN)/python tests/benchmarks/scoring.py

clean: ## remove the environment and everything that was computed
	rm -rf $(VENV) _runs _site _site_doctrees jupyter_execute _book _proc _docs *.egg-info .pytest_cache
