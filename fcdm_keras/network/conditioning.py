"""Conditioning modules: what tells the network *what* to draw.

A module turns a condition (a label, a vector …) into one vector per width of the U-Net; the backbone adds them to the
timestep's (paper, figure 9). Swapping the module changes nothing else. A module is a Keras layer that has

- `input_name`: its key in the backbone's input dict;
- `call(condition)` → tuple of `(B, width)` float32 vectors, one per entry of `widths`;
- `null(batch_size)`: the condition that means "none", used by classifier-free guidance;
- `drop(condition, mask)`: `condition` replaced by null where `mask` is true; `mask` is `(B,)`, or `(B, levels)` to drop
  each width on its own;
- `check(condition)`: raises a ValueError in one sentence for a condition that cannot be right.
"""

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras.network.initializers import Normal


@keras.saving.register_keras_serializable("fcdm_keras")
class ClassConditioning(layers.Layer):
    """One table of label embeddings per width; the last row of each is the null class.

    `call` takes integer labels `(B,)` in [0, num_classes], or `(B, levels)` with a label of its own for each width.

    Args:
        num_classes: number of classes; index `num_classes` is the null class.
        widths: widths of the vectors, finest level first. The backbone fills them in.
    """

    input_name = "labels"

    def __init__(self, num_classes, widths=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1. Received: {num_classes}")
        self.num_classes = num_classes
        self.widths = widths and tuple(widths)

    def build(self, input_shape=None):
        self.tables = [
            self.add_weight(
                name=f"table_{level}",
                shape=(self.num_classes + 1, width),
                initializer=Normal(0.02),
            )
            for level, width in enumerate(self.widths, start=1)
        ]

    def call(self, labels):
        labels = ops.cast(labels, "int32")
        per_level = (
            ops.unstack(labels, len(self.tables), axis=1) if len(labels.shape) == 2 else [labels] * len(self.tables)
        )
        return tuple(ops.take(table, index, axis=0) for table, index in zip(self.tables, per_level, strict=True))

    def null(self, batch_size):
        """The null label for every sample, int32 `(B,)`."""
        return ops.full((batch_size,), self.num_classes, dtype="int32")

    def drop(self, labels, mask):
        """`labels` `(B,)` with the null class where `mask` `(B,)` or `(B, levels)` is true."""
        labels = ops.cast(labels, "int32")
        if len(mask.shape) == 2:
            labels = labels[:, None]
        return ops.where(mask, self.num_classes, labels)

    def check(self, labels):
        """Raises ValueError unless `labels` are integers in [0, num_classes] (`num_classes` is the null class)."""
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise ValueError(f"Labels must be integers. Received: dtype {labels.dtype}")
        if labels.size and not 0 <= labels.min() <= labels.max() <= self.num_classes:
            raise ValueError(
                f"Labels must lie in [0, {self.num_classes - 1}], or be {self.num_classes} for no class. "
                f"Received: values from {labels.min()} to {labels.max()}"
            )

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "widths": self.widths}
