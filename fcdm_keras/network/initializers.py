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
    """Uniform in ±√(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010) for kernels `(…, in, out)`."""

    def draw(self, generator, shape):
        receptive_field = math.prod(shape[:-2])
        limit = math.sqrt(6.0 / (receptive_field * (shape[-2] + shape[-1])))
        return generator.uniform(-limit, limit, size=shape).astype(np.float32)


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
