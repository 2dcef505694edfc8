"""Exponential moving average of a model's weights: float32, and never swapped into the model that trains."""

import keras
import numpy as np
from keras import ops

from fcdm_keras import backend


@keras.saving.register_keras_serializable("fcdm_keras")
class EMA(keras.layers.Layer):
    """Keeps `average ← decay · average + (1 − decay) · weight` for each trainable weight of a built model.

    It starts at the model's weights and holds its averages as non-trainable float32 weights, so that they are saved
    with whatever model owns this layer.

    Args:
        model: a built Keras model or layer.
        decay: in [0, 1).
        warmup: use min(decay, (1 + n) / (10 + n)) at update n, so that a short run forgets its start.
    """

    def __init__(self, model, decay=0.9999, warmup=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        if not 0 <= decay < 1:
            raise ValueError(f"The EMA decay must lie in [0, 1). Received: {decay}")
        self.decay = decay
        self.warmup = warmup
        self._sources = tuple(model.trainable_variables)  # a tuple, so that Keras does not track them as our own
        self.averages = [
            self.add_weight(
                name=source.path.replace("/", "_"),
                shape=source.shape,
                initializer=lambda shape, dtype, source=source: _copied(source),
                trainable=False,
            )
            for source in self._sources
        ]
        self.built = True

    def update(self, step, moved=None):
        """Moves every average once; `step` counts the updates, this one included (int or scalar tensor).

        `moved` is 0.0 where there was no update after all, and 1.0 elsewhere, which is the default.
        """
        decay = self.decay
        if self.warmup:
            step = ops.cast(step, "float32")
            decay = ops.minimum(self.decay, (1.0 + step) / (10.0 + step))
        weight = 1.0 - decay if moved is None else (1.0 - decay) * moved
        backend.interpolate(self.averages, self._sources, weight)

    def values(self):
        """The averages as tensors, in the order of the model's `trainable_variables`."""
        return [average.value for average in self.averages]

    def copy_to(self, model):
        """Assigns the averages to another model of the same architecture."""
        for average, target in zip(self.averages, model.trainable_variables, strict=True):
            target.assign(ops.cast(average.value, target.dtype) * 1)


def _copied(variable):
    """The value in memory of its own: JAX donates the variable's buffer to the training step."""
    return ops.convert_to_tensor(np.array(ops.convert_to_numpy(variable)), "float32")
