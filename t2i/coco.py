"""MS-COCO's captioned images, from TensorFlow Datasets or from the official files.

A source as in `fcdm_keras.data.sources`, in which all images are of one class, with `captions()`: the captions of every
image by its key.
"""

import json
from pathlib import Path

import numpy as np

from fcdm_keras.data.sources import TFDSSource, prepared_builder
from fcdm_keras.data.transforms import Example

TFDS_NAME = "coco_captions"
HOW_TO_GET = (
    "Download train2017.zip (or train2014.zip) and annotations_trainval2017.zip (2014) from "
    "https://cocodataset.org/#download and unpack them into one folder, to give as --source; or, with a network, run "
    f"`tfds build {TFDS_NAME}` and give --source {TFDS_NAME}."
)


def open_coco(name, split="train", data_dir=None, captions=None):
    """Opens COCO's captions.

    Args:
        name: folder with the official files, or `coco_captions` (or another data set of TensorFlow Datasets with the
            same features).
        split: folder of images such as `train2017`, where `train` and `val` mean those of the year that is there;
            or a split of the data set.
        data_dir: TensorFlow Datasets' folder.
        captions: the official caption file, if it is not `annotations/captions_SPLIT.json` in the folder.

    Raises:
        FileNotFoundError: the images or the captions are not there; says how to get them.
        ValueError: they do not fit each other.
    """
    if Path(name).is_dir():
        return COCOFolder(name, split, captions)
    if captions or "/" in name and not name.startswith(TFDS_NAME) or name.startswith((".", "~")):
        raise FileNotFoundError(f"There is no folder {name}. {HOW_TO_GET}")
    try:
        return COCOCaptions(name, split, data_dir)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a prepared data set of TensorFlow Datasets (--data-dir names their "
            f"place). {HOW_TO_GET}"
        ) from None


class COCOFolder:
    """COCO's official files: a folder of images per split, and one JSON file of captions for each."""

    class_names = ("captioned",)

    def __init__(self, path, split="train", captions=None):
        self.name = str(path)
        self.split, self._images = _image_folder(Path(path), split)
        self._file = Path(captions) if captions else Path(path) / "annotations" / f"captions_{self.split}.json"
        self._captions = _read_captions(self._file)
        on_disk = {file.name for file in self._images.iterdir()}
        missing = [name for name in self._captions if name not in on_disk]
        if missing:
            raise ValueError(
                f"{len(missing):,} of the {len(self._captions):,} images of {self._file} are not in {self._images}, "
                f"the first {missing[0]}: get them, or give the images' own caption file with --captions."
            )
        self._keys = list(self._captions)
        self.other_files = len(on_disk) - len(self._keys)

    def __len__(self):
        return len(self._keys)

    def read(self, start, stop):
        """Yields `Example`s, in the order of the caption file."""
        for key in self._keys[start:stop]:
            yield Example((self._images / key).read_bytes(), 0, key)

    def captions(self):
        """Captions of every image by its key, in the order of the images."""
        return self._captions


def _image_folder(root, split):
    """The name of a split with its year, and the folder of its images."""
    years = [split] if split[-1].isdigit() else [f"{split}2017", f"{split}2014"]
    found = [name for name in years if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{root} holds no folder {' or '.join(years)} of images. {HOW_TO_GET}")
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(found)}: say which with --split.")
    return found[0], root / found[0]


def _read_captions(file):
    """File name → captions of an official caption file, in the order of its images."""
    if not file.exists():
        raise FileNotFoundError(f"There is no caption file {file}. {HOW_TO_GET}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(caption["image_id"], str(caption["caption"]).strip()) for caption in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no caption file of COCO ({error!r}): expected a JSON object with `images` (id, file_name) and "
            "`annotations` (image_id, caption)."
        ) from None
    captions = {name: [] for name in names.values()}
    unknown = [image for image, _ in pairs if image not in names]
    if unknown:
        raise ValueError(
            f"{file} has {len(unknown):,} captions of images that it does not list, the first of image {unknown[0]}: "
            "get the file again."
        )
    for image, caption in pairs:
        captions[names[image]].append(caption)
    _check_captions(captions, file)
    return captions


def _check_captions(captions, where):
    without = [name for name, own in captions.items() if not own]
    if without:
        raise ValueError(
            f"{len(without):,} of the {len(captions):,} images of {where} have no caption, the first {without[0]}: "
            "take them out, or give them captions."
        )
    if not captions:
        raise ValueError(f"{where} lists no images.")


class COCOCaptions(TFDSSource):
    """TensorFlow Datasets' `coco_captions`, or a set with its features `image`, `image/filename` and `captions`."""

    class_names = ("captioned",)

    def __init__(self, name=TFDS_NAME, split="train", data_dir=None):
        self.name, self.split = name, split
        self._builder = prepared_builder(name, data_dir)
        features = self._builder.info.features
        if not {"image", "image/filename", "captions"} <= features.keys():
            raise ValueError(
                f"{name} has no captioned images. Expected the features image, image/filename and captions. "
                f"Received: {sorted(features.keys())}"
            )
        self._image = "image"
        self._check_split()

    def read(self, start, stop):
        """Yields `Example`s, in the order of the data set."""
        for example in self.examples(start, stop):
            yield Example(_bytes(example["image"]), 0, _bytes(example["image/filename"]).decode())

    def captions(self):
        """Captions of every image by its key, in the order of the images. Reads the whole split."""
        captions = {}
        for example in self.examples(0, len(self)):
            texts = (_bytes(text).decode().strip() for text in _texts(example["captions"]))
            captions[_bytes(example["image/filename"]).decode()] = list(texts)
        _check_captions(captions, self.name)
        return captions


def _texts(captions):
    """The texts of a sequence of captions: a dict of lists, or a list of dicts."""
    return captions["text"] if isinstance(captions, dict) else [caption["text"] for caption in captions]


def _bytes(value):
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes) else np.asarray(value).item()
