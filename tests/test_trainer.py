"""The training step through `compile`, `fit` and `evaluate`; four steps against the reference are in test_golden.py."""

import functools

import grain
import keras
import numpy as np
import pytest
from helpers import quick_on_torch, tiny_backbone, to_numpy
from keras import ops

from fcdm_keras.diffusion import randomness
from fcdm_keras.training.optimizer import AdamW
from fcdm_keras.training.trainer import DiffusionTrainer


def data(count=8, seed=0):
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((count, 8, 8, 2), dtype="float32")
    return latents, generator.integers(0, 10, count).astype("int32")


@functools.cache
def built(optimizer, clip, dtype, checkpointing, **options):
    """A trainer as `trainer_of` describes, and the values of all its variables at its start."""
    trainer = DiffusionTrainer(tiny_backbone((1, 0, 0, 0, 0), dtype=dtype), **options)
    trainer.backbone.gradient_checkpointing = checkpointing
    trainer.compile(optimizer(global_clipnorm=clip))
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return trainer, [(variable, to_numpy(variable).copy()) for variable in variables]


def trainer_of(optimizer=AdamW, learning_rate=1e-3, *, clip=None, dtype="float32", checkpointing=False, **options):
    """A trainer at its start. Those of the same settings are one, set back: each is compiled once for all tests."""
    trainer, start = built(optimizer, clip, dtype, checkpointing, **{"ema_decay": 0.9, **options})
    for variable, value in start:
        variable.assign(value)
    trainer.optimizer.learning_rate.assign(learning_rate)
    return trainer


def weights_of(trainer):
    """Copies of the weights and their averages."""
    return [to_numpy(v).copy() for v in (*trainer.backbone.trainable_variables, *trainer.ema.averages)]


def assert_weights_equal(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_one_batch_is_overfitted():
    """The loss on a batch with fixed noise falls by a factor, so gradients, optimizer and loss point the same way."""
    latents, labels = data(4)
    batch = {
        "latents": latents,
        "labels": labels,
        "timesteps": np.array([10, 200, 500, 900], "int32"),
        "noise": np.random.default_rng(1).standard_normal(latents.shape, dtype="float32"),
    }
    trainer = trainer_of(learning_rate=1e-2, label_dropout=0.0)
    endless = grain.MapDataset.source(range(10_000)).map(lambda _: batch)
    history = trainer.fit(endless, steps_per_epoch=20, epochs=8, verbose=0, shuffle=False).history["loss"]
    assert history[-1] < 0.25 * history[0]


def test_fit_draws_the_same_from_arrays_and_data_sets_and_repeats_itself():
    latents, labels = data(16)
    runs = []
    for form in ("arrays", "dataset", "dataset"):
        trainer = trainer_of()
        if form == "arrays":
            trainer.fit(latents, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        else:
            batches = [{"latents": latents[i : i + 8], "labels": labels[i : i + 8]} for i in (0, 8)] * 2
            trainer.fit(grain.MapDataset.source(batches), steps_per_epoch=4, shuffle=False, verbose=0)
        assert int(to_numpy(trainer.step.value)) == 4
        assert int(to_numpy(trainer.optimizer.iterations.value)) == 4
        runs.append(weights_of(trainer))
    assert_weights_equal(
        runs[0], runs[1], rtol=0, atol=2e-4
    )  # shapes known or not: other rounding, which Adam amplifies
    assert_weights_equal(runs[1], runs[2], rtol=0, atol=0)


def test_the_end_of_a_finite_data_set_does_not_count_as_a_step():
    """Keras on TensorFlow runs one step more there, without data."""
    latents, labels = data(24)

    def batches():
        for i in (0, 8, 16):
            yield ({"latents": latents[i : i + 8], "labels": labels[i : i + 8]},)

    trainer = trainer_of()
    trainer.fit(batches(), verbose=0)
    assert int(to_numpy(trainer.step.value)) == int(to_numpy(trainer.optimizer.iterations.value)) == 3


SGD = functools.partial(trainer_of, keras.optimizers.SGD)  # Adam's first steps are sign-like and blow rounding up


@quick_on_torch
def test_accumulated_micro_batches_equal_the_whole_batch():
    """Where the norm of the mean gradients is clipped, 16.7 at first, and where it is not, 7.9; four times that is."""
    latents, labels = data(8)
    noise = np.random.default_rng(1).standard_normal(latents.shape, dtype="float32")
    batches = [{"latents": latents, "labels": labels, "noise": scale * noise} for scale in (1.0, 10.0)]
    runs = []
    for accumulation_steps in (1, 4):
        trainer = SGD(0.005, clip=12.0, accumulation_steps=accumulation_steps)
        logs, weights = [], []
        for batch in batches:
            logs.append(trainer.train_on_batch(batch, return_dict=True))
            weights += weights_of(trainer)
        runs.append((weights, logs))
    assert_weights_equal(runs[0][0], runs[1][0], rtol=1e-4, atol=1e-6)
    for one, four in zip(runs[0][1], runs[1][1], strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)


def test_gradients_can_be_clipped():
    latents, labels = data(8)
    norms = []
    for clip in (None, 1.0):
        trainer = SGD(1.0, clip=clip, accumulation_steps=1)
        before = [to_numpy(v).copy() for v in trainer.backbone.trainable_variables]
        trainer.train_on_batch(latents, labels)
        moved = [to_numpy(v) - b for v, b in zip(trainer.backbone.trainable_variables, before, strict=True)]
        norms.append(np.sqrt(sum((m**2).sum() for m in moved)))
    assert norms[0] > 2.0
    assert norms[1] == pytest.approx(1.0, rel=1e-3)


def test_evaluate_repeats_itself_in_any_batch_size_and_drops_no_labels():
    latents, labels = data(8)
    trainer = trainer_of(label_dropout=0.9)
    first = trainer.evaluate(latents, labels, batch_size=8, verbose=0, return_dict=True)
    second = trainer.evaluate(latents, labels, batch_size=2, verbose=0, return_dict=True)
    assert set(first) == {"loss", "mse", "vb"}
    assert first == pytest.approx(second, rel=1e-5)
    assert first["loss"] == pytest.approx(first["mse"] + first["vb"], rel=1e-5)
    without = trainer_of(label_dropout=0.0)
    assert without.evaluate(latents, labels, verbose=0, return_dict=True) == pytest.approx(first, rel=1e-5)


@quick_on_torch
@pytest.mark.parametrize(("mode", "joint_null"), [("joint", 0.3), ("per_level", 0.3**3)])
def test_labels_are_dropped_as_often_as_asked(mode, joint_null):
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0)), label_dropout=0.3, label_dropout_mode=mode)
    batch = trainer.unpack((np.zeros((4096, 4, 4, 2), "float32"), np.arange(4096, dtype="int32") % 10))
    labels = to_numpy(trainer.draw(batch)["labels"])
    null = labels == 10
    assert null.mean() == pytest.approx(0.3, abs=0.03)
    assert null.reshape(4096, -1).all(axis=1).mean() == pytest.approx(joint_null, abs=0.03)
    kept = labels.reshape(4096, -1)[~null.reshape(4096, -1).any(axis=1)]
    assert (kept < 10).all()


@quick_on_torch
def test_no_two_uses_share_a_stream_of_random_numbers(monkeypatch):
    trainer, purposes, keys = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0))), [], randomness.sample_keys
    monkeypatch.setattr(randomness, "sample_keys", lambda *args: purposes.append(args[1]) or keys(*args))
    batch = trainer.unpack(data())
    trainer.draw(batch)
    trainer.draw_for_evaluation(batch)
    names = ("TIMESTEPS", "NOISE", "LABEL_DROP", "EVAL_TIMESTEPS", "EVAL_NOISE")
    assert sorted(purposes) == sorted(getattr(randomness, name) for name in names) and len(set(purposes)) == 5


@quick_on_torch
def test_timesteps_are_drawn_over_the_whole_process():
    trainer = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0)))
    latents = np.zeros((20_000, 1, 1, 2), "float32")
    batch = {"latents": latents, "labels": np.zeros(20_000, "int32"), "noise": latents}
    timesteps = to_numpy(trainer.draw(trainer.unpack(batch))["timesteps"])
    counts = np.bincount(timesteps, minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0 and counts.max() < 60


@quick_on_torch
def test_draws_differ_between_rows_and_steps_and_follow_the_seed():
    draws = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        trainer = DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0)), seed=seed)
        trainer.step.assign(step)
        batch = trainer.draw(trainer.unpack((np.zeros((64, 4, 4, 2), "float32"), np.zeros(64, "int32"))))
        draws.append((to_numpy(batch["timesteps"]), to_numpy(batch["noise"])))
    times, noise = draws[0]
    assert len(set(times.tolist())) > 50 and times.min() >= 0 and times.max() <= 999
    assert np.abs(np.corrcoef(noise.reshape(64, -1)) - np.eye(64)).max() < 0.8
    np.testing.assert_array_equal(noise, draws[1][1])
    for other in draws[2:]:
        assert (other[0] != times).mean() > 0.9 and np.abs(other[1] - noise).max() > 0.1


@pytest.mark.parametrize("warmup", [False, pytest.param(True, marks=pytest.mark.quick)])  # without: test_golden.py
def test_ema_follows_its_formula(warmup):
    latents, labels = data(8)
    trainer = trainer_of(ema_warmup=True) if warmup else trainer_of()
    expected = [to_numpy(v).astype("float64") for v in trainer.backbone.trainable_variables]
    for n in (1, 2, 3):
        trainer.train_on_batch(latents, labels)
        decay = min(0.9, (1 + n) / (10 + n)) if warmup else 0.9
        now = [to_numpy(v) for v in trainer.backbone.trainable_variables]
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, now, strict=True)]
    for average, value in zip(trainer.ema.averages, expected, strict=True):
        np.testing.assert_allclose(to_numpy(average), value, atol=1e-6)
    copy = tiny_backbone((1, 0, 0, 0, 0))
    trainer.ema.copy_to(copy)
    np.testing.assert_array_equal(to_numpy(copy.trainable_variables[0]), to_numpy(trainer.ema.averages[0]))


def test_ema_is_float32_under_mixed_precision_and_takes_small_steps():
    """0.9999 rounds to 1 in bfloat16, where the average would never move."""
    latents, labels = data(8)
    trainer = trainer_of(learning_rate=1e-2, dtype="mixed_bfloat16", ema_decay=0.9999)
    before = [to_numpy(a).copy() for a in trainer.ema.averages]
    trainer.train_on_batch(latents, labels)
    assert all(keras.backend.standardize_dtype(a.dtype) == "float32" for a in trainer.ema.averages)
    moved = [np.abs(to_numpy(a) - b).max() for a, b in zip(trainer.ema.averages, before, strict=True)]
    assert max(moved) == pytest.approx(1e-6, rel=0.2)  # (1 − decay) · learning rate


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_as_float32_does(policy):
    latents, labels = data(8)
    losses = []
    for options in ({}, {"dtype": policy, "ema_decay": 0.9999}):
        trainer = trainer_of(**options)
        losses.append([trainer.train_on_batch(latents, labels, return_dict=True)["loss"] for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_gradient_checkpointing_trains_the_same():
    latents, labels = data(8)
    runs = []
    for switch in (False, True):
        trainer = SGD(0.05, accumulation_steps=1, checkpointing=switch)
        for _ in range(2):
            trainer.train_on_batch(latents, labels)
        runs.append(weights_of(trainer))
    assert_weights_equal(*runs, rtol=1e-4, atol=1e-6)


@quick_on_torch
def test_our_adamw_is_the_published_algorithm():
    """Kingma and Ba, algorithm 1, in float64; gradients as small as ε, where Keras's variant differs most."""
    generator = np.random.default_rng(0)
    weights, gradients = generator.standard_normal(50), 1e-8 * generator.standard_normal((5, 50))
    ours = keras.Variable(weights.astype("float32"))
    optimizer = AdamW(1e-2, weight_decay=0.1)
    m = v = np.zeros(50)
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weights = weights - 1e-2 * 0.1 * weights
        weights = weights - 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")], [ours])
    np.testing.assert_allclose(to_numpy(ours), weights, rtol=1e-4, atol=1e-5)
    assert AdamW.from_config(optimizer.get_config()).epsilon == 1e-8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 1.0}, r"EMA decay must lie in \[0, 1\). Received: 1.0"),
        ({"label_dropout": 1.0}, "label_dropout must lie in"),
        ({"label_dropout_mode": "both"}, "label_dropout_mode must be one of"),
        ({"accumulation_steps": 0}, "accumulation_steps must be a positive integer"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTrainer(tiny_backbone((0, 0, 0, 0, 0)), **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"latents": np.zeros((4, 8, 8, 2), "float32")}, "A batch must hold"),
        (
            {"latents": np.zeros((4, 8, 8, 2), "float32"), "labels": np.zeros(4, "int32"), "extra": np.zeros(4)},
            "A batch must hold",
        ),
        (np.zeros((4, 8, 8, 2), "float32"), "a tuple without a condition"),
        ({"latents": np.zeros((4, 8, 6, 2), "float32"), "labels": np.zeros(4, "int32")}, "divisible by 4"),
        (
            {"latents": np.zeros((3, 8, 8, 2), "float32"), "labels": np.zeros(3, "int32")},
            "divisible by accumulation_steps=2",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, message):
    trainer = trainer_of(accumulation_steps=2)
    with pytest.raises(ValueError, match=message):
        trainer.train_on_batch(batch)
