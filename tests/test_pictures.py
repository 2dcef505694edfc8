"""Every kind of picture file and of folder through the readers of all commands.

`python tests/test_pictures.py` writes the table in `docs/pictures.md`.
"""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from picture_kinds import COLOUR, KINDS, SIDE, saved
from PIL import Image

from fcdm_keras.data import crops
from fcdm_keras.data.pictures import UnreadableImageError, decode_image
from fcdm_keras.data.sources import FolderSource, about, open_source, read_images
from fcdm_keras.data.transforms import center_crop
from fcdm_keras.evaluation.features import load_extractor
from fcdm_keras.evaluation.image_sets import ImageFolder
from fcdm_keras.evaluation.suite import Judge

pytestmark = pytest.mark.no_backend
PAGE = Path(__file__).parents[1] / "docs" / "pictures.md"
TABLE = re.compile(r"(?<=\|---\|---\|---\|---\|\n)(\|.*\n)+")


def by_encode(folder):
    images, labels, skipped = read_images(FolderSource(folder), SIDE)
    return images[0] if (labels == 0).sum() == 1 and not skipped and len(images) == 3 else None


def by_train_vae(folder):
    images, held_out, _ = crops.open_images(str(folder), SIDE)
    every = [*held_out, *(images[i] for i in range(len(images)))]
    return next((image for image in every if len(np.unique(image)) > 1), None)  # the two beside it are flat


def by_evaluate(folder):
    (image,) = next(iter(ImageFolder(folder / "a").batches(1)))
    return np.broadcast_to(image, (SIDE, SIDE, 3))


def cell(read, folder, kind, expected):
    """What a reader makes of a kind, in a word, after its pixels were held to what they must be."""
    try:
        image = read(folder)
    except ValueError as error:
        assert len(expected) == 1 and expected[0] in str(error), (kind, str(error))
        return "refused"
    if image is None:
        assert len(expected) == 1, kind
        return "left out"
    assert np.abs(image.astype(int) - expected[0]).max() <= expected[1], kind
    return "read"


def rows(root):
    """Lines of the table; each file lies beside two flat pictures of another class."""
    flat = [saved(np.full_like(COLOUR, value)) for value in (7, 9)]
    for number, (kind, (content, *expected)) in enumerate(KINDS.items()):
        folder = root / str(number)
        for name, data in (("a/0", content), ("b/1", flat[0]), ("b/2", flat[1])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(data)
        cells = [cell(read, folder, kind, expected) for read in (by_encode, by_train_vae, by_evaluate)]
        yield f"| {kind} | {' | '.join(cells)} |\n"


def test_every_kind_of_picture_is_what_it_shows_in_every_command(tmp_path):
    assert len(KINDS) >= 45 and TABLE.search(PAGE.read_text(encoding="utf-8"))[0] == "".join(rows(tmp_path))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG, progressive", "JPEG, gray"])
def test_jpegs_are_what_tensorflow_decodes(kind):
    import tensorflow as tf

    theirs = tf.io.decode_jpeg(KINDS[kind][0], channels=3, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(decode_image(KINDS[kind][0]), theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(50), "it is a HEIC picture or a video"),
        (b"%PDF-1.7", "it is a drawing"),
        (b"GIF89a", "."),
        (b"plain text", "it is no image of a known format"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(content, message, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    for source in (content, tmp_path / "x.jpg"):
        with pytest.raises(UnreadableImageError, match=message):
            decode_image(source)
    with pytest.raises(UnreadableImageError, match="No such file or directory"):
        decode_image(tmp_path / "gone.jpg")


def test_a_strip_is_cropped_without_its_whole_being_enlarged():
    """Bit for bit the middle of the whole, which would take gigabytes for longer ones."""
    strip = np.random.default_rng(0).integers(0, 256, (3, 60, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(strip).resize((1280, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(center_crop(strip, 64), whole[:, 608:672])
    assert center_crop(np.zeros((1, 60_000, 3), np.uint8), 256).shape == (256, 256, 3)


def test_large_jpegs_are_decoded_small():
    large = saved(
        np.kron(np.array([[[0], [255]], [[255], [0]]], np.uint8), np.ones((3000, 3000, 1), np.uint8))[..., 0], "JPEG"
    )
    assert decode_image(large, 64).shape == (750, 750, 3) and decode_image(large, 2000).shape == (6000, 6000, 3)


@pytest.fixture
def put(tmp_path):
    """`put(names…)` writes pictures below a folder, which it returns."""

    def write(*names, picture=COLOUR):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(saved(picture))
        return tmp_path

    return write


def keys(folder, split="train"):
    source = open_source(str(folder), split)
    return [example.key for example in source.read(0, len(source))]


def test_leftovers_and_hidden_files_are_left_out_at_every_depth_and_counted(put):
    folder = put("cat/1.png", "cat/._1.png", "cat/.ipynb_checkpoints/1.png", "cat/@eaDir/1.png/thumb.jpg", "dog/2.jfif")
    put("__MACOSX/cat/1.png", ".hidden/3.png", "dog/Thumbs.db", "loose.png", "dog/noext", "dog/set.png/4.PNG")
    (folder / "dog" / "list.txt").write_text("2.jfif")
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere")
    expected = ["cat/1.png", "dog/2.jfif", "dog/noext", "dog/set.png/4.PNG"]
    source = open_source(str(folder))
    assert (keys(folder), source.class_names) == (expected, ("cat", "dog"))
    told = "7 entries are left out: 2 no pictures, 1 in no class folder, 4 hidden, or leftovers of other programs."
    assert told in list(about(source))
    assert len(crops._image_files(folder)) == 5
    with pytest.warns(UserWarning, match="8 entries are left out: 2 no pictures, 6 hidden"):
        assert ImageFolder(folder).count == 5


def test_links_are_followed_and_circles_cut(put):
    folder = put("real/cat/1.png", "real/dog/2.png", "set/own/3.png")
    (folder / "set" / "cat").symlink_to(folder / "real" / "cat")
    (folder / "set" / "own" / "more").symlink_to(folder / "real" / "dog")
    (folder / "real" / "dog" / "back").symlink_to(folder / "set")
    assert keys(folder / "set") == ["cat/1.png", "own/3.png", "own/more/2.png"]
    assert ImageFolder(folder / "set").count == len(crops._image_files(folder / "set")) == 3


def test_names_may_be_any_bytes(put):
    folder = put("caf\u00e9/1.png")
    os.mkdir(os.fsencode(folder) + b"/\xff\xfe")
    with open(os.fsencode(folder) + b"/\xff\xfe/\xe9.png", "wb") as file:
        file.write(saved(COLOUR))
    assert keys(folder) == ["caf\u00e9/1.png", r"\xff\xfe/\xe9.png"]
    (_, *sentences) = about(open_source(str(folder)))
    assert not sentences


def test_numbered_classes_say_which_number_they_got(put):
    told = list(about(open_source(str(put("0/a.png", "1/a.png", "10/a.png", "2/a.png")))))
    assert told == ["classes: 0 0, 1 1, 2 10, 3 2 (numbered in the order of their names: class 2 is named 10)"]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train/cat/1.png", "val/dog/2.png"], "val", ["dog/2.png"]),
        (["train/cat/1.png", "val/dog/2.png"], "validation", "has the splits train, val; choose one with --split"),
        (["Train/cat/1.png", "Test/cat/1.png"], "train", "has the splits Test, Train; choose"),
        (["cat/1.png", "dog/2.png"], "test", "holds no folder per split, but cat, dog. Received: split 'test'"),
        (["bus/1.png", "train/2.png"], "train", ["bus/1.png", "train/2.png"]),
        (["bus/1.png", "train/steam/2.png"], "train", "holds train, named like a split, beside bus: give the path"),
        (["train/1.png", "val/2.png"], "train", "train holds no class folders. Expected one folder"),
        (["fold1/cat/1.png", "fold2/cat/2.png"], "fold2", ["cat/2.png"]),
        (["train/cat/1.png", "val/cat/2.png", "samples/3.png"], "train", ["cat/1.png"]),
    ],
)
def test_splits_and_classes_are_told_apart(put, names, split, expected):
    folder = put(*names)
    if isinstance(expected, list):
        assert keys(folder, split) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            open_source(str(folder), split)


def test_a_folder_without_a_readable_picture_is_no_class(put):
    folder = put("ape/1.png", "cat/2.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "1.png").write_bytes(b"")
    (folder / "empty").mkdir()
    assert open_source(str(folder)).class_names == ("ape", "cat")
    for name in ("ape/1.png", "cat/2.png"):
        (folder / name).write_bytes(b"<html>")
    with pytest.raises(
        ValueError, match="None of the 3 pictures in the class folders of .*ape/1.png: it is a web page"
    ):
        open_source(str(folder))


def test_files_that_vanish_or_may_not_be_read_are_skipped_by_name(put):
    folder = put("ape/1.png", "ape/2.png")
    source = FolderSource(folder)
    (folder / "ape" / "2.png").unlink()
    images, _, skipped = read_images(source, SIDE)
    assert len(images) == 1 and skipped == [("ape/2.png", "No such file or directory")]


@pytest.mark.parametrize("modes", [("L", "RGB"), ("RGB", "L"), ("LA", "RGBA"), ("1", "P"), ("L", "I;16")])
def test_a_folder_scores_zero_against_its_own_pictures(put, tmp_path, modes):
    """Whatever mode its first picture has."""
    generator = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(12):
        gray = generator.integers(0, 256, (4, 4), dtype=np.uint8)
        picture = Image.fromarray(gray).convert("RGB" if modes[i % 2] == "P" else "L")
        picture.convert(modes[i % 2]).save(tmp_path / "set" / f"{i}.png")
    images = np.concatenate(list(ImageFolder(tmp_path / "set").batches(5)))
    assert images.shape == (12, 4, 4, 3)
    np.savez(tmp_path / "same.npz", images)
    judge = Judge(tmp_path / "same.npz", load_extractor("pixels", None, 8), ["fid"])
    assert judge(images)["fid"] == pytest.approx(0, abs=1e-6)


def test_the_grid_of_our_own_samples_is_none_of_them(put):
    folder = put("0.png", "1.png", "grid.png", "more/grid.png")
    assert ImageFolder(folder).count == 4
    (folder / "settings.json").write_text("{}")
    assert ImageFolder(folder).count == 3


def test_numbered_pictures_come_in_the_order_of_their_numbers(put):
    folder = put("999999.png", "1000000.png", "100001.png", "b.png", "a.png")
    names = [file.name for file in ImageFolder(folder)._files]
    assert names == ["100001.png", "999999.png", "1000000.png", "a.png", "b.png"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        PAGE.write_text(
            TABLE.sub(lambda _: "".join(rows(Path(root))), PAGE.read_text(encoding="utf-8")), encoding="utf-8"
        )
