"""Gated linear attention (Yang et al., arXiv:2312.06635), in chunks: linear in the number of tokens.

Per head, with keys of width a, values of width b and decays g ≤ 0 `(a,)`:

    S_i = diag(exp g_i) S_{i−1} + k_i v_iᵀ,  S_0 = 0        (1)
    o_i = a^(−1/2) S_iᵀ q_i                                 (2)

With G the sum of g from the beginning of a chunk to i, and S the state before it, (2) is

    o_i = a^(−1/2) (Sᵀ (q_i exp G_i) + Σ_{j ≤ i} ⟨q_i exp G_i, k_j exp(−G_j)⟩ v_j)

of which the sum is a masked product of matrices. States at the ends of chunks follow from what each chunk adds by an
associative scan, so that no loop runs over tokens.
"""

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras.network.initializers import XavierUniform
from fcdm_keras.network.layers import Dense, linear, wide

CHUNK = 16  # tokens
LOWEST = -5.0  # of g: exp(16 · 5) is a float32; a state keeps 0.7 % then, and nothing after another token or two
NORMALIZER = 16.0  # what log σ is divided by


def gated_linear_attention(q, k, v, g):
    """(1) and (2) for all tokens.

    Args:
        q, k: `(B, L, heads, a)`.
        v: `(B, L, heads, b)`.
        g: logarithms of decays, `(B, L, heads, a)`, at most 0; less than −5 counts as −5.

    Returns:
        `(B, L, heads, b)`.
    """
    length, rest = ops.shape(q)[1], -ops.shape(q)[1] % CHUNK
    q, k, v, g = (_chunks(x, rest) for x in (q, k, v, ops.maximum(g, LOWEST)))  # (B, n, CHUNK, heads, …)
    sums = ops.cumsum(g, axis=2)
    total = sums[:, :, -1]
    decayed = q * ops.exp(sums)
    scores = ops.einsum("bnihd,bnjhd->bnhij", decayed, k * ops.exp(-sums))
    scores = scores * ops.convert_to_tensor(np.tri(CHUNK), scores.dtype)
    inside = ops.einsum("bnhij,bnjhe->bnihe", scores, v)
    added = ops.einsum("bnjhd,bnjhe->bnhde", k * ops.exp(total[:, :, None] - sums), v)
    _, states = ops.associative_scan(_then, (ops.exp(total)[..., None], added), axis=1)
    before = ops.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    across = ops.einsum("bnihd,bnhde->bnihe", decayed, before)
    o = (inside + across) * q.shape[-1] ** -0.5
    return ops.reshape(o, (-1, length + rest, *o.shape[3:]))[:, :length]


def _chunks(x, rest):
    """`(B, L, heads, d)` → `(B, n, CHUNK, heads, d)`, with tokens of zeros at the end."""
    x = ops.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0)))
    return ops.reshape(x, (-1, ops.shape(x)[1] // CHUNK, CHUNK, *x.shape[2:]))


def _then(first, second):
    """Decay and addition of two stretches of tokens, one after the other."""
    return first[0] * second[0], first[1] * second[0] + second[1]


@keras.saving.register_keras_serializable("fcdm_keras")
class GatedLinearAttention(layers.Layer):
    """`gated_linear_attention` of all places of a map `(B, h, w, D)` in row order, normalised and gated.

    Keys are D/2 wide, values D; decays, states and the norm are computed in float32 or float64.

    Args:
        num_heads: 2 · num_heads divides D.
        rank: width between the two linears of the decays.
    """

    def __init__(self, num_heads, rank=16, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.rank = num_heads, rank

    def build(self, input_shape):
        width, small = input_shape[-1], XavierUniform(gain=2**-2.5)
        options = {"use_bias": False, "kernel_initializer": small, "dtype": self.dtype_policy}
        sizes = {"q": width // 2, "k": width // 2, "v": width, "gate": width, "decay_in": self.rank, "out": width}
        for name, units in sizes.items():
            layer = Dense(units, name=name, **options)
            layer.build(input_shape)
            setattr(self, name, layer)
        self.decay_out = linear(width // 2, kernel_initializer=small, dtype=self.dtype_policy, name="decay_out")
        self.decay_out.build((*input_shape[:-1], self.rank))
        self.scale = self.add_weight(name="scale", shape=(width // self.num_heads,), initializer="ones")

    def call(self, x):
        dtype = wide(self.dtype_policy)
        q, k, v, gate, decay = (
            ops.reshape(ops.cast(y, dtype), (ops.shape(x)[0], -1, self.num_heads, y.shape[-1] // self.num_heads))
            for y in (self.q(x), self.k(x), self.v(x), self.gate(x), self.decay_out(self.decay_in(x)))
        )
        o = gated_linear_attention(q, k, v, ops.log_sigmoid(decay) / NORMALIZER)
        o = o * ops.rsqrt(ops.mean(ops.square(o), axis=-1, keepdims=True) + 1e-6)
        o = ops.cast(self.scale, dtype) * o * ops.silu(gate)
        return self.out(ops.cast(ops.reshape(o, ops.shape(x)), x.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "rank": self.rank}
