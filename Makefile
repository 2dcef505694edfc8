# `make train` and `make test` do all the set-up in .venv. Another Python: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
KERAS_BACKEND ?= jax
BIN := .venv/bin

.PHONY: train test lint test-jax test-torch test-tensorflow

train: .venv/installed
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python train_imagenet.py

test: test-jax test-torch test-tensorflow

test-jax test-torch test-tensorflow: test-%: .venv/installed
	KERAS_BACKEND=$* $(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@
