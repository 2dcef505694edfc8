"""Depthwise convolution on JAX as shifted multiply-adds, with a gradient of our own for the kernel.

XLA lowers a grouped convolution to code that is 10 to 20 times slower on CPUs, and its gradients more so. Plain `jnp`
operations fuse instead, and let GSPMD shard the batch. Measured on CPUs only; on GPUs XLA's grouped convolution has the
same history (jax issues 13800 and 23713), so the same code runs there, unmeasured.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


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
    total, _ = lax.scan(add_tile, zeros, jnp.arange(height * tiles, dtype=jnp.int32))
    return jnp.sum(total, axis=0)


def _pad(x, size, extra=0):
    """`x` as float32 with the zeros of "same" padding, and `extra` columns of zeros on the right."""
    margin = size // 2
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (margin, margin), (margin, margin + extra), (0, 0)))


def _sum(terms, chains=4):
    """Sum of the list `terms` as four independent chains: the processor need not wait for each addition."""
    sums = [functools.reduce(jnp.add, terms[start::chains]) for start in range(min(chains, len(terms)))]
    return functools.reduce(jnp.add, sums)
