"""Drawing many images: labels, streams, and going on after a kill."""

import contextlib
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
from test_cli import ROOT

from fcdm_keras import sample
from fcdm_keras.data import npz
from fcdm_keras.data.npz import NpzArray, NpzWriter, load_small
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
    from PIL import Image

    (tmp_path / "samples.npz").write_bytes(whole["samples.npz"])
    assert zipfile.ZipFile(tmp_path / "samples.npz").testzip() is None
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (11, 8, 8, 3)
        for i, image in enumerate(arrays["arr_0"]):
            (tmp_path / "image.png").write_bytes(whole[f"{i:06d}.png"])
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
        labels = draw_labels("random", range(10), 11, seed=0)
        np.testing.assert_array_equal(arrays["arr_1"], labels)


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_stopped_run_goes_on_to_the_same_files(one_task, preset, whole, tmp_path, monkeypatch, batches):
    """Stopped before any batch, in the middle, and with files cut short."""
    generate, calls = one_task.generate, []

    def stopping(labels, **options):
        calls.append(len(labels))
        if len(calls) > batches + 1:  # the first call checks the flags
            raise KeyboardInterrupt
        return generate(labels, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="The same command goes on"):
        patch.setattr(one_task, "generate", stopping)
        draw(preset, tmp_path)
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
        (("--num-samples", "12"), "num_samples=11 there, 12 now"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*holds images drawn with other settings .*{message}"):
            draw(preset, tmp_path, *flags)
    assert (tmp_path / "settings.json").read_text() == stored
    draw(preset, tmp_path, "--batch-size", "5")
    assert contents(tmp_path) == whole


def test_another_model_is_refused(preset, tmp_path):
    draw(preset, tmp_path / "samples", "--num-samples", "1")
    other = ClassToImage.from_preset(str(preset))
    other.backbone.trainable_variables[0].assign(other.backbone.trainable_variables[0] + 1)
    other.save_to_preset(str(tmp_path / "other"))
    with pytest.raises(SystemExit, match="other settings .*weights"):
        draw(tmp_path / "other", tmp_path / "samples", "--num-samples", "1")


def test_images_of_unknown_settings_are_left_alone(preset, tmp_path):
    (tmp_path / "000000.png").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="holds images of unknown settings"):
        draw(preset, tmp_path)
    assert os.listdir(tmp_path) == ["000000.png"]


def test_flags_that_write_nothing_are_refused(capsys):
    with pytest.raises(SystemExit):
        sample.main(["preset", "--output", "x", "--no-png"])
    assert "--no-png needs --npz" in capsys.readouterr().err


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


@pytest.mark.no_backend
def test_arrays_are_written_and_read_in_pieces(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (37, 3, 5, 3)).astype("uint8")
    for size in (1, 10, 37):
        with NpzWriter(tmp_path / f"{size}.npz", rows.shape) as writer:
            for start in range(0, 37, size):
                writer.append(rows[start : start + size])
            writer.finish(arr_1=np.arange(37), name=np.array("text"))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "37.npz").read_bytes()
    with np.load(tmp_path / "10.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], rows)
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(37))
    array = NpzArray(tmp_path / "10.npz")
    np.testing.assert_array_equal(np.concatenate(list(array.batches(8))), rows)
    assert [len(batch) for batch in array.batches(8, stop=20)] == [8, 8, 4]
    assert str(load_small(tmp_path / "10.npz", "name")) == "text"
    few = NpzWriter(tmp_path / "x.npz", (4, 2))
    with pytest.raises(ValueError, match="needs 4 rows before it is finished. Received: 0"), few as writer:
        writer.finish()
    with pytest.raises(ValueError, match=r"Rows must be uint8 \(2,\). Received: float64 \(2,\)"), few as writer:
        writer.append(np.zeros((1, 2)))
    assert not (tmp_path / "x.npz").exists()


class Sparse(io.FileIO):
    """A file in which long runs of zeros are holes."""

    def write(self, data):
        size = memoryview(data).nbytes
        if size < 1 << 16 or np.frombuffer(data, "uint8").any():
            return super().write(data)
        self.seek(size, os.SEEK_CUR)
        return size


@pytest.mark.no_backend
def test_files_beyond_4_gib_are_whole(tmp_path, monkeypatch):
    """The rows are a hole in the file, so this writes almost nothing."""
    monkeypatch.setattr(npz, "replacing", lambda path: contextlib.closing(Sparse(path, "w")))
    with NpzWriter(tmp_path / "large.npz", (4200, 1 << 20)) as writer:
        for _ in range(100):
            writer.append(np.zeros((42, 1 << 20), "uint8"))
        writer.finish(arr_1=np.arange(3))
    with np.load(tmp_path / "large.npz") as arrays:
        assert arrays["arr_1"].tolist() == [0, 1, 2]
    array = NpzArray(tmp_path / "large.npz")
    assert array.shape == (4200, 1 << 20) and not next(array.batches(2)).any()
    (tmp_path / "large.npz").unlink()
