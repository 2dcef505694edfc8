"""The FCDM U-Net (paper, figure 3c): C channels at full resolution, 2C at half, 4C at a quarter."""

import keras
from keras import ops

from fcdm_keras.arguments import SIDE, check_integer, check_number
from fcdm_keras.machine import memory
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.costs import count
from fcdm_keras.network.isotropic import Isotropic
from fcdm_keras.network.layers import FinalLayer, TimestepEmbedding, conv, linear, wide
from fcdm_keras.network.resampling import Downsample, Upsample
from fcdm_keras.network.variants import BLOCKS, head_width_of
from fcdm_keras.recipes import ModelSize
from fcdm_keras.recipes.ablations import variant_of


@keras.saving.register_keras_serializable("fcdm_keras")
class FCDMBackbone(DiffusionBackbone):
    """Fully convolutional diffusion network with a swappable conditioning module.

    Takes a dict of `x_t` `(B, H, W, in_channels)` with H and W divisible by 4, `timesteps` `(B,)` (integer or
    fractional) and the condition under the module's own name (`labels` `(B,)`), and returns
    `(B, H, W, out_channels)`, float32 (float64 under that policy).

    Args:
        hidden_channels: C, divisible by 2.
        depths: blocks of encoder 1, encoder 2, middle, decoder 2, decoder 1; of the variant `isotropic` one number.
        num_classes: classes of the default conditioning module.
        in_channels: channels of `x_t`.
        out_channels: output channels; `None` means `2 · in_channels` (noise and variance).
        expansion_ratio: r of the blocks; default 3, or the variant's, which alone fits it.
        kernel_size: odd size of the depthwise kernels; default 7, or the variant's, which alone fits it.
        conditioning: a module as described in `fcdm_keras.network.conditioning`; default
            `ClassConditioning(num_classes)`.
        dtype: dtype policy, e.g. `"mixed_bfloat16"`.
        variant: an ablation of the paper in place of FCDM, a name in `fcdm_keras.recipes.ablations.VARIANTS`. Sizes
            are what they are here: `fcdm_keras.recipes.ablations.sized` scales them as the paper does.
        head_width: channels of a head of the variant `neighborhood`; default 32.

    Raises:
        ValueError: for an unknown variant, for sizes that are not the variant's or make no network, and on call for
            inputs that do not fit it.

    Example:

    ```python
    backbone = FCDMBackbone(hidden_channels=128, depths=(2, 4, 8, 4, 2), num_classes=1000)  # FCDM-S
    output = backbone({"x_t": x_t, "timesteps": timesteps, "labels": labels})
    ```
    """

    side_multiple = 4
    _widths = (1, 2, 4)  # of the levels, over C

    # Which axis of each variable is cut over the devices that share one copy of the model: pattern of its name behind
    # the backbone's, and "model" or None for each axis; () is whole. The two linears of a block are cut along its
    # hidden width (tensor parallelism; Shoeybi et al., arXiv:1909.08053, section 3), with the GRN between them;
    # adaLN, the conditioning's maps and tables, and the convolutions between levels along their outputs. The rest is
    # small.
    layout = (
        (r"conditioning/.*(table_\d|kernel)", (None, "model")),
        (r"conditioning/(?!.*(table_\d|kernel)$).*", ()),
        (r"time_embedding_\d/hidden/kernel", (None, "model")),
        (r"time_embedding_\d/hidden/bias", ("model",)),
        (r"time_embedding_\d/out/kernel", ("model", None)),
        (r"time_embedding_\d/out/bias", ()),
        (r".*_block_\d+/(adaln|pwconv1)/kernel", (None, "model")),
        (r".*_block_\d+/(adaln|pwconv1)/bias", ("model",)),
        (r".*_block_\d+/grn/(gamma|beta)", ("model",)),
        (r".*_block_\d+/pwconv2/kernel", ("model", None)),
        (r".*_block_\d+/pwconv2/bias", ()),
        (r".*_block_\d+/dwconv/(kernel|bias)", ()),
        (r".*_block_\d+/(conv\d|(dwconv|grn)/(qkv|proj|linear))/(kernel|bias)", ()),  # of variants
        (r"(down|up)_\d/conv/kernel", (None, None, None, "model")),
        (r"merge_\d/kernel", (None, "model")),
        (r"merge_\d/bias", ("model",)),
        (r"output_layer/kernel", (None, None, None, "model")),
        (r"output_layer/bias", ("model",)),
        (r"x_embedder/(kernel|bias)", ()),
        (r"final_layer/(conv|linear|adaln)/(kernel|bias)", ()),
    )

    def __new__(cls, *args, variant=None, **kwargs):
        isotropic = cls is FCDMBackbone and variant_of(variant).network == "isotropic"
        return super().__new__(IsotropicBackbone if isotropic else cls, *args, variant=variant, **kwargs)

    def __init__(
        self,
        hidden_channels,
        depths,
        num_classes=1000,
        in_channels=4,
        out_channels=None,
        expansion_ratio=None,
        kernel_size=None,
        conditioning=None,
        dtype=None,
        variant=None,
        head_width=None,
        **kwargs,
    ):
        row = variant_of(variant)
        depths = _checked_depths(depths, row, variant)
        if check_integer("hidden_channels", hidden_channels, 2, SIDE) % 2:
            raise ValueError(f"hidden_channels must be a positive even integer. Received: {hidden_channels}")
        expansion_ratio = _of_variant("expansion_ratio", expansion_ratio, row, variant)
        kernel_size = _of_variant("kernel_size", kernel_size, row, variant)
        check_number("expansion_ratio", expansion_ratio, 1 / hidden_channels, 1024)
        check_integer("kernel_size", kernel_size)
        size = ModelSize(hidden_channels, depths, network=row.network, variant=variant)
        parameters, _ = count(size, expansion_ratio=expansion_ratio, kernel_size=kernel_size, num_classes=0)
        memory.check(4 * parameters, f"A network of {parameters:,} parameters", "use a smaller one")
        widths = tuple(factor * hidden_channels for factor in self._widths)
        super().__init__(widths, num_classes, in_channels, out_channels, conditioning, dtype, **kwargs)
        self.hidden_channels = hidden_channels
        self.depths = depths
        self.expansion_ratio = expansion_ratio
        self.kernel_size = kernel_size
        self.variant = variant or None
        self.head_width = head_width_of(row.block, head_width, hidden_channels)
        self.smallest_side = row.smallest_side
        self.time_embeddings = [TimestepEmbedding(w, name=f"time_embedding_{i}") for i, w in enumerate(self.widths, 1)]
        self._make_layers()
        self.build()

    def _make_layers(self):
        depths, (width_1, width_2, width_3) = self.depths, self.widths
        self.x_embedder = conv(width_1, dtype=self.dtype_policy, name="x_embedder")
        self.encoder_1 = self._blocks(depths[0], "encoder_1")
        self.down_1 = Downsample(width_2, dtype=self.dtype_policy, name="down_1")
        self.encoder_2 = self._blocks(depths[1], "encoder_2")
        self.down_2 = Downsample(width_3, dtype=self.dtype_policy, name="down_2")
        self.middle = self._blocks(depths[2], "middle")
        self.up_2 = Upsample(width_2, dtype=self.dtype_policy, name="up_2")
        self.merge_2 = linear(width_2, dtype=self.dtype_policy, name="merge_2")
        self.decoder_2 = self._blocks(depths[3], "decoder_2")
        self.up_1 = Upsample(width_1, dtype=self.dtype_policy, name="up_1")
        self.merge_1 = linear(width_1, dtype=self.dtype_policy, name="merge_1")
        self.decoder_1 = self._blocks(depths[4], "decoder_1")
        self.output_layer = conv(width_1, dtype=self.dtype_policy, name="output_layer")
        self.final_layer = FinalLayer(self.out_channels, dtype=self.dtype_policy, name="final_layer")

    @property
    def _block(self):
        """The class of the blocks."""
        return BLOCKS[variant_of(self.variant).block]

    def _blocks(self, depth, name):
        options = {"head_width": self.head_width} if self.head_width else {}
        sizes = (self.expansion_ratio, self.kernel_size)
        names = (f"{name}_block_{i}" for i in range(depth))
        return [self._block(*sizes, **options, dtype=self.dtype_policy, name=name) for name in names]

    def build(self, input_shape=None):
        if self.built:
            return
        self.build_conditioning()
        for embedding in self.time_embeddings:
            embedding.build((None,))
        self._build_layers()
        for blocks, width in self._levels():
            for block in blocks:
                block.build((None, None, None, width))
        self.built = True

    def _build_layers(self):
        width_1, width_2, width_3 = self.widths
        self.x_embedder.build((None, None, None, self.in_channels))
        self.down_1.build((None, None, None, width_1))
        self.down_2.build((None, None, None, width_2))
        self.up_2.build((None, None, None, width_3))
        self.merge_2.build((None, None, None, 2 * width_2))
        self.up_1.build((None, None, None, width_2))
        self.merge_1.build((None, None, None, 2 * width_1))
        self.output_layer.build((None, None, None, width_1))
        self.final_layer.build((None, None, None, width_1))

    def _levels(self):
        width_1, width_2, width_3 = self.widths
        return (
            (self.encoder_1, width_1),
            (self.encoder_2, width_2),
            (self.middle, width_3),
            (self.decoder_2, width_2),
            (self.decoder_1, width_1),
        )

    @property
    def blocks(self):
        """All blocks, in the order in which they run."""
        return [block for blocks, _ in self._levels() for block in blocks]

    @property
    def gradient_checkpointing(self):
        """Whether training recomputes each block in the backward pass (less memory, one more forward pass)."""
        return any(block.gradient_checkpointing for block in self.blocks)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled):
        for block in self.blocks:
            block.gradient_checkpointing = bool(enabled)

    def default_lora_layer_names(self):
        """The two linears of each block, or dense convolutions of a variant's, which hold most of the weights."""
        return list(self._block.lora_layer_names)

    def call(self, inputs, training=None):
        x, (c_1, c_2, c_3) = self._embedded(inputs)
        x = skip_1 = run(self.encoder_1, self.x_embedder(x), c_1, training)  # (B, H, W, C)
        x = skip_2 = run(self.encoder_2, self.down_1(x), c_2, training)  # (B, H/2, W/2, 2C)
        x = run(self.middle, self.down_2(x), c_3, training)  # (B, H/4, W/4, 4C)
        x = self.merge_2(ops.concatenate([self.up_2(x), skip_2], axis=-1))
        x = run(self.decoder_2, x, c_2, training)
        x = self.merge_1(ops.concatenate([self.up_1(x), skip_1], axis=-1))
        x = run(self.decoder_1, x, c_1, training)
        return self.final_layer(self.output_layer(x), c_1)

    def _embedded(self, inputs):
        """`x_t` as the network computes, and the condition's vector of each width."""
        x_t, timesteps, condition = self.checked(inputs)
        vectors = zip(self.time_embeddings, self.conditioning(condition), strict=True)
        dtype = wide(self.dtype_policy)
        vectors = [ops.cast(embedding(timesteps) + vector, dtype) for embedding, vector in vectors]
        return ops.cast(x_t, self.compute_dtype), vectors

    def get_config(self):
        variant = {"variant": self.variant, "head_width": self.head_width}
        return {
            **super().get_config(),
            **{name: value for name, value in variant.items() if value is not None},
            "hidden_channels": self.hidden_channels,
            "depths": list(self.depths),
            "expansion_ratio": self.expansion_ratio,
            "kernel_size": self.kernel_size,
        }


@keras.saving.register_keras_serializable("fcdm_keras")
class IsotropicBackbone(Isotropic, FCDMBackbone):
    """What `FCDMBackbone(variant="isotropic")` is: FCDM's blocks at one width on patches, see `Isotropic`."""


def run(blocks, x, conditioning, training):
    """`x` through blocks that share a vector of the condition."""
    for block in blocks:
        x = block(x, conditioning, training=training)
    return x


def _of_variant(name, value, row, variant):
    """An argument's value, which a variant decides. Raises ValueError for another."""
    own = getattr(row, name)
    if variant and value not in (None, own):
        raise ValueError(f"{name} of the variant {variant} is {own}: leave it out. Received: {value!r}")
    return own if value is None else value


def _checked_depths(depths, row, variant):
    depths = tuple(depths) if isinstance(depths, (list, tuple)) else depths
    whole = isinstance(depths, tuple) and all(isinstance(d, int) and not isinstance(d, bool) for d in depths)
    if not whole or len(depths) != row.depths.levels or min(depths) < 0 or max(depths) > 1000:
        levels = " (encoder 1, encoder 2, middle, decoder 2, decoder 1)" if row.depths.levels == 5 else ""
        raise ValueError(
            f"depths must be {row.depths.levels} non-negative integers up to 1000{levels}. Received: {depths}"
        )
    if not row.depths.holds(depths):
        raise ValueError(f"depths of the variant {variant} must {row.depths.text}. Received: {depths}")
    return depths
