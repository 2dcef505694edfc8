"""Plain Keras operations, on any backend: what `fcdm_keras.kernels.plain` computes with."""

import keras
from keras import ops


def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`."""
    return ops.depthwise_conv(x, kernel, padding="same", data_format="channels_last")


def conv3x3(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(3, 3, C, channels)` → `(B, H, W, channels)`."""
    return ops.conv(x, kernel, padding="same", data_format="channels_last")


def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`."""
    return ops.add(ops.matmul(x, kernel), bias)


def gelu(x):
    """Exact GELU, elementwise."""
    return ops.gelu(x, approximate=False)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32, or float64 if `x` is."""
    x = ops.cast(x, "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32")
    centred = ops.subtract(x, ops.mean(x, axis=-1, keepdims=True))
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-6)
