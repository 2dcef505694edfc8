"""Between maps and tokens of patches: cutting, positions, and the final layer of DiT.

Tokens of p×p patches keep their places: they are `(B, H/p, W/p, D)`.
"""

import warnings

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.network.layers import linear, modulate, wide
from fcdm_keras.network.rivals.blocks import adaln, vectors


def patchify(x, size):
    """`(B, H, W, C)` → `(B, H/p, W/p, p·p·C)`: element (a·p + b)·C + k is pixel (a, b), channel k of the patch."""
    _, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height // size, width // size, size**2 * channels))


def unpatchify(x, size):
    """The inverse of `patchify`."""
    _, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (-1, height, width, size, size, channels // size**2))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height * size, width * size, channels // size**2))


def sine_positions(height, width, channels, side=None):
    """DiT's fixed position embedding, `(1, height · width, channels)`, float32.

    Row r and column q have `[sin(q ω), cos(q ω), sin(r ω), cos(r ω)]`, ω_k = 10000^(−k/K), K = channels / 4.

    Args:
        height, width: of the grid of tokens.
        channels: divisible by 4.
        side: of the grid that a network was trained on; a grid of another size lies within the same range.
    """
    quarter = channels // 4
    frequencies = np.power(10_000.0, -np.arange(quarter) / quarter).astype("float32")

    def axis(count):
        places = ops.arange(count, dtype="float32")
        if side is not None and side != count:
            places = (places + 0.5) * (side / count) - 0.5
        angles = places[:, None] * frequencies[None]
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)  # (count, channels / 2)

    columns = ops.broadcast_to(axis(width)[None], (height, width, channels // 2))
    rows = ops.broadcast_to(axis(height)[:, None], (height, width, channels // 2))
    return ops.reshape(ops.concatenate([columns, rows], axis=-1), (1, -1, channels))


def tell_interpolation(x, input_size, patch_size):
    """Warns where a network of inputs of a size has tokens `x` `(B, h, w, D)` of another."""
    height, width = (side and side * patch_size for side in x.shape[1:3])
    if None not in (input_size, height, width) and (height, width) != (input_size, input_size):
        warnings.warn(
            f"Positions are interpolated: the network was made for x_t of {input_size}×{input_size}. "
            f"Received: {height}×{width}",
            stacklevel=3,
        )


@keras.saving.register_keras_serializable("fcdm_keras")
class FinalTokens(layers.Layer):
    """LayerNorm, adaLN modulation, a linear and unpatchifying, in float32 or float64; zero in a new network.

    `call(x, conditioning)`: tokens `(B, h, w, D)` and `(B, D)` → `(B, h·p, w·p, channels)`.

    Args:
        channels: output channels.
        patch_size: p.
    """

    def __init__(self, channels, patch_size, **kwargs):
        super().__init__(**{**kwargs, "dtype": wide(kwargs.get("dtype"))})
        self.channels, self.patch_size = channels, patch_size
        options = {"kernel_initializer": "zeros", "dtype": self.dtype_policy}
        self.linear = linear(patch_size**2 * channels, name="linear", **options)

    def build(self, input_shape, conditioning_shape=None):
        self.adaln = adaln(2, input_shape[-1], self.dtype_policy)
        self.linear.build(input_shape)

    def call(self, x, conditioning):
        shift, scale = vectors(self.adaln, conditioning, 2)
        return unpatchify(self.linear(modulate(kernels.layer_norm(x), shift, scale)), self.patch_size)

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        batch, height, width, _ = input_shape
        size = self.patch_size
        return (batch, height and height * size, width and width * size, self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "patch_size": self.patch_size}
