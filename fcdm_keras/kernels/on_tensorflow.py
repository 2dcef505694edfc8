"""TensorFlow: its own operations, but under XLA a depthwise convolution by shifted multiply-adds.

TensorFlow's depthwise kernels are fast, except the kernel gradient on CPUs; XLA's lowering of the same operation is
tens of times slower on CPUs, and 8 to 24 times on GPUs. So the code asks where it is traced. On GPUs nothing here was
measured: there, without XLA, all three are TensorFlow's kernels.
"""

import functools
import operator

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

MAX_TILE = 8  # columns whose products are summed in one fused loop; more are no faster and compile longer


@tf.custom_gradient
def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, any size may be unknown but C, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`.

    This and `_kernel_gradient` are linear in both arguments and each other's gradients, so they have them of any order.
    """

    def backward(gradient):
        return depthwise_conv(gradient, kernel[::-1, ::-1]), _kernel_gradient(x, gradient, kernel)

    return _convolve(_hidden(x), _hidden(kernel)), backward


def _kernel_gradient(x, gradient, kernel):
    """`(k, k, C, 1)`, in shape and dtype of `kernel`, whose values are not used."""
    like = _hidden(kernel)

    @tf.custom_gradient
    def product(x, gradient):
        def backward(taps):
            return depthwise_conv(gradient, taps[::-1, ::-1]), depthwise_conv(x, taps)

        return _correlate(_hidden(x), _hidden(gradient), like), backward

    return product(x, gradient)


def _hidden(x):
    """`x`, unseen by what differentiates inside of a `tf.custom_gradient`: superfluous there when eager.

    In graphs, though, `tf.autodiff.ForwardAccumulator` passes by custom gradients (TensorFlow 2.21), and must see it.
    """
    return tf.stop_gradient(x) if tf.executing_eagerly() else x


def _convolve(x, kernel):
    if not _under_xla():
        return tf.nn.depthwise_conv2d(x, kernel, strides=(1, 1, 1, 1), padding="SAME")
    sizes, size = _sizes(x), kernel.shape[0]
    padded, taps = _pad(x, size), _wide(kernel[..., 0])

    def rows(first, count):
        """The products of `count` rows of the kernel, summed."""
        products = [
            tf.slice(padded, (0, first + i, j, 0), sizes) * tf.slice(taps, (first + i, j, 0), (1, 1, sizes[3]))
            for i in range(count)
            for j in range(size)
        ]
        return _sum(products)

    # The last rows are added in a loop of two trips, because XLA does not fuse across loops. Without it XLA on CPUs
    # would compute the whole convolution again in each of the three loops of the LayerNorm that follows.
    looped = size // 3
    y = rows(0, size - 2 * looped)
    if looped:
        add = lambda trip, y: (trip + 1, y + rows(size - (2 - trip) * looped, looped))  # noqa: E731
        _, y = tf.while_loop(lambda trip, _: trip < 2, add, (0, y), maximum_iterations=2)
    return tf.cast(y, x.dtype)


def _correlate(x, gradient, kernel):
    if not _under_xla() and tf.config.list_logical_devices("GPU"):
        return tf.nn.depthwise_conv2d_backprop_filter(x, tf.shape(kernel), gradient, (1, 1, 1, 1), "SAME")
    return tf.cast(_compiled_correlate(x, gradient, kernel.shape[0])[..., None], kernel.dtype)


@tf.function(jit_compile=True, autograph=False)
def _compiled_correlate(x, gradient, size):
    """`Σ_{b,h,w} x[b, h+i, w+j, c] · gradient[b, h, w, c]` for every tap (i, j): `(k, k, C)`, wide.

    One step of the loop takes a tile of a row: every tap is summed over the tile's columns in one elementwise loop, so
    each value is read from memory once, not once per tap.
    """
    batch, height, width, channels = _sizes(x)
    tile = min(x.shape[2] or MAX_TILE, MAX_TILE)
    tiles = -(-width // tile)
    extra = tiles * tile - width  # columns of zeros, so that all tiles are full
    padded = _pad(x, size, extra)
    gradient = tf.pad(_wide(gradient), [[0, 0], [0, 0], [0, extra], [0, 0]])

    def add_tile(index, total):
        row, start = index // tiles, index % tiles * tile
        products = [
            tf.slice(padded, (0, row, start + w, 0), (batch, size, size, channels))
            * tf.slice(gradient, (0, row, start + w, 0), (batch, 1, 1, channels))
            for w in range(tile)
        ]
        return index + 1, total + _sum(products)

    zeros = tf.zeros((batch, size, size, channels), padded.dtype)
    steps = height * tiles  # as `maximum_iterations` too, or XLA cannot differentiate the loop
    _, total = tf.while_loop(lambda index, _: index < steps, add_tile, (0, zeros), maximum_iterations=steps)
    return tf.reduce_sum(total, axis=0)


def _sizes(x):
    """The sizes of `x`: integers where the trace knows them, scalar tensors elsewhere."""
    return [known or tf.shape(x)[axis] for axis, known in enumerate(x.shape)]


def _pad(x, size, extra=0):
    """Wide `x` with the zeros of "same" padding, and `extra` columns of zeros on the right."""
    margin = size // 2
    return tf.pad(_wide(x), [[0, 0], [margin, margin], [margin, margin + extra], [0, 0]])


def _sum(terms, chains=4):
    """Sum of the list `terms` as four independent chains: the processor need not wait for each addition."""
    sums = [functools.reduce(operator.add, terms[start::chains]) for start in range(min(chains, len(terms)))]
    return functools.reduce(operator.add, sums)


def _wide(x):
    """`x` in the dtype of sums and statistics: float32, or float64 if it is."""
    return tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)


def _under_xla():
    """Whether this code is being traced for `tf.function(jit_compile=True)`."""
    # No public way to ask. Checked with TensorFlow 2.21; tests/test_private_apis.py fails first.
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def conv3x3(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(3, 3, C, channels)` → `(B, H, W, channels)`."""
    return tf.nn.conv2d(x, kernel, strides=1, padding="SAME")


def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`; graphs fuse this form, MatMul and BiasAdd."""
    y = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, x.shape[-1])), kernel), bias)
    return tf.reshape(y, [*(size or tf.shape(x)[axis] for axis, size in enumerate(x.shape[:-1])), kernel.shape[-1]])


def gelu(x):
    """Exact GELU, elementwise."""
    return tf.nn.gelu(x, approximate=False)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6; the result is wide."""
    x = _wide(x)
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + 1e-6)
