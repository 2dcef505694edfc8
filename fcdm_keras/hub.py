"""KerasHub, imported without letting TensorFlow take the GPUs that another backend needs.

KerasHub imports TensorFlow wherever it is installed, and TensorFlow takes all memory of every GPU it sees at its first
operation. Under JAX and PyTorch the GPUs are therefore hidden from it first. Everything that needs KerasHub imports it
from here.
"""

import importlib.util

import keras

if keras.backend.backend() != "tensorflow" and importlib.util.find_spec("tensorflow") is not None:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")

import keras_hub  # noqa: E402

__all__ = ["keras_hub"]
