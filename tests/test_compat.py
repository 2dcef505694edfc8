"""Runs, presets and samples that the code of 10a78ea wrote: later code reads them and goes on to the same results.

`tests/golden/README.md` says how each was made. Results must be the same bits where processor and libraries are those
that made them. Elsewhere losses must agree to 1e-5, and arrays to 2 % of their largest value: gradients are tiny at
first, and AdamW makes steps of full size of their rounding.
"""

import contextlib
import csv
import io
import json
import os
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import h5py
import keras
import numpy as np
import processes
import pytest
from conftest import GOLDEN
from PIL import Image
from text_helpers import share_processes

import train_coco
import train_imagenet
from fcdm_keras import MODEL_SIZES, ClassToImage, sample
from t2i import TextToImage

ROOT, FILES, BACKEND = Path(__file__).parents[1], GOLDEN / "compat", keras.backend.backend()
TINY = type(MODEL_SIZES["XS"])(2, (1, 0, 1, 0, 1))
STEPS = ["--steps=6", "--ckpt-every=3", "--log-every=1", "--sample-every=6", "--num-sampling-steps=2"]
DIGITS = ["--recipe=digits", "--global-batch-size=16", "--accumulation-steps=2", "--clip-norm=0.5", *STEPS]
PHOTOS = ["--recipe=photos", "--global-batch-size=8", "--image-size=16", *STEPS]
SHAPES = ["--recipe=shapes", "--global-batch-size=4", "--num-captions=12", "--autoencoder-steps=2", "--cfg-scale=1"]
SHAPES += STEPS
DRAWING = ["--num-samples=8", "--batch-size=2", "--num-sampling-steps=3", "--sampler=ddim", "--eta=0.5", "--npz"]
LABELS, PROMPTS = [3, 1, 4, 1, 5, 9, 2, 6], ["", "a small red circle", "a large blue square"]
OPTIONS = {"num_steps": 3, "guidance_scale": 2.0, "sampler": "ddim", "seed": 7}


def unpack(name, folder):
    with tarfile.open(FILES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def pack(name, folder):
    def anonymous(info):
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(FILES / f"{name}.tar.xz", "w:xz", preset=9) as archive:
        archive.add(folder, ".", filter=anonymous)


def circumstances():
    """What the last bits of a result depend on: processor, threads, and the libraries that compute."""
    text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    vectors = sorted({"avx2", "avx512f", "avx512_bf16"} & set(facts.get("flags", "").split()))
    processor = [facts.get(name, "") for name in ("model name", "cpu family", "model")]
    libraries = {name: version(name) for name in ("keras", "numpy", "jax", "jaxlib", "torch", "tensorflow")}
    threads = [os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]
    return {"processor": processor, "flags": vectors, "threads": threads, "libraries": libraries}


def results_of(run, step=6):
    """Arrays of a run's checkpoint (weights, EMA, optimizer, step) and of its log, its scores and its picture."""
    arrays = {}
    with h5py.File(run / "checkpoints" / f"step-{step:09d}" / "trainer.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for column in rows[0].keys() - {"images_per_second"}:
        arrays[f"log/{column}"] = np.array([float(row[column]) for row in rows])
    arrays["samples"] = np.asarray(Image.open(run / "samples.png"))
    return arrays


def assert_as_recorded(found, folder):
    """`results_of` a run against what lies in its archive."""
    with np.load(folder / "expected.npz") as stored:
        expected = {name: stored[name] for name in stored.files}
    same_bits = json.loads((folder / "circumstances.json").read_text()) == circumstances()
    assert found.keys() == expected.keys() and len(found) > 100
    assert [int(step) for step in found["log/step"]] == [1, 2, 3, 4, 5, 6]
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        if same_bits:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name == "samples":
            assert_same_images(found[name], value)
        else:
            # Six steps of 1e-4 move a weight by up to 6e-4, in directions that rounding decides where gradients vanish.
            atol = 1e-5 * np.abs(value).max() if name.startswith("log/") else 2e-2 * max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


def assert_same_images(found, expected):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def go_on(script, *flags):
    """Runs a training script in this process; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        script.main([str(flag) for flag in flags])
    return output.getvalue()


def write_tower(folder):
    """A very small text tower in open_clip's files, from raw random bits: the same on every machine.

    Returns:
        The flags that name it.
    """
    described = json.loads((FILES / "tower.json").read_text())
    bits = np.random.PCG64(0)
    weights = {}
    for name, shape in described["shapes"].items():
        uniform = (bits.random_raw(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) / 2**23 - 1
        weights[name] = (uniform * 0.2 + (1 if ".ln_" in name and name.endswith("weight") else 0)).reshape(shape)
    from safetensors.numpy import save_file

    save_file(weights, folder / "tower.safetensors")
    (folder / "tower.json").write_text(json.dumps(described["config"]))
    return [f"--text-encoder={folder / 'tower.json'}", f"--text-weights={folder / 'tower.safetensors'}"]


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODEL_SIZES, "XS", TINY)
        share_processes(patch)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The archive of this backend's run of digits, which has been gone on with, and what was printed."""
    folder = unpack(f"digits_{BACKEND}", tmp_path_factory.mktemp("digits"))
    return folder, go_on(train_imagenet, *DIGITS, f"--results-dir={folder / 'half'}")


def test_a_run_goes_on_to_the_recorded_state(digits):
    folder, output = digits
    assert "resumed at step 3" in output
    assert_as_recorded(results_of(folder / "half" / "digits"), folder)
    scores, expected = (
        json.loads(file.read_text()) for file in (folder / "half" / "digits" / "scores.json", folder / "scores.json")
    )
    assert scores.keys() == expected.keys()
    for name in scores.keys() - {"seconds"}:
        assert scores[name] == pytest.approx(expected[name], rel=1e-2), name


def names_in(folder):
    """Names of all files below a folder; of TensorBoard's, which name time and machine, the folder only."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted({"tensorboard/" if name.startswith("tensorboard/") else name for name in names})


def test_finished_runs_and_samples_hold_the_recorded_files(digits, drawn):
    recorded = json.loads((FILES / "interface.json").read_text())["files"]
    assert names_in(digits[0] / "half" / "digits") == recorded["run"]
    assert names_in(drawn[0] / "half") == recorded["samples"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The archive of a preset and of a folder of samples that was half done and is done now; the PNGs before."""
    folder = unpack("samples", tmp_path_factory.mktemp("samples"))
    before = {file.name: file.read_bytes() for file in (folder / "half").glob("0*.png")}
    parts = {file.name for file in (folder / "half" / "samples.npz.parts").iterdir()}
    assert len(before) == 4 and parts == {"000000000-000000002.npy", "000000002-000000004.npy"}
    go_on(sample, folder / "preset", *DRAWING, f"--output={folder / 'half'}")
    return folder, before


def test_half_a_folder_of_samples_is_completed(drawn):
    folder, before = drawn
    for name, content in before.items():
        assert (folder / "half" / name).read_bytes() == content, name
    with np.load(folder / "expected.npz") as expected, np.load(folder / "half" / "samples.npz") as found:
        assert_same_images(found["arr_0"], expected["arr_0"])
        np.testing.assert_array_equal(found["arr_1"], expected["arr_1"])
        for i, image in enumerate(found["arr_0"]):
            np.testing.assert_array_equal(Image.open(folder / "half" / f"{i:06d}.png"), image[..., 0])


def test_a_preset_draws_the_recorded_images(drawn):
    with np.load(drawn[0] / "expected.npz") as expected:
        images = ClassToImage.from_preset(str(drawn[0] / "preset")).generate(LABELS, **OPTIONS)
        assert_same_images(images, expected["generated"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The archive of a run on text, and a preset of another one."""
    return unpack("text_torch", tmp_path_factory.mktemp("text"))


def encoder_of(flags):
    """The settings of the text encoder that flags name."""
    model, weights = (flag.partition("=")[2] for flag in flags)
    return {"model": model, "pretrained": weights}


def test_a_text_preset_draws_the_recorded_images(text):
    """Its text encoder lies elsewhere now."""
    task = TextToImage.from_preset(str(text / "preset"))
    task.relocate_text_encoder(**encoder_of(write_tower(text)))
    with np.load(text / "images.npz") as images:
        assert_same_images(task.generate(PROMPTS, **OPTIONS), images["expected"])


def test_an_unfinished_text_run_is_read(text):
    task = TextToImage.from_preset(text / "half" / "shapes", text_encoder=encoder_of(write_tower(text)))
    images = task.generate([""], num_steps=2, guidance_scale=1.0, seed=0)
    assert images.shape == (1, 32, 32, 3) and images.std() > 10


if BACKEND == "torch":  # runs on stores and on text were recorded there

    def test_a_run_on_a_latent_store_goes_on_to_the_recorded_state(tmp_path):
        """Store and autoencoder lie elsewhere now."""
        folder = unpack("photos_torch", tmp_path)
        flags = [f"--{name}={folder / name}" for name in ("latents", "vae")]
        output = go_on(train_imagenet, *PHOTOS, *flags, f"--results-dir={folder / 'half'}")
        assert "resumed at step 3" in output
        assert_as_recorded(results_of(folder / "half" / "photos"), folder)

    def test_a_run_on_text_goes_on_to_the_recorded_state(text):
        output = go_on(train_coco, *SHAPES, *write_tower(text), f"--results-dir={text / 'half'}")
        assert "resumed at step 3" in output
        assert_as_recorded(results_of(text / "half" / "shapes"), text)


FRESH = {
    """
import sys, fcdm_keras, keras
fcdm_keras.KLAutoencoder  # registers it
print(keras.saving.load_model(f"{sys.argv[1]}/autoencoder.keras").count_params())
print(fcdm_keras.ClassToImage.from_preset(f"{sys.argv[1]}/samples/preset").backbone.count_params())
""": ["11827", "6938"],
    """
import sys, t2i
print(t2i.TextToImage.from_preset(f"{sys.argv[1]}/text/preset").backbone.count_params())
""": ["8406"],
}


@pytest.mark.no_backend
@pytest.mark.parametrize("program", FRESH, ids=["fcdm_keras", "t2i"])
def test_stored_models_are_loaded_where_nothing_else_was_imported(program, text, drawn, tmp_path):
    """Their files name modules, classes and registered names."""
    for name, target in (("autoencoder.keras", FILES), ("samples", drawn[0]), ("text", text)):
        (tmp_path / name).symlink_to(target / name if target == FILES else target)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == FRESH[program], done.stderr
