"""What the blocks of several networks have in common."""

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.arguments import SIDE, check_integer
from fcdm_keras.machine import memory
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.network.layers import linear, modulate, wide


class Block(layers.Layer):
    """Base of residual blocks: `residual(x)` or `residual(x, conditioning)` computes the block's output.

    Attributes:
        gradient_checkpointing: recompute the block in the backward pass instead of storing its activations.
    """

    gradient_checkpointing = False

    def call(self, x, conditioning=None, training=None):
        arguments = (x,) if conditioning is None else (x, conditioning)
        if training and self.gradient_checkpointing:
            return keras.remat(self.residual)(*arguments)
        return self.residual(*arguments)

    def compute_output_shape(self, input_shape, conditioning_shape=None):
        return input_shape


class BlockBackbone(DiffusionBackbone):
    """Base of backbones made of `Block`s, which a subclass lists, in the order in which they run, as `blocks`."""

    @property
    def gradient_checkpointing(self):
        """Whether training recomputes each block in the backward pass (less memory, one more forward pass)."""
        return any(block.gradient_checkpointing for block in self.blocks)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled):
        for block in self.blocks:
            block.gradient_checkpointing = bool(enabled)


def adaln(vectors, width, dtype):
    """The linear that makes so many vectors of a width of SiLU(c): zero in a new network, in float32 or wider."""
    layer = linear(vectors * width, kernel_initializer="zeros", dtype=wide(dtype), name="adaln")
    layer.build((None, width))
    return layer


def vectors(layer, conditioning, count):
    """The `count` vectors `(B, width)` that an `adaln` linear makes of a condition `(B, d)`."""
    return ops.split(layer(ops.silu(conditioning)), count, axis=-1)


def modulated(x, shift, scale):
    """`LN(x) · (1 + scale) + shift`, LN without affine and with epsilon 1e-6, in the dtype of `x`."""
    return ops.cast(modulate(kernels.layer_norm(x), shift, scale), x.dtype)


def gated(x, gate, residual):
    """`x + gate · residual` with maps `(B, H, W, d)` and a gate `(B, d)`."""
    return x + ops.cast(gate, x.dtype)[:, None, None, :] * residual


def check_depths(depths, names):
    """Depths as a tuple of as many integers from 0 to 1000 as there are `names` of levels. Raises ValueError."""
    depths = tuple(depths) if isinstance(depths, (list, tuple)) else (depths,)
    if len(depths) != len(names):
        raise ValueError(f"depths must be {len(names)} integers ({', '.join(names)}). Received: {depths}")
    return tuple(check_integer(f"depths ({name})", depth, 0, 1000) for name, depth in zip(names, depths, strict=True))


def check_memory(hidden_channels, depths):
    """Raises ValueError where the blocks of a network, each of 8 · width² numbers or more, do not fit into memory."""
    parameters = 8 * sum(depths) * check_integer("hidden_channels", hidden_channels, 1, SIDE) ** 2
    memory.check(4 * parameters, f"A network of {parameters:,} parameters", "use a smaller one")


def check_heads(hidden_channels, num_heads, multiple=1):
    """`num_heads` as an integer. Raises ValueError unless each head has a width that is a multiple of `multiple`."""
    num_heads = check_integer("num_heads", num_heads)
    if hidden_channels % (multiple * num_heads):
        wanted = f"{multiple} · num_heads" if multiple > 1 else "num_heads"
        raise ValueError(f"{wanted} must divide hidden_channels={hidden_channels}. Received: num_heads={num_heads}")
    return num_heads
