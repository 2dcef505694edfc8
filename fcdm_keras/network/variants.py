"""Blocks of the ablations (paper, tables 6 and 13): `FCDMBlock` with a part exchanged.

What the paper's numbers fix of them is the count of multiply-accumulates. Biases, and the order within the ResNet
block, are our choice, as is written where they stand.
"""

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.arguments import check_integer
from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import Dense, FCDMBlock, conv, linear, modulate, wide

HEAD_WIDTH = 32  # of neighbourhood attention


@keras.saving.register_keras_serializable("fcdm_keras")
class CCA(layers.Layer):
    """Compact channel attention (DiCo; arXiv:2505.11196), `(B, H, W, C)` → `(B, H, W, C)`.

    The output is `x · sigmoid(W · mean_{H,W}(x) + b)`, the mean in float32 or wider.
    """

    def build(self, input_shape):
        options = {"kernel_initializer": XavierUniform(), "dtype": self.dtype_policy, "name": "linear"}
        self.linear = Dense(input_shape[-1], **options)
        self.linear.build((None, input_shape[-1]))

    def call(self, x):
        dtype = wide(self.dtype_policy)
        _, height, width, _ = ops.shape(x)
        mean = ops.sum(ops.cast(x, dtype), axis=(1, 2)) / ops.cast(height * width, dtype)
        return x * ops.sigmoid(self.linear(ops.cast(mean, x.dtype)))[:, None, None, :]

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("fcdm_keras")
class NeighborhoodAttention(layers.Layer):
    """Attention of each position to the k×k window around it (Hassani et al., arXiv:2204.07143), `(B, H, W, C)`.

    At the border the window is shifted inwards, so that it always has k² positions: its first row is
    `clip(i − k // 2, 0, H − k)`, its first column likewise. One linear gives query, key and value, in this order, each
    divided into heads; another follows. Both have biases, and there is no position bias.

    The rows of a window are gathered and its columns masked: matrix products of `k · W` positions, which on maps up to
    32 wide take less memory than gathering all `k²`.

    Args:
        kernel_size: odd integer k.
        head_width: channels of a head, a divisor of C.

    Raises:
        ValueError: on call, for maps smaller than the window.
    """

    def __init__(self, kernel_size=7, head_width=HEAD_WIDTH, **kwargs):
        super().__init__(**kwargs)
        if check_integer("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd integer. Received: {kernel_size}")
        self.kernel_size = kernel_size
        self.head_width = check_integer("head_width", head_width)

    def build(self, input_shape):
        channels = input_shape[-1]
        check_head_width(self.head_width, channels)
        self.qkv = linear(3 * channels, dtype=self.dtype_policy, name="qkv")
        self.proj = linear(channels, dtype=self.dtype_policy, name="proj")
        self.qkv.build((None, None, None, channels))
        self.proj.build((None, None, None, channels))

    def call(self, x):
        _, height, width, channels = ops.shape(x)
        size = self.kernel_size
        if any(isinstance(side, int) and side < size for side in (height, width)):
            raise ValueError(
                f"Neighbourhood attention needs feature maps of at least {size}×{size}, its window: give larger "
                f"images. Received: {height}×{width}"
            )
        parts = ops.reshape(self.qkv(x), (-1, height, width, 3, channels // self.head_width, self.head_width))
        query = parts[:, :, :, 0] * self.head_width**-0.5
        rows = _first(height, size)[:, None] + ops.arange(size, dtype="int32")
        key, value = (ops.take(parts[:, :, :, i], rows, axis=1) for i in (1, 2))  # (B, H, k, W, heads, head width)
        logits = ops.cast(ops.einsum("bijhd,biamhd->bhijam", query, key), wide(self.dtype_policy))
        first, columns = _first(width, size)[:, None], ops.arange(width, dtype="int32")
        inside = ops.logical_and(columns >= first, columns < first + size)  # (W, W)
        logits = ops.where(inside[:, None, :], logits, -1e30)
        weights = ops.exp(logits - ops.max(logits, axis=(-2, -1), keepdims=True))
        weights = weights / ops.sum(weights, axis=(-2, -1), keepdims=True)
        attended = ops.einsum("bhijam,biamhd->bijhd", ops.cast(weights, x.dtype), value)
        return self.proj(ops.reshape(attended, (-1, height, width, channels)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size, "head_width": self.head_width}


def check_head_width(head_width, channels):
    """Raises ValueError unless heads of a width divide the channels."""
    if channels % check_integer("head_width", head_width):
        raise ValueError(
            f"head_width must divide the width {channels} of the blocks: give another one, or another width. "
            f"Received: {head_width}"
        )


def _first(side, size):
    """Where the window of each position along a side begins, `(side,)`."""
    return ops.clip(ops.arange(side, dtype="int32") - size // 2, 0, side - size)


@keras.saving.register_keras_serializable("fcdm_keras")
class CCABlock(FCDMBlock):
    """`FCDMBlock` with channel attention in the place of the GRN, on the expanded channels (table 6)."""

    _response = CCA


@keras.saving.register_keras_serializable("fcdm_keras")
class FeedforwardBlock(FCDMBlock):
    """`FCDMBlock` and behind it a feed-forward branch as DiCo's (table 6), its inner width 2d.

    adaLN gives shift, scale and gate of the block, then those of the branch.
    """

    vectors = 6

    def build(self, input_shape, conditioning_shape=None):
        super().build(input_shape)
        width = input_shape[-1]
        self.conv4 = linear(2 * width, dtype=self.dtype_policy, name="conv4")
        self.conv5 = linear(width, dtype=self.dtype_policy, name="conv5")
        self.conv4.build((None, None, None, width))
        self.conv5.build((None, None, None, 2 * width))

    def plain_residual(self, x, shift, scale, gate, *feedforward):
        x = super().plain_residual(x, shift, scale, gate)
        shift, scale, gate = feedforward
        h = modulate(kernels.layer_norm(x), shift, scale)
        h = self.conv5(kernels.gelu(self.conv4(ops.cast(h, x.dtype))))
        return x + ops.cast(gate, x.dtype)[:, None, None, :] * h


@keras.saving.register_keras_serializable("fcdm_keras")
class CCAFeedforwardBlock(FeedforwardBlock):
    """`FeedforwardBlock` with channel attention in the place of the GRN."""

    _response = CCA


@keras.saving.register_keras_serializable("fcdm_keras")
class ResNetBlock(FCDMBlock):
    """Two dense 3×3 convolutions of constant width (table 6): no depthwise one, no expansion.

    Our choice: convolution, LayerNorm with adaLN's shift and scale, GELU, convolution, gate.
    """

    lora_layer_names = ("conv1", "conv2")

    def build(self, input_shape, conditioning_shape=None):
        width = input_shape[-1]
        self.adaln = self._adaln(width)
        self.conv1, self.conv2 = (conv(width, dtype=self.dtype_policy, name=name) for name in ("conv1", "conv2"))
        self.conv1.build(input_shape)
        self.conv2.build(input_shape)

    def plain_residual(self, x, shift, scale, gate):
        h = modulate(kernels.layer_norm(self.conv1(x)), shift, scale)
        h = self.conv2(ops.cast(kernels.gelu(h), x.dtype))
        return x + ops.cast(gate, x.dtype)[:, None, None, :] * h


@keras.saving.register_keras_serializable("fcdm_keras")
class NeighborhoodBlock(FCDMBlock):
    """`FCDMBlock` with neighbourhood attention in the place of the depthwise convolution (table 13).

    Args:
        head_width: channels of a head.
    """

    def __init__(self, expansion_ratio=3, kernel_size=7, head_width=HEAD_WIDTH, **kwargs):
        super().__init__(expansion_ratio, kernel_size, **kwargs)
        self.head_width = head_width

    def _mixer(self, **options):
        return NeighborhoodAttention(self.kernel_size, self.head_width, **options)

    def get_config(self):
        return {**super().get_config(), "head_width": self.head_width}


BLOCKS = {
    "fcdm": FCDMBlock,
    "cca": CCABlock,
    "feedforward": FeedforwardBlock,
    "cca_feedforward": CCAFeedforwardBlock,
    "resnet": ResNetBlock,
    "neighborhood": NeighborhoodBlock,
}


def head_width_of(block, head_width, channels):
    """The channels of a head of a kind of block, or `None` where it has no heads.

    Raises:
        ValueError: for a block without heads, and for heads that do not divide the channels.
    """
    if block != "neighborhood":
        if head_width is not None:
            raise ValueError(f"head_width is of the variant neighborhood: leave it out. Received: {head_width!r}")
        return None
    head_width = HEAD_WIDTH if head_width is None else head_width
    check_head_width(head_width, channels)
    return head_width
