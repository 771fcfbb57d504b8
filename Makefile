# `make help` lists the targets; each does all the set-up it needs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOGGER ?= wandb
NEW := runs/tiny_ab/$(shell date +%Y-%m-%d_%H-%M-%S)
STUDY := runs/study/$(shell date +%Y-%m-%d_%H-%M-%S)
NEWEST = $(lastword $(sort $(wildcard runs/tiny_ab/*)))
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test check bench study report clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## make the virtual environment with the pinned packages

$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  --constraint requirements/constraints.txt --editable '.[dev]'
	@touch $@

train: $(STAMP) ## the embedded default, vanilla against Guard, and the page that compares them (about 14 minutes)
	$(BIN)/python scripts/train.py -m experiment=tiny_ab clipping=vanilla,guard logger=$(LOGGER) \
	  output='$(NEW)/$${hydra:runtime.choices.clipping}'
	$(BIN)/python scripts/compare.py $(NEW)/vanilla $(NEW)/guard

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP) ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## time one iteration of every objective
	$(BIN)/python scripts/bench.py objectives

study: $(STAMP) ## every objective on the embedded model, and the page that compares them (about 15 minutes)
	$(BIN)/python scripts/train.py +sweeps=study logger=$(LOGGER) \
	  output='$(STUDY)/$${hydra:runtime.choices.clipping}'
	$(BIN)/python scripts/compare.py $(STUDY)/* --out $(STUDY)/page

report: $(STAMP) ## make the page of the newest `make train` again
	$(BIN)/python scripts/compare.py $(NEWEST)/vanilla $(NEWEST)/guard

clean: ## remove runs and the virtual environment
	rm -rf $(VENV) runs
