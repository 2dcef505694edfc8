"""GELU and LayerNorm on JAX."""

import jax
import jax.numpy as jnp
from jax import lax


def gelu(x):
    """Exact GELU, through erf: `jax.nn.gelu` takes erfc, which is slower."""
    return x * 0.5 * (1 + lax.erf(x * (0.5**0.5)))


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    return centred * lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-6)
