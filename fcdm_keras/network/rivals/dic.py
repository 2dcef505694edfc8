"""DiC (Tian et al., arXiv:2501.00603): a U-Net of dense 3×3 convolutions with sparse skips."""

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.network.layers import conv, linear, modulate, wide
from fcdm_keras.network.rivals.blocks import Block, gated, vectors
from fcdm_keras.network.rivals.unet import LEVELS, UNetBackbone

STRIDE = 3  # of the skips, in blocks
GROUPS = 32  # of the norms, at most; of 4 channels at least


def _groups(channels):
    return min(GROUPS, channels // 4)


def _norm(channels, dtype, name):
    norm = layers.GroupNormalization(_groups(channels), epsilon=1e-5, dtype=dtype, name=name)
    norm.build((None, None, None, channels))
    return norm


@keras.saving.register_keras_serializable("fcdm_keras")
class DiCBlock(Block):
    """Two 3×3 convolutions with group norms, a modulation and a gate: `(B, H, W, m)`, `(B, n)` → `(B, H, W, n)`.

    Args:
        width: n, output channels.
    """

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, input_shape, conditioning_shape=None):
        channels, width, dtype = input_shape[-1], self.width, self.dtype_policy
        self.adaln = linear(3 * width, dtype=wide(dtype), name="adaln")  # Xavier-uniform, as published
        self.adaln.build((None, width))
        self.norm0, self.norm1 = _norm(channels, dtype, "norm0"), _norm(width, dtype, "norm1")
        self.conv0, self.conv1 = conv(width, dtype=dtype, name="conv0"), conv(width, dtype=dtype, name="conv1")
        self.conv0.build(input_shape)
        self.conv1.build((*input_shape[:-1], width))
        self.skip = None
        if channels != width:
            self.skip = linear(width, dtype=dtype, name="skip")
            self.skip.build(input_shape)

    def residual(self, x, conditioning):
        gate, scale, shift = vectors(self.adaln, conditioning, 3)
        h = self.conv0(kernels.gelu(self.norm0(x)))
        h = kernels.gelu(ops.cast(modulate(ops.cast(self.norm1(h), scale.dtype), shift, scale), x.dtype))
        return gated(x if self.skip is None else self.skip(x), gate, self.conv1(h))

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        return (*input_shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("fcdm_keras")
class DiCBackbone(UNetBackbone):
    """Convolutional network of DiC.

    Of n blocks of an encoder level, those that lie a multiple of 3 before the last leave their output on a stack; every
    third block of a decoder level, from the first on, takes one from there, last in, first out.

    Args:
        hidden_channels: C, divisible by 4; widths above 128 must be divisible by 32.
        depths: as in `UNetBackbone`; ⌈n/3⌉ must be the same in both levels of a resolution.
        others: see `UNetBackbone`.
    """

    def __init__(self, hidden_channels, depths, **options):
        super().__init__(hidden_channels, depths, **options)
        if any(width % 4 or width % _groups(width) for width in (*self.widths, 8 * hidden_channels)):
            raise ValueError(
                "hidden_channels must be divisible by 4, and of C, 2C, 4C and 8C those above 128 by 32. "
                f"Received: {hidden_channels}"
            )
        skips = [len(range(0, depth, STRIDE)) for depth in self.depths]
        if skips[:2] != skips[:-3:-1]:
            raise ValueError(
                f"⌈depth / {STRIDE}⌉ must be the same in encoder and decoder of a resolution. Received: "
                + ", ".join(f"{name} {depth}" for name, depth in zip(LEVELS, self.depths, strict=True))
            )
        options = {"dtype": self.dtype_policy}
        width_1, width_2, width_3 = self.widths
        self.x_embedder = conv(width_1, name="x_embedder", **options)
        self.output_layer = conv(width_1, name="output_layer", **options)
        names = ("encoder_1", "encoder_2", "middle", "decoder_2", "decoder_1")
        widths = (width_1, width_2, width_3, width_2, width_1)
        for name, width, depth in zip(names, widths, self.depths, strict=True):
            setattr(self, name, [DiCBlock(width, name=f"{name}_block_{i}", **options) for i in range(depth)])
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        self.build_common()
        for layer in (self.output_layer, self.final_layer):
            layer.build((None, None, None, self.hidden_channels))
        for block in (*self.encoder_1, *self.encoder_2, *self.middle):
            block.build((None, None, None, block.width))
        for blocks in (self.decoder_2, self.decoder_1):
            for i, block in enumerate(blocks):
                block.build((None, None, None, block.width if i % STRIDE else 2 * block.width))
        self.built = True

    def default_lora_layer_names(self):
        """The 3×3 convolutions of each block, which hold most of the weights."""
        return ["conv0", "conv1"]

    def call(self, inputs, training=None):
        x_t, timesteps, condition = self.checked(inputs)
        c_1, c_2, c_3 = self.vectors(timesteps, condition)
        skips = []

        def encode(blocks, x, c):
            for i, block in enumerate(blocks):
                x = block(x, c, training=training)
                if (len(blocks) - 1 - i) % STRIDE == 0:
                    skips.append(x)
            return x

        def decode(blocks, x, c):
            for i, block in enumerate(blocks):
                x = ops.concatenate([x, skips.pop()], axis=-1) if i % STRIDE == 0 else x
                x = block(x, c, training=training)
            return x

        x = self.x_embedder(ops.cast(x_t, self.compute_dtype))
        x = encode(self.encoder_1, x, c_1)  # (B, H, W, C)
        x = encode(self.encoder_2, self.down_1(x), c_2)  # (B, H/2, W/2, 2C)
        x = self.down_2(x)  # (B, H/4, W/4, 4C)
        for block in self.middle:
            x = block(x, c_3, training=training)
        x = decode(self.decoder_2, self.up_2(x), c_2)
        x = decode(self.decoder_1, self.up_1(x), c_1)
        return self.final_layer(self.output_layer(x), c_1)
