"""DiT (Peebles and Xie, arXiv:2212.09748), a transformer with adaLN-zero, and SiT (Ma et al., arXiv:2401.08740)."""

import keras
from keras import ops

from fcdm_keras.arguments import SIDE, check_integer, check_number
from fcdm_keras.network.layers import TimestepEmbedding, linear, wide
from fcdm_keras.network.rivals.attention import MLP, Attention
from fcdm_keras.network.rivals.blocks import (
    Block,
    BlockBackbone,
    adaln,
    check_depths,
    check_heads,
    check_memory,
    gated,
    modulated,
    vectors,
)
from fcdm_keras.network.rivals.tokens import FinalTokens, patchify, sine_positions, tell_interpolation


@keras.saving.register_keras_serializable("fcdm_keras")
class DiTBlock(Block):
    """Attention and MLP, each with a modulation and a gate of the condition: `(B, h, w, D)`, `(B, D)` → `(B, h, w, D)`.

    Args:
        num_heads: divides D.
        mlp_ratio: inner width of the MLP over D.
    """

    def __init__(self, num_heads, mlp_ratio=4.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.mlp_ratio = num_heads, mlp_ratio

    def build(self, input_shape, conditioning_shape=None):
        width = input_shape[-1]
        self.adaln = adaln(6, width, self.dtype_policy)
        self.attention = Attention(self.num_heads, dtype=self.dtype_policy, name="attention")
        self.mlp = MLP(int(self.mlp_ratio * width), approximate=True, dtype=self.dtype_policy, name="mlp")
        self.attention.build(input_shape)
        self.mlp.build(input_shape)

    def residual(self, x, conditioning):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors(self.adaln, conditioning, 6)
        x = gated(x, gate_1, self.attention(modulated(x, shift_1, scale_1)))
        return gated(x, gate_2, self.mlp(modulated(x, shift_2, scale_2)))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio}


class PatchBackbone(BlockBackbone):
    """What DiT, SiT and DiG have in common: all but the blocks, which a subclass makes in `make_block`.

    Takes a dict of `x_t` `(B, H, W, in_channels)` with H and W divisible by `patch_size`, `timesteps` `(B,)` (integer
    or fractional) and the condition under the module's own name (`labels` `(B,)`), and returns
    `(B, H, W, out_channels)`, float32 (float64 under that policy).

    Args:
        hidden_channels: D, width of the tokens; divisible by 4 and by `num_heads`.
        depths: number of blocks, as `(12,)`.
        num_heads: of the attention.
        num_classes: classes of the default conditioning module.
        in_channels: channels of `x_t`.
        out_channels: output channels; `None` means `2 · in_channels` (noise and variance).
        patch_size: p, side of the patches.
        input_size: height and width of `x_t` that the network was trained on: positions at other sizes lie within the
            same range. `None`: they are counted at any size.
        conditioning: a module as described in `fcdm_keras.network.conditioning`; default
            `ClassConditioning(num_classes)`.
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
        input_size=None,
        conditioning=None,
        dtype=None,
        **kwargs,
    ):
        depths = check_depths(depths, ("blocks",))
        check_memory(hidden_channels, depths)
        if check_integer("hidden_channels", hidden_channels, 4, SIDE) % 4:
            raise ValueError(f"hidden_channels must be divisible by 4. Received: {hidden_channels}")
        check_integer("patch_size", patch_size, 1, SIDE)
        if input_size is not None and check_integer("input_size", input_size, 1, SIDE) % patch_size:
            raise ValueError(f"input_size must be divisible by patch_size={patch_size}. Received: {input_size}")
        super().__init__((hidden_channels,), num_classes, in_channels, out_channels, conditioning, dtype, **kwargs)
        self.hidden_channels, self.depths = hidden_channels, depths
        self.num_heads, self.patch_size, self.input_size = num_heads, patch_size, input_size
        self.side_multiple = patch_size
        options = {"dtype": self.dtype_policy}
        self.time_embedding = TimestepEmbedding(hidden_channels, name="time_embedding")
        self.x_embedder = linear(hidden_channels, name="x_embedder", **options)
        self.blocks = [self.make_block(name=f"block_{i}", **options) for i in range(depths[0])]
        self.final_layer = FinalTokens(self.computed_channels(), patch_size, name="final_layer", **options)
        self.build()

    def make_block(self, **options):
        """A new block."""
        raise NotImplementedError

    def computed_channels(self):
        """Channels that the final layer computes."""
        return self.out_channels

    def build(self, input_shape=None):
        if self.built:
            return
        self.build_conditioning()
        self.time_embedding.build((None,))
        self.x_embedder.build((None, None, None, self.patch_size**2 * self.in_channels))
        for layer in (*self.blocks, self.final_layer):
            layer.build((None, None, None, self.hidden_channels))
        self.built = True

    def call(self, inputs, training=None):
        x_t, timesteps, condition = self.checked(inputs)
        (vector,) = self.conditioning(condition)
        c = ops.cast(self.time_embedding(timesteps) + vector, wide(self.dtype_policy))
        x = self.x_embedder(patchify(ops.cast(x_t, self.compute_dtype), self.patch_size))  # (B, h, w, D)
        tell_interpolation(x, self.input_size, self.patch_size)
        x = x + ops.cast(ops.reshape(self.positions(*ops.shape(x)[1:3]), (1, *ops.shape(x)[1:])), x.dtype)
        return self.final_layer(self.run(x, c, training), c)[..., : self.out_channels]

    def run(self, x, conditioning, training):
        """All blocks, one after another."""
        for block in self.blocks:
            x = block(x, conditioning, training=training)
        return x

    def positions(self, height, width):
        """The fixed embedding of so many rows and columns of patches, `(1, height · width, D)`."""
        side = self.input_size and self.input_size // self.patch_size
        return sine_positions(height, width, self.hidden_channels, side)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_channels": self.hidden_channels,
            "depths": list(self.depths),
            "num_heads": self.num_heads,
            "patch_size": self.patch_size,
            "input_size": self.input_size,
        }


@keras.saving.register_keras_serializable("fcdm_keras")
class DiTBackbone(PatchBackbone):
    """Diffusion transformer.

    Args:
        mlp_ratio: inner width of the MLPs over D.
        others: see `PatchBackbone`.

    Example:

    ```python
    backbone = DiTBackbone(hidden_channels=1152, depths=(28,), num_heads=16)  # DiT-XL/2
    output = backbone({"x_t": x_t, "timesteps": timesteps, "labels": labels})
    ```
    """

    def __init__(self, hidden_channels, depths, num_heads, mlp_ratio=4.0, **options):
        check_heads(check_integer("hidden_channels", hidden_channels, 4, SIDE), num_heads)
        self.mlp_ratio = check_number("mlp_ratio", mlp_ratio, 1 / hidden_channels, 1024)
        super().__init__(hidden_channels, depths, num_heads, **options)

    def make_block(self, **options):
        return DiTBlock(self.num_heads, self.mlp_ratio, **options)

    def default_lora_layer_names(self):
        """The four linears of each block, which hold most of the weights."""
        return ["qkv", "projection", "fc1", "fc2"]

    def get_config(self):
        return {**super().get_config(), "mlp_ratio": self.mlp_ratio}


@keras.saving.register_keras_serializable("fcdm_keras")
class SiTBackbone(DiTBackbone):
    """The network of SiT: DiT's, which predicts a velocity at times in [0, 1].

    Args:
        learn_sigma: whether the last linear computes twice as many channels, of which the second half is left out and
            never trained, as in the published networks.
        out_channels: output channels; `None` means `in_channels`.
        others: see `DiTBackbone`.
    """

    def __init__(self, hidden_channels, depths, num_heads, learn_sigma=True, **options):
        self.learn_sigma = learn_sigma
        if options.get("out_channels") is None:
            options["out_channels"] = options.get("in_channels", 4)
        super().__init__(hidden_channels, depths, num_heads, **options)

    def computed_channels(self):
        return (2 if self.learn_sigma else 1) * self.out_channels

    def get_config(self):
        return {**super().get_config(), "learn_sigma": self.learn_sigma}
