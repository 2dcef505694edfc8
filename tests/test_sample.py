"""Drawing many images: labels, streams, and going on after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import processes
import pytest
from helpers import tiny_backbone
from PIL import Image
from test_cli import ROOT

from fcdm_keras import sample
from fcdm_keras.runs import sample as work
from fcdm_keras.sampling.request import draw_labels
from fcdm_keras.sampling.tasks import ClassToImage

FLAGS = ("--num-samples", "11", "--num-sampling-steps", "2", "--batch-size", "2", "--npz", "--labels", "random")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8).save_to_preset(str(folder))
    return folder


@pytest.fixture(scope="module")
def task(preset):
    return ClassToImage.from_preset(str(preset))


@pytest.fixture
def one_task(task, monkeypatch):
    """The preset is loaded once, so that the sampler is compiled once."""
    monkeypatch.setattr(work, "load_task", lambda source: task)
    return task


def draw(preset, output, *flags):
    sample.main([str(preset), "--output", str(output), *FLAGS, *map(str, flags)])


def contents(folder):
    """Every file by name, without the settings, in which the folder is named."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "settings.json"}


@pytest.fixture(scope="module")
def whole(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    draw(preset, folder)
    return contents(folder)


def test_the_file_is_read_by_numpy_and_holds_the_images_in_order(whole, tmp_path):
    (tmp_path / "samples.npz").write_bytes(whole["samples.npz"])
    assert zipfile.ZipFile(tmp_path / "samples.npz").testzip() is None
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (11, 8, 8, 3)
        for i, image in enumerate(arrays["arr_0"]):
            (tmp_path / "image.png").write_bytes(whole[f"{i:06d}.png"])
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
        labels = draw_labels("random", range(10), 11, seed=0)
        np.testing.assert_array_equal(arrays["arr_1"], labels)


@pytest.mark.no_backend
@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_stopped_run_goes_on_to_the_same_files(one_task, preset, whole, tmp_path, monkeypatch, capsys, batches):
    """Stopped before any batch, in the middle, and with files cut short."""
    generate, calls = one_task.generate, []

    def stopping(labels, **options):
        calls.append(len(labels))
        if len(calls) > batches + 1:  # the first call checks the flags
            raise KeyboardInterrupt
        return generate(labels, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(one_task, "generate", stopping)
        draw(preset, tmp_path)
    assert "The same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "samples.npz").exists() and len(list(tmp_path.glob("0*.png"))) == min(2 * batches, 11)
    (tmp_path / "samples.npz.parts" / ".unfinished-host-1.npy").write_bytes(b"cut")
    (tmp_path / ".unfinished-host-1.png").write_bytes(b"cut")
    if batches:
        (tmp_path / "000001.png").unlink()
    draw(preset, tmp_path)
    assert contents(tmp_path) == whole
    draw(preset, tmp_path)  # nothing is left to do
    assert contents(tmp_path) == whole


SLOWED = """
import sys, time
from fcdm_keras import sample
from fcdm_keras.sampling import tasks

generate = tasks.ClassToImage.generate
tasks.ClassToImage.generate = lambda *args, **options: time.sleep(0.1) or generate(*args, **options)
sample.main(sys.argv[1:])
"""


@pytest.mark.no_backend
def test_a_killed_process_goes_on_to_the_same_file(preset, tmp_path):
    flags = ("--num-samples", "40", "--num-sampling-steps", "2", "--batch-size", "1", "--npz", "--no-png")
    command = [sys.executable, "-c", SLOWED, str(preset), *flags, "--output", str(tmp_path / "killed")]
    process = processes.start(command, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed" / "samples.npz.parts"
    while process.poll() is None and not len(list(parts.glob("0*.npy"))) > 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 < len(list(parts.glob("0*.npy"))) < 40 and not (tmp_path / "killed" / "samples.npz").exists()
    for name in ("killed", "fresh"):
        sample.main([str(preset), *flags, "--output", str(tmp_path / name)])
    assert contents(tmp_path / "killed") == contents(tmp_path / "fresh")
    assert set(contents(tmp_path / "fresh")) == {"samples.npz", "grid.png"}


def test_other_settings_are_refused_and_another_batch_size_is_not(one_task, preset, whole, tmp_path):
    draw(preset, tmp_path)
    stored = (tmp_path / "settings.json").read_text()
    for flags, message in (
        (("--seed", "1"), "labels; seed=0 there, 1 now"),
        (("--cfg-scale", "2"), "guidance_scale=1.5 there, 2.0 now"),
        (("--num-samples", "12", "--classes", "0-4"), "labels"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*holds images drawn with other settings .*{message}"):
            draw(preset, tmp_path, *flags)
    assert (tmp_path / "settings.json").read_text() == stored
    draw(preset, tmp_path, "--batch-size", "5")
    assert contents(tmp_path) == whole


@pytest.mark.no_backend
def test_more_images_are_added_to_those_that_are_there(one_task, preset, whole, tmp_path, capsys):
    """And a command for fewer leaves them all, and completes them."""
    one_by_one = ("--batch-size", "1")  # one size of batches, whatever the number
    draw(preset, tmp_path / "at once", *one_by_one, "--num-samples", "14")
    expected = contents(tmp_path / "at once")
    draw(preset, tmp_path / "a", *one_by_one)
    before = {name: content for name, content in contents(tmp_path / "a").items() if name.startswith("0")}
    assert len(before) == 11
    draw(preset, tmp_path / "a", *one_by_one, "--num-samples", "14")
    assert contents(tmp_path / "a") == expected and before.items() <= expected.items()
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["num_samples"] == 14
    (tmp_path / "a" / "000013.png").unlink()
    capsys.readouterr()
    draw(preset, tmp_path / "a", *one_by_one)
    assert "is a folder of 14 images, more than the 11 asked for: all stay." in capsys.readouterr().out
    assert contents(tmp_path / "a") == expected


@pytest.mark.no_backend
def test_an_archive_that_is_there_grows_with_the_pictures(one_task, preset, tmp_path, monkeypatch):
    """Also by a command without --npz, and stopped on the way: the archive is never of fewer images than the folder."""
    flags = [str(preset), "--output", str(tmp_path), *FLAGS]
    sample.main(flags)
    generate, calls = one_task.generate, []

    def stopping(labels, **options):
        calls.append(labels)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(labels, **options)

    flags = [*(flag for flag in flags if flag != "--npz"), "--num-samples", "16"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(one_task, "generate", stopping)
        sample.main(flags)
    assert not (tmp_path / "samples.npz").exists()
    sample.main(flags)
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_1"], draw_labels("random", range(10), 16, seed=0))
        for i, image in enumerate(arrays["arr_0"]):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:06d}.png")), image)
        assert len(arrays["arr_0"]) == 16
    assert not (tmp_path / "samples.npz.parts").exists()


def flipped(content):
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.no_backend
@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda c: c[:-20], lambda c: c[:-4], lambda c: bytes(len(c)), flipped]
)
@pytest.mark.parametrize("name", ["000003.png", "000010.png", "samples.npz"])
def test_damaged_files_are_drawn_again(one_task, preset, whole, tmp_path, capsys, name, damage):
    settled(preset, whole, tmp_path)
    (tmp_path / name).write_bytes(damage(whole[name]))
    capsys.readouterr()
    draw(preset, tmp_path)
    assert f"Damaged files are drawn again: 1 ({name})." in capsys.readouterr().out
    assert contents(tmp_path) == whole


def settled(preset, whole, folder):
    """The folder as `whole` was left, with its settings."""
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    flags = sample.parse([str(preset), "--output", str(folder), *FLAGS])
    request = work.open_request(flags)
    decisive = {**request.settings(), "num_samples": len(request), "labels": request.labels.tolist()}
    (folder / "settings.json").write_text(json.dumps(decisive))


@pytest.mark.no_backend
def test_damaged_parts_are_drawn_again(one_task, preset, whole, tmp_path):
    settled(preset, whole, tmp_path)
    archive, parts = tmp_path / "samples.npz", tmp_path / "samples.npz.parts"
    with np.load(archive) as arrays:
        rows = arrays["arr_0"]
    archive.unlink()
    parts.mkdir()
    for first in range(0, 11, 2):
        np.save(parts / f"{first:09d}-{min(first + 2, 11):09d}.npy", rows[first : first + 2])
    (parts / "000000002-000000004.npy").write_bytes(b"")
    content = (parts / "000000004-000000006.npy").read_bytes()
    (parts / "000000004-000000006.npy").write_bytes(content[:-9])
    np.save(parts / "000000006-000000008.npy", rows[:1])
    draw(preset, tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.no_backend
def test_files_of_other_programs_are_refused_and_stay(one_task, preset, whole, tmp_path, monkeypatch):
    settled(preset, whole, tmp_path)
    monkeypatch.setattr(
        one_task, "draw", lambda conditions, *a, **options: pytest.fail("drawn") if len(conditions) else []
    )

    def encoded(mode, size, kind="PNG"):
        file = io.BytesIO()
        Image.new(mode, size).save(file, kind)
        return file.getvalue()

    def archive(**arrays):
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    rows, labels = np.zeros((11, 8, 8, 3), "uint8"), draw_labels("random", range(10), 11, seed=0)
    for name, content, message in (
        ("000007.png", encoded("L", (8, 8)), r"\(PNG L \(8, 8\), where PNG RGB \(8, 8\) is drawn\): move it away"),
        ("000007.png", encoded("RGB", (9, 8)), r"PNG RGB \(9, 8\)"),
        ("000007.png", encoded("RGB", (900, 800))[:-20], r"PNG RGB \(900, 800\)"),  # and cut short
        ("000007.png", encoded("RGB", (8, 8), "JPEG"), "JPEG RGB"),
        ("000011.png", encoded("RGB", (8, 8)), "none of the 11 images of this command"),
        ("0000007.png", encoded("RGB", (8, 8)), "none of the 11 images of this command"),
        ("samples.npz", archive(mu=np.zeros(3)), "with mu, where arr_0 and arr_1 are written"),
        (
            "samples.npz",
            archive(arr_0=rows[:, :4], arr_1=labels),
            r"uint8 \(11, 4, 8, 3\), where uint8 \(11, 8, 8, 3\)",
        ),
        ("samples.npz", archive(arr_0=rows, arr_1=labels + 1), "of images of other labels"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SystemExit, match=f"^error: .*{name} is another program's .*{message}") as ended:
            draw(preset, tmp_path)
        assert "\n" not in str(ended.value) and (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()
        if name in whole:
            (tmp_path / name).write_bytes(whole[name])
    draw(preset, tmp_path)  # nothing is left to do


@pytest.mark.no_backend
@pytest.mark.parametrize("name", ["000000.png", "holiday.JPG", "grid.png", "samples.npz"])
def test_images_of_unknown_settings_are_left_alone(one_task, preset, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(SystemExit, match=f"holds images of unknown settings .*, such as {name}: give another"):
        draw(preset, tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.no_backend
def test_weights_that_are_not_finite_are_refused_before_anything_is_drawn(preset, tmp_path):
    damaged = ClassToImage.from_preset(str(preset))
    kernel = damaged.backbone.x_embedder.kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    damaged.save_to_preset(str(tmp_path / "damaged"))
    with pytest.raises(SystemExit, match="^error: .*model.weights.h5: .* is not finite: of 216 values, 216 are NaN"):
        draw(tmp_path / "damaged", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.no_backend
def test_classes_are_drawn_by_name_and_an_eta_without_effect_is_told(task, preset, tmp_path, monkeypatch, capsys):
    named = ClassToImage(task.backbone, image_size=8, class_names=["cat", "dog", *"01234567"])
    monkeypatch.setattr(work, "load_task", lambda source: named)
    draw(preset, tmp_path, "--classes", "dog,cat", "--labels", "balanced", "--eta", "0.5")
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == ([1, 0] * 6)[:11]
    printed = capsys.readouterr()
    assert "classes: 0 cat, 1 dog (numbered in the order of their names: class 2 is named 0)" in printed.out
    assert printed.err.count("warning: eta=0.5 has no effect: the sampler ddpm takes none") == 1
    with pytest.raises(SystemExit, match="^error: There is no class named 'dogs'; there are 'dog', …"):
        draw(preset, tmp_path / "x", "--classes", "dogs")


@pytest.mark.no_backend
def test_another_model_is_refused(preset, tmp_path):
    draw(preset, tmp_path / "samples", "--num-samples", "1")
    other = ClassToImage.from_preset(str(preset))
    other.backbone.trainable_variables[0].assign(other.backbone.trainable_variables[0] + 1)
    other.save_to_preset(str(tmp_path / "other"))
    with pytest.raises(SystemExit, match="other settings .*weights"):
        draw(tmp_path / "other", tmp_path / "samples", "--num-samples", "1")


@pytest.mark.no_backend
def test_flags_that_write_nothing_are_refused(capsys):
    with pytest.raises(SystemExit):
        sample.main(["preset", "--output", "x", "--no-png"])
    assert "--no-png needs --npz" in capsys.readouterr().err


@pytest.mark.no_backend
def test_settings_are_stored_beside_the_images(one_task, preset, tmp_path):
    draw(preset, tmp_path, "--eta", "0.5", "--sampler", "ddim")
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["num_steps"] == 2 and settings["sampler"] == "ddim" and settings["eta"] == 0.5
    assert settings["label_order"] == "random" and len(settings["labels"]) == 11 and len(settings["weights"]) == 32


def test_random_labels_follow_from_seed_and_index():
    labels = draw_labels("random", [3, 5, 9], 3000, seed=7)
    np.testing.assert_array_equal(labels[:100], draw_labels("random", [3, 5, 9], 100, seed=7))
    assert labels.dtype == np.int32 and (labels[:100] != draw_labels("random", [3, 5, 9], 100, seed=8)).any()
    counts = np.array([(labels == label).sum() for label in (3, 5, 9)])
    assert counts.sum() == 3000 and abs(counts - 1000).max() < 120  # 4.6 standard deviations
    np.testing.assert_array_equal(draw_labels("balanced", [3, 5, 9], 5, seed=7), [3, 5, 9, 3, 5])
