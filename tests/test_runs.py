"""Run folders in every state in which a kill can leave them, and models loaded from them."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from helpers import store_metadata, tiny_backbone, to_numpy

from fcdm_keras import recipes, sample
from fcdm_keras.data import classes
from fcdm_keras.runs import build, load
from fcdm_keras.runs.fit import fit_run
from fcdm_keras.runs.folder import open_run, remember_classes, stored_classes
from fcdm_keras.sampling import flags
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training import callbacks
from fcdm_keras.training.checkpoint import CheckpointManager

STEPS = 3


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.MODEL_SIZES, "XS", recipes.ModelSize(8, (0, 0, 1, 0, 0)))
    return dataclasses.replace(recipes.RECIPES["digits"], steps=STEPS, results_dir=str(tmp_path))


@pytest.fixture
def trainer(config):
    """A trainer at its last step whose average differs from its weights."""
    trainer = build.build_trainer(config)
    generator = np.random.default_rng(0)
    for average in trainer.ema.averages:
        average.assign(generator.standard_normal(average.shape, dtype="float32"))
    trainer.step.assign(STEPS)
    return trainer


@pytest.fixture
def folder(config, trainer):
    """The folder of a run that was killed right after its last checkpoint."""
    folder = open_run(config)
    CheckpointManager(folder / "checkpoints").save(trainer)
    write = callbacks.CSVWriter(folder / "log.csv")
    for step in range(1, STEPS + 1):
        write(dict.fromkeys(callbacks.FIELDS, step))
    return folder


def assert_average(backbone, trainer):
    for variable, average in zip(backbone.trainable_variables, trainer.ema.averages, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), to_numpy(average))


def test_an_unfinished_run_draws_with_its_newest_average(folder, trainer):
    (folder / "checkpoints" / ".unfinished-000000009").mkdir()  # the run may be at work
    before = sorted(folder.rglob("*"))
    assert_average(load.load_task(folder).backbone, trainer)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("steps", [STEPS, STEPS - 1])
def test_a_run_killed_after_its_last_checkpoint_is_completed(folder, config, trainer, steps):
    (folder / ".unfinished-preset").mkdir()
    (folder / "preset").mkdir()
    (folder / "preset" / "of_an_older_run").write_text("")
    fit_run(dataclasses.replace(config, steps=steps), folder)
    assert [row["step"] for row in callbacks.read_csv(folder / "log.csv")] == list(range(1, STEPS + 1))
    assert (folder / "loss.png").exists() and not (folder / "preset" / "of_an_older_run").exists()
    assert not (folder / ".unfinished-preset").exists()
    shutil.rmtree(folder / "checkpoints")
    task = load.load_task(folder)
    assert_average(task.backbone, trainer)
    assert task.image_size == (8, 8)


def test_a_run_killed_before_its_first_checkpoint_starts_again(config):
    folder = open_run(config)
    with pytest.raises(FileNotFoundError, match=f"^There is no model at {folder}"):
        load.load_task(folder)
    assert open_run(config) == folder and os.listdir(folder) == ["config.json"]


def test_a_damaged_configuration_is_named(folder, config):
    content = (folder / "config.json").read_text()
    for damaged in ("", content[:100], content.replace('"digits"', "digits"), "[1]", '{"recipe": "digits"}'):
        (folder / "config.json").write_text(damaged)
        for use in (lambda: open_run(config), lambda: load.load_task(folder)):
            with pytest.raises(ValueError, match=f"^{folder}/config.json (is damaged|makes no run).* give another run"):
                use()


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "task.json"])
def test_a_damaged_preset_is_named(name, tmp_path):
    ClassToImage(tiny_backbone((0, 0, 1, 0, 0), in_channels=3), image_size=8).save_to_preset(str(tmp_path))
    os.truncate(tmp_path / name, os.path.getsize(tmp_path / name) // 2)
    with pytest.raises(ValueError, match=f"^The preset {tmp_path} is damaged") as raised:
        load.load_task(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_preset_of_latents_is_not_drawn_as_pixels(tmp_path):
    tiny_backbone((0, 0, 1, 0, 0), in_channels=4).save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(SystemExit, match="^error: .*preset draws latents, and holds no autoencoder"):
        sample.main([str(tmp_path / "preset"), "--output", str(tmp_path / "out")])


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("text", "classes"),
    [("0-2,7", [0, 1, 2, 7]), ("9", [9]), (" 3 , 1-1", [3, 1]), (None, list(range(10))), ("5,5", [5, 5])],
)
def test_classes_are_read(text, classes):
    assert flags.parse_classes(text, 10) == classes


NAMES = ("cat", "dog", "0-9", "tench, Tinca tinca", "2")


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("cat,dog", [0, 1]),
        (" dog , 0", [1, 0]),
        ("0-9", [2]),  # a name that looks like a range
        ("0-1,0-9", [0, 1, 2]),
        ("cat,tench,Tinca tinca,dog", [0, 3, 1]),
        ("2", [2]),  # a number is a number, though class 4 has that name
    ],
)
def test_classes_are_read_by_name(text, classes):
    assert flags.parse_classes(text, 5, NAMES) == classes


@pytest.mark.no_backend
def test_names_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="^There is no class named 'dogs'; there are 'dog', …[.]$"):
        flags.parse_classes("cat,dogs", 5, NAMES)
    with pytest.raises(ValueError, match=r"^--classes must look like .*'1,,2'"):
        flags.parse_classes("1,,2", 5, NAMES)


@pytest.mark.no_backend
def test_which_number_is_which_class_is_one_short_line():
    assert classes.describe_classes([1, 0, 1], ("cat", "dog", "eel")) == "0 cat, 1 dog"
    line = classes.describe_classes(range(1000), [f"n{i:08d}" for i in range(1000)])
    assert line.endswith("7 n00000007, … 999 n00000999") and len(line) < 150
    numbers = classes.describe_classes(range(4), ("0", "1", "10", "2"))
    assert numbers == "0 0, 1 1, 2 10, 3 2 (numbered in the order of their names: class 2 is named 10)"


def test_a_run_keeps_the_names_of_its_classes(folder, trainer):
    """A run that is not finished has them in a file, one of an earlier version in its store's metadata."""
    names = [f"class {i}" for i in range(10)]
    assert load.load_task(folder).class_names is None
    (folder / "latents.json").write_text(store_metadata((8, 8, 4), names).to_json())
    assert stored_classes(folder) == tuple(names)
    remember_classes(folder, names)
    (folder / "latents.json").unlink()
    assert load.load_task(folder).class_names == tuple(names)
    remember_classes(folder, names)
    with pytest.raises(ValueError, match="was trained on other classes, from number 3 on: compare .*classes.json"):
        remember_classes(folder, [*names[:3], "dog", *names[4:]])
    (folder / "classes.json").write_text("[")
    with pytest.raises(ValueError, match="classes.json is damaged .* restore or remove it"):
        load.load_task(folder)


@pytest.mark.no_backend
@pytest.mark.parametrize("text", ["", "1,,2", "1-", "-1", "2-1", "1-2-3", "²", "0x1", "10", f"0-{10**15}"])
def test_classes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"^--classes must (look like|lie in) .*\. Received: "):
        flags.parse_classes(text, 10)
