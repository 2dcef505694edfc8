"""What a label must be: the number of a class. NumPy only."""

import numpy as np


def check_label(example, source):
    """The label of an `Example` of a source, an integer in [0, classes).

    Raises:
        ValueError: it is no such integer; names the example. TensorFlow Datasets uses −1 for a label that is not known.
    """
    label, count = example.label, len(source.class_names)
    if not isinstance(label, (int, np.integer)) or not 0 <= label < count:
        raise wrong_label(f"{source.name}, split {source.split}", example.key, label, count)
    return int(label)


def check_labels(labels, keys, count, where):
    """Raises ValueError for the first of stored labels `(B,)` that is not in [0, `count`), see `check_label`."""
    for place in np.flatnonzero((labels < 0) | (labels >= count))[:1]:
        raise wrong_label(where, keys[place], labels[place].item(), count)


def wrong_label(where, key, label, count):
    cure = "-1 marks images without labels, as in many test splits: take another split" if label == -1 else _MEND
    return ValueError(
        f"{where}: {key} has the label {label!r}, and labels are numbers of classes, 0 to {count - 1}; {cure}."
    )


_MEND = "mend the labels, or the number of classes that the data set declares"
