"""JAX: gradients of our own where autodiff's, or XLA's lowering, are slow on CPUs.

The depthwise convolution is shifted multiply-adds. XLA lowers a grouped convolution to code that is 10 to 20 times
slower on CPUs, and its gradients more so. Plain `jnp` operations fuse instead, and let GSPMD shard the batch. Measured
on CPUs only; on GPUs XLA's grouped convolution has the same history (jax issues 13800 and 23713), so the same code runs
there, unmeasured.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # of the standard normal


@jax.custom_vjp
def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`, summed in float32."""
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    padded, taps = _pad(x, size), kernel[..., 0].astype(jnp.float32)

    def rows(first, count):
        """The products of `count` rows of the kernel, summed; `first` may be traced."""
        products = [
            lax.dynamic_slice(padded, (0, first + i, j, 0), (batch, height, width, channels))
            * lax.dynamic_slice(taps, (first + i, j, 0), (1, 1, channels))
            for i in range(count)
            for j in range(size)
        ]
        return _sum(products)

    # The last rows are added in a loop of two trips, because XLA does not fuse across loops. Without it XLA on CPUs
    # would compute the whole convolution again in each of the three loops of the LayerNorm that follows.
    looped = size // 3
    y = rows(0, size - 2 * looped)
    if looped:
        y = lax.fori_loop(0, 2, lambda trip, y: y + rows(size - (2 - trip) * looped, looped), y)
    return y.astype(x.dtype)


def _forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    x_gradient = depthwise_conv(gradient, kernel[::-1, ::-1])
    return x_gradient, _kernel_gradient(x, gradient, kernel.shape[0])[..., None].astype(kernel.dtype)


depthwise_conv.defvjp(_forward, _backward)


def _kernel_gradient(x, gradient, size):
    """`Σ_{b,h,w} x[b, h+i, w+j, c] · gradient[b, h, w, c]` for every tap (i, j): `(k, k, C)`, float32.

    One step of the scan takes a tile of a row: every tap is summed over the tile's columns in one elementwise loop, so
    each value is read from memory once, not once per tap. The batch stays an axis: it may be sharded.
    """
    batch, height, width, channels = x.shape
    # On CPUs wider tiles are no faster and compile longer; on GPUs, where each step is a launch, they should pay.
    tile = min(width, 8 if jax.default_backend() == "cpu" else 64)
    tiles = -(-width // tile)
    extra = tiles * tile - width  # columns of zeros, so that all tiles are full
    padded = _pad(x, size, extra)
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, extra), (0, 0))).astype(jnp.float32)

    def add_tile(total, index):
        row, start = index // tiles, index % tiles * tile
        # Each product slices the whole tensor: a slice with one user is fused, a shared one would be copied first.
        products = [
            lax.dynamic_slice(padded, (0, row, start + w, 0), (batch, size, size, channels))
            * lax.dynamic_slice(gradient, (0, row, start + w, 0), (batch, 1, 1, channels))
            for w in range(tile)
        ]
        return total + _sum(products), None

    zeros = jnp.zeros((batch, size, size, channels), jnp.float32)
    total, _ = lax.scan(add_tile, zeros, jnp.arange(height * tiles))
    return jnp.sum(total, axis=0)


def _pad(x, size, extra=0):
    """`x` as float32 with the zeros of "same" padding, and `extra` columns of zeros on the right."""
    margin = size // 2
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (margin, margin), (margin, margin + extra), (0, 0)))


def _sum(terms, chains=4):
    """Sum of the list `terms` as four independent chains: the processor need not wait for each addition."""
    sums = [functools.reduce(jnp.add, terms[start::chains]) for start in range(min(chains, len(terms)))]
    return functools.reduce(jnp.add, sums)


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
