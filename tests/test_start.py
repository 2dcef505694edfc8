"""Importing the package starts no devices: `distribution.setup` must come before anything that does."""

import os
import sys
from pathlib import Path

import keras
import processes

ROOT = Path(__file__).parents[1]

IMPORTS_ALL = """
import importlib, pkgutil, sys
import keras

def started():
    "Whether the active backend has looked for devices."
    if keras.backend.backend() == "jax":
        from jax._src import xla_bridge  # as of JAX 0.10; the public ways to ask start them
        return bool(xla_bridge._backends)
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.eager import context  # as of TensorFlow 2.21
        return context.context()._context_handle is not None
    import torch
    return torch.cuda.is_initialized()

GPU = "convolution pointwise launches on_jax on_torch devices_torch devices_jax jax_residual".split()

import fcdm_keras
for name in fcdm_keras.__all__:
    getattr(fcdm_keras, name)
    assert not started(), f"fcdm_keras.{name}"
for package in ("fcdm_keras", "t2i"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        # A program of its own, with PyTorch; and what needs a GPU: Triton, which is to be imported before TensorFlow.
        apart = ("t2i.open_clip_worker", *(f"fcdm_keras.kernels.gpu.{name}" for name in GPU))
        if module.name not in apart:
            importlib.import_module(module.name)
            assert not started(), module.name

keras.ops.ones(1)
if keras.backend.backend() != "torch":  # which starts CUDA alone, where there is any
    assert started(), "the test sees nothing"
print("nothing started")
"""


def test_importing_every_module_starts_no_devices():
    command = [sys.executable, "-c", IMPORTS_ALL]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    done = processes.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "nothing started"
