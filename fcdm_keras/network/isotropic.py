"""FCDM's blocks without the U-Net (paper, table 12): one width, on patches.

The paper gives no more of this network than 62 M parameters. Patches of 2×2, the last layer and the count of blocks are
our choice; they follow DiT.
"""

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.network.layers import linear, modulate, wide
from fcdm_keras.network.resampling import pixel_unshuffle

PATCH = 2


class Isotropic:
    """What stands in place of the U-Net in a `FCDMBackbone`: `x_embedder`, blocks in `middle`, and `final_layer`.

    `x_t` is cut into patches of 2×2, each a position of one width C; there is no position embedding. `depths` is one
    number.
    """

    side_multiple = PATCH
    _widths = (1,)

    def _make_layers(self):
        self.x_embedder = linear(self.hidden_channels, dtype=self.dtype_policy, name="x_embedder")
        self.middle = self._blocks(self.depths[0], "middle")
        self.final_layer = PatchFinalLayer(self.out_channels, dtype=self.dtype_policy, name="final_layer")

    def _build_layers(self):
        self.x_embedder.build((None, None, None, self.in_channels * PATCH**2))
        self.final_layer.build((None, None, None, self.hidden_channels))

    def _levels(self):
        return ((self.middle, self.hidden_channels),)

    def call(self, inputs, training=None):
        x, (c,) = self._embedded(inputs)
        x = self.x_embedder(pixel_unshuffle(x))  # (B, H/2, W/2, C)
        for block in self.middle:
            x = block(x, c, training=training)
        return self.final_layer(x, c)


@keras.saving.register_keras_serializable("fcdm_keras")
class PatchFinalLayer(layers.Layer):
    """LayerNorm, adaLN modulation and a linear to the pixels of each patch, all in float32 or float64.

    `call(x, conditioning)`: `(B, H, W, C)` and `(B, C)` → `(B, 2H, 2W, channels)`, zero in a new layer.

    Args:
        channels: output channels.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**{**kwargs, "dtype": wide(kwargs.get("dtype"))})
        self.channels = channels

    def build(self, input_shape, conditioning_shape=None):
        width, zeros = input_shape[-1], {"kernel_initializer": "zeros", "dtype": self.dtype_policy}
        self.adaln = linear(2 * width, name="adaln", **zeros)
        self.linear = linear(PATCH**2 * self.channels, name="linear", **zeros)
        self.adaln.build((None, width))
        self.linear.build((None, None, None, width))

    def call(self, x, conditioning):
        shift, scale = ops.split(self.adaln(ops.silu(conditioning)), 2, axis=-1)
        x = self.linear(modulate(kernels.layer_norm(x), shift, scale))
        _, height, width, _ = ops.shape(x)
        x = ops.reshape(x, (-1, height, width, PATCH, PATCH, self.channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, PATCH * height, PATCH * width, self.channels))

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        batch, height, width, _ = input_shape
        return (batch, height and PATCH * height, width and PATCH * width, self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
