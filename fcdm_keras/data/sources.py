"""Labelled images from disk, one contract for all sources.

A source has `name` (what it was opened with), `split`, `class_names`, a length, and `read(start, stop)`, which yields
`Example`s of that range in an order that never changes. Images stay encoded as they are stored, so that an unreadable
one can be named and skipped.
"""

import os
from pathlib import Path

import numpy as np

from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.data.labels import check_label
from fcdm_keras.data.tfds_sources import TFDSSource, prepared_builder  # noqa: F401 - as in earlier versions
from fcdm_keras.data.transforms import Example, UnreadableImageError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def open_source(name, split="train", data_dir=None, label=None, image=None):
    """Opens a source by name.

    Args:
        name: a folder of class folders, `photos` (embedded), or a data set of TensorFlow Datasets, such as
            `imagenet2012` or `imagenette/320px-v2`.
        split: of the data set, e.g. `train`; a folder may hold one folder per split.
        data_dir: TensorFlow Datasets' folder.
        label, image: features of a data set that has several, see `TFDSSource`.

    Raises:
        FileNotFoundError: no such folder or data set, or the data set is not prepared.
        ValueError: it holds no labelled images.
    """
    if (label or image) and (os.path.isdir(name) or name == "photos"):
        raise ValueError(f"Features are for data sets of TensorFlow Datasets. Received: {label or image!r} for {name}")
    if os.path.isdir(name):
        return FolderSource(name, split)
    if name == "photos":
        return PhotoSource(split)
    if name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"There is no folder {name}.")
    return TFDSSource(name, split, data_dir, label, image)


class FolderSource:
    """A folder with one folder of images per class; classes are numbered in the order of their names.

    Other files are left out and counted in `other_files`. If the folder holds a folder named like the split, that one
    is read.
    """

    def __init__(self, path, split="train"):
        root = Path(path)
        if (root / split).is_dir():
            root = root / split
        self.name, self.split = str(path), split
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise ValueError(
                f"{root} holds no class folders. Expected one folder of images per class, such as {root}/cat/1.jpg."
            )
        self.class_names = tuple(folder.name for folder in folders)
        self._root = root
        self._files, self.other_files = [], 0
        for label, folder in enumerate(folders):
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            images = [file for file in files if file.suffix.lower() in EXTENSIONS]
            self.other_files += len(files) - len(images)
            if not images:
                raise ValueError(f"The class folder {folder} holds no images; fill it, or remove it.")
            self._files += [(file, label) for file in images]

    def __len__(self):
        return len(self._files)

    def read(self, start, stop):
        for file, label in self._files[start:stop]:
            yield Example(file.read_bytes(), label, file.relative_to(self._root).as_posix())


def read_images(source, size):
    """All images of a small source in memory: uint8 `(N, size, size, 3)`, labels int32 `(N,)`, what was skipped.

    Returns:
        images, labels, and a list of `(key, reason)` of unreadable images.
    """
    images, labels, skipped = [], [], []
    for example in source.read(0, len(source)):
        try:
            label = check_label(example, source)
            images.append(example.cropped(size)[0])
            labels.append(label)
        except UnreadableImageError as error:
            skipped.append((example.key, str(error)))
    return np.stack(images), np.array(labels, np.int32), skipped
