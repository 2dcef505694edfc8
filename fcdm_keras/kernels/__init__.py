"""Operations that Keras computes slowly on at least one backend, each with a fast path per backend.

The file of the active Keras backend, `on_<backend>.py`, is imported alone. Each has the same names: `depthwise_conv(x,
kernel)`, `conv3x3(x, kernel)`, `linear(x, kernel, bias)`, `gelu(x)` and `layer_norm(x)`, with the arguments and results
of the functions here; `on_keras.py` has them as plain Keras operations, which stand in for all of them inside `plain`.

Every operation here is a pure function of tensors, differentiable any number of times, forward and backward, safe in
`jax.jit`, `torch.compile`, `tf.function` and `keras.remat`, and equal to plain Keras operations within rounding
(`tests/test_kernels.py`, `tests/test_gradients.py`). Sums are float32, or float64 where the arguments are. What is fast
was measured on CPUs; see the backend's file.
"""

import contextlib
import contextvars
import importlib

import keras
from keras import ops

from fcdm_keras.kernels import fused, on_keras

_on_backend = importlib.import_module(f"fcdm_keras.kernels.on_{keras.backend.backend()}")
_active = contextvars.ContextVar("active", default=_on_backend)


@contextlib.contextmanager
def plain():
    """Inside, all operations here are plain Keras operations, in this thread; so are programs traced inside.

    For what cannot take code of our own: programs exported to other engines, transformations that have no rule for it.
    Slower: tens of times on JAX, for the depthwise convolution.

    Example:

    ```python
    with kernels.plain():
        exported = jax.export.export(jax.jit(network))(x)
    ```
    """
    token = _active.set(on_keras)
    try:
        yield
    finally:
        _active.reset(token)


def depthwise_conv(x, kernel):
    """Depthwise k×k convolution, stride 1, zero padding that keeps the size.

    Args:
        x: `(B, H, W, C)`, floating.
        kernel: `(k, k, C, 1)` with k odd, the layout of `keras.layers.DepthwiseConv2D`, dtype of `x`.

    Returns:
        `(B, H, W, C)` in the dtype of `x`.

    Raises:
        ValueError: for an even kernel, or shapes that do not fit.
    """
    _check_shapes(tuple(x.shape), tuple(kernel.shape))
    return _active.get().depthwise_conv(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel))


def conv3x3(x, kernel):
    """3×3 convolution, stride 1, zero padding that keeps the size.

    Args:
        x: `(B, H, W, C)`.
        kernel: `(3, 3, C, channels)`, dtype of `x`.

    Returns:
        `(B, H, W, channels)`.
    """
    return _active.get().conv3x3(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel))


def linear(x, kernel, bias):
    """`x @ kernel + bias` with `x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)`, all of one dtype: `(…, out)`."""
    return _active.get().linear(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), ops.convert_to_tensor(bias))


def gelu(x):
    """Exact (erf) GELU, elementwise, in the dtype of `x`."""
    return _active.get().gelu(x)


def layer_norm(x):
    """LayerNorm over the last axis without scale and offset, eps 1e-6: statistics and result in float32 or wider."""
    return _active.get().layer_norm(x)


def fused_residual(x, hidden):
    """A function that computes a block's whole residual in fused kernels, or `None` (see `fcdm_keras.kernels.fused`).

    Args:
        x: the block's input, `(B, H, W, D)`.
        hidden: width of its hidden layer.
    """
    return None if _active.get() is on_keras else fused.residual(x, hidden)


def _check_shapes(x_shape, kernel_shape):
    if len(x_shape) != 4:
        raise ValueError(f"Received: x of shape {x_shape}, expected (B, H, W, C); give feature maps channels last.")
    if len(kernel_shape) != 4 or kernel_shape[0] != kernel_shape[1] or kernel_shape[3] != 1:
        raise ValueError(
            f"Received: kernel of shape {kernel_shape}, expected (k, k, C, 1); "
            "give a square kernel in the layout of keras.layers.DepthwiseConv2D."
        )
    if kernel_shape[0] % 2 == 0:
        raise ValueError(f"Received: kernel size {kernel_shape[0]}, expected an odd size; choose 3, 5, 7, …")
    if x_shape[3] != kernel_shape[2]:
        raise ValueError(
            f"Received: x with {x_shape[3]} channels and kernel with {kernel_shape[2]}, expected the same number; "
            "build the kernel for the channels of x."
        )
