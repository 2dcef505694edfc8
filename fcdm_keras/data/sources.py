"""Labelled images from disk, one contract for all sources.

A source has `name` (what it was opened with), `split`, `class_names`, a length, and `read(start, stop)`, which yields
`Example`s of that range in an order that never changes. Images stay encoded as they are stored, so that an unreadable
one can be named and skipped.
"""

import os
from pathlib import Path

import numpy as np

from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.data.transforms import Example, UnreadableImageError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


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
    if os.path.isdir(name):
        return FolderSource(name, split)
    if name == "photos":
        return PhotoSource(split)
    if name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"There is no folder {name}.")
    return TFDSSource(name, split, data_dir)


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
    """
    images, labels, skipped = [], [], []
    for example in source.read(0, len(source)):
        try:
            images.append(example.cropped(size)[0])
            labels.append(example.label)
        except UnreadableImageError as error:
            skipped.append((example.key, str(error)))
    return np.stack(images), np.array(labels, np.int32), skipped
