"""Layers of the KL autoencoder of latent diffusion (Rombach et al., 2022), as Stable Diffusion uses it.

Feature maps are `(B, H, W, C)`. Statistics of the group norms, the attention's softmax and the last convolutions are
float32 whatever the dtype policy. Sublayers bear the names of the published weights, so that tensors map one to one.

KerasHub has layers of the same kind in `keras_hub.src.models.vae`. They are not used: that module is private and may
move, fixes 32 groups in every norm (published configurations, and small autoencoders, have `norm_num_groups`), and has
no `quant_conv`.
"""

import math

from keras import layers, ops

from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import conv, linear


def group_norm(groups, **options):
    """GroupNorm with ε = 10⁻⁶ over the last axis."""
    return layers.GroupNormalization(groups, axis=-1, epsilon=1e-6, **options)


class ResNetBlock(layers.Layer):
    """GroupNorm, SiLU, 3×3 convolution, twice, plus the input: `(B, H, W, any)` → `(B, H, W, channels)`.

    Args:
        channels: output channels.
        groups: groups of the norms.
    """

    def __init__(self, channels, groups, **kwargs):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy}
        self.channels = channels
        self.norm1, self.norm2 = (group_norm(groups, name=name, **own) for name in ("norm1", "norm2"))
        self.conv1, self.conv2 = (conv(channels, name=name, **own) for name in ("conv1", "conv2"))
        self.conv_shortcut = None

    def build(self, input_shape):
        inner = (*input_shape[:-1], self.channels)
        self.norm1.build(input_shape)
        self.conv1.build(input_shape)
        self.norm2.build(inner)
        self.conv2.build(inner)
        if input_shape[-1] != self.channels:
            self.conv_shortcut = linear(self.channels, dtype=self.dtype_policy, name="conv_shortcut")
            self.conv_shortcut.build(input_shape)

    def call(self, x):
        h = self.conv1(ops.silu(self.norm1(x)))
        h = self.conv2(ops.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(layers.Layer):
    """Single-head self-attention over all positions, plus the input: `(B, H, W, C)` → `(B, H, W, C)`.

    Args:
        groups: groups of the norm.
    """

    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.group_norm = group_norm(groups, dtype=self.dtype_policy, name="group_norm")

    def build(self, input_shape):
        self.group_norm.build(input_shape)
        width = input_shape[-1]
        self.to_q, self.to_k, self.to_v, self.to_out = (
            linear(width, dtype=self.dtype_policy, name=name) for name in ("to_q", "to_k", "to_v", "to_out")
        )
        for projection in (self.to_q, self.to_k, self.to_v, self.to_out):
            projection.build((None, None, width))

    def call(self, x):
        shape, width = ops.shape(x), x.shape[-1]
        tokens = ops.reshape(self.group_norm(x), (shape[0], shape[1] * shape[2], width))
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        scores = ops.matmul(q, ops.transpose(k, (0, 2, 1)))  # (B, HW, HW)
        weights = ops.softmax(ops.cast(scores, "float32") / math.sqrt(width))
        h = self.to_out(ops.matmul(ops.cast(weights, v.dtype), v))
        return x + ops.reshape(h, shape)


class Downsample(layers.Layer):
    """3×3 convolution with stride 2 on the input padded with one zero row below and one zero column to the right.

    Args:
        channels: output channels.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(
            channels,
            3,
            strides=2,
            data_format="channels_last",
            kernel_initializer=XavierUniform(),
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Upsample(layers.Layer):
    """Nearest-neighbour doubling and a 3×3 convolution.

    Args:
        channels: output channels.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv(channels, dtype=self.dtype_policy, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2))


class Level(layers.Layer):
    """`depth` residual blocks at one resolution, then a change of resolution, if any.

    Args:
        channels: output channels.
        depth: number of residual blocks.
        groups: groups of the norms.
        sampler: `Downsample`, `Upsample` or `None`.
        attention: whether attention follows each residual block.
    """

    def __init__(self, channels, depth, groups, sampler, attention=False, **kwargs):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy}
        self.channels = channels
        self.resnets = [ResNetBlock(channels, groups, name=f"resnets_{i}", **own) for i in range(depth)]
        count = depth if attention else 0
        self.attentions = [Attention(groups, name=f"attentions_{i}", **own) for i in range(count)]
        self.sampler = sampler and sampler(channels, name="sampler", **own)

    def build(self, input_shape):
        inner = (*input_shape[:-1], self.channels)
        for i, block in enumerate(self.resnets):
            block.build(inner if i else input_shape)
        for layer in (*self.attentions, *([] if self.sampler is None else [self.sampler])):
            layer.build(inner)

    def call(self, x):
        for i, block in enumerate(self.resnets):
            x = block(x)
            x = self.attentions[i](x) if self.attentions else x
        return x if self.sampler is None else self.sampler(x)


class MidBlock(layers.Layer):
    """Residual block, attention, residual block at the lowest resolution.

    Args:
        channels: channels in and out.
        groups: groups of the norms.
        attention: whether there is attention.
    """

    def __init__(self, channels, groups, attention=True, **kwargs):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy}
        self.resnets = [ResNetBlock(channels, groups, name=f"resnets_{i}", **own) for i in range(2)]
        self.attention = Attention(groups, name="attention", **own) if attention else None

    @property
    def attentions(self):
        """The attention as a list, as a `Level` has it."""
        return [] if self.attention is None else [self.attention]

    def build(self, input_shape):
        for block in self.resnets:
            block.build(input_shape)
        if self.attention is not None:
            self.attention.build(input_shape)

    def call(self, x):
        x = self.resnets[0](x)
        if self.attention is not None:
            x = self.attention(x)
        return self.resnets[1](x)


class Encoder(layers.Layer):
    """Images `(B, H, W, in)` → float32 `(B, H/f, W/f, out)` with f = 2^(levels − 1).

    Args:
        block_out_channels: widths of the levels, from full resolution down.
        layers_per_block: residual blocks per level.
        out_channels: output channels, twice the latents'.
        groups: groups of the norms.
        attention: whether the middle has attention.
        levels: levels with attention after each residual block, by their number, from 0, the full resolution.
    """

    def __init__(self, block_out_channels, layers_per_block, out_channels, groups, attention=True, levels=(), **kwargs):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy}
        *_, last = self.widths = tuple(block_out_channels)
        self.conv_in = conv(self.widths[0], name="conv_in", **own)
        samplers = [*[Downsample] * (len(self.widths) - 1), None]
        self.down_blocks = [
            Level(width, layers_per_block, groups, sampler, i in levels, name=f"down_blocks_{i}", **own)
            for i, (width, sampler) in enumerate(zip(self.widths, samplers))
        ]
        self.mid_block = MidBlock(last, groups, attention, name="mid_block", **own)
        self.conv_norm_out = group_norm(groups, name="conv_norm_out", **own)
        self.conv_out = conv(out_channels, dtype="float32", name="conv_out")

    def build(self, input_shape):
        widths = self.widths
        self.conv_in.build(input_shape)
        for level, width in zip(self.down_blocks, (widths[0], *widths)):
            level.build((None, None, None, width))
        for layer in (self.mid_block, self.conv_norm_out, self.conv_out):
            layer.build((None, None, None, widths[-1]))

    def call(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(ops.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(layers.Layer):
    """Latents `(B, h, w, C)` → float32 `(B, f·h, f·w, out)`: the encoder mirrored, with one block more per level.

    Args:
        block_out_channels: widths of the levels, from full resolution down, as the encoder's.
        layers_per_block: residual blocks per level of the encoder.
        out_channels: channels of the images.
        groups: groups of the norms.
        attention: whether the middle has attention.
        levels: levels with attention after each residual block, by their number, from 0, the full resolution.
    """

    def __init__(self, block_out_channels, layers_per_block, out_channels, groups, attention=True, levels=(), **kwargs):
        super().__init__(**kwargs)
        own = {"dtype": self.dtype_policy}
        first, *_ = self.widths = tuple(reversed(block_out_channels))
        self.conv_in = conv(first, name="conv_in", **own)
        self.mid_block = MidBlock(first, groups, attention, name="mid_block", **own)
        samplers = [*[Upsample] * (len(self.widths) - 1), None]
        last = len(self.widths) - 1
        self.up_blocks = [
            Level(width, layers_per_block + 1, groups, sampler, last - i in levels, name=f"up_blocks_{i}", **own)
            for i, (width, sampler) in enumerate(zip(self.widths, samplers))
        ]
        self.conv_norm_out = group_norm(groups, name="conv_norm_out", **own)
        self.conv_out = conv(out_channels, dtype="float32", name="conv_out")

    def build(self, input_shape):
        widths = self.widths
        self.conv_in.build(input_shape)
        self.mid_block.build((None, None, None, widths[0]))
        for level, width in zip(self.up_blocks, (widths[0], *widths)):
            level.build((None, None, None, width))
        for layer in (self.conv_norm_out, self.conv_out):
            layer.build((None, None, None, widths[-1]))

    def call(self, x):
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(ops.silu(self.conv_norm_out(x)))
