"""Small things that several tests need."""

import os

import keras
import numpy as np
import pytest
from keras import ops

from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.data.store_metadata import Shard, StoreMetadata
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.training import callbacks

# For tests that compile a training step, which takes the other backends long.
quick_on_torch = pytest.mark.quick if keras.backend.backend() == "torch" else lambda test: test
SMALL_AUTOENCODER = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def nhwc(array):
    """`(…, C, H, W)` → `(…, H, W, C)`: reference arrays are channels first."""
    return np.moveaxis(array, -3, -1)


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


def relative_error(ours, reference):
    """Largest difference over the reference's standard deviation."""
    return np.abs(to_numpy(ours) - reference).max() / reference.std()


def tiny_backbone(depths=(1, 1, 1, 1, 1), **options):
    """A small network in which no weight is zero, so that nothing is hidden."""
    backbone = FCDMBackbone(8, depths, **{"num_classes": 10, "in_channels": 2, **options})
    generator = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(0.2 * generator.standard_normal(variable.shape, dtype="float32"))
    return backbone


def small_autoencoder(**options):
    """A small autoencoder in which no weight is zero."""
    keras.utils.set_random_seed(0)
    autoencoder = KLAutoencoder(**{**SMALL_AUTOENCODER, **options})
    generator = np.random.default_rng(0)
    for variable in autoencoder.weights:
        variable.assign(variable + 0.1 * generator.standard_normal(variable.shape, dtype="float32"))
    return autoencoder


def store_metadata(latent_shape, class_names=("class",)):
    """The metadata of a store of one image."""
    shard = Shard(file="shard-00000.array_record", images=1, bytes=100, sha256="0" * 64)
    facts = {"source": "x", "split": "train", "autoencoder": "vae", "autoencoder_hash": "0", "scale": 1.0, "shift": 0.0}
    sizes = {"image_size": 64, "latent_shape": latent_shape, "class_names": tuple(class_names), "flips": False}
    return StoreMetadata(**facts, **sizes, num_images=1, shards=(shard,))


def inputs(batch=2, height=8, width=8, channels=2, seed=1):
    """Random inputs of `tiny_backbone` as NumPy arrays."""
    generator = np.random.default_rng(seed)
    return {
        "x_t": generator.standard_normal((batch, height, width, channels), dtype="float32"),
        "timesteps": generator.integers(0, 1000, batch).astype("int32"),
        "labels": generator.integers(0, 11, batch).astype("int32"),
    }


def signal_at(monkeypatch, number, step):
    """Sends this process a signal while the callbacks of a training step run, once."""
    before = callbacks.StopOnNonFinite.on_step

    def on_step(self, logs):
        before(self, logs)
        if self.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(callbacks.StopOnNonFinite, "on_step", on_step)


def in_one_graph(function, *args, **options):
    """Calls a function of tensors; on TensorFlow as one graph, where a loop of many steps takes a tenth of the time."""
    if keras.backend.backend() != "tensorflow":
        return function(*args, **options)
    import tensorflow as tf

    return tf.function(lambda: function(*args, **options), autograph=False)()


def gradient_of(function, x):
    """d function / d x on the active backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(jax.numpy.asarray(x)))
    if backend == "torch":
        import torch

        value = torch.tensor(x, requires_grad=True)
        function(value).backward()
        return value.grad.numpy()
    import tensorflow as tf

    value = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(value)
        loss = function(value)
    return tape.gradient(loss, value).numpy()
