"""Linear, GELU and LayerNorm on JAX, with gradients of our own where autodiff's are slow on CPUs."""

import math

import jax
import jax.numpy as jnp
from jax import lax

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # of the standard normal


@jax.custom_vjp
def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`."""
    return jnp.matmul(x, kernel) + bias


def _linear_backward(residuals, gradient):
    x, kernel = residuals
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    # Autodiff writes xᵀg as (gᵀx)ᵀ, and XLA on CPUs then copies g, the larger of the two, to transpose it.
    kernel_gradient = lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))
    return jnp.matmul(gradient, kernel.T), kernel_gradient, jnp.sum(gradients, axis=0)


linear.defvjp(lambda x, kernel, bias: (linear(x, kernel, bias), (x, kernel)), _linear_backward)


@jax.custom_vjp
def gelu(x):
    """Exact GELU, through erf: `jax.nn.gelu` takes erfc, which is twice as slow."""
    return (x * _normal_cdf(x)).astype(x.dtype)


def _gelu_backward(x, gradient):
    # From x alone: autodiff would store the erf and its factors too.
    density = _DENSITY_AT_0 * jnp.exp(-0.5 * jnp.square(x.astype(jnp.float32)))
    return ((gradient * (_normal_cdf(x) + x * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32."""
    return _normalized(x)[0]


def _layer_norm_forward(x):
    y, inverse_deviation = _normalized(x)
    return y, (y, inverse_deviation, jnp.zeros((), x.dtype))


def _layer_norm_backward(residuals, gradient):
    y, inverse_deviation, like = residuals
    along_y = jnp.mean(gradient * y, axis=-1, keepdims=True)
    x_gradient = inverse_deviation * (gradient - jnp.mean(gradient, axis=-1, keepdims=True) - y * along_y)
    return (x_gradient.astype(like.dtype),)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normalized(x):
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse_deviation = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
    return centred * inverse_deviation, inverse_deviation


def _normal_cdf(x):
    return 0.5 * (1.0 + lax.erf(_SQRT_HALF * x.astype(jnp.float32)))
