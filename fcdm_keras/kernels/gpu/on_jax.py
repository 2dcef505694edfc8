"""JAX's launches, by jax-triton."""

import jax
import jax.numpy as jnp
import jax_triton
import keras

from fcdm_keras.kernels.gpu import launches
from fcdm_keras.kernels.gpu.jax_residual import BATCH, differentiable


def call(kernel, inputs, outputs, grid, scalars, constants, warps):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]
    return jax_triton.triton_call(
        *inputs, kernel=kernel, out_shape=shapes, grid=grid, num_warps=warps, num_stages=3, **scalars, **constants
    )


class _Kernels(launches.TritonKernels):
    def linear(self, x, kernel, bias):
        return jnp.matmul(x, kernel) + bias


kernels = _Kernels(call)
residual = differentiable(kernels)


def takes(x):
    distribution = keras.distribution.distribution()
    device = jax.config.jax_default_device
    on_gpu = getattr(device, "platform", device) in (None, "gpu", "cuda")
    return on_gpu and (distribution is None or set(distribution.device_mesh.axis_names) == {BATCH})


def fits(x, hidden):
    return launches.fits(x.shape[1] * x.shape[2], x.shape[3], hidden)


def concretely(function):
    """Computes a function of constants, also while a program is traced."""
    with jax.ensure_compile_time_eval():
        return function()
