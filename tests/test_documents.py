"""The door of small files, through the API and the commands: what is refused, in which words, and what is taken."""

import dataclasses
import json
import re
import shutil
from typing import Any

import pytest
from helpers import store_metadata, tiny_backbone

from fcdm_keras import ClassToImage, report, sample
from fcdm_keras.data.latent_writer import StoreEncoder
from fcdm_keras.data.store_metadata import Shard, read_metadata
from fcdm_keras.formats import documents
from fcdm_keras.formats.documents import DEPTH, as_schema, read_json, read_table
from fcdm_keras.options import to_json
from fcdm_keras.recipes import RECIPES
from fcdm_keras.runs.folder import stored_config

pytestmark = pytest.mark.no_backend
DIGITS = dataclasses.asdict(RECIPES["digits"])
BAD = r"^{} is damaged or of another kind: {}; restore the file, or make it again\.$"


class Inner(documents.Struct):
    sizes: tuple[documents.Size, ...]
    name: documents.Name = "x"


class Outer(documents.Struct):
    inner: tuple[Inner, ...] = ()
    share: float = 0.0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", r"it is no JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        ('{"inner": [', r"it is no JSON \(Expecting value: line 1 column 12 \(char 11\)\)"),
        ("{}\n{}", "it holds several JSON values, one after the other"),
        ("[1]", r"at \$, expected `object`, got `array`. Received: a list of 1 values"),
        ('{"zz": 1}', r"at \$, object contains unknown field `zz`. Received: an object with \"zz\""),
        ('{"z\\n": 1}', r"at \$, object contains unknown field `z\\n`.*"),
        ('{"inner": [{"sizes": [1]}, {}]}', r"at \$.inner\[1\], object missing .* field `sizes`. .*nothing in it"),
        ('{"inner": [{"sizes": [2, "3"]}]}', r"at \$.inner\[0\].sizes\[1\], expected `int`, got `str`. .*: \"3\""),
        ('{"inner": [{"sizes": [2, 3.0]}]}', r"at \$.inner\[0\].sizes\[1\], expected `int`, got `float`. .*: 3.0"),
        ('{"inner": [{"sizes": [0]}]}', r"at \$.inner\[0\].sizes\[0\], expected `int` >= 1. Received: 0"),
        ('{"share": true}', r"at \$.share, expected `float`, got `bool`. Received: true"),
        ('{"share": 1, "share": 2}', r"it is no JSON \(the name \"share\" is there twice\)"),
        ('{"share": NaN}', r"it is no JSON \(NaN is no number of JSON\)"),
        ('{"share": -1e999}', r"it is no JSON \(the number -1e999 is too large\)"),
        (f'{{"share": {"9" * 5000}}}', r"it is no JSON \(the number 9{60} is too large\)"),
        ('{"inner": [{"sizes": [], "name": "\\ud83d"}]}', r"it holds half of a character, \\ud83d, which is no text"),
        (f'{{"share": "{"x" * 200_000}"}}', r"at \$.share, expected `float`, got `str`. Received: \"x{60}\"…"),
        ("[" * 100_000, "it holds lists or objects in each other, more than 64 deep"),
        ("[" * 65 + "]" * 65, "it holds lists or objects in each other, more than 64 deep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_field(tmp_path, text, what):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=BAD.format(tmp_path / "x.json", what)) as raised:
        read_json(tmp_path / "x.json", Outer)
    assert len(str(raised.value)) < 600


def test_what_is_right_is_taken(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"inner": [{"sizes": [2, 3], "name": "\\ud83d\\ude00 é"}], "share": 1}', encoding="utf-16")
    assert read_json(file, Outer) == Outer((Inner((2, 3), "😀 é"),), 1.0)
    file.write_text("[" * DEPTH + "]" * DEPTH)
    assert isinstance(read_json(file, Any), list)
    assert as_schema({"a": "x"}, dict[str, str], "this") == {"a": "x"}


def test_no_more_is_read_than_a_file_may_have(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(40 * 2**30)  # sparse
    with pytest.raises(ValueError, match=r"x.json has 42,949,672,960 bytes or more; such a file has at most 67"):
        read_json(tmp_path / "x.json", Outer)
    with pytest.raises(ValueError, match=r"^/dev/zero has 101 bytes or more; such a file has at most 100\.$"):
        read_json("/dev/zero", Outer, limit=100)
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path} cannot be read: Is a directory.$"):
        read_json(tmp_path, Outer)


ROWS = "step,loss\n1,0.5\n2,nan\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a,b\n1,2\n", 'line 1, a header with step, loss, each name once, expected. Received: "a,b"'),
        ("step,loss,loss\n", "line 1, a header with step, loss, each name once"),
        (f"{ROWS}3\n", "line 4, 2 fields expected. Received: 1"),
        (f"{ROWS}x,1\n", 'line 4, step must be an integer. Received: "x"'),
        (f"{ROWS}3,1_0\n", 'line 4, loss must be a number. Received: "1_0"'),
        (f"{ROWS}3,{'9' * 200_000}\n", "line 4, field larger than field limit"),
    ],
)
def test_tables_of_another_kind_are_named_with_the_line(tmp_path, text, what):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=f"log.csv is damaged or of another kind: in {re.escape(what)}.*; restore"):
        read_table(tmp_path / "log.csv", ("step", "loss"))


@pytest.mark.parametrize(("end", "rows"), [("", 2), ("3,", 2), ("3,0.125", 2), ("3,0.125\n", 3), ("\n3,1e-05\n", 3)])
def test_tables_end_where_a_kill_cut_them(tmp_path, end, rows):
    (tmp_path / "log.csv").write_text(ROWS + end)
    found = read_table(tmp_path / "log.csv", ("step", "loss"))
    assert [row["step"] for row in found] == [1, 2, 3][:rows] and found[0] == {"step": 1, "loss": 0.5}
    assert found[1]["loss"] != found[1]["loss"]  # of a run that diverged


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "preset"
    ClassToImage(tiny_backbone((0, 0, 1, 0, 0), in_channels=1), image_size=8).save_to_preset(folder)
    return folder


def change(file, *path, value=None):
    content = json.loads(file.read_text())
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "path", "value", "what"),
    [
        ("config.json", ("config", "depths"), [0, 0, 2, 0, 0], r"different backbones: \$.config.depths is a list of 5"),
        ("config.json", ("class_name",), "Other", r'different backbones: \$.class_name is "FCDM.* there, "Other"'),
        ("config.json", ("config", "hidden_channels"), 10**9, r"at \$.hidden_channels, expected `int` <= 65536"),
        ("config.json", ("config", "dtype"), "float32", r"at \$.dtype, expected `object . null`, got `str`"),
        ("config.json", ("config",), [], r"at \$.config, expected `object`, got `array`"),
        ("task.json", ("config", "image_size"), [], r"at \$.image_size, expected `array` of length >= 2"),
        ("task.json", ("config", "class_names"), [None], r"at \$.class_names\[0\], expected `str`, got `null`"),
        ("task.json", ("config", "backbone"), None, r"at \$.backbone, expected `object`, got `null`"),
        ("task.json", ("config", "autoencoder", "config"), {"latent_channels": "1"}, r"latent_channels, expected"),
        ("metadata.json", ("keras_version",), 3, r"at \$.keras_version, expected `str`, got `int`"),
        ("model.weights.json", ("weight_map",), {"a": ["../b.h5"]}, "expected `str` of another form"),
    ],
)  # fmt: skip
def test_presets_whose_documents_do_not_fit_are_refused(preset, tmp_path, name, path, value, what):
    folder = shutil.copytree(preset, tmp_path / "preset")
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, *path, value=value)
    with pytest.raises(ValueError, match=what) as raised:
        ClassToImage.from_preset(folder)
    assert "\n" not in str(raised.value)
    with pytest.raises(SystemExit, match=f"^error: The preset {folder} is damaged or of another kind of .*{what}"):
        sample.main([str(folder), f"--output={tmp_path / 'out'}"])


def test_names_and_dtypes_of_parts_do_not_contradict(preset, tmp_path):
    folder = shutil.copytree(preset, tmp_path / "preset")
    change(folder / "task.json", "config", "backbone", "config", "name", value="another")
    change(folder / "config.json", "config", "of_a_later_version", value=None)
    change(folder / "metadata.json", "of_a_later_version", value=[1])
    assert ClassToImage.from_preset(folder).backbone.in_channels == 1


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("scores.json", '{"fid": {}}', "scores.json .* expected .* got `object`"),
        ("e.json", '{"fid": "low"}', r'e.json .* at \$.fid, expected `float . null`, got `str`. Received: "low"'),
        ("text.json", "{}", r"text.json .* at \$, object missing required field `identity`"),
        ("history.json", '[{"step": 1}]', r"history.json .* at \$\[0\], object missing required field `date`"),
        ("log.csv", "a,b\n1,2\n", "log.csv .* a header with step, loss, images_per_second"),
        ("config.json", to_json({**DIGITS, "steps": "9"}), r"at \$.steps, expected `int`"),
        ("config.json", to_json({**DIGITS, "steps": 0}), "makes no run: steps must be at least 1"),
        ("config.json", to_json({**DIGITS, "cfg": 0}), None),
    ],
)  # fmt: skip
def test_reports_refuse_what_runs_do_not_hold(tmp_path, name, text, what):
    (tmp_path / "config.json").write_text(to_json(RECIPES["digits"]))
    (tmp_path / name).write_text(text)
    if what is None:  # of a class derived from ours
        assert stored_config(tmp_path, others=True) == RECIPES["digits"]
        with pytest.raises(ValueError, match='it has the unknown field "cfg"; give another run folder'):
            stored_config(tmp_path)
        return
    with pytest.raises(SystemExit, match=f"^error: .*{what}"):
        report.main([str(tmp_path), f"--output={tmp_path / 'r.html'}"])
    assert not (tmp_path / "r.html").exists()


def test_stores_that_contradict_themselves_are_refused(tmp_path):
    metadata = store_metadata((4, 4, 4))
    (tmp_path / "store.json").write_text(metadata.to_json())
    assert read_metadata(tmp_path) == metadata
    for changes, what in (
        ({"num_images": 2}, "its shards hold 1 images, its num_images is 2"),
        ({"latent_shape": [4, 4]}, "expected `array` of length 3, got 2"),
        ({"shards": []}, "its shards hold 0 images"),
        ({"shards": [{**json.loads(metadata.to_json())["shards"][0], "file": "../x.array_record"}]}, "of another form"),
    ):
        (tmp_path / "store.json").write_text(json.dumps({**json.loads(metadata.to_json()), **changes}))
        with pytest.raises(ValueError, match=f"store.json .*{what}.*; make the store again, or restore this file"):
            read_metadata(tmp_path)


def test_a_shard_that_is_gone_is_not_finished(tmp_path):
    class Source:
        name, split, class_names = "x", "train", ("a",)
        __len__ = lambda self: 3  # noqa: E731

    class Fake:
        scale, shift, latent_channels, downsampling_factor = 1.0, 0.0, 4, 8
        weights_hash = staticmethod(lambda: "0")

    def finished():
        return StoreEncoder(tmp_path, Source(), Fake, autoencoder_name="x", image_size=32).finish()

    entry = {
        **json.loads(store_metadata((4, 4, 4)).to_json())["shards"][0],
        "skipped": [["b", "no image"]],
        "enlarged": [],
    }
    (tmp_path / "shard-00000.json").write_text(json.dumps(entry))
    assert finished() is None
    (tmp_path / "shard-00000.array_record").write_bytes(b"x" * entry["bytes"])
    found = finished()
    assert (found.num_images, found.skipped, found.shards) == (1, 1, (Shard(entry["file"], 1, 100, "0" * 64),))
    (tmp_path / "shard-00000.json").write_text(json.dumps({**entry, "images": 9}))
    with pytest.raises(ValueError, match="shard-00000.json tells of 10 images, and the shard has 3 at most; remove it"):
        finished()
