"""MS-COCO's captioned images, from TensorFlow Datasets or from the official files.

A source as in `fcdm_keras.data.sources`, in which all images are of one class, with `captions()`: the captions of every
image by its key, and `remarks`: sentences on what was put right in them.
"""

from pathlib import Path

import numpy as np

from fcdm_keras.data.pictures import shown
from fcdm_keras.data.tfds_sources import VALIDATION, Features, TFDSSource, prepared_builder
from fcdm_keras.data.transforms import Example
from t2i.captions import check_captions, cleaned, read_captions

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
    """COCO's official files: a folder of images per split, and one JSON file of captions for each.

    Files are listed by their paths below the folder of images. An image that is listed twice has the captions of both.
    """

    class_names = ("captioned",)

    def __init__(self, path, split="train", captions=None):
        self.name = shown(path)
        self.split, self._images = _image_folder(Path(path), split)
        file = Path(captions) if captions else Path(path) / "annotations" / f"captions_{self.split}.json"
        if not file.exists():
            raise FileNotFoundError(f"There is no caption file {file}. {HOW_TO_GET}")
        listed, count, blank = read_captions(file)
        on_disk = {entry.name for entry in self._images.iterdir()}
        keys = {name: self._located(name, on_disk) for name in listed}
        missing = [name for name, key in keys.items() if key is None]
        if missing:
            raise ValueError(
                f"{len(missing):,} of the {len(listed):,} images of {file} are not in {self._images}, the first "
                f"{missing[0]}: get them, or give the images' own caption file with --captions."
            )
        self._captions = {}
        for name, own in listed.items():
            self._captions.setdefault(keys[name], []).extend(own)
        self._keys = list(self._captions)  # paths, of any bytes
        self.other_files = len(on_disk.difference(self._keys))
        self.left_out = f"{self.other_files:,} entries are left out: without captions." if self.other_files else ""
        self.remarks = _remarks(file, blank=blank, twice=count - len(self._keys))

    def _located(self, name, on_disk):
        """The path of a listed file below the folder of images; `None` if it is not there."""
        for form in (name, name.replace("\\", "/").removeprefix("./").removeprefix(f"{self._images.name}/")):
            path = Path(form).as_posix()
            if path in on_disk or ("/" in path and (self._images / path).is_file()):
                return path
        return None

    def __len__(self):
        return len(self._keys)

    def read(self, start, stop):
        """Yields `Example`s, in the order of the caption file."""
        for key in self._keys[start:stop]:
            yield Example(self._images / key, 0, shown(key))

    def captions(self):
        """Captions of every image by its key, in the order of the images."""
        return {shown(key): own for key, own in self._captions.items()}


def _image_folder(root, split):
    """The name of a split with its year, and the folder of its images."""
    names = VALIDATION if split in VALIDATION else (split,)
    years = [split] if split[-1:].isdigit() else [f"{name}{year}" for name in names for year in (2017, 2014)]
    found = [name for name in years if (root / name).is_dir()]
    if not found:
        there = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:8])
        raise FileNotFoundError(
            f"{root} holds no folder {' or '.join(years[:2])} of images{there and f', but {there}'}. {HOW_TO_GET}"
        )
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(found)}: say which with --split.")
    return found[0], root / found[0]


def _remarks(where, blank=0, without=0, twice=0):
    counts = (
        (blank, "captions", "are blank and are left out"),
        (without, "images", "have no caption and are left out"),
        (twice, "images", "are listed more than once, and have all their captions"),
    )
    return [f"{count:,} {what} of {where} {fate}." for count, what, fate in counts if count]


class COCOCaptions(TFDSSource):
    """TensorFlow Datasets' `coco_captions`, or a set with its features `image`, `image/filename` and `captions`.

    Images without a caption are left out as they are read, for nobody can mend a prepared data set.
    """

    class_names = ("captioned",)

    def __init__(self, name=TFDS_NAME, split="train", data_dir=None):
        self.name, self.remarks = name, []
        self._builder = prepared_builder(name, data_dir)
        features = self._builder.info.features
        there = {"image", "image/filename", "captions"} <= features.keys()
        if not there or not all(map(_holds_texts, (features["captions"], features["image/filename"]))):
            raise ValueError(
                f"{name} has no captioned images. Expected the features image, image/filename and captions, of texts. "
                f"Received: {sorted(features.keys())}"
            )
        self._image = Features(self._builder.info, name).image("image")
        self.split = self._own_split(split)

    def read(self, start, stop):
        """Yields `Example`s of the images with captions, in the order of the data set."""
        for example in self.examples(start, stop):
            if cleaned(self._texts(example)):
                yield Example(_bytes(example["image"]), 0, self._filename(example))

    def captions(self):
        """Captions of every image by its key, in the order of the images. Reads the whole split."""
        captions, blank, without = {}, 0, 0
        for example in self.examples(0, len(self)):
            key, texts = self._filename(example), self._texts(example)
            if key in captions:
                raise ValueError(
                    f"{self.name} has two images with the file name {key}: their captions cannot be told apart."
                )
            own = cleaned(texts)
            blank, without = blank + len(texts) - len(own), without + (not own)
            if own:
                captions[key] = own
        check_captions(captions, self.name)
        self.remarks = _remarks(self.name, blank=blank, without=without)
        return captions

    def _texts(self, example):
        """The captions of an example, of which TensorFlow Datasets makes a dict of lists, or a list of dicts."""
        captions = example["captions"]
        captions = captions["text"] if isinstance(captions, dict) else captions
        captions = [captions] if isinstance(captions, (bytes, str)) else captions
        try:
            return [_bytes(text["text"] if isinstance(text, dict) else text).decode() for text in captions]
        except UnicodeDecodeError:
            raise ValueError(f"{self.name}: a caption of {self._filename(example)} is no text in UTF-8.") from None

    def _filename(self, example):
        return _bytes(example["image/filename"]).decode(errors="backslashreplace")


def _holds_texts(feature):
    """Whether a feature is a text, or a sequence of texts or of dicts with a `text`."""
    inner = getattr(feature, "feature", feature)
    inner = dict(inner.items()).get("text") if hasattr(inner, "items") else inner
    return inner is not None and inner.np_dtype in (np.object_, np.str_, np.bytes_)


def _bytes(value):
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes) else np.asarray(value).item()
