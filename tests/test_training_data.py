"""Training from a latent store and straight from images, through the functions that the script calls, and its flags."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import tiny_backbone, to_numpy

from fcdm_keras import evaluate
from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.convert import save_torch_state_dict
from fcdm_keras.data.batches import ImageSource
from fcdm_keras.data.embedded import PhotoSource
from fcdm_keras.data.latent_writer import StoreEncoder
from fcdm_keras.data.transforms import center_crop
from fcdm_keras.network import costs
from fcdm_keras.recipes import MODEL_SIZES, RECIPES, ModelSize, TrainConfig
from fcdm_keras.runs import build, load
from fcdm_keras.runs.datasets import dataset_of
from fcdm_keras.runs.folder import stored_classes

ROOT = Path(__file__).parents[1]
VAE = str(GOLDEN / "vae")
FLAGS = [
    f"--vae={VAE}",
    "--image-size=32",
    "--steps=4",
    "--global-batch-size=8",
    "--num-sampling-steps=2",
    "--log-every=1",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of the embedded photographs' held-out crops."""
    folder = tmp_path_factory.mktemp("latents")
    vae = KLAutoencoder.from_diffusers(VAE)
    source = PhotoSource("held_out", size=64, stride=64)
    StoreEncoder(folder, source, vae, autoencoder_name=VAE, image_size=32, shard_size=50, batch_size=8).run()
    return folder


@pytest.fixture
def train(monkeypatch, capsys):
    """`train(results, *flags)` runs `train_imagenet.py`; returns what it printed, or the message that it ended with."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setitem(MODEL_SIZES, "XS", ModelSize(8, (1, 0, 0, 0, 0)))  # compiles sooner
    import train_imagenet

    def run(results, *flags):
        capsys.readouterr()
        try:
            train_imagenet.main(["--recipe=photos", f"--results-dir={results}", *flags])
        except SystemExit as end:
            return str(end.code)
        return capsys.readouterr().out

    return run


@pytest.mark.no_backend
def test_training_from_a_store_writes_images_of_the_decoder(train, store, tmp_path):
    """The whole script: latents read by worker processes, grids, a preset that draws; stopped half-way and resumed."""
    flags, reference = [*FLAGS, f"--latents={store}", "--ckpt-every=2"], tmp_path / "reference.npz"
    evaluate.main([str(store), f"--write-reference={reference}", "--features=pixels"])
    scored = ["--eval-every=4", "--num-eval-samples=4", "--eval-features=pixels", f"--eval-reference={reference}"]
    output = train(tmp_path, *flags, *scored, "--sample-every=2", "--data-workers=1")
    assert re.search(r"data: \d+ latents of photos, half of them mirrored", output), output
    assert re.search(r"memory: weights [\d.]+ MiB, gradients .* optimizer .* ema .* activations of 8 samples", output)
    folder = tmp_path / "photos"
    from PIL import Image

    header, scores = (folder / "scores.csv").read_text().splitlines()
    assert header == "step,fid,precision,recall,kid" and scores.startswith("4,") and "nan" not in scores
    with Image.open(folder / "samples.png") as grid:
        assert grid.mode == "RGB"
    task = load.load_task(folder)
    assert task.autoencoder.downsampling_factor == 8
    assert task.class_names == ("china", "flower", "grace_hopper") == stored_classes(folder)
    drawn = task.generate([0, 1], num_steps=2, seed=0)
    assert drawn.shape == (2, 32, 32, 3) and drawn.dtype == np.uint8
    # As it was half-way, and resumed, without workers: the same losses.
    half = tmp_path / "half"
    shutil.copytree(folder, half / "photos")
    shutil.rmtree(half / "photos" / "checkpoints" / "step-000000004")
    shutil.rmtree(half / "photos" / "preset")
    assert "resumed at step 2" in train(half, *flags, "--sample-every=0")

    def losses(run):
        return [line.split(",")[:4] for line in (run / "photos" / "log.csv").read_text().splitlines()]

    assert losses(half) == losses(tmp_path) and len(losses(half)) == 5
    # Another run starts from this one's weights, with images encoded as they come.
    images = tmp_path / "images"
    for label, colour in enumerate(("red", "blue")):
        (images / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 32), (50 * i, 99, 200 * label)).save(images / colour / f"{i}.png")
    tuned = [*FLAGS, "--no-cache", f"--source={images}", "--num-classes=2", f"--init-from={folder}", "--sample-every=0"]
    output = train(tmp_path / "tuned", *tuned, "--steps=1")
    assert load.load_task(tmp_path / "tuned" / "photos").class_names == ("blue", "red")
    assert "made anew (3 classes there, 2 here)" in output and "data: 8 images of" in output, output
    # Another store is refused, and nothing is lost.
    metadata = json.loads((store / "store.json").read_text())
    (folder / "latents.json").write_text(json.dumps({**metadata, "autoencoder_hash": "0"}))
    assert "was trained on another latent store" in train(tmp_path, *flags)


def config_of(store, **changes):
    fitting = {"latents": str(store), "image_size": 32, "num_classes": 3, "global_batch_size": 8, "steps": 6}
    return dataclasses.replace(RECIPES["photos"], **{**fitting, **changes})


def opened(config, folder):
    return dataset_of(config).open(config, folder)


def test_images_encoded_on_the_fly_are_those_of_the_store(store, tmp_path):
    """`--no-cache` gives the latents that the store gives, up to float16, in the same order with the same noise."""
    stored = opened(config_of(store, vae=VAE), tmp_path)
    images = opened(config_of(store, vae=VAE, cache=False, source="photos"), tmp_path)
    vae, source = images.autoencoder, PhotoSource("held_out", size=64, stride=64)
    examples = list(source.read(0, len(source)))
    crops = np.stack([center_crop(e.image, 32) for e in examples])
    labels = np.array([e.label for e in examples], np.int32)
    images.source = ImageSource(crops, labels, (4, 4, 4), 0)
    config = config_of(store)
    for a, b in zip(stored.batches(config, 2), images.batches(config, 2), strict=True):
        np.testing.assert_array_equal(a["labels"], b["labels"])
        scale = np.abs(b["latents"]).max()  # the posterior of random weights is very wide
        np.testing.assert_allclose(a["latents"], b["latents"], rtol=5e-3, atol=1e-3 * min(scale, 10))
    assert "images of photos in memory" in images.description and vae.scale == 0.18215


@pytest.mark.no_backend
def test_the_wrong_autoencoder_for_a_store_is_refused(store, tmp_path):
    other = KLAutoencoder((8, 8, 8, 8), 1, norm_num_groups=4)
    other.save_diffusers(tmp_path / "other")
    with pytest.raises(ValueError, match="is not the one that made the latent store .* their weights differ"):
        opened(config_of(store, vae=str(tmp_path / "other")), tmp_path)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--recipe=imagenet256-xl"],
            "trains on latents: give a store with --latents DIR. `python -m fcdm_keras.encode",
        ),
        (["--recipe=imagenet256-s", "--latents=nowhere"], "There is no latent store at nowhere; make one with"),
        (["--recipe=imagenet256-s", "--latents=STORE"], "holds images of a side of 32, and the run asks for 256"),
        (
            ["--recipe=photos", "--latents=STORE", "--num-classes=5", "--image-size=32"],
            "classes: 3, and the run asks for 5",
        ),
        (["--recipe=digits", "--latents=STORE"], "leave out --image-size, --num-classes"),
        (["--recipe=imagenet256-s", "--no-cache", "--eval-every=5"], "give one with --eval-reference REF.npz"),
    ],
)
def test_a_run_without_fitting_data_is_refused_before_anything_heavy(store, flags, message):
    flags = [flag.replace("STORE", str(store)) for flag in flags]
    command = [sys.executable, "-X", "importtime", "train_imagenet.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr[-500:]
    assert "| keras\n" not in done.stderr


@pytest.mark.no_backend
def test_the_number_of_classes_is_read_from_the_store(store, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train_imagenet

    config, _ = train_imagenet.parse(["--recipe=imagenet256-s", "--image-size=32", f"--latents={store}"])
    assert config.num_classes == 3 and RECIPES["imagenet256-s"].num_classes == 1000


@pytest.mark.no_backend
def test_no_cache_needs_an_autoencoder_that_fits(store, tmp_path):
    for changes, message in (
        ({"vae": ""}, "needs an autoencoder: give one with --vae"),
        ({"num_classes": 7}, "photos has 3 classes, and the run asks for 7; pass --num-classes 3"),
        ({"latent_scale": 0.5}, "has the latent scale 0.18215, and the run asks for 0.5; pass --latent-scale 0.18215"),
    ):
        config = config_of(store, **{"vae": VAE, "cache": False, "source": "photos", **changes})
        with pytest.raises(ValueError, match=message):
            opened(config, tmp_path)


def test_fine_tuning_keeps_all_but_the_label_tables(tmp_path):
    """From a reference checkpoint, with another number of classes."""
    source = tiny_backbone()
    save_torch_state_dict(source, tmp_path / "reference.pt")
    loaded, target = load.load_backbone(tmp_path / "reference.pt"), tiny_backbone(num_classes=4)
    tables = [to_numpy(table) for table in target.conditioning.tables]
    assert build.copy_weights(loaded, target) == (
        f"{len(target.variables) - 3} tensors are kept, the 3 of the conditioning are made anew "
        "(10 classes there, 4 here)"
    )
    for a, b in zip(source.variables, target.variables, strict=True):
        if tuple(a.shape) == tuple(b.shape):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    for table, before in zip(target.conditioning.tables, tables, strict=True):
        np.testing.assert_array_equal(to_numpy(table), before)
    assert build.copy_weights(source, tiny_backbone()) == f"all {len(source.variables)} tensors are kept"
    with pytest.raises(ValueError, match=r"of another network: depths \(1, 1, 1, 1, 1\) there, \(1, 0, 1, 0, 0\) here"):
        build.copy_weights(source, tiny_backbone((1, 0, 1, 0, 0)))


def test_memory_counts_what_training_holds():
    """Weights, optimizer and EMA exactly; and the paper's XL does not fit 24 GiB at its batch size without help."""
    config = RECIPES["digits"]
    trainer = build.build_trainer(config)
    estimate = costs.training_memory(config, 8)
    assert estimate.weights == 4 * trainer.backbone.count_params()
    optimizer = [v for v in trainer.optimizer.variables if len(v.shape)]
    assert estimate.optimizer == sum(4 * int(np.prod(v.shape)) for v in optimizer)
    assert estimate.ema == sum(4 * int(np.prod(v.shape)) for v in trainer.ema.averages)
    xl = costs.training_memory(RECIPES["imagenet256-xl"], 32)
    assert xl.weights == 4 * MODEL_SIZES["XL"].parameters
    assert xl.activations_checkpointed < 0.2 * xl.activations
    half = dataclasses.replace(RECIPES["imagenet256-xl"], precision="mixed_bfloat16", accumulation_steps=2)
    assert costs.training_memory(half, 32).activations == xl.activations // 4


if keras.backend.backend() == "torch":  # only PyTorch tells what it keeps for the backward pass

    def test_activations_are_what_pytorch_keeps():
        import torch

        config = TrainConfig("x", "digits", "XS", 16, 10, 1, latent_channels=4, global_batch_size=4)
        backbone = build.build_backbone(config)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault((t.data_ptr(), t.shape), t.numel() * t.element_size()) and t, lambda t: t
        ):
            x_t, steps = torch.zeros(4, 16, 16, 4), torch.zeros(4, dtype=torch.int32)
            backbone({"x_t": x_t, "timesteps": steps, "labels": steps}, training=True)
        weights = {v.value.data_ptr() for v in backbone.variables}
        total = sum(size for (pointer, _), size in kept.items() if pointer not in weights)
        assert costs.training_memory(config, 16).activations == pytest.approx(total, rel=0.3)
