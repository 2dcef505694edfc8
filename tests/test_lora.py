"""Adapters (LoRA): trained alone, averaged, saved apart, merged to the same pictures."""

import dataclasses

import numpy as np
import pytest
from helpers import inputs, relative_error, tiny_backbone, to_numpy

from fcdm_keras import ClassToImage
from fcdm_keras.network.base import DiffusionBackbone
from fcdm_keras.recipes import RECIPES
from fcdm_keras.runs import build
from fcdm_keras.training.checkpoint import CheckpointManager
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.trainer import DiffusionTrainer

DEPTHS = (0, 0, 1, 0, 0)
BLOCK = "middle_block_0"


def backbone_of(rank=4, **options):
    backbone = tiny_backbone(DEPTHS, **options)
    if rank:
        backbone.enable_lora(rank)
    return backbone


def trainer_of(backbone):
    trainer = DiffusionTrainer(backbone, ema_decay=0.5, seed=1)
    trainer.compile(AdamW(1e-2))
    return trainer


def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((4, 8, 8, 2), dtype="float32"), np.arange(4, dtype="int32")


def values(model):
    return {v.path.partition("/")[2]: to_numpy(v).copy() for v in model.weights}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_every_layer_that_can_be_adapted_learns_on_from_its_file(tmp_path):
    names = ["hidden", "pwconv1"]  # of the time embeddings, and on feature maps
    for number in range(2):
        backbone = backbone_of(rank=0)
        backbone.enable_lora(2, names)
        if number:
            backbone.load_weights(tmp_path / "a.weights.h5")
        else:
            backbone.save_weights(tmp_path / "a.weights.h5")
        first = [v for v in backbone.trainable_variables if v.name == "lora_kernel_a"]
        assert len(first) > 3 and all(np.any(to_numpy(v)) for v in first)


def moved(backbone):
    """Small values in the second factors, which start at zero."""
    generator = np.random.default_rng(2)
    for layer in (backbone.middle[0].pwconv1, backbone.middle[0].pwconv2):
        layer.lora_kernel_b.assign(generator.standard_normal(layer.lora_kernel_b.shape, dtype="float32"))
    return backbone


def test_the_adapters_alone_are_trained_averaged_and_resumed(tmp_path):
    backbone = backbone_of()
    names = {f"{BLOCK}/pwconv{i}/lora_kernel_{x}" for i in (1, 2) for x in "ab"}
    start, trainer = values(backbone), trainer_of(backbone)
    np.testing.assert_array_equal(to_numpy(backbone(inputs())), to_numpy(backbone_of(rank=0)(inputs())))
    trainer.train_on_batch(*data())
    trainer.train_on_batch(*data())
    found = values(backbone)
    assert {name for name in start if not np.array_equal(start[name], found[name])} == names
    manager = CheckpointManager(tmp_path)
    manager.save(trainer)
    trainer.train_on_batch(*data())

    again = trainer_of(backbone_of())
    assert manager.restore(again) == 2
    assert_same(values(again.backbone), found)
    again.train_on_batch(*data())
    assert_same(values(again.backbone), values(backbone))
    for ours, theirs in zip(again.ema.averages, trainer.ema.averages, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))

    # The averages, drawn from as they are, in the adapted model itself, and merged into one without adapters.
    task = ClassToImage(backbone, image_size=8)
    options = {"num_steps": 1, "sampler": "ddim", "seed": 0}
    drawn = task.generate([1], weights=trainer.ema.values(), **options)
    plain = backbone_of(rank=0)
    trainer.ema.copy_to(plain)
    trainer.ema.copy_to(backbone)
    np.testing.assert_array_equal(task.generate([1], **options), drawn)
    assert relative_error(plain(inputs()), to_numpy(backbone(inputs()))) < 1e-5
    a, b = (to_numpy(getattr(backbone.middle[0].pwconv1, f"lora_kernel_{x}")) for x in "ab")
    expected = start[f"{BLOCK}/pwconv1/kernel"] + a @ b
    np.testing.assert_allclose(to_numpy(plain.middle[0].pwconv1.kernel), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.no_backend)])
def test_adapters_are_saved_alone_and_merged(dtype, tmp_path):
    backbone = moved(backbone_of(dtype=dtype))
    backbone.conditioning.trainable = True
    backbone.conditioning.tables[0].assign(to_numpy(backbone.conditioning.tables[0]) + 1.0)
    expected, base = to_numpy(backbone(inputs())), to_numpy(backbone_of(rank=0, dtype=dtype)(inputs()))
    assert relative_error(base, expected) > 0.1
    file = tmp_path / "a.lora.h5"
    backbone.save_lora_weights(file)
    fresh = backbone_of(rank=0, dtype=dtype, name="another")
    fresh.load_lora_weights(file)
    np.testing.assert_array_equal(to_numpy(fresh(inputs())), expected)
    assert [v.path.partition("/")[2] for v in fresh.trainable_variables] == [
        v.path.partition("/")[2] for v in backbone.trainable_variables
    ]
    backbone.save_to_preset(str(tmp_path / "preset"))
    merged = DiffusionBackbone.from_preset(str(tmp_path / "preset"))
    assert len(merged.weights) == len(backbone.weights) - 4
    assert relative_error(merged(inputs()), expected) < (1e-5 if dtype == "float32" else 0.1)
    kernel = to_numpy(merged.middle[0].pwconv1.kernel)  # whole, in float32, whatever is computed in
    layer = backbone.middle[0].pwconv1
    added = to_numpy(layer.lora_kernel_a) @ to_numpy(layer.lora_kernel_b)
    np.testing.assert_allclose(kernel, values(backbone)[f"{BLOCK}/pwconv1/kernel"] + added, rtol=1e-5, atol=1e-5)


@pytest.mark.no_backend
def test_weights_that_are_loaded_leave_adapters_that_can_be_trained(tmp_path):
    moved(backbone_of()).save_weights(tmp_path / "b.weights.h5")
    backbone = backbone_of()
    first = values(backbone)[f"{BLOCK}/pwconv1/lora_kernel_a"]
    backbone.load_weights(tmp_path / "b.weights.h5")
    assert relative_error(backbone(inputs()), to_numpy(moved(backbone_of())(inputs()))) > 0  # other factors `a`
    np.testing.assert_array_equal(values(backbone)[f"{BLOCK}/pwconv1/lora_kernel_a"], first)
    assert not values(backbone)[f"{BLOCK}/pwconv1/lora_kernel_b"].any()
    trainer_of(backbone).train_on_batch(*data())
    assert values(backbone)[f"{BLOCK}/pwconv1/lora_kernel_b"].any()
    # A whole training goes on with adapters.
    whole = trainer_of(backbone_of(rank=0))
    whole.train_on_batch(*data())
    whole.save_weights(tmp_path / "t.weights.h5")
    adapted = trainer_of(backbone_of())
    with pytest.warns(UserWarning, match="were not trained when"):
        adapted.load_weights(tmp_path / "t.weights.h5")
    np.testing.assert_array_equal(to_numpy(adapted.backbone(inputs())), to_numpy(whole.backbone(inputs())))


@pytest.mark.no_backend
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    backbone, plain, file = backbone_of(), backbone_of(rank=0), tmp_path / "a.lora.h5"
    backbone.save_lora_weights(file)
    other = tmp_path / "other.weights.h5"
    plain.save_weights(other)
    refused = [
        (lambda: backbone.enable_lora(4), "has adapters already, on 2 layers"),
        (lambda: plain.enable_lora(0), "rank must be a positive integer. Received: 0"),
        (lambda: plain.enable_lora(2, ["pwconv1", "x"]), "names of layers with a kernel .* Received: 'x'"),
        (lambda: plain.save_lora_weights(file), "has no adapters to save"),
        (lambda: backbone.save_lora_weights(tmp_path / "a.h5"), "must end in .lora.h5"),
        (lambda: plain.load_lora_weights(other), "holds no adapters"),
        (lambda: backbone_of(2).load_lora_weights(file), "rank 4 for 2 layers.* of rank 2 on 2 layers"),
        (lambda: tiny_backbone((0, 0, 0, 1, 0)).load_lora_weights(file), f"{BLOCK}/pwconv1, a layer that it does not"),
        (lambda: tiny_backbone(DEPTHS, expansion_ratio=2).load_lora_weights(file), r"a layer of \(32, 64\)"),
    ]
    for call, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            call()
    assert not any("lora" in name for name in values(plain))
    trainer = trainer_of(backbone)
    CheckpointManager(tmp_path).save(trainer)
    with pytest.raises(ValueError, match=r"adapters for 2 layers, .* has none: call enable_lora\(4, \['pwconv1', 'pw"):
        CheckpointManager(tmp_path).restore(trainer_of(plain))
    late = trainer_of(backbone_of(rank=0))
    late.backbone.enable_lora(4)
    with pytest.raises(ValueError, match="call `compile` again"):
        late.train_on_batch(*data())
    late.backbone.trainable = False
    with pytest.raises(ValueError, match="No weight of .* is trainable: unfreeze what shall be trained"):
        late.compile(AdamW())


@pytest.mark.no_backend
def test_a_run_trains_adapters_and_exports_them_merged(tmp_path):
    config = dataclasses.replace(RECIPES["digits"], lora_rank=2, init_from="somewhere")
    config.check()
    with pytest.raises(ValueError, match="lora_rank=2 needs init_from"):
        dataclasses.replace(config, init_from="").check()
    trainer = build.build_trainer(config, backbone_of(rank=0, in_channels=1))
    backbone = moved(trainer.backbone)
    trainer.ema.reset()
    recipe = build.build_trainer(config).backbone
    assert sum(np.prod(v.shape) for v in recipe.trainable_variables) < 0.05 * recipe.count_params()
    build.export_preset(trainer, tmp_path / "preset", lambda averaged: build.build_task(config, averaged))
    expected = to_numpy(backbone(inputs(channels=1)))
    merged = ClassToImage.from_preset(str(tmp_path / "preset")).backbone
    assert relative_error(merged(inputs(channels=1)), expected) < 1e-5
    again = backbone_of(rank=0, in_channels=1)
    again.load_lora_weights(tmp_path / "adapters.lora.h5")
    np.testing.assert_array_equal(to_numpy(again(inputs(channels=1))), expected)
