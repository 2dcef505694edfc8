"""Presets: of every dtype policy and quantized, in another process; names; folders that are replaced whole."""

import os
import sys

import keras
import numpy as np
import processes
import pytest
from helpers import inputs, tiny_backbone, to_numpy

from fcdm_keras import files
from fcdm_keras.backend.hub import keras_hub
from fcdm_keras.network.fcdm import FCDMBackbone
from fcdm_keras.network.layers import Linear
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.trainer import DiffusionTrainer

FLOATS = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
QUANTIZED = ("int8", "int4", "float8") if keras.backend.backend() == "torch" else ("int8",)
INPUTS = inputs(1, 4, 4)
LOADING = """
import sys
from pathlib import Path
import keras
import keras_hub
keras_hub.models.BertBackbone(10, 1, 1, 4, 4, max_sequence_length=5)  # functional: see test_beside.py
import numpy as np
from fcdm_keras import ClassToImage, FCDMBackbone
inputs = dict(np.load(f"{sys.argv[1]}/inputs.npz"))
found = {}
for folder in Path(sys.argv[1]).glob("*-*"):
    model = (FCDMBackbone if folder.name.endswith("backbone") else ClassToImage).from_preset(str(folder))
    backbone = getattr(model, "backbone", model)
    found[folder.name] = keras.ops.convert_to_numpy(backbone(inputs))
    found[f"{folder.name} policy"] = (backbone.dtype_policy.name, backbone.merge_1.quantization_mode or "")
np.savez(f"{sys.argv[1]}/found.npz", **found)
"""


def of_policy(policy):
    if policy not in QUANTIZED:
        return tiny_backbone((0, 0, 0, 0, 0), dtype=policy)
    backbone = tiny_backbone((0, 0, 0, 0, 0))
    backbone.quantize(policy)
    return backbone


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs of models of every policy here, and in a fresh process that has loaded their presets."""
    folder, here = tmp_path_factory.mktemp("presets"), {}
    np.savez(folder / "inputs.npz", **INPUTS)
    for policy in FLOATS + QUANTIZED:
        backbone = of_policy(policy)
        here[policy] = to_numpy(backbone(INPUTS))
        backbone.save_to_preset(folder / f"{policy}-backbone")
        ClassToImage(backbone, image_size=8).save_to_preset(folder / f"{policy}-task")
    processes.run([sys.executable, "-c", LOADING, str(folder)], check=True, env={**os.environ})
    return here, dict(np.load(folder / "found.npz"))


@pytest.mark.parametrize("kind", ["backbone", "task"])
@pytest.mark.parametrize("policy", FLOATS + QUANTIZED)
def test_a_fresh_process_computes_the_same(outputs, policy, kind):
    here, there = outputs
    expected = ("float32", policy) if policy in QUANTIZED else (policy, "")
    assert tuple(there[f"{policy}-{kind} policy"]) == expected
    np.testing.assert_array_equal(there[f"{policy}-{kind}"], here[policy])


def test_quantized_outputs_are_near(outputs):
    here, _ = outputs
    for policy, limit in {"int8": 0.05, "bfloat16": 0.05}.items():
        difference = here[policy] - here["float32"]
        assert 1e-4 < np.sqrt(np.mean(difference**2)) / here["float32"].std() < limit, policy


def test_a_quantized_linear_is_keras_quantized_dense():
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 16), "float32")
    ours, theirs = Linear(8), keras.layers.Dense(8)
    ours.build(x.shape), theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    exact = to_numpy(ours(x))
    ours.quantize("int8"), theirs.quantize("int8")
    np.testing.assert_array_equal(to_numpy(ours(x)), to_numpy(theirs(x)))
    assert keras.backend.standardize_dtype(ours.kernel.dtype) == "int8"
    np.testing.assert_allclose(to_numpy(ours(x)), exact, atol=0.05)


@pytest.mark.no_backend
def test_only_linears_on_feature_maps_are_quantized_and_a_filter_chooses_among_them(tmp_path):
    backbone = tiny_backbone((1, 0, 0, 0, 0))
    ClassToImage(backbone, image_size=8).quantize("int8", filters="pwconv")
    backbone.save_to_preset(tmp_path)
    for model in (backbone, FCDMBackbone.from_preset(tmp_path)):
        found = {layer.name for layer in model._flatten_layers() if layer.quantization_mode}
        assert found == {"pwconv1", "pwconv2"}
    renamed = FCDMBackbone.from_config({**backbone.get_config(), "name": "other"})
    assert renamed.blocks[0].pwconv1.quantization_mode == "int8"


@pytest.mark.no_backend
def test_what_cannot_be_quantized_is_refused():
    backbone, config = tiny_backbone((0, 0, 0, 0, 0)), keras.quantizers.Int8QuantizationConfig(None, None)
    with pytest.raises(ValueError, match="as Keras does by default, .* leave out config="):
        backbone.quantize(config=config)
    with pytest.raises(ValueError, match="doesn't work well with compute_dtype='float16'"):
        tiny_backbone((0, 0, 0, 0, 0), dtype="float16").quantize("int8")


@pytest.mark.no_backend
def test_a_quantized_model_is_evaluated_and_not_trained():
    trainer = DiffusionTrainer(of_policy("int8"))
    trainer.compile()
    data = np.ones((2, 8, 8, 2), "float32"), np.array([1, 2])
    assert np.isfinite(trainer.evaluate(*data, verbose=0)[0])
    for train in (trainer.fit, trainer.train_on_batch):
        with pytest.raises(ValueError, match="^fcdm_backbone is quantized to int8, .* quantize it afterwards.$"):
            train(*data)


def test_a_second_model_has_the_names_of_the_first():
    first, second = (tiny_backbone((1, 0, 0, 0, 0)) for _ in range(2))
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert ClassToImage(first, image_size=8).name == ClassToImage(second, image_size=8).name == "class_to_image"
    if keras.backend.backend() == "torch":
        state = {name: value * 0 for name, value in first.state_dict().items()}
        assert second.load_state_dict(state).missing_keys == []
        assert not to_numpy(second(inputs())).any()


def test_two_models_are_parts_of_one(tmp_path):
    parts = [tiny_backbone((0, 0, 0, 0, 0)) for _ in range(2)]
    parts[1].set_weights([-value for value in parts[0].get_weights()])
    kinds = {"x_t": ((8, 8, 2), "float32"), "timesteps": ((), "int32"), "labels": ((), "int32")}
    given = {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in kinds.items()}
    both = keras.Model(given, keras.layers.Add()([part(given) for part in parts]))
    expected = sum(to_numpy(part(inputs())) for part in parts)
    both.save(tmp_path / "both.keras")
    for model in (both, keras.saving.load_model(tmp_path / "both.keras")):
        np.testing.assert_allclose(to_numpy(model(inputs())), expected, atol=1e-5)
        assert len(model.trainable_variables) == 2 * len(parts[0].trainable_variables)


def test_a_preset_with_another_name_is_loaded(tmp_path):
    named = tiny_backbone((0, 0, 0, 0, 0), name="fcdm_backbone_3")
    named.save_to_preset(tmp_path)
    loaded = FCDMBackbone.from_preset(tmp_path)
    assert loaded.name == "fcdm_backbone_3" and loaded.variables[0].path.startswith("fcdm_backbone_3/")
    np.testing.assert_array_equal(to_numpy(loaded(inputs())), to_numpy(named(inputs())))


@pytest.fixture
def presets(tmp_path):
    """A task, a backbone, and the folder of the task's preset."""
    backbone = tiny_backbone((0, 0, 0, 0, 0), in_channels=3)
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0)), image_size=8)
    task.save_to_preset(tmp_path / "preset")
    return task, backbone, tmp_path / "preset"


@pytest.mark.no_backend
def test_a_preset_is_replaced_whole(presets):
    task, backbone, folder = presets
    (folder / "model_00000.weights.h5").write_text("of an earlier one")
    backbone.save_to_preset(folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", "metadata.json", "model.weights.h5"}
    with pytest.raises(ValueError, match="is the preset of a backbone and not of a task: give autoencoder= and image"):
        ClassToImage.from_preset(folder)
    assert ClassToImage.from_preset(folder, image_size=12).image_size == (12, 12)
    task.save_to_preset(folder)
    assert ClassToImage.from_preset(folder).backbone.in_channels == 2
    assert [p.name for p in folder.parent.iterdir()] == ["preset"]


@pytest.mark.no_backend
@pytest.mark.parametrize("exchanged", [True, False])
def test_an_end_at_any_moment_leaves_the_old_or_the_new(presets, monkeypatch, exchanged):
    _, backbone, folder = presets

    def end(*args):
        raise KeyboardInterrupt

    def save(place, name, replacement):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, name, replacement)
            backbone.save_to_preset(folder)

    for place, name in ((keras_hub.models.Backbone, "save_weights"), (files, "replace_folder"), (os, "fsync")):
        save(place, name, end)
        assert ClassToImage.from_preset(folder).backbone.in_channels == 2
    if not exchanged:  # as on file systems that cannot
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    save(files.shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else end())
    assert FCDMBackbone.from_preset(folder).in_channels == 3


@pytest.mark.no_backend
def test_what_is_no_preset_is_left_alone(presets, tmp_path):
    _, backbone, folder = presets
    run = tmp_path / "run"
    run.mkdir()
    for name, content in (("config.json", "{}"), ("log.csv", "")):
        (run / name).write_text(content)
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    for place, message in (
        (run, "holds log.csv, which is no part of a preset: give a folder that is empty"),
        (folder, "holds notes.txt, which is no part"),
        (tmp_path / "file", "is a file: give another place"),
        (tmp_path / "config", "holds config.json and is no preset"),
    ):
        before = place.stat().st_mtime_ns, sorted(place.iterdir()) if place.is_dir() else None
        with pytest.raises(ValueError, match=message):
            backbone.save_to_preset(place)
        assert before == (place.stat().st_mtime_ns, sorted(place.iterdir()) if place.is_dir() else None)
    assert ClassToImage.from_preset(folder).backbone.in_channels == 2


@pytest.mark.no_backend
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64"])
def test_latents_that_are_no_real_numbers_are_refused(dtype):
    backbone = tiny_backbone((0, 0, 0, 0, 0))
    trainer = DiffusionTrainer(backbone)
    trainer.compile()
    latents = np.ones((2, 8, 8, 2), dtype)
    with pytest.raises(ValueError, match=f"latents must be .*{dtype}"):
        trainer.fit(latents, np.array([1, 2]), verbose=0)
    with pytest.raises(ValueError, match=f"^x_t must be floating-point numbers; `encode` .* Received: dtype {dtype}$"):
        backbone({**inputs(), "x_t": latents})
