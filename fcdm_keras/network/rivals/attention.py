"""Softmax attention over all tokens, and the MLP beside it (as in ViT; arXiv:2010.11929)."""

import keras
from keras import layers, ops

from fcdm_keras import kernels
from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import Dense, Linear


@keras.saving.register_keras_serializable("fcdm_keras")
class Attention(layers.Layer):
    """Multi-head self-attention, `softmax(q kᵀ / √d) v`: `(B, …, D)` → the same, over all places between.

    Args:
        num_heads: divides D.
        use_bias: whether q, k and v have biases; the last linear has one.
        initializer: of the two kernels; default Xavier-uniform.
    """

    def __init__(self, num_heads, use_bias=True, initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.use_bias = num_heads, use_bias
        self.initializer = initializer or XavierUniform()

    def build(self, input_shape):
        width = input_shape[-1]
        options = {"kernel_initializer": self.initializer, "dtype": self.dtype_policy}
        self.qkv = (
            Linear(3 * width, name="qkv", **options)
            if self.use_bias
            else Dense(3 * width, use_bias=False, name="qkv", **options)
        )
        self.projection = Linear(width, name="projection", **options)
        self.qkv.build(input_shape)
        self.projection.build(input_shape)

    def call(self, x):
        width = x.shape[-1]
        tokens = ops.reshape(self.qkv(x), (ops.shape(x)[0], -1, 3, self.num_heads, width // self.num_heads))
        q, k, v = ops.unstack(tokens, 3, axis=2)
        return self.projection(ops.reshape(ops.dot_product_attention(q, k, v), ops.shape(x)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"num_heads": self.num_heads, "use_bias": self.use_bias}
        initializer = keras.saving.serialize_keras_object(self.initializer)
        return {**super().get_config(), **config, "initializer": initializer}


@keras.saving.register_keras_serializable("fcdm_keras")
class MLP(layers.Layer):
    """Linear, GELU, linear: `(…, D)` → `(…, D)`.

    Args:
        hidden: width between the two.
        approximate: whether the GELU is the one of tanh.
        initializer: of the two kernels; default Xavier-uniform.
    """

    def __init__(self, hidden, approximate, initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.approximate = hidden, approximate
        self.initializer = initializer or XavierUniform()

    def build(self, input_shape):
        options = {"kernel_initializer": self.initializer, "dtype": self.dtype_policy}
        self.fc1 = Linear(self.hidden, name="fc1", **options)
        self.fc2 = Linear(input_shape[-1], name="fc2", **options)
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden))

    def call(self, x):
        x = self.fc1(x)
        return self.fc2(ops.gelu(x, approximate=True) if self.approximate else kernels.gelu(x))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"hidden": self.hidden, "approximate": self.approximate}
        initializer = keras.saving.serialize_keras_object(self.initializer)
        return {**super().get_config(), **config, "initializer": initializer}
