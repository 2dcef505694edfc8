"""Data sets that ship inside packages, without a download: handwritten digits, and three photographs.

Digits: scikit-learn's 1,797 real 8×8 images of 10 classes (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998).

Photographs, cut into crops labelled by their photograph: `china.jpg` and `flower.jpg` are scikit-learn's (by "chkin"
and "samusoft", CC BY), `grace_hopper.jpg` is matplotlib's (United States Navy, public domain). The longer side of each
is divided: its last 256 pixels are held out.
"""

import numpy as np
from PIL import Image

from fcdm_keras.data.order import permutation
from fcdm_keras.data.transforms import Example

HELD_OUT_DIGITS = 500
PHOTO_NAMES = ("china", "flower", "grace_hopper")
HELD_OUT_PIXELS = 256  # of a photograph's longer side
SPLITS = ("train", "held_out")


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

    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "held_out". Received: {split!r}')
    data = sklearn_digits()
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)  # pixels are 0 … 16
    order = permutation(seed=0, epoch=0, size=len(images))
    part = order[HELD_OUT_DIGITS:] if split == "train" else order[:HELD_OUT_DIGITS]
    return images[part], data.target[part].astype(np.int32)


def load_photos(split, size, stride=None):
    """Square crops of the photographs' regions of a split; no pixel is in both splits.

    Args:
        split: `"train"` or `"held_out"`.
        size: side of the crops in pixels, at most 256.
        stride: pixels from one crop to the next; default a quarter of `size` in `"train"` and a half in `"held_out"`.

    Returns:
        uint8 images `(N, size, size, 3)`, int32 labels `(N,)`, and the class names in the labels' order.

    Raises:
        ValueError: for values out of range.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 1 <= size <= HELD_OUT_PIXELS:
        raise ValueError(f"size must be an integer in [1, {HELD_OUT_PIXELS}]. Received: {size!r}")
    stride = max(1, size // (4 if split == "train" else 2)) if stride is None else stride
    if stride < 1:
        raise ValueError(f"stride must be at least 1. Received: {stride}")
    crops, labels = [], []
    for label, region in enumerate(load_regions(split)):
        windows = np.lib.stride_tricks.sliding_window_view(region, (size, size), axis=(0, 1))[::stride, ::stride]
        windows = np.moveaxis(windows, 2, -1).reshape(-1, size, size, 3)
        crops.append(windows)
        labels += [label] * len(windows)
    return np.concatenate(crops), np.array(labels, np.int32), PHOTO_NAMES


def load_regions(split):
    """The photographs' parts that belong to a split: a list of uint8 `(H, W, 3)`. Raises ValueError for others."""
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "held_out". Received: {split!r}')
    part = slice(None, -HELD_OUT_PIXELS) if split == "train" else slice(-HELD_OUT_PIXELS, None)
    return [photo[:, part] if photo.shape[1] > photo.shape[0] else photo[part] for photo in _photographs()]


class PhotoSource:
    """The crops as a source of labelled images, see `fcdm_keras.data.sources`.

    Args:
        split: `"train"` or `"held_out"`.
        size: side of the crops in pixels.
        stride: pixels from one crop to the next.
    """

    name, class_names = "photos", PHOTO_NAMES

    def __init__(self, split="train", size=96, stride=12):
        self.split = split
        self._crops, self._labels, _ = load_photos(split, size, stride)

    def __len__(self):
        return len(self._labels)

    def read(self, start, stop):
        for place in range(start, min(stop, len(self))):
            label = int(self._labels[place])
            yield Example(self._crops[place], label, f"{PHOTO_NAMES[label]}/{place}")


def _photographs():
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_image

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as portrait:
        return [load_sample_image("china.jpg"), load_sample_image("flower.jpg"), np.asarray(portrait.convert("RGB"))]
