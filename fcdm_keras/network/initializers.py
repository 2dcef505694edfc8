"""Initial weights, drawn on the host.

After `keras.utils.set_random_seed(seed)` they are the same on every backend, and on JAX no kernel has to be compiled
for each shape, which takes longer than the drawing.
"""

import math
import random

import keras
import numpy as np


class _HostInitializer(keras.initializers.Initializer):
    """Base: `draw(generator, shape)` gives the values; each call uses a stream of its own."""

    def __call__(self, shape, dtype=None):
        generator = np.random.default_rng(random.getrandbits(64))  # `set_random_seed` seeds `random` as well
        return keras.ops.convert_to_tensor(self.draw(generator, shape), dtype=dtype)


@keras.saving.register_keras_serializable("fcdm_keras")
class XavierUniform(_HostInitializer):
    """Uniform in ±gain · √(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010) for kernels `(…, in, out)`.

    Args:
        gain: factor.
        as_matrix: whether a convolution's kernel is drawn as the matrix that it is on patches: its fan-out is `out`.
    """

    def __init__(self, gain=1.0, as_matrix=False):
        self.gain, self.as_matrix = gain, as_matrix

    def draw(self, generator, shape):
        receptive_field = math.prod(shape[:-2])
        fans = receptive_field * shape[-2] + (1 if self.as_matrix else receptive_field) * shape[-1]
        limit = self.gain * math.sqrt(6.0 / fans)
        return generator.uniform(-limit, limit, size=shape).astype(np.float32)

    def get_config(self):
        return {"gain": self.gain, "as_matrix": self.as_matrix}


@keras.saving.register_keras_serializable("fcdm_keras")
class Uniform(_HostInitializer):
    """Uniform in ±limit."""

    def __init__(self, limit):
        self.limit = limit

    def draw(self, generator, shape):
        return generator.uniform(-self.limit, self.limit, size=shape).astype(np.float32)

    def get_config(self):
        return {"limit": self.limit}


@keras.saving.register_keras_serializable("fcdm_keras")
class Centre(_HostInitializer):
    """1 in the middle of each depthwise kernel `(k, k, C, 1)` and 0 around it: the identity."""

    def draw(self, generator, shape):
        kernel = np.zeros(shape, np.float32)
        kernel[shape[0] // 2, shape[1] // 2] = 1.0
        return kernel


@keras.saving.register_keras_serializable("fcdm_keras")
class Normal(_HostInitializer):
    """Normal with mean 0.

    Args:
        stddev: standard deviation.
    """

    def __init__(self, stddev=0.02):
        self.stddev = stddev

    def draw(self, generator, shape):
        return self.stddev * generator.standard_normal(shape, dtype=np.float32)

    def get_config(self):
        return {"stddev": self.stddev}
