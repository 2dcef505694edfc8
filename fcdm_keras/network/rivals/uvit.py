"""U-ViT (Bao et al., arXiv:2209.12152): time, condition and patches are tokens of one transformer with long skips."""

import math

import keras
from keras import layers, ops

from fcdm_keras.arguments import SIDE, check_integer, check_number
from fcdm_keras.network.conditioning import ClassConditioning
from fcdm_keras.network.initializers import Normal, Uniform
from fcdm_keras.network.layers import conv, linear, timestep_features, wide
from fcdm_keras.network.rivals.attention import MLP, Attention
from fcdm_keras.network.rivals.blocks import Block, BlockBackbone, check_depths, check_heads, check_memory
from fcdm_keras.network.rivals.tokens import patchify, tell_interpolation, unpatchify


def _norm(dtype, name):
    return layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name)


@keras.saving.register_keras_serializable("fcdm_keras")
class UViTBlock(Block):
    """Attention and MLP: `(B, L, D)` → `(B, L, D)`; with a skip, `(B, L, 2D)` → `(B, L, D)`.

    Args:
        width: D.
        num_heads: divides D.
        mlp_ratio: inner width of the MLP over D.
        skip: whether the input has a skip's channels behind its own, which a linear joins first.
    """

    def __init__(self, width, num_heads, mlp_ratio=4.0, skip=False, **kwargs):
        super().__init__(**kwargs)
        self.width, self.num_heads, self.mlp_ratio, self.skip = width, num_heads, mlp_ratio, skip
        normal, dtype = Normal(0.02), self.dtype_policy
        self.skip_linear = linear(width, kernel_initializer=normal, dtype=dtype, name="skip_linear") if skip else None
        self.norm1, self.norm2 = _norm(dtype, "norm1"), _norm(dtype, "norm2")
        self.attention = Attention(num_heads, use_bias=False, initializer=normal, dtype=dtype, name="attention")
        self.mlp = MLP(int(mlp_ratio * width), approximate=False, initializer=normal, dtype=dtype, name="mlp")

    def build(self, input_shape):
        shape = (None, None, self.width)
        if self.skip:
            self.skip_linear.build((None, None, 2 * self.width))
        for layer in (self.norm1, self.attention, self.norm2, self.mlp):
            layer.build(shape)

    def residual(self, x):
        if self.skip:
            x = self.skip_linear(x)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def get_config(self):
        sizes = {"width": self.width, "num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "skip": self.skip}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable("fcdm_keras")
class UViTBackbone(BlockBackbone):
    """Transformer over the condition, the time and patches, all of them tokens, with long skips.

    Inputs and outputs as every backbone's; H and W of `x_t` must be divisible by `patch_size`.

    Args:
        hidden_channels: D, width of the tokens; even, and divisible by `num_heads`.
        depths: number of blocks but the middle one, as `(28,)`; even.
        num_heads: of the attention.
        num_classes: classes of the default conditioning module.
        in_channels: channels of `x_t`.
        out_channels: output channels; `None` means `2 · in_channels` (noise and variance). The published networks have
            `in_channels` (noise).
        patch_size: p, side of the patches.
        input_size: height and width of `x_t` that positions are trained for; at other sizes they are interpolated.
        mlp_ratio: inner width of the MLPs over D.
        final_conv: whether a 3×3 convolution on the output comes last.
        conditioning: a module as described in `fcdm_keras.network.conditioning`; default
            `ClassConditioning(num_classes, stddev=1.0)`.
        dtype: dtype policy, e.g. `"mixed_bfloat16"`.

    Raises:
        ValueError: for sizes that make no network, and on call for inputs that do not fit it.
    """

    def __init__(
        self,
        hidden_channels,
        depths,
        num_heads,
        num_classes=1000,
        in_channels=4,
        out_channels=None,
        patch_size=2,
        input_size=32,
        mlp_ratio=4.0,
        final_conv=True,
        conditioning=None,
        dtype=None,
        **kwargs,
    ):
        depths = check_depths(depths, ("blocks",))
        if depths[0] % 2 or check_integer("hidden_channels", hidden_channels, 2, SIDE) % 2:
            raise ValueError(f"depths and hidden_channels must be even. Received: {depths}, {hidden_channels}")
        check_heads(hidden_channels, num_heads)
        check_memory(hidden_channels, depths)
        check_integer("patch_size", patch_size, 1, SIDE)
        if check_integer("input_size", input_size, 1, SIDE) % patch_size:
            raise ValueError(f"input_size must be divisible by patch_size={patch_size}. Received: {input_size}")
        conditioning = conditioning or ClassConditioning(num_classes, stddev=1.0, name="conditioning")
        super().__init__((hidden_channels,), num_classes, in_channels, out_channels, conditioning, dtype, **kwargs)
        self.hidden_channels, self.depths, self.num_heads = hidden_channels, depths, num_heads
        self.patch_size = self.side_multiple = patch_size
        self.input_size, self.final_conv = input_size, final_conv
        self.mlp_ratio = check_number("mlp_ratio", mlp_ratio, 1 / hidden_channels, 1024)
        self._make_layers()
        self.build()

    def _make_layers(self):
        options, outside = {"dtype": self.dtype_policy}, {"dtype": wide(self.dtype_policy)}
        at_patches, at_pixels = (Uniform(1 / math.sqrt(fan)) for fan in self._fans())
        uniform = {"kernel_initializer": at_patches, "bias_initializer": at_patches}
        self.x_embedder = linear(self.hidden_channels, name="x_embedder", **uniform, **options)
        half = self.depths[0] // 2
        sizes = {"width": self.hidden_channels, "num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, **options}
        self.in_blocks = [UViTBlock(name=f"in_block_{i}", **sizes) for i in range(half)]
        self.mid_block = UViTBlock(name="mid_block", **sizes)
        self.out_blocks = [UViTBlock(skip=True, name=f"out_block_{i}", **sizes) for i in range(half)]
        self.norm = _norm(outside["dtype"], "norm")
        channels = self.patch_size**2 * self.out_channels
        self.decoder = linear(channels, kernel_initializer=Normal(0.02), name="decoder", **outside)
        uniform = {"kernel_initializer": at_pixels, "bias_initializer": at_pixels}
        self.final = conv(self.out_channels, name="final", **uniform, **outside) if self.final_conv else None

    def _fans(self):
        """Inputs of one output of the first linear, and of the last convolution."""
        return self.patch_size**2 * self.in_channels, 9 * self.out_channels

    @property
    def blocks(self):
        """All blocks, in the order in which they run."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def default_lora_layer_names(self):
        """The linears of each block, which hold most of the weights."""
        return ["qkv", "projection", "fc1", "fc2"]

    def build(self, input_shape=None):
        if self.built:
            return
        width = self.hidden_channels
        self.build_conditioning()
        self.x_embedder.build((None, None, None, self._fans()[0]))
        tokens = 2 + (self.input_size // self.patch_size) ** 2
        self.positions = self.add_weight(name="positions", shape=(tokens, width), initializer=Normal(0.02))
        for layer in (*self.blocks, self.norm, self.decoder):
            layer.build((None, None, width))
        if self.final_conv:
            self.final.build((None, None, None, self.out_channels))
        self.built = True

    def call(self, inputs, training=None):
        x_t, timesteps, condition = self.checked(inputs)
        width = self.hidden_channels
        (vector,) = self.conditioning(condition)
        extra = ops.stack([vector, timestep_features(timesteps, width)], axis=1)  # (B, 2, D)
        patches = self.x_embedder(patchify(ops.cast(x_t, self.compute_dtype), self.patch_size))
        tell_interpolation(patches, self.input_size, self.patch_size)
        _, rows, columns, _ = ops.shape(patches)
        x = ops.concatenate([ops.cast(extra, patches.dtype), ops.reshape(patches, (-1, rows * columns, width))], axis=1)
        x = x + ops.cast(self._positions(rows, columns), x.dtype)
        skips = []
        for block in self.in_blocks:
            x = block(x, training=training)
            skips.append(x)
        x = self.mid_block(x, training=training)
        for block in self.out_blocks:
            x = block(ops.concatenate([x, skips.pop()], axis=-1), training=training)
        x = self.decoder(self.norm(ops.cast(x, self.norm.compute_dtype)))
        x = unpatchify(ops.reshape(x[:, 2:], (-1, rows, columns, x.shape[-1])), self.patch_size)
        return self.final(x) if self.final_conv else x

    def _positions(self, rows, columns):
        """Positions `(2 + rows · columns, D)` of both extra tokens and of a grid of patches."""
        side, positions = self.input_size // self.patch_size, ops.convert_to_tensor(self.positions)
        if (rows, columns) == (side, side):
            return positions
        grid = ops.reshape(positions[2:], (side, side, -1))
        grid = ops.image.resize(grid, (rows, columns), "bilinear", data_format="channels_last")
        return ops.concatenate([positions[:2], ops.reshape(grid, (rows * columns, -1))], axis=0)

    def get_config(self):
        names = ("hidden_channels", "num_heads", "patch_size", "input_size", "mlp_ratio", "final_conv")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}, "depths": list(self.depths)}
