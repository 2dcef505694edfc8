"""Labelled images from disk, one contract for all sources.

A source has `name` (what it was opened with), `split`, `class_names`, a length, and `read(start, stop)`, which yields
`Example`s of that range in an order that never changes. Images stay encoded as they are stored, so that an unreadable
one can be named and skipped.
"""

import os
from pathlib import Path

import numpy as np

from fcdm_keras.data.classes import describe_classes
from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.data.folders import ENDINGS as EXTENSIONS
from fcdm_keras.data.folders import Listing, holds_pictures, is_hidden, is_picture, list_pictures, subfolders
from fcdm_keras.data.labels import check_label
from fcdm_keras.data.pictures import UnreadableImageError, shorter_side, shown
from fcdm_keras.data.tfds_sources import TFDSSource, prepared_builder
from fcdm_keras.data.transforms import Example
from fcdm_keras.machine import memory

__all__ = ["EXTENSIONS", "FolderSource", "TFDSSource", "open_source", "prepared_builder", "read_images"]


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
    folder = os.path.expanduser(name)
    if (label or image) and (os.path.isdir(folder) or name == "photos"):
        raise ValueError(f"Features are for data sets of TensorFlow Datasets. Received: {label or image!r} for {name}")
    if os.path.isdir(folder):
        return FolderSource(folder, split)
    if name == "photos":
        return PhotoSource(split)
    if name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"There is no folder {name}.")
    return TFDSSource(name, split, data_dir, label, image)


_NO_CLASSES = "{0} holds no class folders. Expected one folder of images per class, such as {0}/cat/1.jpg."


def about(source):
    """What the user should know of a source: which number is which class, and what was left out. Yields sentences."""
    if len(source.class_names) > 1:
        yield f"classes: {describe_classes(range(len(source.class_names)), source.class_names)}"
    if getattr(source, "left_out", ""):
        yield source.left_out


class FolderSource:
    """A folder with one folder of pictures per class; classes are numbered in the order of their names.

    Which files are pictures says `fcdm_keras.data.folders`. A folder without a readable picture is no class. Where the
    folder holds a folder per split, the one asked for is read.

    Attributes:
        listing: the `Listing` of all classes' pictures, which tells what was left out.

    Raises:
        ValueError: there are no classes, or no such split.
    """

    def __init__(self, path, split="train"):
        self.name, self.split = shown(path), split
        self._root = split_folder(Path(path), split)
        self.listing, self._labels, names, unreadable = Listing(), [], [], []
        for folder in subfolders(self._root):
            own = list_pictures(folder, self._root)
            if any(map(_opens, own.files)):
                self._labels += [len(names)] * len(own.files)
                names.append(shown(folder.name))
            else:
                unreadable += own.files
                own = Listing([], own.hidden, own.others + len(own.files))
            self.listing.add(own)
        if not names and unreadable:
            raise ValueError(
                f"None of the {len(unreadable):,} pictures in the class folders of {self.name} can be read, such as "
                f"{shown(unreadable[0])}: {_fault(unreadable[0])}."
            )
        if not names:
            raise ValueError(_NO_CLASSES.format(self._root))
        self.listing.loose = sum(not is_hidden(path.name) and is_picture(path) for path in self._root.iterdir())
        self.class_names = tuple(names)

    @property
    def other_files(self):
        """How many files are no pictures."""
        return self.listing.others

    @property
    def left_out(self):
        """What was left out, as a sentence, or an empty text."""
        return self.listing.left_out()

    def __len__(self):
        return len(self._labels)

    def read(self, start, stop):
        for file, label in zip(self.listing.files[start:stop], self._labels[start:stop]):
            yield Example(file, label, shown(file.relative_to(self._root)))


def _opens(file):
    return _fault(file) is None


def _fault(file):
    """Why a picture cannot be opened, or `None`."""
    try:
        shorter_side(file)
    except UnreadableImageError as error:
        return str(error)
    return None


SPLITS = {"train", "training", "validation", "val", "valid", "dev", "test", "testing"}  # usual names


def split_folder(root, split):
    """The folder of a split: one in `root`, or `root` itself if its folders are classes and `split` is "train".

    A folder named like a split is one if there are folders of pictures in it, and a class if there are pictures.

    Raises:
        ValueError: there is no such split, or what are classes and what are splits cannot be told.
    """
    folders = [folder for folder in subfolders(root) if holds_pictures(folder)]
    if split.lower() not in SPLITS and root / split in folders:
        return root / split
    named = [folder for folder in folders if folder.name.lower() in SPLITS]
    splits = [folder for folder in named if any(map(holds_pictures, subfolders(folder)))]
    if named and folders == named and not splits:
        raise ValueError(
            f"{named[0]} holds no class folders. Expected one folder per class, such as {named[0]}/cat/1.jpg."
        )
    if not splits and split == "train":
        return root
    if not splits:
        raise ValueError(f"{root} holds no folder per split, but {_names(folders)}. Received: split {split!r}")
    others = [folder for folder in folders if folder not in named]
    if others and len(splits) == 1:
        raise ValueError(
            f"{root} holds {_names(splits)}, named like a split, beside {_names(others)}: give the path of the split "
            f"itself, such as {splits[0]}, or put the pictures of that class into one folder."
        )
    if root / split not in splits:
        raise ValueError(f"{root} has the splits {_names(splits)}; choose one with --split. Received: {split!r}")
    return root / split


def _names(folders):
    names = [shown(folder.name) for folder in folders]
    return (", ".join(names[:8]) + (" …" if len(names) > 8 else "")) or "no folders of pictures"


def read_images(source, size):
    """All images of a small source in memory: uint8 `(N, size, size, 3)`, labels int32 `(N,)`, what was skipped.

    Returns:
        images, labels, and a list of `(key, reason)` of unreadable images.

    Raises:
        ValueError: none can be read, or they are more than the memory holds.
    """
    what = f"Holding {len(source):,} images of {size}×{size}"
    memory.check(2 * len(source) * size**2 * 3, what, "encode them, and train on their latents: --latents")
    images, labels, skipped = [], [], []
    for example in source.read(0, len(source)):
        label = check_label(example, source)
        try:
            images.append(example.cropped(size)[0])
            labels.append(label)
        except UnreadableImageError as error:
            skipped.append((example.key, str(error)))
    if not images:
        raise ValueError(
            f"None of the {len(source):,} images of {source.name} can be read, such as {': '.join(skipped[0])}."
        )
    return np.stack(images), np.array(labels, np.int32), skipped
