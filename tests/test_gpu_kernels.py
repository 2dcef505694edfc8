"""The fused GPU kernels without a GPU: in Triton's interpreter beside float64, compiled, and spread over devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from fcdm_keras import kernels
from fcdm_keras.kernels import fused
from fcdm_keras.kernels.gpu import block
from fcdm_keras.kernels.gpu.plain import PlainKernels
from fcdm_keras.network.layers import FCDMBlock

BACKEND = keras.backend.backend()
FOLDER = Path(__file__).parent


def printed(program, *arguments):
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent)])
    run = subprocess.run(
        [sys.executable, FOLDER / program, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.no_backend
def test_kernels_in_the_interpreter_against_float64():
    """Forward and backward: tiles that are cut off, several images in a tile's rows, odd sizes, no power of two."""
    exact = ("1,2,8,32,7,float32", "2,4,12,96,3,float32", "1,16,5,32,5,float32")
    found = printed("gpu_interpreted.py", *exact, "2,4,4,64,7,float16")
    assert len(found) == 4
    for case, errors in found.items():
        tolerance = 1e-6 if case in exact else 2e-3
        assert len(errors) == 14 and all(error < tolerance for error in errors.values()), (case, errors)


@pytest.mark.no_backend
def test_kernels_compiled_for_a_hopper_gpu():
    """No value is spilled to memory, products are fused with sums, and matrix products use the tensor cores."""
    code = printed("gpu_code.py", "90", "--widths", "512")
    assert len(code) == 8
    for name, content in code.items():
        assert content["stack"] == content["STL"] == content["LDL"] == 0, (name, content)
        most = 255 if name.startswith(("contract", "depthwise_kernel")) else 128
        assert content["registers"] <= most and content["FFMA"] >= (16 if "gate" in name else 90), (name, content)
        assert (content["HGMMA"] > 0) == name.startswith("contract"), (name, content)


def test_gradients_of_a_block_are_those_of_its_layer():
    """The fused backward pass in plain operations, beside what the engine derives from the layer."""
    values, upstream = fused.example(2, 4, 32, "float32")
    layer = FCDMBlock()
    layer.build((None, None, None, 32))
    out, saved = block.forward(PlainKernels(), *values, save=True)
    gradients = block.backward(PlainKernels(), saved, *values, upstream)
    expected = derived(residual_of(layer), values, upstream)
    for ours, theirs in zip([out, *gradients], expected, strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=2e-4, atol=2e-5 * np.abs(theirs).max())


def residual_of(layer):
    """The layer's own residual, as a function of what the fused one takes."""

    def residual(x, shift, scale, gate, *operands):
        kernels_ = [layer.dwconv.kernel, layer.dwconv.bias, layer.pwconv1.kernel, layer.pwconv1.bias]
        kernels_ += [layer.grn.gamma, layer.grn.beta, layer.pwconv2.kernel, layer.pwconv2.bias]
        with keras.StatelessScope(list(zip(kernels_, operands))):
            return layer.plain_residual(x, shift, scale, gate)

    return residual


def to_numpy(value):
    return ops.convert_to_numpy(ops.cast(value, "float32"))


def derived(function, values, upstream):
    if BACKEND == "jax":
        import jax

        out, pull = jax.vjp(function, *values)
        results = [out, *pull(upstream)]
    elif BACKEND == "torch":
        values = [v.detach().requires_grad_() for v in values]
        out = function(*values)
        out.backward(upstream)
        results = [out.detach(), *(v.grad for v in values)]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            out = function(*values)
        results = [out, *tape.gradient(out, values, upstream)]
    return [to_numpy(value) for value in results]


def test_a_block_spread_over_devices():
    """On JAX one process has several devices; elsewhere what a block computes is its device's part already."""
    if BACKEND == "jax":
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import test_gpu_kernels as t; t.check_two_devices()"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, cwd=FOLDER.parent, check=True)


def check_two_devices():
    import jax

    from fcdm_keras.kernels.gpu.jax_residual import differentiable

    values, upstream = fused.example(4, 4, 32, "float32")

    def run(*values):
        out, pull = jax.vjp(differentiable(PlainKernels()), *values)
        return out, *pull(upstream)

    alone = jax.jit(run)(*values)
    names = [f"cpu:{i}" for i in range(2)]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=names, auto_shard_dataset=False))
    spread = jax.jit(lambda *values: run(*values))(*values)
    assert spread[0].sharding.spec[0] == "batch" and len(spread[0].devices()) == 2
    for ours, theirs in zip(spread, alone, strict=True):
        np.testing.assert_allclose(to_numpy(ours), to_numpy(theirs), rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_without_a_gpu_blocks_are_plain():
    x = ops.zeros((2, 4, 4, 32), "bfloat16")
    assert kernels.fused_residual(x, 96) is None
