"""Derivatives of every kind, of each kernel and of a network, in float64 against central differences."""

import functools

import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy
from keras import ops

from fcdm_keras import kernels
from fcdm_keras.network.layers import GRN

BACKEND = keras.backend.backend()
SHAPES = {
    "depthwise_conv": [(2, 3, 5, 4), (3, 3, 4, 1)],
    "conv3x3": [(2, 1, 2, 3), (3, 3, 3, 2)],  # tiny, which JAX computes as a product
    "linear": [(2, 3, 4), (4, 5), (5,)],
    "gelu": [(3, 7)],
    "layer_norm": [(3, 7)],
}
# Accumulators over gradients are eager on TensorFlow, see `docs/exporting.md`.
MODES = ("eager",) if BACKEND == "tensorflow" else ("",)


@pytest.fixture(autouse=True)
def float64():
    if BACKEND != "jax":
        yield
    else:
        import jax

        with jax.enable_x64(True):
            yield


def of_kernel(name):
    """A function of a kernel's arguments to a scalar, nonlinear in each, and arguments."""
    arguments = [np.random.default_rng(1).normal(size=shape) for shape in SHAPES[name]]

    def energy(*tensors):
        y = getattr(kernels, name)(*tensors)
        return ops.sum(y * y * (y + 1))

    return energy, arguments


def of_network():
    """A function of `x_t` and of weights of a convolution, a GRN and an adaLN to a scalar, and arguments."""
    backbone = tiny_backbone(depths=(1, 0, 1, 0, 0), kernel_size=3, dtype="float64")
    names = ("encoder_1_block_0/dwconv/kernel", "middle_block_0/grn/gamma", "middle_block_0/adaln/bias")
    variables = [next(v for v in backbone.variables if v.path.endswith(name)) for name in names]
    fixed = {"timesteps": ops.convert_to_tensor([3.0, 7.5]), "labels": ops.convert_to_tensor([1, 10])}

    def energy(x_t, *weights):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            output = backbone({"x_t": x_t, **fixed})
            return ops.sum(output * output) / 32

    x_t = np.random.default_rng(1).normal(size=(2, 4, 4, 2))
    return energy, [x_t, *(to_numpy(variable.value).astype("float64") for variable in variables)]


def gradient(function, *arguments):
    """Of a scalar function, by the engine's reverse mode, to all arguments."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function, tuple(range(len(arguments))))(*arguments)
    if BACKEND == "torch":
        import torch

        return torch.func.grad(function, tuple(range(len(arguments))))(*arguments)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    return tuple(tape.gradient(value, arguments))


def pushed(function, arguments, directions):
    """The derivative of a function along directions, by the engine's forward mode."""
    if BACKEND == "jax":
        import jax

        return jax.jvp(function, arguments, directions)[1]
    if BACKEND == "torch":
        import torch

        return torch.func.jvp(function, arguments, directions)[1]
    import tensorflow as tf

    with tf.autodiff.ForwardAccumulator(arguments, directions) as accumulator:
        value = function(*arguments)
    return accumulator.jvp(value)


def run(function, arguments, mode):
    """`function` of float64 arrays, compiled where that is usual, as a flat list of float64 arrays."""
    arguments = [ops.convert_to_tensor(a, dtype="float64") for a in arguments]
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    elif BACKEND == "tensorflow" and mode != "eager":
        import tensorflow as tf

        function = tf.function(function, jit_compile=mode == "xla")
    results = keras.tree.flatten(function(*arguments))
    assert all(keras.backend.standardize_dtype(result.dtype) == "float64" for result in results)
    return [to_numpy(result) for result in results]


def derivative(function, arguments, directions, step=1e-5):
    """Central difference of fourth order of a function to a list of arrays."""
    at = [function([a + n * step * d for a, d in zip(arguments, directions, strict=True)]) for n in (-2, -1, 1, 2)]
    return [(8 * (c - b) - (d - a)) / (12 * step) for a, b, c, d in zip(*at, strict=True)]


def inner(left, right):
    return sum(ops.sum(a * b) for a, b in zip(left, right, strict=True))


def assert_derivatives(function, arguments, mode):
    count = len(arguments)
    directions = [np.random.default_rng(2).normal(size=np.shape(a)) for a in arguments]

    def penalty(*arguments):
        return inner(*2 * (gradient(function, *arguments),))

    def values(*arguments):
        return function(*arguments), *gradient(function, *arguments), penalty(*arguments)

    def derivatives(*given):
        at, along = given[:count], given[count:]
        return (
            pushed(function, at, along),
            inner(gradient(function, *at), along),
            pushed(lambda *a: gradient(function, *a), at, along),  # Hessian times vector, forward over reverse
            gradient(lambda *a: inner(gradient(function, *a), along), *at),  # and reverse over reverse
            inner(gradient(penalty, *at), along),
        )

    slope, *curvature, of_penalty = derivative(lambda a: run(values, a, mode), arguments, directions)
    actual = run(derivatives, [*arguments, *directions], mode)
    expected = [slope, slope, *curvature, *curvature, of_penalty]
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * max(1, np.abs(e).max()), err_msg=str(number))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_derivatives_of_kernels(name, mode):
    assert_derivatives(*of_kernel(name), mode)


@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_a_network(mode):
    assert_derivatives(*of_network(), mode)


@pytest.mark.parametrize("name", SHAPES)
def test_jacobians(name):
    """Which the engines compute by gradients or tangents in a batch."""
    arguments = [np.random.default_rng(1).normal(size=shape) for shape in SHAPES[name]]
    directions = [np.random.default_rng(2).normal(size=a.shape) for a in arguments]
    function = getattr(kernels, name)
    (expected,) = derivative(lambda a: run(function, a, "graph"), arguments, directions)
    for kind in ("jacrev", "jacfwd") if BACKEND != "tensorflow" else ("tape",):
        jacobians = run(functools.partial(_jacobian, function, kind), arguments, "graph")
        actual = sum(np.tensordot(j, d, d.ndim) for j, d in zip(jacobians, directions, strict=True))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5, err_msg=kind)


def _jacobian(function, kind, *arguments):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = function(*arguments)
        return tape.jacobian(value, arguments)
    import importlib

    engine = importlib.import_module({"jax": "jax", "torch": "torch.func"}[BACKEND])
    return getattr(engine, kind)(function, tuple(range(len(arguments))))(*arguments)


def test_second_derivatives_are_finite_where_a_channel_is_zero():
    grn = GRN(dtype="float32")
    grn.build((None, None, None, 3))
    grn.gamma.assign([1.0, 2.0, 3.0])
    x = np.ones((1, 2, 2, 3), "float32") * [0.0, 1.0, 2.0]

    def energy(x):
        return ops.sum(ops.square(grn(x)))

    def penalty(x):
        return inner(*2 * (gradient(energy, x),))

    (second,) = gradient(penalty, ops.convert_to_tensor(x, dtype="float32"))
    assert np.isfinite(to_numpy(second)).all()
