# `make train` and `make test` do all the set-up in .venv. Another Python: make PYTHON=/path/to/python3.11 test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
KERAS_BACKEND ?= jax
WORKERS ?= 3
BIN := .venv/bin
# What a GPU of this machine needs beside all else.
CUDA = $(if $(shell nvidia-smi --list-gpus 2>/dev/null),$(COMMA)jax-cuda)
COMMA := ,

.PHONY: train test test-quick test-latest test-gpu lint kill fuzz test-jax test-torch test-tensorflow

train: .venv/installed
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python train_imagenet.py

# Every test on every backend; what a change to the core needs while one works; the tests of one backend.
test: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS)

test-quick: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS) --quick

# The quick tests with the newest releases that the package index has, whatever constraints.txt and pyproject.toml pin.
test-latest: .venv-latest/installed
	.venv-latest/bin/python -m pip list | grep -E "^(keras|keras-hub|numpy|jax|torch|tensorflow) "
	.venv-latest/bin/python tests/suite.py --workers $(WORKERS) --quick

.venv-latest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --editable ".[all,dev]"
	.venv-latest/bin/python -m pip install --quiet --upgrade keras keras-hub numpy jax torch torchvision tensorflow
	touch $@

test-jax test-torch test-tensorflow: test-%: .venv/installed
	$(BIN)/python tests/suite.py --workers $(WORKERS) --backends $*

# Every command that writes is killed at any moment, and run again: see tests/kill.py.
KILLS ?= 300
SEED ?= 1
kill: .venv/installed
	$(BIN)/python tests/kill.py --kills $(KILLS) --seed $(SEED)

# Damaged and hostile files of every kind at every door, from random seeds, for this long.
SECONDS ?= 60
fuzz: .venv/installed
	KERAS_BACKEND=torch $(BIN)/python tests/fuzz/fuzz_frame.py --seconds $(SECONDS)

# On a machine with an NVIDIA GPU: the fused kernels, on JAX and PyTorch.
test-gpu: .venv/installed
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/gpu_tests.py
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/gpu_tests.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev$(CUDA)]"
	touch $@
