"""Text that people bring: prompts, and captions in every form that they come in."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from fcdm_keras.files import read_lines, read_text
from fcdm_keras.formats.documents import read_json
from t2i import sample
from t2i.caption_store import CaptionStore, write_captions
from t2i.coco import open_coco

pytestmark = pytest.mark.no_backend
SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"  # all of them end a line for `str.splitlines`


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_lines_end_where_an_editor_ends_them(tmp_path, encoding, ends):
    """As Python's own reader of text files has it; marks of the byte order are no part of the text."""
    file, lines = tmp_path / "prompts.txt", ["a café ☃", SEPARATORS, "", "  two  "]
    file.write_bytes(ends.join([*lines, ""]).encode(encoding))
    with open(file, encoding=encoding) as reader:
        assert reader.read().split("\n") == [*lines, ""]
    options = sample.parse(["run", f"--prompts={file}", "--output=x"])
    assert options.texts == read_lines(file) == lines and options.num_samples == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("un café".encode("latin-1"), "is no text in UTF-8: byte 6 is 0xe9; save it as UTF-8"),
        ("a cafe".encode("utf-16-le"), "is no text in UTF-8: byte 1 is 0x00; save it as UTF-8"),
        (b"\xff\xfeab", None),
        (b"\xff\xfea", "is no text in UTF-16: byte 2 is 0x61"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs and not the file"),
        (b"", "holds no prompts. Expected one per line"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, capsys, data, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(data)
    if message is None:
        assert read_text(file) == "\u6261"
        return
    with pytest.raises(SystemExit):
        sample.parse(["run", f"--prompts={file}", "--output=x"])
    assert re.search(f"prompts.txt {message}", capsys.readouterr().err)


def test_prompts_of_no_text_and_json_with_a_mark(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sample.parse(["run", "a \udcff", "--output=x"])  # as Python reads bytes of another encoding
    assert r"PROMPT must be text in UTF-8. Received: 'a \udcff'" in capsys.readouterr().err
    (tmp_path / "x.json").write_text('{"a": "ü"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json", dict[str, str]) == {"a": "ü"}


A, B = {"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}


def said(text, image=1):
    return {"image_id": image, "caption": text}


def captions_of(root, images, annotations, files=("a.jpg", "b.jpg"), **options):
    """COCO's files with these entries, opened."""
    for file in files:
        (root / "train2017" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), "red").save(root / "train2017" / file)
    file = root / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}), **options)
    return open_coco(str(root), captions=str(file))


@pytest.mark.parametrize(
    ("images", "annotations", "expected", "remark"),
    [
        ([A], [said("a bus"), said(" \n"), said("\u200b\u2028"), said("")], {"a.jpg": ["a bus"]}, "3 captions .*"),
        ([A], [said("a bus"), said("a bus"), said("…"), said("🚌")], {"a.jpg": ["a bus", "a bus", "…", "🚌"]}, None),
        ([A, {**B, "file_name": "a.jpg"}], [said("x"), said("y", 2)], {"a.jpg": ["x", "y"]}, "1 images .* more"),
        ([A, {**B, "file_name": "./a.jpg"}], [said("x"), said("y", 2)], {"a.jpg": ["x", "y"]}, "1 images .* more"),
        ([A, A, B], [said("x"), said("y", 2)], {"a.jpg": ["x"], "b.jpg": ["y"]}, "1 images .* more"),
        ([A, B], [said("x", "1"), said("y", 2.0)], {"a.jpg": ["x"], "b.jpg": ["y"]}, None),
        ([{**A, "id": "0009"}, B], [said("x", 9), said("y", "2.0")], {"a.jpg": ["x"], "b.jpg": ["y"]}, None),
        ([{**A, "id": "1"}, {**B, "id": 1}], [said("x", "1"), said("y")], {"a.jpg": ["x"], "b.jpg": ["y"]}, None),
        ([{**A, "file_name": "train2017/a.jpg"}], [said("x")], {"a.jpg": ["x"]}, None),
        ([{**A, "file_name": "train2017\\a.jpg"}], [said("x")], {"a.jpg": ["x"]}, None),
        ([{**A, "file_name": "in/it.jpg"}, B], [said("x"), said("y", 2)], {"in/it.jpg": ["x"], "b.jpg": ["y"]}, None),
    ],
)  # fmt: skip
def test_caption_files_as_people_make_them(tmp_path, images, annotations, expected, remark):
    source = captions_of(tmp_path, images, annotations, ("a.jpg", "b.jpg", "in/it.jpg"), encoding="utf-8-sig")
    assert source.captions() == expected and [example.key for example in source.read(0, 9)] == list(expected)
    assert source.remarks == [] if remark is None else re.fullmatch(f"{remark}.*", *source.remarks)
    assert len(source) == len(expected) and all(example.decoded().shape == (8, 9, 3) for example in source.read(0, 9))


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([A, B], [said("x"), said(None), said(3, 2)], "2 of the 3 captions of .* are no text, the first null of a.jpg"),
        ([A], [said(float("nan"))], "captions.json is damaged .*NaN is no number of JSON"),
        ([A], [said(["x", "y"])], r'no text, the first a list of 2 values of a.jpg: take them out, or write'),
        ([A], [said("half of \ud83d")], r"captions.json is damaged .*half of a character, \\ud83d"),
        ([A, B], [said("x"), said(" ", 2)], "1 of the 2 images of .* no caption, or blank ones only, the first b.jpg"),
        ([A, {**B, "id": 1}], [said("x")], "gives the id 1 to a.jpg and to b.jpg: each image needs an id of its own"),
        ([A], [said("x"), said("y", "one")], "has 1 captions of images that it does not list, the first of image one"),
        ([{**A, "file_name": None}], [said("x")], r"at \$.images\[0\].file_name, expected `str`, got `null`"),
        ([{"id": 1, "filename": "a.jpg"}], [said("x")], r"at \$.images\[0\], object missing .* `file_name`"),
        ([A], [{"image_id": 1, "bbox": []}], r"at \$.annotations\[0\], object missing required field `caption`"),
        ([{**A, "id": [1]}], [said("x")], r"at \$.images\[0\].id, expected .* Received: a list of 1 values"),
        ([A], {"1": "x"}, 'at \\$.annotations, expected `array`, got `object`. Received: an object with "1"'),
        ([], [], "lists no images"),
    ],
)  # fmt: skip
def test_captions_that_are_none_are_refused(tmp_path, images, annotations, message):
    with pytest.raises(ValueError, match=message):
        captions_of(tmp_path, images, annotations)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('[{"image": "a.jpg", "caption": "x"}]', "at $, expected `object`, got `array`. Received: a list of 1 values"),
        ('{"a.jpg": ["x"]}', 'at $, object missing required field `images`. Received: an object with "a.jpg"'),
        (
            '{"file_name": "a.jpg", "text": "x"}\n{"file_name": "b.jpg", "text": "y"}\n',
            "it holds several JSON values, one after the other",
        ),
        ("file_name,caption\na.jpg,x\n", "it is no JSON (Expecting value: line 1"),
        ('{"images": [', "it is no JSON (Expecting value: line 1 column 13"),
        ("", "it is no JSON (Expecting value"),
        ("null", "at $, expected `object`, got `null`. Received: null"),
    ],
)
def test_caption_files_of_other_forms_are_refused(tmp_path, text, form):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "x.json").write_text(text)
    expected = (
        r"expected a JSON object with `images` \(id, file_name\) and `annotations` \(image_id, caption: one string\)"
    )
    with pytest.raises(ValueError, match=rf"x.json is damaged or of another kind: {re.escape(form)}.*; {expected}\.$"):
        open_coco(str(tmp_path), captions=str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_bytes('{"images": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="x.json is no text in UTF-8: byte 12 is 0xe9"):
        open_coco(str(tmp_path), captions=str(tmp_path / "x.json"))


def test_splits_of_the_official_folder(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    with pytest.raises(
        FileNotFoundError, match="no folder train2017 or train2014 of images, but annotations, val2017. D"
    ):
        open_coco(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="There is no caption file .*captions_val2017.json"):
        open_coco(str(tmp_path), "validation")
    with pytest.raises(FileNotFoundError, match="holds no folder"):
        open_coco(str(tmp_path), "")


@pytest.mark.parametrize("form", ["dicts", "texts", "one"])
def test_blank_captions_of_tensorflow_datasets_are_left_out(tmp_path, form):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    feature = {"dicts": tfds.features.Sequence({"text": text}), "texts": tfds.features.Sequence(text), "one": text}[
        form
    ]
    stored = [["A bus", " "], [""], ["Two buses "]] if form != "one" else ["A bus", "\n", "Two buses "]
    captions = [[{"text": own} for own in texts] for texts in stored] if form == "dicts" else stored
    tfds.dataset_builders.store_as_tfds_dataset(
        name="captioned",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(4, 4, 3)), "image/filename": text, "captions": feature}
        ),
        split_datasets={
            "train": [
                (i, {"image": np.full((4, 4, 3), i, np.uint8), "image/filename": f"{i}.png", "captions": own})
                for i, own in enumerate(captions)
            ]
        },
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    source = open_coco("captioned", "train", str(tmp_path))
    assert source.captions() == {"0.png": ["A bus"], "2.png": ["Two buses"]}
    assert [(example.key, example.decoded().max()) for example in source.read(0, 3)] == [("0.png", 0), ("2.png", 2)]
    blank = 1 if form == "one" else 2
    remarks = [
        f"{blank} captions of captioned are blank and are left out.",
        "1 images of captioned have no caption and are",
    ]
    assert [told[: len(remark)] for told, remark in zip(source.remarks, remarks)] == remarks


def test_blank_captions_that_were_stored_are_left_out(tmp_path):
    """Earlier versions stored them: the embeddings of the others are still their own."""
    rows = np.arange(12, dtype=np.float16).reshape(6, 2)
    np.save(tmp_path / "embeddings.npy", rows)

    def store(captions):
        encoder = {"model": "x", "weights_hash": "0", "embedding_dim": 2}
        settings = {"model": "x", "pretrained": None, "seed": 0}
        content = {"encoder": encoder, "settings": settings, "hash": "0", "captions": captions}
        (tmp_path / "captions.json").write_text(json.dumps(content))
        return CaptionStore(tmp_path)

    captions = store([["", "a"], ["b", " \u2028", "c"]])
    assert captions.captions == [["a"], ["b", "c"]] and captions.blank == 2
    np.testing.assert_array_equal(captions.read([1, 0, 1], [1, 0, 0]), rows[[4, 1, 2]])
    np.testing.assert_array_equal(captions.all_embeddings(), rows[[1, 2, 4]])
    np.testing.assert_array_equal(captions.null_embedding(), rows[5])
    for wrong in ([["a"], [""]], [["a"], []], [["a", None], ["b"]], [["a"], "b"], None):
        with pytest.raises(ValueError, match=r"captions.json (has no caption of image 1|.* at \$.captions)"):
            store(wrong)


@pytest.mark.parametrize("own", [[], [None], ["a", float("nan")], ["a", " "], "text", ["\ud83d"]])
def test_captions_that_are_none_are_not_stored(tmp_path, own):
    with pytest.raises(
        ValueError, match="^Captions must be texts, at least one of each image. Received: .* of image 1$"
    ):
        write_captions(tmp_path, [["a"], own], None)
    assert not list(tmp_path.iterdir())
