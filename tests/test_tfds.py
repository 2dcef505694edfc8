"""Data sets of TensorFlow Datasets: which features are image and label, splits, and labels that are none."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fcdm_keras import encode
from fcdm_keras.data.sources import open_source, read_images

pytestmark = pytest.mark.no_backend
SPECIES = ["cat", "dog", "owl"]


def pixels(i, channels=3):
    return np.random.default_rng(i).integers(0, 256, (12, 10, channels), np.uint8)


def png(i, channels=3):
    """Channels: 1 gray, 3 RGB, 4 RGB with alpha."""
    values, buffer = pixels(i, channels), io.BytesIO()
    Image.fromarray(values[..., 0] if channels == 1 else values).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A real data set with every kind of feature that could be taken for image or label; the split `val` has none."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    features = {
        "image": kinds.Image(encoding_format="png", shape=(None, None, 3)),
        "gray": kinds.Image(encoding_format="png", shape=(None, None, 1)),
        "alpha": kinds.Image(encoding_format="png", shape=(None, None, 4)),
        "depth": kinds.Image(encoding_format="png", shape=(4, 4, 1), dtype=np.float32),
        "mask": kinds.LabeledImage(labels=5, encoding_format="png", shape=(None, None, 1)),
        "views": kinds.Sequence(kinds.Image(encoding_format="png", shape=(4, 4, 3))),
        "clip": kinds.Video(shape=(None, 4, 4, 3)),
        "label": kinds.ClassLabel(names=SPECIES),
        "camera": kinds.ClassLabel(num_classes=7),
        "tags": kinds.Sequence(kinds.ClassLabel(num_classes=4)),
        "number": np.int64,
        "stars": kinds.Tensor(shape=(), dtype=np.int32, minimum=0, maximum=4),
        "indoors": np.bool_,
        "name": kinds.Text(),
    }

    def example(i, label):
        small = np.zeros((1, 4, 4, 3), np.uint8)
        pictures = {"image": png(i), "gray": png(i, 1), "alpha": png(i, 4), "mask": pixels(i, 1), "views": small}
        labels = {"label": label, "camera": 6 - i, "tags": [0, 3], "number": i, "stars": 2 * i, "indoors": i % 2 == 0}
        depth = np.zeros((4, 4, 1), np.float32)
        return i, {**pictures, **labels, "depth": depth, "clip": small, "name": f"pet {i}"}

    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pets",
        version="1.0.0",
        features=kinds.FeaturesDict(features),
        split_datasets={"train": [example(i, i % 3) for i in range(4)], "val": [example(0, -1)]},
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


def declaring(pets, folder, declared=None, without=()):
    """The data set with other `supervised_keys`, a nest of tuples, dicts and names, and without some features."""
    shutil.copytree(pets, folder)
    (info,), (features,) = folder.rglob("dataset_info.json"), folder.rglob("features.json")
    content = json.loads(info.read_text())
    if declared:
        content["supervisedKeys"] = {"tuple": {"items": [nest(part) for part in declared]}}
    info.write_text(json.dumps(content))
    content = json.loads(features.read_text())
    for key in without:
        del content["featuresDict"]["features"][key]
    features.write_text(json.dumps(content))
    return str(folder)


def nest(part):
    """As TensorFlow Datasets' protocol buffers have it in JSON."""
    if isinstance(part, dict):
        return {"dict": {"dict": {key: nest(value) for key, value in part.items()}}}
    return {"tuple": {"items": [nest(value) for value in part]}} if isinstance(part, tuple) else {"featureKey": part}


@pytest.mark.parametrize(
    ("declared", "labels", "classes"),
    [
        (None, [0, 1, 2, 0], SPECIES),  # of two the one that is called label
        (("image", "camera"), [6, 5, 4, 3], list("0123456")),
        (("image", "camera", "number"), [6, 5, 4, 3], list("0123456")),
        (({"of": "image"}, {"a": "name", "b": ("camera",)}), [6, 5, 4, 3], list("0123456")),
        (("image", "stars"), [0, 2, 4, 6], list("01234")),
        (("image", "indoors"), [1, 0, 1, 0], list("01")),
        (("camera", "image"), [6, 5, 4, 3], list("0123456")),
        (("image", "image"), [0, 1, 2, 0], SPECIES),
        (("image", ("camera", "label")), [0, 1, 2, 0], SPECIES),
    ],
    ids=str,
)
def test_the_declared_label_counts(pets, tmp_path, declared, labels, classes):
    source = open_source("pets", data_dir=declaring(pets, tmp_path / "x", declared))
    examples = list(source.read(0, 9))
    assert [example.label for example in examples] == labels and list(source.class_names) == classes
    np.testing.assert_array_equal(examples[1].decoded(), pixels(1))


def test_features_that_are_asked_for_come_before_the_declared(pets, tmp_path):
    folder = declaring(pets, tmp_path / "x", ("image", "label"))
    source = open_source("pets", data_dir=folder, label="camera", image="gray")
    (example,) = source.read(1, 2)
    assert example.label == 5 and source.name == "pets (image gray, label camera)"
    np.testing.assert_array_equal(example.decoded(), pixels(1, 1).repeat(3, axis=2))
    (example,) = open_source("pets", data_dir=folder, image="alpha").read(2, 3)
    rgba = pixels(2, 4).astype(float)
    over_white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    assert np.abs(example.decoded() - over_white).max() <= 1
    with pytest.raises(ValueError, match="Features are for data sets of TensorFlow Datasets. Received: 'camera' for"):
        open_source(str(tmp_path), label="camera")


@pytest.mark.parametrize(
    ("declared", "without", "message"),
    [
        (("image", "tags"), (), r"declares tags \(Sequence of ClassLabel\) as its label, and each example needs one"),
        (("image", "number"), (), r"number \(Tensor of int64\) .*: choose one of camera, indoors, label, stars with"),
        (("clip", "label"), (), r"declares clip \(Video of Image of uint8\) as its image, and each example needs one"),
        (
            ("views", "label"),
            (),
            r"views \(Sequence of Image of uint8\) .* one of alpha, gray, image with --image-feat",
        ),
        (("depth", "label"), (), r"declares depth \(Image of float32\) as its image"),
        (("image", ("camera", "stars")), (), "has several label features .*: choose one of camera, stars with --label"),
        (
            None,
            ["image"],
            "has several image features .*: choose one of alpha, gray with --image-feature of `python -m",
        ),
        (
            None,
            ["label", "camera"],
            r"has no ClassLabel feature, .* Received: alpha .* tags \(Sequence of ClassLabel\)",
        ),
        (None, ["image", "alpha", "gray"], r"has no Image feature, so it is no set of single images. Received: camera"),
    ],
)
def test_sets_without_one_image_and_one_label_are_refused(pets, tmp_path, declared, without, message):
    with pytest.raises(ValueError, match=f"^pets .*{message}"):
        open_source("pets", data_dir=declaring(pets, tmp_path / "x", declared, without))


def test_features_that_are_not_there_are_refused(pets):
    with pytest.raises(ValueError, match="no feature 'tags' to be its label: choose one of camera, indoors, label, st"):
        open_source("pets", data_dir=str(pets), label="tags")
    arguments = ["--source=pets", f"--data-dir={pets}", "--image-feature=mask", "--vae=none", "--output=none"]
    with pytest.raises(
        SystemExit, match="^error: pets has no feature 'mask' to be its image: choose one of alpha, gray"
    ):
        encode.main(arguments)


def test_the_validation_split_has_several_names_and_others_are_refused(pets):
    source = open_source("pets", "validation", str(pets))
    assert source.split == "val" and len(source) == 1
    for split in ("test", "train[:50%]", "train+val", ""):
        with pytest.raises(ValueError, match=f"pets has the splits train, val. Received: {re.escape(repr(split))}"):
            open_source("pets", split, str(pets))


def test_labels_that_are_none_are_refused(pets):
    with pytest.raises(
        ValueError, match="^pets, split val: val/0 has the label -1, and labels are numbers of classes, 0 t"
    ):
        read_images(open_source("pets", "val", str(pets)), 8)
    with pytest.raises(
        ValueError, match=r"pets \(label stars\), split train: train/3 has the label 6, .* 0 to 4; mend"
    ):
        read_images(open_source("pets", "train", str(pets), label="stars"), 8)
