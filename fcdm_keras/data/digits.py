"""scikit-learn's handwritten digits: 1,797 real 8×8 images of 10 classes, part of the package, no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import numpy as np

from fcdm_keras.data.order import permutation

NUM_CLASSES = 10
HELD_OUT = 500


def load_digits(split):
    """Images and labels of a split.

    Args:
        split: `"train"` (1,297 images) or `"held_out"` (500 images); a fixed random division.

    Returns:
        float32 images `(N, 8, 8, 1)` in [−1, 1] and int32 labels `(N,)`.

    Raises:
        ValueError: for another split.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    if split not in ("train", "held_out"):
        raise ValueError(f'split must be "train" or "held_out". Received: {split!r}')
    data = sklearn_digits()
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)  # pixels are 0 … 16
    order = permutation(seed=0, epoch=0, size=len(images))
    part = order[HELD_OUT:] if split == "train" else order[:HELD_OUT]
    return images[part], data.target[part].astype(np.int32)
