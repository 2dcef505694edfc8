"""The fast kernels against a float64 NumPy oracle and against plain Keras operations, values and gradients."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from fcdm_keras import kernels

pytestmark = pytest.mark.quick

BACKEND = keras.backend.backend()
# Ways to run: the first is the tests' default, the others are checked where they may differ.
MODES = {"jax": ["jit", "eager"], "torch": ["eager", "traced"], "tensorflow": ["eager", "graph", "xla"]}[BACKEND]
# (B, H, W, C, k): H ≠ W, C not a multiple of 4, feature maps smaller than the kernel, full and part-filled tiles.
SHAPES = [(2, 5, 9, 6, 3), (3, 6, 4, 7, 5), (2, 8, 16, 16, 7), (1, 2, 3, 5, 7), (1, 3, 19, 3, 7), (2, 4, 4, 3, 1)]
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}


def oracle(x, kernel, upstream):
    """Output, input gradient and kernel gradient in float64, straight from the definition."""
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    margin = size // 2
    padding = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded, padded_gradient = np.pad(x, padding), np.zeros_like(np.pad(x, padding))
    y, kernel_gradient = np.zeros_like(x), np.zeros_like(kernel)
    for i in range(size):
        for j in range(size):
            window = (slice(None), slice(i, i + height), slice(j, j + width))
            y += padded[window] * kernel[i, j, :, 0]
            padded_gradient[window] += upstream * kernel[i, j, :, 0]
            kernel_gradient[i, j, :, 0] = np.sum(padded[window] * upstream, axis=(0, 1, 2))
    return y, padded_gradient[:, margin : margin + height, margin : margin + width], kernel_gradient


def value_and_gradients(function, arguments, upstream, dtype="float32", mode=MODES[0]):
    """`function(*arguments)` and the gradients of `Σ upstream · output` to all arguments, as float64 NumPy arrays."""
    arguments = [ops.convert_to_tensor(a, dtype=dtype) for a in arguments]
    upstream = ops.convert_to_tensor(upstream, dtype=dtype)
    results = globals()[f"_{BACKEND}_gradients"](function, arguments, upstream, mode)
    return [ops.convert_to_numpy(ops.cast(r, "float32")).astype("float64") for r in results]


def _jax_gradients(function, arguments, upstream, mode):
    import jax

    def run(*arguments):
        y, pull_back = jax.vjp(function, *arguments)
        return y, *pull_back(upstream.astype(y.dtype))

    return (jax.jit(run) if mode == "jit" else run)(*arguments)


def _torch_gradients(function, arguments, upstream, mode):
    import torch

    arguments = [a.detach().requires_grad_() for a in arguments]
    # "aot_eager" traces forward and backward as torch.compile does, without a C++ compiler.
    y = (torch.compile(function, backend="aot_eager") if mode == "traced" else function)(*arguments)
    y.backward(upstream.to(y.dtype))
    return y.detach(), *(a.grad for a in arguments)


def _tensorflow_gradients(function, arguments, upstream, mode):
    import tensorflow as tf

    def run(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = function(*arguments)
        return y, *tape.gradient(y, arguments, tf.cast(upstream, y.dtype))

    return (run if mode == "eager" else tf.function(run, jit_compile=mode == "xla"))(*arguments)


def example(shape, seed=0):
    batch, height, width, channels, size = shape
    rng = np.random.default_rng(seed)
    # Multiples of 1/64 below 2 are exact in bfloat16: only the arithmetic is tested, not the rounding of the inputs.
    x, upstream = rng.integers(-127, 128, (2, batch, height, width, channels)) / 64
    return x, rng.integers(-127, 128, (size, size, channels, 1)) / 64, upstream


def assert_close(actual, expected, dtype="float32"):
    for name, a, e in zip(("output", "input gradient", "kernel gradient"), actual, expected, strict=False):
        scale = np.abs(e).max() or 1.0
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=TOLERANCE[dtype], err_msg=name)


@pytest.mark.parametrize(
    "shape, dtype", [(s, "float32") for s in SHAPES] + [(SHAPES[4], "bfloat16"), (SHAPES[4], "float16")], ids=str
)
def test_depthwise_conv_against_float64(shape, dtype):
    x, kernel, upstream = example(shape)
    actual = value_and_gradients(kernels.depthwise_conv, (x, kernel), upstream, dtype)
    assert_close(actual, oracle(x, kernel, upstream), dtype)


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_depthwise_conv_against_keras(shape):
    x, kernel, upstream = example(shape)
    with kernels.plain():
        plain = value_and_gradients(kernels.depthwise_conv, (x, kernel), upstream, mode="plain")
    assert_close(value_and_gradients(kernels.depthwise_conv, (x, kernel), upstream), plain)
    layer = keras.layers.DepthwiseConv2D(shape[-1], padding="same", use_bias=False, data_format="channels_last")
    layer.build(x.shape)
    layer.set_weights([kernel])
    assert_close([ops.convert_to_numpy(layer(x))], plain[:1])


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_depthwise_conv_in_other_modes(mode, dtype):
    x, kernel, upstream = example((2, 6, 10, 8, 7))
    actual = value_and_gradients(kernels.depthwise_conv, (x, kernel), upstream, dtype, mode)
    assert_close(actual, oracle(x, kernel, upstream), dtype)


def test_depthwise_conv_recomputed():
    x, kernel, upstream = example((2, 6, 10, 8, 7))
    mode = {"jax": "jit", "torch": "eager", "tensorflow": "xla"}[BACKEND]
    actual = value_and_gradients(keras.remat(kernels.depthwise_conv), (x, kernel), upstream, mode=mode)
    assert_close(actual, oracle(x, kernel, upstream))


if BACKEND == "tensorflow":  # only TensorFlow traces with unknown sizes

    @pytest.mark.parametrize("jit_compile", [None, True])
    def test_depthwise_conv_with_unknown_sizes(jit_compile):
        import tensorflow as tf

        def run(x, kernel, upstream):
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                y = kernels.depthwise_conv(x, kernel)
            return y, *tape.gradient(y, (x, kernel), upstream)

        maps = tf.TensorSpec((None, None, None, 6), tf.float32)
        run = tf.function(run, [maps, tf.TensorSpec((7, 7, 6, 1), tf.float32), maps], jit_compile=jit_compile)
        for shape in ((2, 5, 9, 6, 7), (1, 8, 40, 6, 7)):
            x, kernel, upstream = example(shape)
            actual = run(*(tf.constant(a, tf.float32) for a in (x, kernel, upstream)))
            assert_close([a.numpy() for a in actual], oracle(x, kernel, upstream))


if BACKEND == "jax":  # only JAX partitions one program over devices here

    def test_depthwise_conv_keeps_the_batch_sharded():
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
        batch = NamedSharding(mesh, PartitionSpec("batch"))
        devices = len(mesh.devices)
        x, kernel, upstream = example((2 * devices, 4, 4, 8, 3))

        def gradients(x, kernel, upstream):
            y, pull_back = jax.vjp(kernels.depthwise_conv, x, kernel)
            return y, *pull_back(upstream)

        arguments = [jax.device_put(a.astype("float32"), s) for a, s in ((x, batch), (kernel, None), (upstream, batch))]
        compiled = jax.jit(gradients).lower(*arguments).compile()
        assert "all-gather" not in compiled.as_text()
        assert_close([np.asarray(a) for a in compiled(*arguments)], oracle(x, kernel, upstream))


@pytest.mark.parametrize(
    "x_shape, kernel_shape, message",
    [
        ((1, 4, 4, 8), (4, 4, 8, 1), "kernel size 4, expected an odd"),
        ((1, 4, 4, 8), (3, 3, 6, 1), "x with 8 channels and kernel with 6"),
        ((1, 4, 4, 8), (3, 5, 8, 1), r"expected \(k, k, C, 1\)"),
        ((1, 4, 4, 8), (3, 3, 8, 2), r"expected \(k, k, C, 1\)"),
        ((4, 4, 8), (3, 3, 8, 1), r"expected \(B, H, W, C\)"),
    ],
)
def test_depthwise_conv_says_what_is_wrong(x_shape, kernel_shape, message):
    with pytest.raises(ValueError, match=message):
        kernels.depthwise_conv(ops.zeros(x_shape), ops.zeros(kernel_shape))


def conv3x3_oracle(x, kernel, upstream):
    """Output, input gradient and kernel gradient in float64, straight from the definition."""
    (height, width), padding = x.shape[1:3], ((0, 0), (1, 1), (1, 1), (0, 0))
    padded, padded_gradient = np.pad(x, padding), np.zeros_like(np.pad(x, padding))
    y, kernel_gradient = np.zeros((*x.shape[:3], kernel.shape[3])), np.zeros_like(kernel)
    for i, j in np.ndindex(3, 3):
        window = (slice(None), slice(i, i + height), slice(j, j + width))
        y += padded[window] @ kernel[i, j]
        padded_gradient[window] += upstream @ kernel[i, j].T
        kernel_gradient[i, j] = np.einsum("bhwi,bhwo->io", padded[window], upstream)
    return y, padded_gradient[:, 1:-1, 1:-1], kernel_gradient


@pytest.mark.parametrize("size", [(2, 2), (1, 3), (3, 4)], ids=str)  # the first two are tiny
def test_conv3x3(size):
    rng = np.random.default_rng(4)
    shapes = ((3, *size, 6), (3, 3, 6, 8), (3, *size, 8))
    x, kernel, upstream = (rng.integers(-127, 128, shape) / 64 for shape in shapes)
    for dtype in ("float32", "bfloat16"):
        actual = value_and_gradients(kernels.conv3x3, (x, kernel), upstream, dtype)
        assert_close(actual, conv3x3_oracle(x, kernel, upstream), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear(dtype):
    rng = np.random.default_rng(3)
    x, kernel, bias = (rng.integers(-127, 128, shape) / 64 for shape in ((2, 3, 5, 6), (6, 7), (7,)))
    upstream = rng.integers(-127, 128, (2, 3, 5, 7)) / 64
    actual = value_and_gradients(kernels.linear, (x, kernel, bias), upstream, dtype)
    expected = (
        x @ kernel + bias,
        upstream @ kernel.T,
        np.einsum("bhwi,bhwo->io", x, upstream),
        upstream.sum(axis=(0, 1, 2)),
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=TOLERANCE[dtype] * np.abs(e).max())


@pytest.mark.parametrize("mode", MODES)
def test_gelu(mode):
    x = np.linspace(-12, 12, 4001)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    y, gradient = value_and_gradients(kernels.gelu, (x,), np.ones_like(x), mode=mode)
    np.testing.assert_allclose(y, x * cdf, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradient, cdf + x * density, rtol=0, atol=2e-6)
    y, gradient = value_and_gradients(kernels.gelu, (x,), np.ones_like(x), "bfloat16", mode)
    np.testing.assert_allclose(y, x * cdf, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(gradient, cdf + x * density, rtol=0, atol=2e-2)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("mode", MODES)
def test_layer_norm(mode, offset):
    rng = np.random.default_rng(1)
    x, upstream = rng.normal(size=(2, 2, 3, 5, 24)).astype("float32").astype("float64")
    x = (x + offset).astype("float32").astype("float64")
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    expected = centred * inverse
    projection = upstream - upstream.mean(-1, keepdims=True) - expected * (upstream * expected).mean(-1, keepdims=True)
    y, gradient = value_and_gradients(kernels.layer_norm, (x,), upstream, mode=mode)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 if offset == 0 else 1e-4)
    np.testing.assert_allclose(gradient, inverse * projection, rtol=0, atol=1e-5 if offset == 0 else 1e-3)


def test_layer_norm_of_bfloat16_is_float32():
    x = ops.convert_to_tensor(np.random.default_rng(2).normal(size=(2, 3, 3, 64)), dtype="bfloat16")
    y = kernels.layer_norm(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    x = ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected, atol=1e-5)


if keras.backend.backend() == "jax":

    def test_gradients_are_the_same_where_the_user_has_set_64_bits():
        import jax

        x, kernel = np.ones((1, 4, 4, 2), "float32"), np.ones((3, 3, 2, 1), "float32")
        gradient = jax.grad(lambda kernel: kernels.depthwise_conv(x, kernel).sum())
        expected = np.asarray(gradient(kernel))
        with jax.enable_x64(True):
            np.testing.assert_array_equal(np.asarray(gradient(kernel)), expected)
