"""Whether a block's residual is computed by the fused kernels of `kernels/gpu`, and that they are right where they run.

They run on NVIDIA GPUs, on JAX and PyTorch, in bfloat16 and float16. On their first use in a process they are compared
with plain operations, forward and gradients, on a small input: if they fail or differ, one sentence says so, and the
plain path runs. `FCDM_KERAS_FUSED=0` in the environment turns them off.
"""

import functools
import importlib
import importlib.metadata
import os
import sys

import keras
import numpy as np
from keras import ops

from fcdm_keras.kernels.gpu import block
from fcdm_keras.kernels.gpu.plain import PlainKernels

SWITCH = "FCDM_KERAS_FUSED"
TOLERANCE = 3e-2  # relative error, a few roundings to bfloat16
_DTYPES = ("bfloat16", "float16")


def residual(x, hidden):
    """The function `residual(x, shift, scale, gate, taps, …)` of `gpu.block`, or `None` where plain operations run.

    Args:
        x: `(B, H, W, D)`, the block's input.
        hidden: width N of the hidden layer.
    """
    if keras.backend.standardize_dtype(x.dtype) not in _DTYPES or None in tuple(x.shape):
        return None
    engine = _engine()
    return engine.residual if engine and engine.takes(x) and engine.fits(x, hidden) and _right() else None


@functools.cache
def _engine():
    """The launches of this backend, where it has a GPU and Triton."""
    backend = keras.backend.backend()
    if backend not in ("jax", "torch") or os.environ.get(SWITCH, "1") == "0":
        return None
    devices = importlib.import_module(f"fcdm_keras.kernels.gpu.devices_{backend}")
    if not devices.found():
        return None
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        _say("TensorFlow was imported before Triton, which would end the process: import fcdm_keras first")
        return None
    try:
        return importlib.import_module(f"fcdm_keras.kernels.gpu.on_{backend}")
    except ImportError as error:
        _say(f"{error}")
        return None


@functools.cache
def _right():
    """Whether the kernels agree with plain operations on this device."""
    try:
        errors = _engine().concretely(_compare)
    except Exception as error:  # whatever a compiler or driver raises: the plain path is there
        _say(f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else error}")
        return False
    if not max(errors) < TOLERANCE:
        _say(f"they differ from plain operations by {max(errors):.1e}")
    return max(errors) < TOLERANCE


def _compare():
    """Relative errors of the output and of each gradient of a small block."""
    arguments, upstream = example(2, 8, 64)
    results = []
    for kernels in (_engine().kernels, PlainKernels()):
        out, saved = block.forward(kernels, *arguments, save=True)
        values = [out, *block.backward(kernels, saved, *arguments, upstream)]
        results.append([ops.convert_to_numpy(ops.cast(value, "float32")) for value in values])
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(*results)]


def example(batch, side, width, dtype="bfloat16", seed=0):
    """Arguments of a block's residual, and a gradient to its output: normal numbers, scaled as in a new network."""
    rng = np.random.default_rng(seed)
    hidden = 3 * width
    draw = lambda *shape, by=1.0: ops.convert_to_tensor(by * rng.normal(size=shape), "float32")  # noqa: E731
    x, upstream = (ops.cast(draw(batch, side, side, width), dtype) for _ in range(2))
    vectors = [draw(batch, width) for _ in range(3)]
    convolution = [draw(7, 7, width, 1, by=1 / 7), draw(width)]
    linear_1 = [draw(width, hidden, by=width**-0.5), draw(hidden)]
    linear_2 = [draw(hidden, width, by=hidden**-0.5), draw(width)]
    return [x, *vectors, *convolution, *linear_1, draw(hidden), draw(hidden), *linear_2], upstream


def _say(reason):
    versions = []
    for name in (keras.backend.backend(), "triton", "jax-triton"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(
        f"The fused GPU kernels are not used ({reason}; {', '.join(versions)}): plain operations run, slower.",
        file=sys.stderr,
    )
