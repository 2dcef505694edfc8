"""What commands write: nothing goes that they did not make, --overwrite replaces whole, a full disk leaves the old."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import resource
import shutil

import numpy as np
import pytest
from conftest import GOLDEN
from helpers import tiny_backbone

import train_imagenet
from fcdm_keras import analyze, convert, encode, evaluate, files, recipes, report, sample, train_vae
from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.options import to_json
from fcdm_keras.runs import fit, outputs
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.sampling.writers import to_pil
from fcdm_keras.training.callbacks import CSVWriter, SampleGrid

pytestmark = pytest.mark.no_backend

CHECKPOINT, VAE = str(GOLDEN / "fcdm" / "fcdm_checkpoint.pt"), str(GOLDEN / "vae")
DRAWING = ("--num-samples", "3", "--num-sampling-steps", "1")
PIXELS = ("--features", "pixels", "--metrics", "fid")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with one of each that commands make, and files of other programs."""
    root = tmp_path_factory.mktemp("original")
    (root / "run" / "checkpoints" / "step-000000001").mkdir(parents=True)
    (root / "run" / "checkpoints" / "step-000000001" / "checkpoint.json").write_text("{}")
    (root / "run" / "config.json").write_text(to_json(recipes.RECIPES["digits"]))
    CSVWriter(root / "run" / "log.csv")
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8)
    task.save_to_preset(str(root / "preset"))
    (root / "README.md").write_text("mine")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("uint8")
    np.savez(root / "a.npz", arr_0=images)
    (root / "pictures").mkdir()
    to_pil(images[0]).save(root / "pictures" / "cat.png")
    quietly(sample.main, str(root / "preset"), *DRAWING, "--output", str(root / "images"))
    quietly(encode.main, *encoding(root / "store"))
    quietly(evaluate.main, str(root / "a.npz"), "--write-reference", str(root / "ref.npz"), *PIXELS[:2])
    (root / "link.npz").symlink_to("a.npz")
    os.link(root / "run" / "config.json", root / "hard.json")
    return root


@pytest.fixture(scope="module", autouse=True)
def few_photos():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhotoSource, "__len__", lambda self: 3)
        patch.setitem(recipes.MODEL_SIZES, "XS", recipes.ModelSize(8, (0, 0, 1, 0, 0)))
        yield


@pytest.fixture
def root(original, tmp_path, monkeypatch):
    shutil.copytree(original, tmp_path / "root", symlinks=True)
    monkeypatch.chdir(tmp_path / "root")
    os.remove("hard.json")
    os.link("run/config.json", "hard.json")
    return tmp_path / "root"


def encoding(output, *flags):
    return ["--source", "photos", "--vae", VAE, "--image-size", "32", "--output", str(output), *flags]


def quietly(main, *arguments):
    """The sentence with which a command ends, or nothing."""
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code if isinstance(end.code, str) else errors.getvalue().splitlines()[-1]
    return ""


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


COMMANDS = {
    "sample": lambda place: (sample.main, "preset", *DRAWING, "--seed", "1", "--output", place),
    "encode": lambda place: (encode.main, *encoding(place, "--no-flips")),
    "convert": lambda place: (convert.main, CHECKPOINT, place),
    "json": lambda place: (evaluate.main, "a.npz", "--reference", "ref.npz", *PIXELS, "--json", place),
    "reference": lambda place: (evaluate.main, "a.npz", "--write-reference", place, "--features", "pixels"),
    "report": lambda place: (report.main, "run", "--output", place),
    "train": lambda place: (train_imagenet.main, "--results-dir", place, "--steps", "1"),
    "train_vae": lambda place: (train_vae.main, "--output", place, "--steps", "1"),
}
REFUSED = [
    ("sample", "run", "run is a run, and a folder of drawn images is to be written there"),
    ("sample", "preset", "preset holds preset, which is read"),
    ("sample", "store", "store is a latent store, and"),
    ("sample", "images", "images drawn with other settings"),
    ("sample", "pictures", "holds images of unknown settings"),
    ("sample", "run/checkpoints", "a folder of checkpoints"),
    ("sample", "README.md", "README.md is a file, and"),
    ("encode", "run", "run is a run, and a latent store"),
    ("encode", "images", "images is a folder of drawn images, and"),
    ("encode", "store", "holds a latent store made otherwise"),
    ("convert", "run", "run is a run, and a converted model is to be written there: give another folder, or --over"),
    ("convert", "preset", "preset is a preset, and"),
    ("convert", "pictures", "cat.png, which is no part of a preset"),
    ("convert", "images", "is a folder of drawn images"),
    ("json", "run/config.json", "run/config.json was not written by this command: give another file, or --overwrite"),
    ("json", "hard.json", "hard.json was not written by"),
    ("json", "preset/config.json", "was not written by this command"),
    ("json", "a.npz", "a.npz is read by this command"),
    ("json", "link.npz", "link.npz is read by this command"),
    ("json", "/dev/full", "that is a device"),
    ("json", "nowhere/a.json", "there is no folder"),
    ("json", "run", "that is a folder, and a file"),
    ("reference", "a.npz", "a.npz is read by this command"),
    ("reference", "link.npz", "link.npz is read by"),
    ("reference", "README.md", "was not written by this command"),
    ("report", "README.html", "README.md was not written by this command"),
    ("train_vae", "images", "images is a folder of drawn images, and a run is to be written there: give another"),
    ("train", "x", "x/digits is a preset, and a run is to be written there: give another --results-dir."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "message"), REFUSED)
def test_nothing_that_another_command_made_is_written_over(name, place, message, root):
    if name == "train":
        (root / "x").mkdir()
        (root / "preset").rename(root / "x" / "digits")
    before = tree(root)
    sentence = quietly(*COMMANDS[name](place))
    assert "error: " in sentence and message in sentence and "\n" not in sentence, sentence
    assert tree(root) == before


REPLACED = [
    ("sample", "images", "grid.png"),
    ("sample", "run", "000002.png"),
    ("encode", "store", "store.json"),
    ("convert", "preset", "metadata.json"),
    ("convert", "run", "model.weights.h5"),
    ("json", "run/config.json", ""),
    ("reference", "a.npz", ""),
    ("report", "README.html", ""),
]


@pytest.mark.parametrize(("name", "place", "part"), REPLACED)
def test_overwrite_replaces_it_as_a_whole(name, place, part, root):
    """What is there afterwards is what a fresh place gets; the same command again changes nothing."""
    fresh = {"README.html": "fresh.html", "a.npz": "fresh.npz"}.get(place, "fresh")
    assert quietly(*COMMANDS[name](fresh)) == ""
    command = COMMANDS[name](place)
    assert quietly(*command, "--overwrite") == ""
    assert (root / place / part).is_file()
    if (root / place).is_dir():
        assert sorted(os.listdir(root / place)) == sorted(os.listdir(root / fresh))
    if name != "reference":  # which read its own input
        before = tree(root / place)
        assert quietly(*command) == "" and tree(root / place) == before
    assert not list(root.glob(".*"))


@contextlib.contextmanager
def full_disk(limit):
    """The system refuses to let files grow, as a full disk does."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.parametrize(("name", "place", "part"), REPLACED)
def test_on_a_full_disk_the_old_one_is_still_there(name, place, part, limit, root):
    before = tree(root)
    with full_disk(limit):
        sentence = quietly(*COMMANDS[name](place), "--overwrite")
    assert sentence.startswith("error: ") and "\n" not in sentence and "Traceback" not in sentence, sentence
    after = tree(root)
    assert {path: after[path] for path in before} == before
    assert quietly(*COMMANDS[name](place), "--overwrite") == ""  # there is room again
    assert not list(root.glob(".*"))


def test_an_interrupted_replacement_goes_on_beside_the_old_one(root, monkeypatch):
    before, write, count = tree(root / "images"), files.replacing, []

    def stopping(path, *options, **keywords):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        return write(path, *options, **keywords)

    command = (*COMMANDS["sample"]("images"), "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr("fcdm_keras.sampling.writers.replacing", stopping)
        quietly(*command)
    assert tree(root / "images") == before and (root / ".overwriting-images" / "000001.png").exists()
    first = (root / ".overwriting-images" / "000001.png").stat().st_mtime_ns
    assert quietly(*command) == ""
    assert (root / "images" / "000001.png").stat().st_mtime_ns == first and not list(root.glob(".*"))


def test_no_folder_goes_that_holds_what_is_read(root):
    shutil.copytree("preset", "run/preset")
    for main, source, *flags in ((sample.main, "run/preset", *DRAWING, "--output", "run"),):
        assert "run holds run/preset, which is read" in quietly(main, source, *flags, "--overwrite")
    (root / "run" / ".owner").mkdir()
    (root / "run" / ".owner" / "000001").write_text("")
    assert "run is in use by another command" in quietly(*COMMANDS["convert"]("run"), "--overwrite")
    assert "cat.png, which is no part" in quietly(*COMMANDS["convert"]("pictures"), "--overwrite")
    assert "images of unknown settings" in quietly(*COMMANDS["sample"]("pictures"), "--overwrite")


def test_an_analysis_writes_over_its_own_alone(root, monkeypatch):
    np.savez("samples.npz", arr_0=np.zeros((2, 8, 8, 3), "float32"))
    command = (
        analyze.main,
        "spectrum",
        "preset",
        "--data",
        "samples.npz",
        "--num-samples",
        "2",
        "--num-timesteps",
        "2",
    )
    (root / "spectrum.csv").write_text("a,b")
    assert "spectrum.csv was not written by this command" in quietly(*command, "--output", ".")
    assert quietly(*command, "--output", ".", "--overwrite") == quietly(*command, "--output", ".") == ""
    (root / "spectrum.csv").unlink()
    assert "spectrum.png was not written by this command" in quietly(*command, "--output", ".")


def test_links_are_followed_and_leftovers_of_the_dead_removed(root):
    (root / "scores.json").symlink_to("real.json")
    (root / ".unfinished-real.json-0").write_text("of a killed process")
    for _ in range(2):  # the second time it is its own
        assert quietly(*COMMANDS["json"]("scores.json")) == ""
    assert (root / "scores.json").is_symlink() and json.loads((root / "real.json").read_text())["num_samples"] == 5
    assert not list(root.glob(".*"))


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    with files.replacing(tmp_path / "a") as file, files.replacing_folder(tmp_path / "b") as folder:
        file.write(b"1")
        (folder / "part").write_text("1")
        shutil.copytree(folder, tmp_path / ".unfinished-b-0")
        files.remove_leftovers(tmp_path)
        assert not (tmp_path / ".unfinished-b-0").exists()
    assert tree(tmp_path) == {tmp_path / "a": b"1", tmp_path / "b" / "part": b"1"}


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_between_two_names_is_found_again(tmp_path, monkeypatch, exchanged):
    """Where a file system cannot exchange two folders, a kill may fall between two renames."""
    if not exchanged:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("old", "new"):
        with files.replacing_folder(tmp_path / "a") as folder:
            (folder / name).write_text("")
    assert os.listdir(tmp_path / "a") == ["new"]
    (tmp_path / "a").rename(tmp_path / ".unfinished-a-replaced")
    files.remove_leftovers(tmp_path, "a")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["new"]


FULL = OSError(errno.ENOSPC, "No space left on device")
STEPS = {
    "loss.png": (fit, "plot_losses", "loss.png ([Errno 28]"),
    "preset": (fit.build, "export_preset", "preset ([Errno 28]"),
    "scores": ("fcdm_keras.evaluation.digits.score_digits", None, "the scores ([Errno 28]"),
    "scores.json": ("fcdm_keras.runs.command.write_atomically", None, "scores.json ([Errno 28]"),
    "samples.png": (SampleGrid, "draw", "the grid ([Errno 28]"),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_follows_training_never_costs_it(step, tmp_path, monkeypatch):
    """All else is written, the last sentence says what is missing, and the same command makes up for it."""
    place, name, message = STEPS[step]

    def fails(*_, **__):
        raise FULL

    flags = ["--steps=2", "--global-batch-size=8", "--num-sampling-steps=1", f"--results-dir={tmp_path}"]
    monkeypatch.setattr("fcdm_keras.runs.data.SCORED_SAMPLES", 20)
    with monkeypatch.context() as patch:
        patch.setattr(*((place, fails) if name is None else (place, name, fails)))
        sentence = quietly(train_imagenet.main, *flags)
    folder = tmp_path / "digits"
    assert sentence.startswith(
        f"error: {folder} is trained to its last step, which is saved. What is missing: {message}"
    )
    names = {"loss.png", "preset", "scores.json", "samples.png"}
    assert names - {"scores.json" if step == "scores" else step} <= set(os.listdir(folder))
    assert quietly(train_imagenet.main, *flags) == "" and names <= set(os.listdir(folder))


def test_kinds_of_folders_are_known(root, tmp_path):
    kinds = {name: outputs.kind_of(root / name) for name in ("run", "preset", "store", "images", "pictures", "none")}
    expected = dict(zip(kinds, (outputs.RUN, outputs.PRESET, outputs.STORE, outputs.IMAGES, None, None)))
    assert kinds == expected
    vae = dataclasses.replace(recipes.VAEConfig(), steps=1)
    (tmp_path / "settings.json").write_text(to_json(vae))
    assert outputs.kind_of(tmp_path) == outputs.RUN
