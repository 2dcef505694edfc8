"""DiCo (Ai et al., arXiv:2505.11196): a U-Net of depthwise convolutions with compact channel attention."""

import keras
from keras import ops

from fcdm_keras import kernels
from fcdm_keras.arguments import SIDE, check_integer, check_number
from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import DepthwiseConv, conv, linear
from fcdm_keras.network.rivals.blocks import Block, adaln, gated, modulated, vectors
from fcdm_keras.network.rivals.unet import UNetBackbone


@keras.saving.register_keras_serializable("fcdm_keras")
class DiCoBlock(Block):
    """Depthwise 3×3 convolution with channel attention, and an MLP: `(B, H, W, d)`, `(B, d)` → `(B, H, W, d)`.

    Args:
        mlp_ratio: inner width of the MLP over d.
    """

    def __init__(self, mlp_ratio=2.0, **kwargs):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.conv2 = DepthwiseConv(3, dtype=self.dtype_policy, name="conv2")

    def build(self, input_shape, conditioning_shape=None):
        width = input_shape[-1]
        hidden = int(self.mlp_ratio * width)
        self.adaln = adaln(6, width, self.dtype_policy)
        sizes = {"conv1": width, "attention": width, "conv3": width, "conv4": hidden, "conv5": width}
        for name, units in sizes.items():
            layer = linear(units, dtype=self.dtype_policy, name=name)
            layer.build((None, None, None, hidden if name == "conv5" else width))
            setattr(self, name, layer)
        self.conv2.build(input_shape)

    def residual(self, x, conditioning):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors(self.adaln, conditioning, 6)
        h = kernels.gelu(self.conv2(self.conv1(modulated(x, shift_1, scale_1))))
        h = h * ops.sigmoid(self.attention(ops.mean(h, axis=(1, 2), keepdims=True)))
        x = gated(x, gate_1, self.conv3(h))
        return gated(x, gate_2, self.conv5(kernels.gelu(self.conv4(modulated(x, shift_2, scale_2)))))

    def get_config(self):
        return {**super().get_config(), "mlp_ratio": self.mlp_ratio}


@keras.saving.register_keras_serializable("fcdm_keras")
class DiCoBackbone(UNetBackbone):
    """Convolutional network of DiCo. The first decoder level, at full resolution, is 2C wide.

    Args:
        hidden_channels: C, even.
        mlp_ratio: inner width of the blocks' MLPs over theirs.
        others: see `UNetBackbone`.
    """

    def __init__(self, hidden_channels, depths, mlp_ratio=2.0, **options):
        if check_integer("hidden_channels", hidden_channels, 2, SIDE) % 2:
            raise ValueError(f"hidden_channels must be even. Received: {hidden_channels}")
        self.mlp_ratio = check_number("mlp_ratio", mlp_ratio, 1 / hidden_channels, 1024)
        super().__init__(hidden_channels, depths, **options)
        options = {"dtype": self.dtype_policy}
        width_1, width_2, _ = self.widths
        self.x_embedder = conv(width_1, kernel_initializer=XavierUniform(as_matrix=True), name="x_embedder", **options)
        self.merge_2 = linear(width_2, name="merge_2", **options)
        self.merge_1 = linear(width_2, name="merge_1", **options)
        names = ("encoder_1", "encoder_2", "middle", "decoder_2", "decoder_1")
        for name, depth in zip(names, self.depths, strict=True):
            setattr(self, name, [DiCoBlock(self.mlp_ratio, name=f"{name}_block_{i}", **options) for i in range(depth)])
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        width_1, width_2, width_3 = self.widths
        self.build_common()
        self.merge_2.build((None, None, None, 2 * width_2))
        self.merge_1.build((None, None, None, 2 * width_1))
        levels = {width_1: self.encoder_1, width_3: self.middle}
        levels[width_2] = [*self.encoder_2, *self.decoder_2, *self.decoder_1, self.final_layer]
        for width, blocks in levels.items():
            for block in blocks:
                block.build((None, None, None, width))
        self.built = True

    def default_lora_layer_names(self):
        """The 1×1 convolutions of each block, which hold most of the weights."""
        return ["conv1", "conv3", "conv4", "conv5"]

    def call(self, inputs, training=None):
        x_t, timesteps, condition = self.checked(inputs)
        c_1, c_2, c_3 = self.vectors(timesteps, condition)

        def run(blocks, x, c):
            for block in blocks:
                x = block(x, c, training=training)
            return x

        x = self.x_embedder(ops.cast(x_t, self.compute_dtype))
        x = skip_1 = run(self.encoder_1, x, c_1)  # (B, H, W, C)
        x = skip_2 = run(self.encoder_2, self.down_1(x), c_2)  # (B, H/2, W/2, 2C)
        x = run(self.middle, self.down_2(x), c_3)  # (B, H/4, W/4, 4C)
        x = self.merge_2(ops.concatenate([self.up_2(x), skip_2], axis=-1))
        x = run(self.decoder_2, x, c_2)
        x = self.merge_1(ops.concatenate([self.up_1(x), skip_1], axis=-1))
        x = run(self.decoder_1, x, c_2)  # (B, H, W, 2C)
        return self.final_layer(x, c_2)

    def get_config(self):
        return {**super().get_config(), "mlp_ratio": self.mlp_ratio}
