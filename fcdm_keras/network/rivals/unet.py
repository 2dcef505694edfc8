"""What DiCo and DiC have in common: convolutional U-Nets of widths C, 2C, 4C with one condition vector per width."""

from keras import ops

from fcdm_keras.arguments import SIDE, check_integer
from fcdm_keras.network.layers import FinalLayer, TimestepEmbedding, wide
from fcdm_keras.network.resampling import Downsample, Upsample
from fcdm_keras.network.rivals.blocks import BlockBackbone, check_depths, check_memory

LEVELS = ("encoder 1", "encoder 2", "middle", "decoder 2", "decoder 1")


class UNetBackbone(BlockBackbone):
    """Base of both; a subclass makes `x_embedder` and the blocks of each level, and builds and calls them.

    Takes a dict of `x_t` `(B, H, W, in_channels)` with H and W divisible by 4, `timesteps` `(B,)` (integer or
    fractional) and the condition under the module's own name (`labels` `(B,)`), and returns
    `(B, H, W, out_channels)`, float32 (float64 under that policy).

    Args:
        hidden_channels: C.
        depths: blocks of encoder 1, encoder 2, middle, decoder 2, decoder 1.
        num_classes: classes of the default conditioning module.
        in_channels: channels of `x_t`.
        out_channels: output channels; `None` means `2 · in_channels` (noise and variance).
        conditioning: a module as described in `fcdm_keras.network.conditioning`; default
            `ClassConditioning(num_classes)`.
        dtype: dtype policy, e.g. `"mixed_bfloat16"`.

    Raises:
        ValueError: for sizes that make no network, and on call for inputs that do not fit it.
    """

    side_multiple = 4

    def __init__(
        self,
        hidden_channels,
        depths,
        num_classes=1000,
        in_channels=4,
        out_channels=None,
        conditioning=None,
        dtype=None,
        **kwargs,
    ):
        depths = check_depths(depths, LEVELS)
        check_integer("hidden_channels", hidden_channels, 2, SIDE)
        check_memory(hidden_channels, depths)
        widths = (hidden_channels, 2 * hidden_channels, 4 * hidden_channels)
        super().__init__(widths, num_classes, in_channels, out_channels, conditioning, dtype, **kwargs)
        self.hidden_channels, self.depths = hidden_channels, depths
        options = {"dtype": self.dtype_policy}
        self.time_embeddings = [TimestepEmbedding(w, name=f"time_embedding_{i}") for i, w in enumerate(widths, 1)]
        self.down_1 = Downsample(widths[1], name="down_1", **options)
        self.down_2 = Downsample(widths[2], name="down_2", **options)
        self.up_2 = Upsample(widths[1], name="up_2", **options)
        self.up_1 = Upsample(widths[0], name="up_1", **options)
        self.final_layer = FinalLayer(self.out_channels, name="final_layer", **options)

    @property
    def blocks(self):
        """All blocks, in the order in which they run."""
        return [*self.encoder_1, *self.encoder_2, *self.middle, *self.decoder_2, *self.decoder_1]

    def build_common(self):
        """Builds what is made here but the final layer."""
        width_1, width_2, width_3 = self.widths
        self.build_conditioning()
        for embedding in self.time_embeddings:
            embedding.build((None,))
        self.x_embedder.build((None, None, None, self.in_channels))
        self.down_1.build((None, None, None, width_1))
        self.down_2.build((None, None, None, width_2))
        self.up_2.build((None, None, None, width_3))
        self.up_1.build((None, None, None, width_2))

    def vectors(self, timesteps, condition):
        """The condition vectors of widths C, 2C and 4C."""
        dtype = wide(self.dtype_policy)
        pairs = zip(self.time_embeddings, self.conditioning(condition), strict=True)
        return [ops.cast(embedding(timesteps) + vector, dtype) for embedding, vector in pairs]

    def get_config(self):
        return {**super().get_config(), "hidden_channels": self.hidden_channels, "depths": list(self.depths)}
