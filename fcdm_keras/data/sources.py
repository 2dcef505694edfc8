"""Labelled images from disk, one contract for all sources.

A source has `name` (what it was opened with), `split`, `class_names`, a length, and `read(start, stop)`, which yields
`Example`s of that range in an order that never changes. Images stay encoded as they are stored, so that an unreadable
one can be named and skipped.
"""

import os
from pathlib import Path

import numpy as np

from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.data.folders import ENDINGS as EXTENSIONS
from fcdm_keras.data.folders import Listing, holds_pictures, is_hidden, is_picture, list_pictures, subfolders
from fcdm_keras.data.pictures import UnreadableImageError, picture_header, shown
from fcdm_keras.data.transforms import Example

__all__ = ["EXTENSIONS", "FolderSource", "TFDSSource", "open_source", "prepared_builder", "read_images"]


def open_source(name, split="train", data_dir=None):
    """Opens a source by name.

    Args:
        name: a folder of class folders, `photos` (embedded), or a data set of TensorFlow Datasets, such as
            `imagenet2012` or `imagenette/320px-v2`.
        split: of the data set, e.g. `train`; a folder may hold one folder per split.
        data_dir: TensorFlow Datasets' folder.

    Raises:
        FileNotFoundError: no such folder or data set, or the data set is not prepared.
        ValueError: it holds no labelled images.
    """
    if os.path.isdir(os.path.expanduser(name)):
        return FolderSource(os.path.expanduser(name), split)
    if name == "photos":
        return PhotoSource(split)
    if name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"There is no folder {name}.")
    return TFDSSource(name, split, data_dir)


_NO_CLASSES = "{0} holds no class folders. Expected one folder of images per class, such as {0}/cat/1.jpg."


_SHOWN_CLASSES = 12


def about(source):
    """What the user should know of a source: which number is which class, and what was left out. Yields sentences."""
    names = source.class_names
    if len(names) > 1:
        told = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN_CLASSES]))
        yield f"Classes: {told}{', …' if len(names) > _SHOWN_CLASSES else ''}."
    moved = [(name, number) for number, name in enumerate(names) if name.isdecimal() and int(name) != number]
    if moved:
        name, number = moved[0]
        yield f"Classes are numbered in the order of their names as text: the folder {name} is number {number}."
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
        self.listing, self._labels, names = Listing(), [], []
        for folder in subfolders(self._root):
            own = list_pictures(folder, self._root)
            if any(map(_opens, own.files)):
                self._labels += [len(names)] * len(own.files)
                names.append(shown(folder.name))
            else:
                own = Listing([], own.hidden, own.others + len(own.files))
            self.listing.add(own)
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
    try:
        picture_header(file)
    except UnreadableImageError:
        return False
    return True


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


class TFDSSource:
    """A prepared, class-labelled data set of TensorFlow Datasets, stored as TFRecord or as ArrayRecord."""

    def __init__(self, name, split="train", data_dir=None):
        self.name, self.split = name, split
        self._builder = prepared_builder(name, data_dir)
        features = self._builder.info.features
        self._image, self._label = (_feature_of(features, kind, name) for kind in ("Image", "ClassLabel"))
        self._check_split()
        self.class_names = tuple(features[self._label].names or map(str, range(features[self._label].num_classes)))

    def __len__(self):
        return self._builder.info.splits[self.split].num_examples

    def _check_split(self):
        splits = self._builder.info.splits
        if self.split not in splits:
            raise ValueError(f"{self.name} has the splits {', '.join(splits)}. Received: {self.split!r}")

    def examples(self, start, stop):
        """The data set's own examples of a range, as dicts, with the images still encoded."""
        stop = min(stop, len(self))
        if start >= stop:
            return iter(())
        array_record = self._builder.info.file_format.value == "array_record"
        return (self._array_records if array_record else self._tf_records)(start, stop)

    def read(self, start, stop):
        for place, example in enumerate(self.examples(start, stop), start):
            yield Example(_bytes(example[self._image]), int(example[self._label]), _key(example, self.split, place))

    def _array_records(self, start, stop):
        source = self._builder.as_data_source(self.split, decoders=self._decoders())
        return (source[i] for i in range(start, stop))

    def _tf_records(self, start, stop):
        tfds = _tensorflow_datasets()
        return self._builder.as_dataset(
            split=f"{self.split}[{start}:{stop}]",
            shuffle_files=False,
            decoders=self._decoders(),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        ).as_numpy_iterator()

    def _decoders(self):
        return {self._image: _tensorflow_datasets().decode.SkipDecoding()}


def prepared_builder(name, data_dir):
    """The builder of a data set of TensorFlow Datasets. Raises FileNotFoundError, and says what to do, without one."""
    tfds = _tensorflow_datasets()

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):  # no such name, or not the form of one
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a data set of TensorFlow Datasets. Expected a folder of class folders, "
            "photos, or a name such as imagenet2012."
        ) from None
    if not builder.info.splits:
        raise FileNotFoundError(_how_to_prepare(name, builder.data_dir, data_dir))
    return builder


def _tensorflow_datasets():
    """TensorFlow Datasets, imported where it is used: it is an extra, and slow, and data workers need no Keras."""
    from fcdm_keras.backend.hub import hide_tensorflow_gpus

    hide_tensorflow_gpus()
    import tensorflow_datasets

    return tensorflow_datasets


def _how_to_prepare(name, expected, data_dir):
    where = data_dir or "~/tensorflow_datasets"
    if name.startswith("imagenet2012"):
        run = (
            "Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org, put them into "
            f"{where}/downloads/manual and run"
        )
    else:
        run = "With a network, run"
    return (
        f"{name} is not prepared: there is nothing at {expected}. {run} `tfds build {name} --data_dir {where}`; "
        "--data-dir names another place, and a folder of class folders works too."
    )


def _feature_of(features, kind, name):
    """The key of the only, or the first, feature of a kind."""
    for key, feature in features.items():
        if type(feature).__name__ == kind:
            return key
    raise ValueError(
        f"{name} has no {kind} feature, so it is no class-labelled set of images. Received: {list(features)}"
    )


def _bytes(image):
    return bytes(image) if isinstance(image, bytes) else np.asarray(image).item()


def _key(example, split, place):
    name = example.get("file_name")
    name = name.item() if isinstance(name, np.ndarray) else name
    return name.decode() if isinstance(name, bytes) else f"{split}/{place}"


def read_images(source, size):
    """All images of a small source in memory: uint8 `(N, size, size, 3)`, labels int32 `(N,)`, what was skipped.

    Returns:
        images, labels, and a list of `(key, reason)` of unreadable images.

    Raises:
        ValueError: none can be read.
    """
    images, labels, skipped = [], [], []
    for example in source.read(0, len(source)):
        try:
            images.append(example.cropped(size)[0])
            labels.append(example.label)
        except UnreadableImageError as error:
            skipped.append((example.key, str(error)))
    if not images:
        raise ValueError(
            f"None of the {len(source):,} images of {source.name} can be read, such as {': '.join(skipped[0])}."
        )
    return np.stack(images), np.array(labels, np.int32), skipped
