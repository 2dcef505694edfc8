"""JAX: gradients of our own where autodiff's, or XLA's lowering, are slow on CPUs.

Sums and statistics are float32, or float64 where the arguments are.

The depthwise convolution is shifted multiply-adds. XLA lowers a grouped convolution to code that is 10 to 20 times
slower on CPUs, and its gradients more so. Plain `jnp` operations fuse instead, and let GSPMD shard the batch. On NVIDIA
GPUs it is cuDNN's: on an H100 a block took half the time in training so, and two thirds in inference (XL, level 1,
batch 64, bfloat16).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fcdm_keras.kernels import on_keras
from fcdm_keras.kernels.jax_primitives import linear_in

TINY = 4  # pixels
_SQRT_HALF = math.sqrt(0.5)
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)  # of the standard normal


@linear_in(
    {
        0: lambda gradient, x, kernel: depthwise_conv(gradient, kernel[::-1, ::-1]),
        1: lambda gradient, x, kernel: _kernel_gradient(x, gradient, size=kernel.shape[0]),
    }
)
def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`."""
    return lax.platform_dependent(x, kernel, cuda=on_keras.depthwise_conv, default=_shifted_sum)


def _shifted_sum(x, kernel):
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    padded, taps = _pad(x, size), _wide(kernel[..., 0])

    def rows(first, count):
        """The products of `count` rows of the kernel, summed; `first` may be traced."""
        products = [
            _slice(padded, (0, first + i, j, 0), (batch, height, width, channels))
            * _slice(taps, (first + i, j, 0), (1, 1, channels))
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


@linear_in(
    {
        0: lambda taps, x, gradient, size: depthwise_conv(gradient, taps[::-1, ::-1]),
        1: lambda taps, x, gradient, size: depthwise_conv(x, taps),
    },
    static=("size",),
)
def _kernel_gradient(x, gradient, size):
    """`Σ_{b,h,w} x[b, h+i, w+j, c] · gradient[b, h, w, c]` for every tap (i, j): `(k, k, C, 1)`."""
    scanned = functools.partial(_scanned, size=size)
    return lax.platform_dependent(x, gradient, cuda=functools.partial(_convolved, size=size), default=scanned)


def _convolved(x, gradient, size):
    kernel = jnp.zeros((size, size, x.shape[-1], 1), x.dtype)
    return jax.linear_transpose(functools.partial(on_keras.depthwise_conv, x), kernel)(gradient)[0]


def _scanned(x, gradient, size):
    """One step of the scan takes a tile of a row: every tap is summed over the tile's columns in one elementwise loop,
    so each value is read from memory once, not once per tap. The batch stays an axis: it may be sharded.
    """
    batch, height, width, channels = x.shape
    tile = min(width, 8)  # wider tiles are no faster and compile longer
    tiles = -(-width // tile)
    extra = tiles * tile - width  # columns of zeros, so that all tiles are full
    padded = _pad(x, size, extra)
    gradient = _wide(jnp.pad(gradient, ((0, 0), (0, 0), (0, extra), (0, 0))))

    def add_tile(total, index):
        row, start = index // tiles, index % tiles * tile
        # Each product slices the whole tensor: a slice with one user is fused, a shared one would be copied first.
        products = [
            _slice(padded, (0, row, start + w, 0), (batch, size, size, channels))
            * _slice(gradient, (0, row, start + w, 0), (batch, 1, 1, channels))
            for w in range(tile)
        ]
        return total + _sum(products), None

    zeros = jnp.zeros((batch, size, size, channels), padded.dtype)
    total, _ = lax.scan(add_tile, zeros, jnp.arange(height * tiles, dtype=jnp.int32))
    return jnp.sum(total, axis=0)[..., None].astype(x.dtype)


def _pad(x, size, extra=0):
    """Wide `x` with the zeros of "same" padding, and `extra` columns of zeros on the right."""
    margin = size // 2
    return jnp.pad(_wide(x), ((0, 0), (margin, margin), (margin, margin + extra), (0, 0)))


def _slice(x, starts, sizes):
    """`lax.dynamic_slice`, which wants indices of one type: numbers are int64 where JAX has 64 bits."""
    return lax.dynamic_slice(x, [jnp.asarray(start, jnp.int32) for start in starts], sizes)


def _sum(terms, chains=4):
    """Sum of the list `terms` as four independent chains: the processor need not wait for each addition."""
    sums = [functools.reduce(jnp.add, terms[start::chains]) for start in range(min(chains, len(terms)))]
    return functools.reduce(jnp.add, sums)


def _wide(x):
    """`x` in the dtype of sums and statistics."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv3x3(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(3, 3, C, channels)` → `(B, H, W, channels)`.

    Feature maps of at most `TINY` pixels are one matrix product: XLA's gradients of the kernel take 12 to 50 times as
    long there on CPUs (batch 64, 2×2 pixels, 256 to 512 channels: 993 ms, and 19 ms as a product).
    """
    height, width, channels = x.shape[1:]
    if height * width > TINY:
        return on_keras.conv3x3(x, kernel)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(shifted, axis=-1)  # (B, H, W, 9C)
    return jnp.matmul(patches, kernel.reshape(9 * channels, -1))


def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`."""
    return _product(x, kernel) + _repeated(bias, shape=(*x.shape[:-1], *bias.shape))


@linear_in(
    {
        0: lambda gradient, x, kernel: _product(gradient, kernel.T),
        1: lambda gradient, x, kernel: _rows_product(x, gradient),
    }
)
def _product(x, kernel):
    return jnp.matmul(x, kernel)


@linear_in(
    {
        0: lambda kernel, x, gradient: _product(gradient, kernel.T),
        1: lambda kernel, x, gradient: _product(x, kernel),
    }
)
def _rows_product(x, gradient):
    """`xᵀ gradient`: autodiff writes (gᵀx)ᵀ, and XLA on CPUs then copies g, the larger of the two, to transpose it."""
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))


@linear_in({0: lambda gradient, bias, shape: _column_sums(gradient)}, static=("shape",))
def _repeated(bias, shape):
    return jnp.broadcast_to(bias, shape)


@linear_in({0: lambda bias, x: _repeated(bias, shape=x.shape)})
def _column_sums(x):
    """Over all axes but the last; `jnp.sum` adds numbers of 16 bits in float32, unlike autodiff of a broadcast."""
    return jnp.sum(x.reshape(-1, x.shape[-1]), axis=0)


@jax.custom_jvp
def gelu(x):
    """Exact GELU, through erf: `jax.nn.gelu` takes erfc, which is twice as slow."""
    return (x * _normal_cdf(x)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return gelu(x), _along_gelu(x, tangent)


@linear_in({1: lambda gradient, x, tangent: _along_gelu(x, gradient)})
def _along_gelu(x, tangent):
    """The tangent times GELU's slope, from x alone: autodiff would store the erf and its factors too."""
    density = _DENSITY_AT_0 * jnp.exp(-0.5 * jnp.square(_wide(x)))
    return (tangent * (_normal_cdf(x) + x * density)).astype(x.dtype)


@jax.custom_jvp
def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6; the result is wide."""
    return _normalized(x)[0]


@layer_norm.defjvp
def _layer_norm_jvp(primals, tangents):
    y, inverse_deviation = _normalized(*primals)
    return y, _along_layer_norm(y, inverse_deviation, _wide(*tangents))


@linear_in({2: lambda gradient, y, inverse_deviation, tangent: _along_layer_norm(y, inverse_deviation, gradient)})
def _along_layer_norm(y, inverse_deviation, tangent):
    """LayerNorm's Jacobian, a symmetric matrix, times the tangent."""
    along_y = jnp.mean(tangent * y, axis=-1, keepdims=True)
    return inverse_deviation * (tangent - jnp.mean(tangent, axis=-1, keepdims=True) - y * along_y)


def _normalized(x):
    x = _wide(x)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse_deviation = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
    return centred * inverse_deviation, inverse_deviation


def _normal_cdf(x):
    return 0.5 * (1.0 + lax.erf(_SQRT_HALF * _wide(x)))
