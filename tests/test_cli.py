"""Commands, flags and recipes, as a user types them."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
from helpers import tiny_backbone
from PIL import Image

from fcdm_keras import options, sample
from fcdm_keras.recipes import RECIPES, TrainConfig, VAEConfig
from fcdm_keras.runs.datasets import DATASETS
from fcdm_keras.runs.folder import open_run, open_vae_run
from fcdm_keras.runs.history import describe, read_history, settle
from fcdm_keras.sampling.tasks import ClassToImage

ROOT = Path(__file__).parent.parent
HEAVY = {"keras", "keras_hub", "jax", "torch", "tensorflow"}


def command(*arguments):
    return processes.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )


def config_of(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    options.add_recipe_flags(parser, RECIPES, "digits")
    return options.from_recipe(parser.parse_args(flags), RECIPES)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    "program",
    ["train_imagenet", "train_coco", "t2i.sample", "t2i.encode"]
    + [f"fcdm_keras.{name}" for name in ("sample", "evaluate", "report", "analyze", "convert", "model_table")]
    + ["fcdm_keras.train_vae", "fcdm_keras.encode"],
)
def test_help_is_quick_because_nothing_heavy_is_imported(program):
    result = command("-X", "importtime", "-m", program, "--help")
    assert result.returncode == 0 and "usage:" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & HEAVY


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("recipe", "model", "size", "steps"),
    [
        ("imagenet256-s", "S", 256, 400_000),
        ("imagenet256-b", "B", 256, 400_000),
        ("imagenet256-l", "L", 256, 400_000),
        ("imagenet256-xl", "XL", 256, 2_000_000),
        ("imagenet512-xl", "XL", 512, 1_000_000),
    ],
)
def test_recipes_hold_table_7(recipe, model, size, steps):
    config = RECIPES[recipe]
    assert (config.model, config.image_size, config.steps, config.num_classes) == (model, size, steps, 1000)
    assert (config.learning_rate, config.weight_decay, config.global_batch_size) == (1e-4, 0.0, 256)
    assert (config.ema_decay, config.label_dropout, config.precision) == (0.9999, 0.1, "float32")
    assert (config.sampler, config.num_sampling_steps, config.clip_norm) == ("ddpm", 250, 0.0)


@pytest.mark.no_backend
def test_every_field_of_a_recipe_is_a_flag_with_help():
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"recipe"}
    assert all(field.metadata["help"] for field in dataclasses.fields(TrainConfig) if field.name in fields)
    shown = command("train_imagenet.py", "--help").stdout
    assert all(f"--{name.replace('_', '-')}" in shown for name in fields)


@pytest.mark.no_backend
def test_flags_change_the_recipe_and_booleans_mean_what_they_say():
    assert config_of() == RECIPES["digits"]
    config = config_of("--gradient-checkpointing", "--no-ema-warmup", "--steps", "7", "--learning-rate", "0.5")
    assert (config.gradient_checkpointing, config.ema_warmup, config.steps, config.learning_rate) == (
        True,
        False,
        7,
        0.5,
    )


@pytest.mark.no_backend
def test_configurations_survive_json():
    for config in RECIPES.values():
        assert options.from_json(options.to_json(config), TrainConfig) == config
    with pytest.raises(ValueError, match="no configuration"):
        options.from_json('{"recipe": "digits"', TrainConfig)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--recipe", "cifar"), "invalid choice: 'cifar'"),
        (("--model", "XXL"), "invalid choice: 'XXL'"),
        (("--sampler", "euler"), "invalid choice: 'euler'"),
        (("--steps", "-5"), "steps must be at least 1. Received: -5"),
        (("--num-sampling-steps", "1001"), "num_sampling_steps must lie in [1, 1000]. Received: 1001"),
        (("--num-sampling-steps", "0"), "num_sampling_steps must lie in"),
        (("--cfg-scale", "-1"), "cfg_scale must be at least 0. Received: -1.0"),
        (("--learning-rate", "nan"), "learning_rate must be finite. Received: nan"),
        (("--accumulation-steps", "3"), "must be divisible by accumulation_steps=3. Received: 128"),
        (("--recipe", "imagenet256-xl"), "trains on latents: give a store with --latents DIR"),
        (("--num-classes", "5"), "leave out"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_heavy(flags, message):
    result = command("-X", "importtime", "train_imagenet.py", *flags)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()} & HEAVY


@pytest.mark.no_backend
def test_dry_run_prints_the_resolved_configuration():
    result = command("train_imagenet.py", "--recipe", "imagenet256-xl", "--seed", "3", "--dry-run")
    assert result.returncode == 0
    assert options.from_json(result.stdout, TrainConfig) == dataclasses.replace(RECIPES["imagenet256-xl"], seed=3)


@pytest.mark.no_backend
def test_a_run_folder_keeps_to_its_configuration(tmp_path):
    config = dataclasses.replace(RECIPES["digits"], results_dir=str(tmp_path))
    folder = open_run(config)
    assert json.loads((folder / "config.json").read_text())["recipe"] == "digits"
    (folder / "checkpoints" / "step-000000120").mkdir(parents=True)
    open_run(dataclasses.replace(config, steps=5000, ckpt_every=7, accumulation_steps=2))  # may change
    changed = dataclasses.replace(config, seed=1, flips=True, init_from="a b", learning_rate=0.5)
    message = r"\(flips=False there, True now; .*; learning_rate=0.001 there, 0.5 now; seed=0 there, 1 now\): give the "
    advice = r".* --no-flips --init-from '' --learning-rate 0.001 --seed 0 \(or --learning-rate 0.5, which changes it"
    with pytest.raises(ValueError, match=message + advice):
        open_run(changed, {"seed", "flips"})
    assert options.from_json((folder / "config.json").read_text(), TrainConfig).seed == 0


@pytest.mark.no_backend
def test_what_a_flag_changes_is_kept_with_its_step(tmp_path):
    def history():
        return [describe(entry) for entry in read_history(folder)]

    config = dataclasses.replace(RECIPES["digits"], results_dir=str(tmp_path))
    folder = open_run(config)
    (folder / "checkpoints" / "step-000000120").mkdir(parents=True)
    lower = dataclasses.replace(config, learning_rate=1e-4)
    for _ in range(2):  # the same command again adds nothing
        open_run(lower, {"learning_rate"})
        assert history() == ["learning_rate 0.001 → 0.0001 from step 120 on"]
    with pytest.raises(
        ValueError, match="give the .* --learning-rate 0.0001 .or --learning-rate 0.001, which changes it"
    ):
        open_run(config)
    half = dataclasses.replace(lower, precision="mixed_bfloat16", clip_norm=1.0, learning_rate=1e-5)
    open_run(half, {"precision", "clip_norm", "learning_rate"})  # at the same step: one change
    assert sorted(history()) == [
        "clip_norm 0.0 → 1.0 from step 120 on",
        "learning_rate 0.001 → 1e-05 from step 120 on",
        "precision float32 → mixed_bfloat16 from step 120 on",
    ]
    open_run(dataclasses.replace(half, learning_rate=1e-3), {"learning_rate"})
    assert len(history()) == 2  # taken back
    (folder / "checkpoints" / "step-000000200").mkdir()
    open_run(dataclasses.replace(half, learning_rate=1e-3, clip_norm=0.0), {"clip_norm"})
    settle(folder, 120)  # the newest was damaged
    assert sorted(history()) == [
        "clip_norm 0.0 → 1.0 from step 120 on",
        "clip_norm 1.0 → 0.0 from step 120 on",
        "precision float32 → mixed_bfloat16 from step 120 on",
    ]
    (folder / "history.json").write_text("[{")
    with pytest.raises(ValueError, match="history.json is damaged .* restore or remove it"):
        open_run(dataclasses.replace(half, learning_rate=1.0, clip_norm=0.0), {"learning_rate"})


@pytest.mark.no_backend
def test_a_folder_without_a_checkpoint_takes_any_configuration(tmp_path):
    """What a failed command left binds nobody; what it made of other settings is made anew."""
    config = dataclasses.replace(RECIPES["photos"], results_dir=str(tmp_path))
    folder = open_run(config, dataset=DATASETS["photos"])
    for name in ("classes.json", "latents.json", "autoencoder/scores.json", "latents/store.json", "history.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of the failed command")
    (folder / "checkpoints" / ".unfinished-000000009").mkdir(parents=True)
    other = dataclasses.replace(config, learning_rate=1.0, num_classes=7)
    open_run(other, dataset=DATASETS["photos"])
    assert sorted(path.name for path in folder.iterdir()) == ["autoencoder", "checkpoints", "config.json", "latents"]
    assert options.from_json((folder / "config.json").read_text(), TrainConfig) == other
    (folder / "config.json").write_text("{")
    open_run(dataclasses.replace(other, seed=1), dataset=DATASETS["photos"])
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.json"]
    vae = VAEConfig()
    open_vae_run(tmp_path / "vae", vae)
    open_vae_run(tmp_path / "vae", dataclasses.replace(vae, loss="l2"))
    (tmp_path / "vae" / "checkpoints" / "step-000000002").mkdir(parents=True)
    with pytest.raises(ValueError, match="loss='l2' there, 'l1' now.*: give .* --loss l2, or another --output"):
        open_vae_run(tmp_path / "vae", vae)
    (folder / "preset").mkdir()  # a finished model is kept, too
    with pytest.raises(ValueError, match="seed=1 there, 0 now"):
        open_run(other, dataset=DATASETS["photos"])


@pytest.mark.no_backend
def test_a_results_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be written to"):
        open_run(dataclasses.replace(RECIPES["digits"], results_dir=str(tmp_path / "file")))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=3), image_size=8).save_to_preset(str(folder))
    return folder


def draw(preset, output, *flags):
    sample.main([str(preset), "--num-sampling-steps", "2", "--output", str(output), *map(str, flags)])


def test_sample_writes_images_grid_settings_and_npz(preset, tmp_path, capsys):
    draw(preset, tmp_path / "a", "--classes", "1-2,7", "--num-samples", 5, "--npz")
    with np.load(tmp_path / "a" / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    assert labels.tolist() == [1, 2, 7, 1, 2]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / f"{i:06d}.png")), image)
    assert Image.open(tmp_path / "a" / "grid.png").size == (3 * 34 + 2, 2 * 34 + 2)  # 8 pixels enlarged to 32
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["labels"] == labels.tolist()
    assert "5 images of 8×8 pixels" in capsys.readouterr().out
    draw(preset, tmp_path / "b", "--classes", "1-2,7", "--num-samples", 5, "--npz", "--batch-size", 2)
    with np.load(tmp_path / "b" / "samples.npz") as arrays:
        assert np.abs(arrays["arr_0"].astype(int) - images).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--classes", "0-10"), r"--classes must lie in \[0, 9\]. Received: '0-10'"),
        (("--classes", "cats"), "--classes must look like"),
        (("--cfg-scale", "-1"), "guidance_scale must be at least 0"),
        (("--image-size", "10"), "multiples of 4"),
        (("--seed", "-3"), "seed must be an integer"),
    ],
)
def test_sample_refuses_in_one_sentence(preset, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        draw(preset, tmp_path, *flags)


def test_sample_says_where_no_model_is(tmp_path):
    with pytest.raises(SystemExit, match="^error: There is no model at .*nowhere"):
        draw(tmp_path / "nowhere", tmp_path / "out")
