"""Operations that Keras computes slowly on at least one backend, each with a fast path per backend.

The file of the active Keras backend, `on_<backend>.py`, is imported alone. Each has the same names: `depthwise_conv(x,
kernel)`, `linear(x, kernel, bias)`, `gelu(x)` and `layer_norm(x)`, with the arguments and results of the functions
here. Every operation here is a pure function of tensors,
differentiable, safe in `jax.jit`, `torch.compile`, `tf.function` and `keras.remat`, and equal to plain Keras operations
within rounding (`tests/test_kernels.py`). What is fast was measured on CPUs; see the backend's file.
"""

import importlib

import keras
from keras import ops

IMPLEMENTATIONS = ("fast", "plain")
TINY = 4  # pixels

_on_backend = importlib.import_module(f"fcdm_keras.kernels.on_{keras.backend.backend()}")


def depthwise_conv(x, kernel, implementation="fast"):
    """Depthwise k×k convolution, stride 1, zero padding that keeps the size; the sum is float32 inside.

    Args:
        x: `(B, H, W, C)`, float32, bfloat16 or float16.
        kernel: `(k, k, C, 1)` with k odd, the layout of `keras.layers.DepthwiseConv2D`, dtype of `x`.
        implementation: `"fast"`, or `"plain"` (`keras.ops.depthwise_conv`) for comparison.

    Returns:
        `(B, H, W, C)` in the dtype of `x`.

    Raises:
        ValueError: for another implementation, an even kernel, or shapes that do not fit.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"Received: implementation={implementation!r}, expected one of {IMPLEMENTATIONS}; choose one of them."
        )
    _check_shapes(tuple(x.shape), tuple(kernel.shape))
    if implementation == "plain":
        return ops.depthwise_conv(x, kernel, padding="same", data_format="channels_last")
    return _on_backend.depthwise_conv(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel))


def conv3x3(x, kernel):
    """3×3 convolution, stride 1, zero padding that keeps the size.

    On JAX feature maps of at most `TINY` pixels are one matrix product: XLA's gradients of the kernel take 12 to 50
    times as long there on CPUs (batch 64, 2×2 pixels, 256 to 512 channels: 993 ms, and 19 ms as a product).

    Args:
        x: `(B, H, W, C)`.
        kernel: `(3, 3, C, channels)`, dtype of `x`.

    Returns:
        `(B, H, W, channels)`.
    """
    height, width, channels = x.shape[1:]
    if keras.backend.backend() != "jax" or None in (height, width) or height * width > TINY:
        return ops.conv(x, kernel, padding="same", data_format="channels_last")
    padded = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = ops.concatenate(shifted, axis=-1)  # (B, H, W, 9C)
    return ops.matmul(patches, ops.reshape(kernel, (9 * channels, -1)))


def linear(x, kernel, bias):
    """`x @ kernel + bias` with `x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)`, all of one dtype: `(…, out)`."""
    return _on_backend.linear(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), ops.convert_to_tensor(bias))


def gelu(x):
    """Exact (erf) GELU, elementwise, in the dtype of `x`."""
    return _on_backend.gelu(x)


def layer_norm(x):
    """LayerNorm over the last axis without scale and offset, eps 1e-6: statistics and result in float32."""
    return _on_backend.layer_norm(x)


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
