"""Images from disk: ADM's crop bit for bit, every kind of file, folders and TensorFlow Datasets."""

import io

import numpy as np
import pytest
from PIL import Image

from fcdm_keras.data.sources import FolderSource, open_source, read_images
from fcdm_keras.data.transforms import UnreadableImageError, center_crop, decode_image

pytestmark = pytest.mark.no_backend


def picture(height=40, width=60, seed=0):
    """A smooth random picture, uint8 `(H, W, 3)`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images of three classes, and files that are none."""
    root = tmp_path_factory.mktemp("images")
    for i in range(7):
        place = root / ("ape", "bee", "cat")[i % 3] / ("deeper" if i == 5 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(encoded(picture(40 + i, 60, seed=i)))
    (root / "ape" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


@pytest.mark.parametrize("k", range(4))
def test_center_crop_is_adms(golden, k):
    arrays = golden("fcdm/center_crop")
    cropped = center_crop(arrays[f"in_{k}"], int(arrays[f"size_{k}"]))
    np.testing.assert_array_equal(cropped, arrays[f"out_{k}"])


def test_center_crop_enlarges_what_is_smaller():
    cropped = center_crop(np.full((10, 20, 3), 7, np.uint8), 64)
    assert cropped.shape == (64, 64, 3) and (cropped == 7).all()


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_center_crop_refuses_other_arrays(image):
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\). Received"):
        center_crop(image, 4)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image at all", encoded(picture(300, 400), "JPEG")[:1000], encoded(picture(), "PNG")[:60]],
    ids=["empty", "text", "truncated JPEG", "truncated PNG"],
)
def test_what_is_no_image_is_unreadable(data):
    with pytest.raises(UnreadableImageError):
        decode_image(data)


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    source = open_source(str(folder))
    assert (len(source), source.class_names, source.other_files) == (7, ("ape", "bee", "cat"), 1)
    examples = list(source.read(0, 100))
    keys = ["ape/0.png", "ape/3.png", "ape/6.png", "bee/1.png", "bee/4.png", "cat/2.png", "cat/deeper/5.png"]
    assert [example.key for example in examples] == keys
    assert [example.label for example in examples] == [0, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(examples[4].decoded(), picture(44, 60, seed=4))
    assert [example.key for example in source.read(2, 4)] == keys[2:4]


def test_a_folder_may_hold_a_folder_per_split(tmp_path, folder):
    for split in ("train", "val"):
        (tmp_path / split / "x").mkdir(parents=True)
        (tmp_path / split / "x" / f"{split}.png").write_bytes(encoded(picture()))
    assert [e.key for e in open_source(str(tmp_path), "val").read(0, 9)] == ["x/val.png"]


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no class folders. Expected one folder of images per class"):
        FolderSource(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="holds no class folders"):
        FolderSource(tmp_path)


def test_small_sets_are_read_into_memory_without_what_cannot_be_read(folder, tmp_path):
    (tmp_path / "ape").mkdir()
    for file in (folder / "ape").iterdir():
        (tmp_path / "ape" / file.name).symlink_to(file)
    (tmp_path / "ape" / "x.jpg").write_bytes(b"no image")
    images, labels, skipped = read_images(FolderSource(tmp_path), 32)
    assert images.shape == (3, 32, 32, 3) and labels.tolist() == [0, 0, 0]
    assert [key for key, _ in skipped] == ["ape/x.jpg"]
    np.testing.assert_array_equal(images[1], center_crop(picture(43, 60, seed=3), 32))


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def imagenet(request, tmp_path_factory):
    """A real `imagenet2012` on disk, of a few images; one JPEG is gray."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
    )
    examples = []
    for i in range(5):
        jpeg = io.BytesIO(
            encoded(picture(50 + i, 60, seed=i)[..., 0] if i == 3 else picture(50 + i, 60, seed=i), "JPEG")
        )
        examples.append((i, {"image": jpeg, "label": 10 * i, "file_name": f"n0{i}.JPEG"}))
    folder = tmp_path_factory.mktemp(request.param)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version="5.1.0",
        features=features,
        split_datasets={"train": examples},
        data_dir=folder,
        file_format=request.param,
        disable_shuffling=True,
    )
    return str(folder)


def test_tensorflow_datasets_are_read_as_they_are_stored(imagenet):
    source = open_source("imagenet2012", data_dir=imagenet)
    assert len(source) == 5 and len(source.class_names) == 1000 and source.class_names[0] == "n01440764"
    examples = list(source.read(1, 4))
    assert [(e.key, e.label) for e in examples] == [("n01.JPEG", 10), ("n02.JPEG", 20), ("n03.JPEG", 30)]
    jpeg = np.asarray(Image.open(io.BytesIO(encoded(picture(51, 60, seed=1), "JPEG"))))
    np.testing.assert_array_equal(examples[0].decoded(), jpeg)
    assert examples[2].decoded().shape == (53, 60, 3)
    assert list(source.read(5, 9)) == []


def test_a_split_that_is_not_there_is_refused(imagenet):
    with pytest.raises(ValueError, match="imagenet2012 has the splits train. Received: 'test'"):
        open_source("imagenet2012", "test", imagenet)


def test_missing_data_sets_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train.tar .* `tfds build imagenet2012 --data_dir"):
        open_source("imagenet2012", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'nosuch_set' is neither a folder nor a data set"):
        open_source("nosuch_set")
    with pytest.raises(FileNotFoundError, match="There is no folder ./nowhere"):
        open_source("./nowhere")
    with pytest.raises(ValueError, match="has no ClassLabel feature, so it is no class-labelled set of images"):
        _open_unlabelled(tmp_path)


def _open_unlabelled(folder):
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name="div2k",
        version="2.0.0",
        config="bicubic_x2",
        features=tfds.features.FeaturesDict({"lr": tfds.features.Image(), "hr": tfds.features.Image()}),
        split_datasets={"train": [(0, {"lr": picture(), "hr": picture()})]},
        data_dir=folder,
    )
    open_source("div2k/bicubic_x2", data_dir=str(folder))
