"""DiG (Zhu et al., arXiv:2405.18428): DiT with gated linear attention, which scans the patches in changing orders."""

import keras
from keras import layers, ops

from fcdm_keras.arguments import SIDE, check_integer
from fcdm_keras.network.initializers import Centre, XavierUniform
from fcdm_keras.network.layers import Dense, DepthwiseConv
from fcdm_keras.network.rivals.blocks import Block, adaln, check_heads, gated, modulated, vectors
from fcdm_keras.network.rivals.dit import PatchBackbone
from fcdm_keras.network.rivals.recurrence import GatedLinearAttention

MULTIPLE = 256  # of the MLP's inner width


@keras.saving.register_keras_serializable("fcdm_keras")
class GatedMLP(layers.Layer):
    """`W₂ (SiLU(u) · v)` with u, v the halves of `W₁ x`, without biases: `(…, D)` → `(…, D)`.

    The inner width is ⌊8 D / 3⌋, rounded up to a multiple of 256.
    """

    def build(self, input_shape):
        width = input_shape[-1]
        hidden = MULTIPLE * -(-(8 * width // 3) // MULTIPLE)
        options = {"use_bias": False, "kernel_initializer": XavierUniform(), "dtype": self.dtype_policy}
        self.fc1, self.fc2 = Dense(2 * hidden, name="fc1", **options), Dense(width, name="fc2", **options)
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], hidden))

    def call(self, x):
        u, v = ops.split(self.fc1(x), 2, axis=-1)
        return self.fc2(ops.silu(u) * v)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("fcdm_keras")
class DiGBlock(Block):
    """Gated linear attention, a gated MLP and a depthwise 3×3 convolution: `(B, h, w, D)`, `(B, D)` → `(B, h, w, D)`.

    Args:
        num_heads: 2 · num_heads divides D.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.attention = GatedLinearAttention(num_heads, dtype=self.dtype_policy, name="attention")
        self.mlp = GatedMLP(dtype=self.dtype_policy, name="mlp")
        self.dwconv = DepthwiseConv(3, initializer=Centre(), dtype=self.dtype_policy, name="dwconv")

    def build(self, input_shape, conditioning_shape=None):
        self.adaln = adaln(6, input_shape[-1], self.dtype_policy)
        for layer in (self.attention, self.mlp, self.dwconv):
            layer.build(input_shape)

    def residual(self, x, conditioning):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors(self.adaln, conditioning, 6)
        x = gated(x, gate_1, self.attention(modulated(x, shift_1, scale_1)))
        return self.dwconv(gated(x, gate_2, self.mlp(modulated(x, shift_2, scale_2))))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable("fcdm_keras")
class DiGBackbone(PatchBackbone):
    """Diffusion transformer with gated linear attention: linear in the number of patches.

    After each block the sequence of patches is reversed, and after every second the grid is transposed too; after four
    blocks the order is the first one again. With other depths the patches of the output stand in another order, as in
    the published code.

    Args:
        num_heads: 2 · num_heads divides D.
        others: see `PatchBackbone`.
    """

    def __init__(self, hidden_channels, depths, num_heads, **options):
        check_heads(check_integer("hidden_channels", hidden_channels, 4, SIDE), num_heads, multiple=2)
        super().__init__(hidden_channels, depths, num_heads, **options)

    def make_block(self, **options):
        return DiGBlock(self.num_heads, **options)

    def run(self, x, conditioning, training):
        shape = ops.shape(x)
        for i, block in enumerate(self.blocks):
            x = ops.flip(block(x, conditioning, training=training), axis=(1, 2))
            if i % 2:
                x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, shape)

    def default_lora_layer_names(self):
        """The linears of each block, which hold most of the weights."""
        return ["q", "k", "v", "gate", "fc1", "fc2"]
