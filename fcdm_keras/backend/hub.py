"""KerasHub, imported without letting TensorFlow take the GPUs that another backend needs.

KerasHub imports TensorFlow wherever it is installed, and TensorFlow takes all memory of every GPU it sees at its first
operation. Under JAX and PyTorch the GPUs are therefore hidden from it first, and its start-up notes, which no log level
turns off, are kept from the terminal. Everything that needs KerasHub imports it from here.
"""

import contextlib
import importlib.util
import os
import re
import sys

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


def load_triton():
    """Imports Triton, where a GPU may use it, before TensorFlow: after it, that ends the process.

    Checked with Triton 3.8 and TensorFlow 2.21; in the other order both work.
    """
    if os.path.exists("/proc/driver/nvidia") and importlib.util.find_spec("triton") and "tensorflow" not in sys.modules:
        importlib.import_module("triton")


load_triton()
hide_tensorflow_gpus()
with _quiet() if keras.backend.backend() != "tensorflow" else contextlib.nullcontext():
    import keras_hub


_STANDARD = keras.Model.__mro__
_PIPELINE = keras_hub.models.Task.__mro__[1]  # has no other name in public


class Independent(type):
    """Makes classes that stay what they are when Keras rewrites the bases of classes that they derive from.

    For a functional backbone or task, Keras puts its functional model in the place of `keras.Model` among the bases of
    `keras_hub.models.Backbone` or of `keras_hub.models.Task`, for the whole process; and every task that is made puts
    `keras.Model` back, which breaks the functional ones. So our classes inherit, of Keras, from `keras.Model` alone,
    and not from the class that puts it back. Python asks for the order of all subclasses again where bases change.
    Checked with Keras 3.15 and KerasHub 0.32.
    """

    def mro(cls):
        return [c for c in super().mro() if c in _STANDARD or not (c is _PIPELINE or _is_keras(c))]


def default_name(cls):
    """The name that Keras gives the first object of a class, such as `fcdm_backbone`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", cls.__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _is_keras(cls):
    return cls.__module__.partition(".")[0] == "keras"


__all__ = ["Independent", "default_name", "hide_tensorflow_gpus", "keras_hub"]
