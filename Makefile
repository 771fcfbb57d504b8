# `make help` lists the targets. Every target does all the set-up that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOGGER ?= wandb
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
  --constraint requirements/constraints.txt --editable '.[dev]'
# The compiled transformer takes about two thirds of the time. It is fastest with some 32 rows at a time.
# It needs a compiler and the headers of Python; `make train COMPILED=` does without.
COMPILED = $(shell test "$$(uname)" = Linux && command -v g++ > /dev/null && test -f "$$($(BIN)/python \
  -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
  && echo backbone.compile=true microbatch=32)
NEW := runs/tiny_ab/$(shell date +%Y-%m-%d_%H-%M-%S)
OBJECTIVES := runs/study/$(shell date +%Y-%m-%d_%H-%M-%S)
STUDY := docs/study/over_optimization_runs/*
DRIFT := docs/study/over_optimization_runs/*_seed[123] docs/study/other_arms/*_shuffled_seed*
RATE := docs/study/other_arms/*_third_rate_seed*
NEWEST = $(lastword $(sort $(wildcard runs/tiny_ab/*)))
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test check audit fuzz bench mutate docs objectives study report clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## make the virtual environment and install the pinned packages

$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	@# Without a GPU, torch comes without its 4 GB of CUDA libraries, if their index can be reached.
	@if command -v nvidia-smi > /dev/null; then $(INSTALL); \
	else $(INSTALL) --torch-backend=cpu 2> /dev/null || $(INSTALL); fi
	@touch $@

train: $(STAMP) ## train vanilla and Guard on the embedded model and make the page that compares them (8 to 22 minutes)
	$(BIN)/python scripts/train.py -m experiment=tiny_ab clipping=vanilla,guard logger=$(LOGGER) $(COMPILED) \
	  output='$(NEW)/$${hydra:runtime.choices.clipping}'
	$(BIN)/python scripts/compare.py $(NEW)/vanilla $(NEW)/guard --behind $(STUDY)

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# A vulnerability that became known today is not the fault of a change; `make audit` fails for it.
	-@$(BIN)/python requirements/audit.py

audit: $(STAMP) ## check the pinned packages for known vulnerabilities
	$(BIN)/python requirements/audit.py

fuzz: $(STAMP) ## try hostile commands in full, each in its own process (some minutes)
	$(BIN)/python tests/hostile_commands.py

bench: $(STAMP) ## time one iteration of every objective
	$(BIN)/python scripts/bench.py objectives

mutate: $(STAMP) ## make small mistakes in the core and check that tests fail (about an hour)
	mkdir -p runs
	$(BIN)/python scripts/mutate.py --report runs/mutants.json || true
	$(BIN)/python scripts/mutate.py --report runs/mutants.json --again

docs: $(STAMP) ## build the documentation in site/
	$(BIN)/mkdocs build --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

objectives: $(STAMP) ## train every objective on the embedded model and make the page that compares them (about 15 minutes)
	$(BIN)/python scripts/train.py +sweeps=study logger=$(LOGGER) \
	  output='$(OBJECTIVES)/$${hydra:runtime.choices.clipping}'
	$(BIN)/python scripts/compare.py $(OBJECTIVES)/* --out $(OBJECTIVES)/page

study: $(STAMP) ## make the pages, figures and results of the study of over-optimization again from its committed runs
	$(BIN)/python scripts/compare.py $(STUDY) --out runs/over_optimization_page
	cp runs/over_optimization_page/figures/set1-over_optimization.png docs/study/over_optimization.png
	$(BIN)/python scripts/compare.py $(DRIFT) --out runs/over_optimization_drift_page
	cp runs/over_optimization_drift_page/figures/set1-over_optimization.png docs/study/drift.png
	$(BIN)/python scripts/compare.py $(RATE) --out runs/over_optimization_rate_page
	cp runs/over_optimization_rate_page/figures/set1-over_optimization.png docs/study/third_rate.png
	$(BIN)/python scripts/write_study.py

report: $(STAMP) ## make the page of the newest `make train` again
	$(BIN)/python scripts/compare.py $(NEWEST)/vanilla $(NEWEST)/guard --behind $(STUDY)

clean: ## remove runs, the site and the virtual environment
	rm -rf $(VENV) runs site
