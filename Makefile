# `make train` and `make test` do all the set-up in .venv. Another Python: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
KERAS_BACKEND ?= jax
WORKERS ?= 3
BIN := .venv/bin

.PHONY: train test test-quick lint test-jax test-torch test-tensorflow

train: .venv/installed
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python train_imagenet.py

# Every test on every backend; what a change to the core needs while one works; the tests of one backend.
test: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS)

test-quick: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS) --quick

test-jax test-torch test-tensorflow: test-%: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS) --backends $*

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@
