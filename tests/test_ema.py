"""Averages and optimizer state belong to weights: whatever is frozen, renamed or added, and in files too."""

import copy
import json
import pickle
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy

from fcdm_keras import ClassToImage
from fcdm_keras.network.conditioning import ClassConditioning
from fcdm_keras.training.checkpoint import MANIFEST, WEIGHTS, CheckpointManager
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.trainer import DiffusionTrainer

DEPTHS = (0, 0, 1, 0, 0)


@keras.saving.register_keras_serializable("test_ema")
class Noisy(ClassConditioning):
    """Tables, and unnamed layers with random state, a statistic and a counter."""

    def build(self, input_shape=None):
        super().build(input_shape)
        self.dense, self.drop_out = [keras.layers.Dense(w) for w in self.widths], keras.layers.Dropout(0.5)
        for dense, width in zip(self.dense, self.widths):
            dense.build((None, width))
        self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, labels):
        return tuple(self.drop_out(dense(v)) for dense, v in zip(self.dense, super().call(labels)))


def backbone_of(frozen=(), **options):
    backbone = tiny_backbone(DEPTHS, **options)
    for name in frozen:
        getattr(backbone, name).trainable = False
    return backbone


def trainer_of(backbone=None, optimizer=None, **options):
    trainer = DiffusionTrainer(backbone or backbone_of(), **{"ema_decay": 0.9, **options})
    trainer.compile(optimizer or AdamW(1e-3))
    return trainer


def filled(trainer, seed=0):
    """The trainer with random averages and moments, as after some steps."""
    generator = np.random.default_rng(seed)
    trainer.ema.begin()
    for variable in (*trainer.ema.averages, *trainer.optimizer.variables):
        if variable.shape:
            variable.assign(generator.standard_normal(variable.shape, dtype="float32"))
    trainer.optimizer.iterations.assign(3)
    trainer.step.assign(3)
    return trainer


def averages(trainer):
    """Path → average, as `copy_to` gives them to another backbone."""
    target = tiny_backbone(DEPTHS)
    trainer.ema.copy_to(target)
    return {v.path.partition("/")[2]: to_numpy(v).copy() for v in target.weights}


def moments(trainer):
    """Path and kind → value, of what the optimizer keeps per weight."""
    name = trainer.backbone.name + "_"
    return {v.name.removeprefix(name): to_numpy(v).copy() for v in trainer.optimizer.variables if v.shape}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((4, 8, 8, 2), dtype="float32"), np.arange(4, dtype="int32")


def test_freezing_after_the_trainer_was_made_changes_nothing_else():
    trainer = trainer_of(optimizer=keras.optimizers.SGD(0.1))
    backbone = trainer.backbone
    values, task = trainer.ema.values(), ClassToImage(backbone, image_size=8)
    options = {"num_steps": 1, "sampler": "ddim", "seed": 0}
    before = task.generate([1], weights=values, **options)
    backbone.x_embedder.trainable = False
    np.testing.assert_array_equal(task.generate([1], weights=values, **options), before)
    np.testing.assert_array_equal(task.generate([1], weights=trainer.ema.values(), **options), before)
    by_path = {"x_embedder/kernel": to_numpy(backbone.x_embedder.kernel)}
    np.testing.assert_array_equal(task.generate([1], weights=by_path, **options), before)
    with pytest.raises(ValueError, match="The values given belong to another network than .*: x is not among its"):
        task.generate([1], weights={"x": np.zeros(1)}, **options)
    with pytest.raises(ValueError, match=r"weights must hold \d+ values.* Received: 1"):
        task.generate([1], weights=[np.zeros(1)], **options)

    trainer.compile(keras.optimizers.SGD(0.1))
    kernel, bias = (to_numpy(v).copy() for v in (backbone.x_embedder.kernel, backbone.output_layer.bias))
    for table in backbone.conditioning.tables:
        table.assign(table + 1.0)  # weights that change before the first step
    tables = [to_numpy(table).copy() for table in backbone.conditioning.tables]
    trainer.train_on_batch(*data())
    np.testing.assert_array_equal(to_numpy(backbone.x_embedder.kernel), kernel)
    found = averages(trainer)
    np.testing.assert_array_equal(found["x_embedder/kernel"], kernel)
    moved = to_numpy(backbone.output_layer.bias)
    np.testing.assert_allclose(found["output_layer/bias"], 0.9 * bias + 0.1 * moved, rtol=1e-5, atol=1e-6)
    expected = 0.9 * tables[0] + 0.1 * to_numpy(backbone.conditioning.tables[0])
    np.testing.assert_allclose(found["conditioning/table_1"], expected, rtol=1e-5, atol=1e-6)
    trainer.ema.copy_to(backbone)
    np.testing.assert_array_equal(to_numpy(backbone.conditioning.tables[0]), found["conditioning/table_1"])


@pytest.mark.no_backend
@pytest.mark.parametrize("first, second", [((), ("x_embedder",)), (("x_embedder",), ("down_1",))])
def test_a_checkpoint_is_restored_whatever_is_frozen(first, second, tmp_path):
    writer, reader = filled(trainer_of(backbone_of(first)), 1), filled(trainer_of(backbone_of(second)), 2)
    CheckpointManager(tmp_path).save(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert CheckpointManager(tmp_path).restore(reader) == 3
    assert_same(averages(reader), averages(writer))
    found, expected = moments(reader), moments(writer)
    assert_same({n: v for n, v in found.items() if n in expected}, {n: v for n, v in expected.items() if n in found})
    said = [str(w.message) for w in caught if "were not trained when" in str(w.message)]
    assert len(said) == bool(found.keys() - expected.keys())
    assert int(to_numpy(reader.optimizer.iterations)) == 3


@pytest.mark.no_backend
@pytest.mark.parametrize("frozen", [("x_embedder",)])
def test_files_of_earlier_versions_have_no_paths(frozen, tmp_path):
    writer, reader = filled(trainer_of(backbone_of(frozen)), 1), filled(trainer_of(backbone_of(frozen)), 2)
    writer.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        for group in (file["ema/vars"], file["optimizer/vars"]):
            for item in (group, *group.values()):
                for name in {"path", "place", "kind", "class", "learning_rate"} & set(item.attrs):
                    del item.attrs[name]
    reader.load_weights(tmp_path / "a.weights.h5")
    assert_same(averages(reader), averages(writer))
    assert_same(moments(reader), moments(writer))


@pytest.mark.no_backend
def test_a_renamed_model_and_unnamed_layers_are_matched_by_place(tmp_path):
    def make(**options):
        return trainer_of(tiny_backbone(DEPTHS, conditioning=Noisy(10, name="conditioning"), **options))

    writer, reader = filled(make(), 1), make(name="another")
    assert writer.backbone.conditioning.dense[0].name != reader.backbone.conditioning.dense[0].name
    writer.backbone.conditioning.seen.assign(7)
    CheckpointManager(tmp_path).save(writer)
    writer.backbone.conditioning.drop_out.seed_generator.next()  # moves on after the checkpoint
    CheckpointManager(tmp_path).restore(reader)
    for ours, theirs in zip(reader.ema.averages, writer.ema.averages, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    assert int(to_numpy(reader.backbone.conditioning.seen)) == 7
    stored = json.loads((CheckpointManager(tmp_path).path(3) / MANIFEST).read_text())["state"]["generators"]
    state = reader.backbone.conditioning.drop_out.seed_generator.state
    assert stored == [to_numpy(state).tolist()]
    assert stored != [to_numpy(writer.backbone.conditioning.drop_out.seed_generator.state).tolist()]
    half = tiny_backbone(DEPTHS, conditioning=Noisy(10, name="conditioning"), dtype="bfloat16")
    writer.ema.copy_to(half)
    assert int(to_numpy(half.conditioning.seen)) == 7
    value = dict(zip(map(id, writer.ema._sources), writer.ema.averages))[id(writer.backbone.x_embedder.bias)]
    np.testing.assert_allclose(to_numpy(half.x_embedder.bias).astype("float32"), to_numpy(value), rtol=1e-2)
    with pytest.raises(ValueError, match=r"conditioning/table_1 is \(11, 8\) there and \(6, 8\) in this one"):
        trainer_of().ema.copy_to(tiny_backbone(DEPTHS, num_classes=5))


@pytest.mark.no_backend
def test_weights_that_are_added_are_taken_up_when_compiled():
    trainer = trainer_of()
    known = len(trainer.ema.averages)
    trainer.backbone.merge_1.enable_lora(2)
    trainer.compile(AdamW(1e-3))
    assert len(trainer.ema.averages) == known + 2
    trainer.train_on_batch(*data())
    trainer.ema.copy_to(trainer.backbone)


@pytest.mark.no_backend
def test_loading_weights_through_the_trainer_starts_the_averages_from_them(tmp_path):
    trainer, source = filled(trainer_of()), tiny_backbone(DEPTHS)
    source.x_embedder.bias.assign(np.arange(8, dtype="float32"))
    source.save_weights(tmp_path / "b.weights.h5")
    trainer.load_weights(tmp_path / "b.weights.h5")
    np.testing.assert_array_equal(averages(trainer)["x_embedder/bias"], np.arange(8))
    trainer.backbone.x_embedder.bias.assign(np.ones(8, "float32"))
    trainer.ema.reset()
    np.testing.assert_array_equal(averages(trainer)["x_embedder/bias"], np.ones(8))


def cosine(rate):
    return keras.optimizers.schedules.CosineDecay(rate, 10)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    "before, now, said",
    [
        (1e-3, 1e-5, "at a learning rate of 0.001; it goes on at 1e-05, as compiled"),
        (cosine(1e-3), 1e-5, "at a learning rate of 0.00079.*; it goes on at 1e-05"),
        (cosine(1e-3), cosine(1e-3), None),
    ],
)
def test_the_learning_rate_is_the_one_compiled(before, now, said, tmp_path):
    writer, reader = filled(trainer_of(optimizer=AdamW(before)), 1), trainer_of(optimizer=AdamW(now))
    CheckpointManager(tmp_path).save(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CheckpointManager(tmp_path).restore(reader)
    assert_same(moments(reader), moments(writer))
    found = [str(w.message) for w in caught if "learning rate" in str(w.message)]
    assert len(found) == (said is not None)
    assert not said or re.search(said, found[0])
    expected = now(3) if callable(now) else now
    assert float(to_numpy(reader.optimizer.learning_rate)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.no_backend
def test_loss_scaling_comes_and_goes_and_another_optimizer_is_named(tmp_path):
    plain, scaled = filled(trainer_of(), 1), trainer_of(backbone_of(dtype="mixed_float16"))
    CheckpointManager(tmp_path / "plain").save(plain)
    CheckpointManager(tmp_path / "plain").restore(scaled)
    assert_same(moments(scaled), moments(plain))
    assert float(to_numpy(scaled.optimizer.dynamic_scale)) == 2.0**15
    scaled.optimizer.dynamic_scale.assign(64.0)
    CheckpointManager(tmp_path / "scaled").save(scaled)
    for reader in (trainer_of(), trainer_of(backbone_of(dtype="mixed_float16"))):
        CheckpointManager(tmp_path / "scaled").restore(reader)
        assert_same(moments(reader), moments(plain))
    assert float(to_numpy(reader.optimizer.dynamic_scale)) == 64.0
    sgd = trainer_of(optimizer=keras.optimizers.SGD(0.1))
    with pytest.raises(
        ValueError, match=r"of AdamW \(momentum, velocity\), this trainer is compiled with SGD \(no state"
    ):
        CheckpointManager(tmp_path / "plain").restore(sgd)


@pytest.mark.no_backend
def test_a_trainer_that_cannot_be_copied_says_what_can_be_done(tmp_path):
    trainer = trainer_of()
    for attempt in (
        lambda: trainer.save(tmp_path / "t.keras"),
        lambda: keras.models.save_model(trainer, tmp_path / "t.keras"),
        lambda: copy.deepcopy(trainer),
        lambda: keras.models.clone_model(trainer),
        lambda: pickle.dumps(trainer),
        trainer.get_config,
        lambda: DiffusionTrainer.from_config({}),
    ):
        with pytest.raises(
            NotImplementedError, match=r"^A DiffusionTrainer is not made from .*save_weights.*Checkpoin"
        ):
            attempt()


def test_a_backbone_can_be_saved_and_copied(tmp_path):
    backbone = backbone_of(("x_embedder",))
    backbone.save(tmp_path / "m.keras")
    copies = (
        keras.models.load_model(tmp_path / "m.keras"),
        copy.deepcopy(backbone),
        pickle.loads(pickle.dumps(backbone)),
    )
    for other in copies:
        for a, b in zip(other.weights, backbone.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    clone = keras.models.clone_model(backbone)
    assert [v.shape for v in clone.weights] == [v.shape for v in backbone.weights]


@pytest.mark.no_backend
@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_last": -1}, {"keep_every": -1}, {"keep_last": 1.5}])
def test_numbers_of_checkpoints_that_keep_none_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match="must be (a positive integer|an integer of at least 0). Received: "):
        CheckpointManager(tmp_path, **options)
    assert WEIGHTS not in str(list(tmp_path.iterdir()))
