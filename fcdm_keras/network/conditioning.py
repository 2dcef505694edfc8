"""Conditioning modules: what tells the network *what* to draw.

A module turns a condition (a label, a vector …) into one vector per width of the U-Net; the backbone adds them to the
timestep's (paper, figure 9). Swapping the module changes nothing else. A module is a Keras layer that has

- `input_name`: its key in the backbone's input dict;
- `call(condition)` → tuple of `(B, width)` float32 vectors, one per entry of `widths`;
- `null(batch_size)`: the condition that means "none", used by classifier-free guidance;
- `drop(condition, mask)`: `condition` replaced by null where `mask` is true; `mask` is `(B,)`, or `(B, levels)` to drop
  each width on its own;
- `check(condition)`: raises a ValueError in one sentence for a condition that cannot be right;
- `as_data(condition, dropped)`, if training data may be less than `check` lets pass: from an array of what was given, a
  NumPy array of what is trained on, or a ValueError; `dropped`: null is no fault, for dropping is done.
"""

import keras
import numpy as np
from keras import layers, ops

from fcdm_keras.arguments import COUNTED, check_integer, check_number
from fcdm_keras.network.initializers import Normal


@keras.saving.register_keras_serializable("fcdm_keras")
class ClassConditioning(layers.Layer):
    """One table of label embeddings per width; the last row of each is the null class.

    `call` takes integer labels `(B,)` in [0, num_classes], or `(B, levels)` with a label of its own for each width;
    `(B, 1)` is taken as `(B,)`.

    Args:
        num_classes: number of classes; index `num_classes` is the null class.
        widths: widths of the vectors, finest level first. The backbone fills them in.
        stddev: standard deviation of new embeddings, at least 0.
    """

    input_name = "labels"

    def __init__(self, num_classes, widths=None, stddev=0.02, **kwargs):
        super().__init__(**{"name": "class_conditioning", **kwargs, "dtype": "float32"})
        self.stddev = check_number("stddev", stddev)
        self.num_classes = check_integer("num_classes", num_classes, 1, COUNTED - 1)
        self.widths = widths and tuple(widths)

    def build(self, input_shape=None):
        self.tables = [
            self.add_weight(
                name=f"table_{level}",
                shape=(self.num_classes + 1, width),
                initializer=Normal(self.stddev),
            )
            for level, width in enumerate(self.widths, start=1)
        ]

    def call(self, labels):
        labels = _flat(ops.cast(labels, "int32"))
        per_level = (
            ops.unstack(labels, len(self.tables), axis=1) if len(labels.shape) == 2 else [labels] * len(self.tables)
        )
        return tuple(ops.take(table, index, axis=0) for table, index in zip(self.tables, per_level, strict=True))

    def null(self, batch_size):
        """The null label for every sample, int32 `(B,)`."""
        return ops.full((batch_size,), self.num_classes, dtype="int32")

    def drop(self, labels, mask):
        """`labels` `(B,)` or `(B, levels)`, null where `mask`, of either shape, is true: the wider shape of the two."""
        labels = _flat(ops.cast(labels, "int32"))
        if len(mask.shape) > len(labels.shape):
            labels = labels[:, None]
        if len(labels.shape) > len(mask.shape):
            mask = mask[:, None]
        return ops.where(mask, self.num_classes, labels)

    def check(self, labels):
        """Raises ValueError unless `labels` are integers `(B,)`, `(B, 1)` or `(B, levels)` in [0, num_classes]."""
        as_labels(labels, self.num_classes, self.widths and len(self.widths), one_hot=True)

    def as_data(self, labels, dropped=False):
        """Labels of training data as int32 `(N,)`: numbers of classes, for the null class is drawn by label dropout.

        Where that is done (`dropped`), also `num_classes`, and `(N, levels)`.

        Raises:
            ValueError: in one sentence, for anything else than integers `(N,)` or `(N, 1)` in [0, num_classes).
        """
        if dropped:
            return as_labels(labels, self.num_classes, len(self.widths), one_hot=True).astype("int32")
        array = _array(labels)
        if array is not None and array.dtype.kind == "f" and _one_hot(array):
            labels = array.astype("int32")
        labels = as_labels(labels, self.num_classes, levels=1, outside=True)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(_wrong_range(labels, self.num_classes))
        return labels.astype("int32")

    def get_config(self):
        config = {"num_classes": self.num_classes, "widths": self.widths, "stddev": self.stddev}
        return {**super().get_config(), **config}


def as_labels(labels, num_classes, levels=None, one_hot=False, outside=False):
    """Class labels as people bring them, as a NumPy array of integers.

    Args:
        labels: numbers in [0, num_classes], of which `num_classes` is no class, as a list, tuple, range, NumPy array or
            tensor: `(N,)`, `(N, 1)`, which is taken as `(N,)`, or one label per level, `(N, levels)`. One number is
            `(1,)`.
        num_classes: number of classes.
        levels: labels that one sample may have; `None` is any number.
        one_hot: whether labels per level may look like one-hot vectors, which is what they are most often.
        outside: whether any integers are taken.

    Returns:
        Integers `(N,)` or `(N, levels)`.

    Raises:
        ValueError: in one sentence, for anything else.
    """
    array = _array(labels)
    if array is not None and array.shape == (0,):
        return array.astype("int32")  # an empty list has no type of its own
    if array is None or array.dtype.kind not in "iu":
        received = type(labels).__name__ if array is None else f"dtype {array.dtype}"
        raise ValueError(f"Labels must be integers (N,), such as [3, 1, 4]. Received: {received}, {_shortened(labels)}")
    array = _flat(np.atleast_1d(array))
    _check_shape(array, num_classes, levels, one_hot)
    if array.size and not outside and not 0 <= array.min() <= array.max() <= num_classes:
        raise ValueError(
            f"Labels must lie in [0, {num_classes - 1}], or be {num_classes} for no class. "
            f"Received: values from {array.min()} to {array.max()}"
        )
    return array


def _check_shape(array, num_classes, levels, one_hot):
    shape = array.shape
    per_level = array.ndim == 2 and levels in (None, shape[1])
    vectors = _one_hot(array)
    if vectors and (not per_level or not one_hot):
        advice = "; `draw` takes one label per level that looks like it" if per_level else ""
        raise ValueError(
            f"Labels must be integers (N,), and these {shape} look one-hot: give labels.argmax(axis=1){advice}."
        )
    if array.ndim != 1 and not per_level:
        wanted = f", or one per level (N, {levels})" if (levels or 1) > 1 else ""
        raise ValueError(f"Labels must be integers (N,){wanted}, below {num_classes}. Received: shape {shape}")


def _one_hot(array):
    rows = array.ndim == 2 and array.shape[1] > 1 and array.size
    return rows and ((array == 1).sum(axis=1) == 1).all() and array.sum() == len(array)


def _wrong_range(labels, num_classes):
    """What is wrong with labels of training data, in a sentence."""
    low, high = labels.min(), labels.max()
    if low == 1 and high == num_classes:
        cure = "they are numbered from 1: give labels - 1"
    elif low == -1:
        cure = "-1 marks samples without a label: leave them out (label_dropout trains without labels)"
    elif high == num_classes:
        cure = f"{num_classes} is the null class, which label_dropout draws"
    else:
        cure = "mend them, or num_classes of the backbone"
    return f"Labels must lie in [0, {num_classes - 1}]. Received: values from {low} to {high}; {cure}."


def _array(labels):
    """As a NumPy array; `None` where it cannot be one."""
    try:
        return ops.convert_to_numpy(labels) if keras.ops.is_tensor(labels) else np.asarray(labels)
    except (ValueError, TypeError):  # ragged lists, or what cannot be converted
        return None


def _shortened(value):
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def _flat(labels):
    """`(B, 1)` as `(B,)`."""
    return labels[:, 0] if len(labels.shape) == 2 and labels.shape[1] == 1 else labels
