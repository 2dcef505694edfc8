"""What a command looks at before it works: the engine, the terminal, and whether a run can be at all."""

import collections
import io
import os
import subprocess
import sys

import numpy as np
import processes
import pytest
from conftest import GOLDEN
from test_outputs import encoding, quietly

import train_coco
import train_imagenet
from fcdm_keras import encode, train_vae
from fcdm_keras.data.sources import FolderSource, read_images
from fcdm_keras.machine import accelerator, engine, terminal
from fcdm_keras.runs import plan

pytestmark = pytest.mark.no_backend
Usage = collections.namedtuple("Usage", "total used free")


def environment(folder, content=None, backend=None):
    """The variables of a machine whose `keras.json` holds `content`."""
    if content is not None:
        (folder / "keras.json").write_text(content)
    return {"KERAS_HOME": str(folder), **({"KERAS_BACKEND": backend} if backend else {})}


@pytest.mark.parametrize(
    ("content", "backend", "message"),
    [
        (None, "jx", "^KERAS_BACKEND must name jax, torch or tensorflow. Received: 'jx'"),
        (None, "openvino", "Received: 'openvino'"),
        ('{"backend": "theano"}', None, "keras.json must name jax, torch or tensorflow. Received: 'theano'"),
        ('{"backend": ["jax"]}', None, r"Received: \"\['jax'\]\""),
        ("[]", "jax", "keras.json, which Keras reads, is no JSON object: mend it, or remove it"),
        ("{broken", "jax", "is no JSON object"),
        ("[" * 100_000, "jax", "is no JSON object"),
        ('{"floatx": "float16"}', "jax", "sets floatx to 'float16'.*--precision"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(tmp_path, content, backend, message):
    with pytest.raises(ValueError, match=message):
        engine.check(environment(tmp_path, content, backend))


def test_engines_and_settings_that_can_be_pass(tmp_path, monkeypatch):
    engine.check(environment(tmp_path))
    engine.check(environment(tmp_path, '{"backend": "torch", "floatx": "float32"}'))
    engine.check(environment(tmp_path, '{"backend": "theano", "image_data_format": "channels_first"}', "jax"))
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'computes on jax here, which is not installed: pip install "fcdm-keras\[jax\]'
    ):
        engine.check(environment(tmp_path, None, "jax"))


def printed(monkeypatch, stream):
    """Prints more than a buffer holds, with `stream` as standard output."""
    monkeypatch.setattr(sys, "stdout", stream)
    with terminal.lasting():
        for _ in range(3000):
            print("7×7 → 0.5", flush=True)
    assert sys.stdout is stream


def test_a_full_disk_behind_standard_output_is_told_once_at_the_end(monkeypatch):
    with pytest.raises(OSError, match=r"^Standard output could not be written to \(No space left on device\)"):
        printed(monkeypatch, open("/dev/full", "w"))  # noqa: SIM115 - it cannot be closed without an error


def test_a_reader_that_leaves_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        printed(monkeypatch, stream)


def test_a_terminal_without_the_letters_gets_their_numbers(monkeypatch):
    buffer = io.BytesIO()
    printed(monkeypatch, io.TextIOWrapper(buffer, "ascii"))
    assert buffer.getvalue().startswith(b"7\\xd77 \\u2192 0.5\n")


def test_a_program_without_standard_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with terminal.lasting():
        print("nobody reads this")


def command(*arguments, **options):
    root = os.path.dirname(os.path.dirname(__file__))
    return processes.run([sys.executable, "train_imagenet.py", *arguments], cwd=root, text=True, timeout=300, **options)


def test_a_command_says_that_its_output_was_lost():
    with open("/dev/full", "w") as full:
        done = command("--dry-run", stdout=full, stderr=-1)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output could not be written to (No space left on device)")


def photos(*flags):
    return (train_imagenet.main, "--recipe", "photos", *flags)


RUNS = [
    (photos("--init-from", "nowhere/model"), "nowhere/model"),
    (photos("--init-from", str(GOLDEN / "fcdm" / "fcdm_checkpoint.pt")), "are of another network: "),
    (photos("--eval-every", "1", "--eval-reference", "nowhere.npz", "--inception", "nowhere.pb"), "nowhere.pb"),
    (photos("--global-batch-size", "49999999"), "Training XS in batches of 49,999,999 needs "),
    ((train_imagenet.main, "--global-batch-size", "49999999"), "use a smaller --global-batch-size, more --accumul"),
    (
        (train_imagenet.main, "--eval-every", "1", "--num-eval-samples", "999999999"),
        "999,999,999 images to score needs",
    ),
    ((train_coco.main, "--init-from", "nowhere/model"), "nowhere/model"),
    ((train_coco.main, "--global-batch-size", "49999999"), "of memory, and "),
]


@pytest.mark.parametrize(("arguments", "message"), RUNS, ids=[f"{i}" for i in range(len(RUNS))])
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(tmp_path, arguments, message):
    said = quietly(*arguments, "--results-dir", tmp_path)
    assert said.startswith("error: ") and message in said
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not made & {"loss.png", "autoencoder.keras", "store.json", "log.csv", "checkpoint.json"}


def test_checkpoints_that_find_no_room_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: Usage(2**40, 2**40 - 2**16, 2**16))
    said = quietly(train_imagenet.main, "--results-dir", tmp_path)
    assert said.startswith("error: 4 checkpoints of ") and "and the disk has 0.1 MiB free: make room, choose" in said
    monkeypatch.undo()
    said = quietly(train_vae.main, "--output", tmp_path / "vae", "--block-out-channels", "40000,40000")
    assert "3 checkpoints of " in said


def test_memory_is_compared_before_it_is_taken(tmp_path):
    vae = quietly(train_vae.main, "--output", tmp_path / "vae", "--batch-size", "9999999", "--image-size", "512")
    assert "an autoencoder with 9,999,999 crops of 512×512 per step needs" in vae and "smaller --batch-size" in vae
    encoded = quietly(encode.main, *encoding(tmp_path / "store", "--batch-size", "99999999"))
    assert encoded.startswith("error: Encoding 99,999,999 images of 32×32 at once needs ")
    assert not (tmp_path / "store" / "settings.json").exists()


def test_images_that_fill_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(tmp_path / "a" / "0.png")
    monkeypatch.setattr(FolderSource, "__len__", lambda self: 10**9)
    with pytest.raises(ValueError, match="Holding 1,000,000,000 images of 64×64 needs .* on their latents: --lat"):
        read_images(FolderSource(tmp_path), 64)


@pytest.fixture
def gpus(tmp_path):
    """The driver's list of two GPUs."""
    for number in range(2):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
        (tmp_path / "gpus" / f"0000:0{number}:00.0" / "information").write_text("Model: \t NVIDIA H100\nIRQ: 1\n")
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("backend", "variables", "reason"),
    [
        ("torch", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES= hides it"),
        ("tensorflow", {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1 hides it"),
        ("jax", {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS=cpu hides it"),
        ("jax", {}, 'jax has no CUDA here, which pip install "fcdm-keras[jax-cuda]" brings'),
        ("tensorflow", {}, 'tensorflow has no CUDA here, which pip install "fcdm-keras[tensorflow-cuda]" brings'),
    ],
)
def test_a_gpu_that_stands_idle_is_named_with_the_reason(gpus, monkeypatch, backend, variables, reason):
    monkeypatch.setattr(accelerator, "_installed", lambda name: False)
    assert accelerator.idle(backend, variables, gpus) == f"2 × NVIDIA H100 idle: {reason}"


def test_without_a_gpu_nothing_is_said(tmp_path):
    assert accelerator.idle("jax", {}, tmp_path / "gpus") == ""


def test_a_driver_that_is_too_old_is_thought_of(gpus, monkeypatch):
    monkeypatch.setattr(accelerator, "_installed", lambda name: True)
    assert accelerator.idle("jax", {}, gpus).endswith("jax finds no driver that fits its CUDA; see nvidia-smi")


KEPT = """
import resource, ctypes
from fcdm_keras.machine import allocator
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = bytearray(2**26)  # of 16,384 pages
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
print(before > 60_000, allocator.keep({"FCDM_KERAS_KEEP_MEMORY": "0"}), faults() > 60_000, allocator.keep({}))
faults()
print(faults() < 1_000)
"""


def test_kept_memory_is_not_asked_for_again():
    options = {"cwd": os.path.dirname(os.path.dirname(__file__)), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", KEPT], check=True, **options)
    assert done.stdout.split() == ["True", "False", "True", "True", "True"]
