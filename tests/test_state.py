"""What moves in a training step beside the weights: state of layers, losses they add, the optimizer's averages."""

import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy
from keras import ops

from fcdm_keras.training.trainer import DiffusionTrainer

BACKEND = keras.backend.backend()
generator = np.random.default_rng(0)
LATENTS = generator.standard_normal((8, 8, 8, 2), dtype="float32")
VECTORS = generator.standard_normal((8, 4), dtype="float32") + 5
BATCH = {
    "latents": LATENTS,
    "vectors": VECTORS,
    "timesteps": (np.arange(8) * 100).astype("int32"),
    "noise": generator.standard_normal(LATENTS.shape, dtype="float32"),
}


class Moving(keras.layers.Layer):
    """A conditioning module with statistics, a seed, a counter, an added loss and a regularizer."""

    input_name = "vectors"

    def __init__(self, widths=None, penalty=0.0, **kwargs):
        super().__init__(**kwargs)
        self.widths, self.penalty = widths, penalty
        self.normalization = keras.layers.BatchNormalization(momentum=0.5)
        self.dropout = keras.layers.Dropout(0.5, seed=1)

    def build(self, input_shape=None):
        self.normalization.build((None, 4))
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)
        regularizer = keras.regularizers.L2(self.penalty) if self.penalty else None
        self.maps = [self.add_weight(shape=(4, width), regularizer=regularizer) for width in self.widths]

    def call(self, vectors, training=None):
        self.count.assign_add(1.0)
        vectors = self.normalization(vectors, training=training)
        self.dropout(vectors, training=training)
        if self.penalty:
            self.add_loss(self.penalty * ops.mean(ops.square(vectors)))
        return tuple(ops.matmul(vectors, kernel) for kernel in self.maps)


def trainer_of(optimizer=None, *, penalty=0.0, checkpointing=False, steps_per_execution=1, **options):
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone((1, 0, 0, 0, 0), conditioning=Moving(penalty=penalty, name="conditioning"))
    backbone.gradient_checkpointing = checkpointing
    trainer = DiffusionTrainer(backbone, **{"ema_decay": 0.9, "label_dropout": 0.0, **options})
    trainer.compile(optimizer or keras.optimizers.SGD(0.05), steps_per_execution=steps_per_execution)
    return trainer


def weights_of(trainer):
    return [to_numpy(v).copy() for v in trainer.backbone.trainable_variables]


def assert_same(ours, expected, tolerance=1e-5):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_state_of_layers_moves_in_order():
    """Over two steps of two micro-batches in one execution, with gradient checkpointing; in `evaluate` as assigned."""
    trainer = trainer_of(accumulation_steps=2, checkpointing=True, steps_per_execution=2)
    module = trainer.backbone.conditioning
    trainer.fit(BATCH, batch_size=4, shuffle=False, verbose=0)
    mean, variance = np.zeros(4), np.ones(4)
    for start in (0, 2, 4, 6):
        part = VECTORS[start : start + 2]
        mean, variance = 0.5 * mean + 0.5 * part.mean(axis=0), 0.5 * variance + 0.5 * part.var(axis=0)
    np.testing.assert_allclose(to_numpy(module.normalization.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(module.normalization.moving_variance), variance, rtol=1e-4)
    assert to_numpy(module.dropout.seed_generator.state).tolist() == [1, 4] and to_numpy(module.count) == 4
    trainer.evaluate(BATCH, batch_size=4, verbose=0)
    assert to_numpy(module.dropout.seed_generator.state).tolist() == [1, 4] and to_numpy(module.count) == 6
    np.testing.assert_allclose(to_numpy(module.normalization.moving_mean), mean, rtol=1e-5)
    assert trainer.steps_done == 2


def test_losses_of_layers_are_minimised_and_reported():
    plain, penalised = trainer_of(), trainer_of(penalty=0.1, accumulation_steps=2)
    before = [to_numpy(kernel).copy() for kernel in plain.backbone.conditioning.maps]
    expected = plain.test_on_batch(BATCH, return_dict=True)
    found = penalised.test_on_batch(BATCH, return_dict=True)
    gamma, beta = (to_numpy(getattr(plain.backbone.conditioning.normalization, name)) for name in ("gamma", "beta"))
    normal = VECTORS / np.sqrt(1.001) * gamma + beta
    added = 0.1 * (np.mean(normal**2) + sum((kernel**2).sum() for kernel in before))
    assert found["loss"] == pytest.approx(expected["loss"] + added, rel=1e-4)
    assert found["mse"] == pytest.approx(expected["mse"], rel=1e-5)
    penalised.fit(BATCH, batch_size=8, epochs=40, verbose=0)
    sizes = [sum(np.square(to_numpy(k)).sum() for k in t.backbone.conditioning.maps) for t in (plain, penalised)]
    assert sizes[1] < 0.7 * sizes[0]  # (1 − 2 · 0.1 · 0.05)^80 and what the loss asks


def halves():
    return [{name: array[i : i + 4] for name, array in BATCH.items()} for i in (0, 4)]


def test_the_optimizers_own_accumulation_counts_as_one_update():
    """Two steps on halves are one on the whole, and the EMA moves once, by the warm-up of the first update."""
    runs = []
    for optimizer, batches in (
        (keras.optimizers.SGD(0.05), [BATCH]),
        (keras.optimizers.SGD(0.05, gradient_accumulation_steps=2), halves()),
    ):
        keras.utils.set_random_seed(0)
        trainer = DiffusionTrainer(tiny_backbone((1, 0, 0, 0, 0)), ema_decay=0.9, ema_warmup=True, label_dropout=0.0)
        trainer.compile(optimizer)
        start = weights_of(trainer)
        for batch in batches:
            batch = {**batch, "labels": np.arange(len(batch["latents"]))}
            batch["labels"] = np.round(batch.pop("vectors")[:, 0] % 5).astype("int32")
            trainer.train_on_batch(batch)
        runs.append([weights_of(trainer), [to_numpy(a).copy() for a in trainer.ema.averages]])
        decay = 2 / 11
        for average, now, before in zip(runs[-1][1], runs[-1][0], start, strict=True):
            np.testing.assert_allclose(average, decay * before + (1 - decay) * now, rtol=1e-5, atol=1e-6)
    assert_same(runs[1][0], runs[0][0])


@pytest.mark.parametrize("frequency", [None, pytest.param(2, marks=pytest.mark.no_backend)])
def test_the_optimizers_own_averages_work_beside_ours(frequency):
    """Keras's averages in NumPy, of the weights after each step; at the end of `fit` they are the weights."""
    trainer = trainer_of(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=frequency))
    plain = trainer_of()
    ours, theirs = weights_of(plain), None
    for step in range(1, 3):
        plain.train_on_batch(BATCH)
        now = weights_of(plain)
        theirs = now if theirs is None else [0.7 * a + 0.3 * w for a, w in zip(theirs, now, strict=True)]
        if frequency and step % frequency == 0:
            now = theirs
        ours = [0.9 * a + 0.1 * w for a, w in zip(ours, now, strict=True)]
    data = {name: np.concatenate([array] * 2) for name, array in BATCH.items()}
    trainer.fit(data, batch_size=8, shuffle=False, verbose=0)
    assert_same(map(to_numpy, trainer.ema.values()), ours)
    assert_same(weights_of(trainer), theirs)
    trainer.train_on_batch(BATCH)  # the weights share no memory with the averages


def test_layers_that_are_frozen_ask_for_compile():
    trainer = trainer_of()
    trainer.backbone.conditioning.trainable = False
    with pytest.raises(ValueError, match="frozen or unfrozen since `compile`: call `compile` again"):
        trainer.fit(BATCH, verbose=0)
    with pytest.raises(ValueError, match="give `compile` a new optimizer"):
        trainer.compile(trainer.optimizer)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch runs one process per device")
def test_optimizer_strings_work():
    trainer = trainer_of("adam")
    assert isinstance(trainer.optimizer, keras.optimizers.Adam)
