"""From one resolution of the U-Net to the next: convolutions with pixel-(un)shuffle (paper, figure 3c)."""

import keras
from keras import layers, ops

from fcdm_keras.network.layers import conv


@keras.saving.register_keras_serializable("fcdm_keras")
class Downsample(layers.Layer):
    """3×3 convolution without bias, then pixel-unshuffle by 2: `(B, H, W, C)` → `(B, H/2, W/2, channels)`.

    Args:
        channels: output channels, divisible by 4.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = conv(channels // 4, use_bias=False, dtype=self.dtype_policy, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return pixel_unshuffle(self.conv(x))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, height and height // 2, width and width // 2, self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable("fcdm_keras")
class Upsample(layers.Layer):
    """3×3 convolution without bias, then pixel-shuffle by 2: `(B, H, W, C)` → `(B, 2H, 2W, channels)`.

    Args:
        channels: output channels.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = conv(channels * 4, use_bias=False, dtype=self.dtype_policy, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return pixel_shuffle(self.conv(x))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, height and height * 2, width and width * 2, self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def pixel_unshuffle(x):
    """`(B, 2H, 2W, C)` → `(B, H, W, 4C)`, channel `c·4 + dy·2 + dx` as in PyTorch."""
    _, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 5, 2, 4)), (-1, height // 2, width // 2, 4 * channels))


def pixel_shuffle(x):
    """`(B, H, W, 4C)` → `(B, 2H, 2W, C)`, the inverse of `pixel_unshuffle`."""
    _, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (-1, height, width, channels // 4, 2, 2))
    return ops.reshape(ops.transpose(x, (0, 1, 4, 2, 5, 3)), (-1, 2 * height, 2 * width, channels // 4))
