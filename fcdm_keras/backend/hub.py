"""KerasHub, imported without letting TensorFlow take the GPUs that another backend needs.

KerasHub imports TensorFlow wherever it is installed, and TensorFlow takes all memory of every GPU it sees at its first
operation. Under JAX and PyTorch the GPUs are therefore hidden from it first, and its start-up notes, which no log level
turns off, are kept from the terminal. Everything that needs KerasHub imports it from here.
"""

import contextlib
import importlib.util
import os

import keras


@contextlib.contextmanager
def _quiet():
    """Sends what native code writes to stderr to nowhere; Python's exceptions are unaffected."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def hide_tensorflow_gpus():
    """Imports TensorFlow, where it is installed, and under another backend hides the GPUs from it."""
    if keras.backend.backend() == "tensorflow" or importlib.util.find_spec("tensorflow") is None:
        return
    with _quiet():
        import tensorflow

        with contextlib.suppress(RuntimeError):  # the program that imports us has used TensorFlow already: its choice
            tensorflow.config.set_visible_devices([], "GPU")


hide_tensorflow_gpus()
with _quiet() if keras.backend.backend() != "tensorflow" else contextlib.nullcontext():
    import keras_hub


@contextlib.contextmanager
def unchanged_backbones():
    """A context to make KerasHub's functional backbones in, of which only plain `keras.Model`s are kept.

    Keras rebases `keras_hub.models.Backbone` on its functional models, for the whole process, when the first functional
    backbone is made. Ours is none of them, and could neither be made nor called afterwards. There is no public way to
    undo it. Checked with Keras 3.15 and KerasHub 0.32; tests/test_private_apis.py fails first.
    """
    bases = keras_hub.models.Backbone.__bases__
    try:
        yield
    finally:
        keras_hub.models.Backbone.__bases__ = bases


__all__ = ["hide_tensorflow_gpus", "keras_hub", "unchanged_backbones"]
