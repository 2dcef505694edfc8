# `make train` and `make test` do all the set-up in .venv. Another Python: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
KERAS_BACKEND ?= jax
WORKERS ?= 2
BIN := .venv/bin

.PHONY: train test lint test-jax test-torch test-tensorflow

train: .venv/installed
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python train_imagenet.py

test: test-jax test-torch test-tensorflow

# One thread for each worker: two OpenMP pools on two cores wait for each other most of the time.
# Tests of a file share what they compile, so a file stays with one worker; the longest come first (conftest.py).
# Many tests, and the processes that they start, compile the same programs on JAX.
test-jax test-torch test-tensorflow: export OMP_NUM_THREADS := 1
test-jax test-torch test-tensorflow: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.pytest_cache/jax
test-jax test-torch test-tensorflow: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0.5
test-jax test-torch test-tensorflow: test-%: .venv/installed
	KERAS_BACKEND=$* $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(if $(filter jax,$*),,-m "not no_backend")

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@
