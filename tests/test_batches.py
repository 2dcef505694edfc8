"""What people give to `fit`: arrays and data sets of all kinds, right or refused in a sentence, weighed, and short."""

import functools

import grain
import keras
import numpy as np
import pytest
from helpers import tiny_backbone, to_numpy

from fcdm_keras.training.autoencoder import AutoencoderTrainer
from fcdm_keras.training.trainer import DiffusionTrainer

BACKEND = keras.backend.backend()
generator = np.random.default_rng(0)
LATENTS = generator.standard_normal((10, 8, 8, 2), dtype="float32")
NOISE = generator.standard_normal(LATENTS.shape, dtype="float32")
TIMES = (np.arange(10) * 97).astype("int32")
LABELS = np.arange(10, dtype="int64")
BATCH = {"latents": LATENTS, "labels": LABELS, "timesteps": TIMES, "noise": NOISE}


@functools.cache
def built(accumulation_steps):
    trainer = DiffusionTrainer(
        tiny_backbone((1, 0, 0, 0, 0)), ema_decay=0.9, label_dropout=0.0, accumulation_steps=accumulation_steps
    )
    trainer.compile(keras.optimizers.SGD(0.05))
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return trainer, [(variable, to_numpy(variable).copy()) for variable in variables]


def fresh(accumulation_steps=1):
    """A trainer at its start, compiled once for all tests."""
    trainer, start = built(accumulation_steps)
    for variable, value in start:
        variable.assign(value.copy())  # TensorFlow may go on in the array's memory
    return trainer


def aligned(array):
    """A copy in memory that TensorFlow takes as it is."""
    memory = np.empty(array.nbytes + 64, "uint8")
    copy = memory[-memory.ctypes.data % 64 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def weights_of(trainer):
    return [to_numpy(v).copy() for v in (*trainer.backbone.trainable_variables, *trainer.ema.averages)]


def assert_same(ours, expected, tolerance=1e-5):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def parts(size=4, **arrays):
    """Batches of the ten samples, the last of them short."""
    return [{name: array[i : i + size] for name, array in {**BATCH, **arrays}.items()} for i in range(0, 10, size)]


class Dataset(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def kinds(batches):
    """The same `(dict, None, weights)` or dict batches as each kind of data set that Keras takes."""
    import tensorflow as tf
    import torch

    yield "py_dataset", Dataset(batches)
    yield "generator", (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
    yield "grain", grain.MapDataset.source(batches)
    yield (
        "grain loader",
        grain.DataLoader(data_source=batches, sampler=grain.samplers.SequentialSampler(len(batches)), worker_count=0),
    )
    first = batches[0]
    signature = tf.nest.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), first)
    yield "tf.data", tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    yield "torch", torch.utils.data.DataLoader(batches, batch_size=None)


@functools.cache
def of_arrays():
    trainer = fresh()
    losses = trainer.fit(BATCH, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
    return losses, weights_of(trainer)


KINDS = [
    pytest.param(kind, marks=() if kind == "tf.data" else pytest.mark.no_backend)
    for kind in ("py_dataset", "generator", "grain", "grain loader", "tf.data", "torch")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_data_sets_train_and_are_checked(kind):
    trainer = fresh()
    epochs = 1 if kind == "generator" else 2
    history = trainer.fit(dict(kinds(parts()))[kind], epochs=epochs, shuffle=False, verbose=0).history["loss"]
    losses, weights = of_arrays()
    assert history == pytest.approx(losses[:epochs], rel=1e-5)
    if epochs == 2:
        assert_same(weights_of(trainer), weights)
    before = weights_of(trainer)
    with pytest.raises(ValueError, match=r"^Labels must lie in \[0, 9\].* Received: values from 2 to 11"):
        trainer.fit(dict(kinds(parts(10, labels=LABELS + 2)))[kind], shuffle=False, verbose=0)
    with pytest.raises(ValueError, match=r"^Labels must lie in \[0, 9\]"):
        trainer.evaluate(dict(kinds(parts(labels=LABELS - (LABELS == 4) * 5)))[kind], verbose=0)
    assert_same(weights_of(trainer), before, 0)


def mean_losses(trainer, weights):
    """Each sample's own losses, found one by one, and their weighed means in NumPy."""
    single = [
        trainer.test_on_batch({name: array[i : i + 1] for name, array in BATCH.items()}, return_dict=True)
        for i in range(10)
    ]
    return {name: np.mean([w * float(one[name]) for w, one in zip(weights, single)]) for name in single[0]}


@pytest.mark.no_backend
def test_weights_multiply_the_losses_of_samples():
    weights = np.linspace(0, 3, 10)
    trainer = fresh()
    expected = mean_losses(trainer, weights)
    assert trainer.test_on_batch(BATCH, None, weights, return_dict=True) == pytest.approx(expected, rel=1e-5)
    found = trainer.evaluate(BATCH, batch_size=4, sample_weight=weights[:, None], verbose=0, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-5)
    classes = dict(enumerate(weights))
    runs = []
    for options in ({"sample_weight": weights}, {"class_weight": classes}):
        trainer = fresh()
        logs = trainer.train_on_batch(BATCH, return_dict=True, **options)
        assert logs == pytest.approx(expected, rel=1e-5)
        runs.append(weights_of(trainer))
    for data, options in (
        (Dataset([(BATCH, None, weights)]), {}),
        (grain.MapDataset.source([BATCH]), {"class_weight": classes}),
    ):
        trainer = fresh()
        assert trainer.fit(data, shuffle=False, verbose=0, **options).history["loss"] == pytest.approx(
            [expected["loss"]], rel=1e-5
        )
        runs.append(weights_of(trainer))
    for run in runs[1:]:
        assert_same(run, runs[0])


@pytest.mark.no_backend
def test_weights_are_those_of_the_gradient_steps():
    """A weight of two is as good as a sample that comes twice, and one of zero as one that is left out."""
    twice = {name: array[[0, 1, 1, 3]] for name, array in BATCH.items()}
    plain = {name: array[:4] for name, array in BATCH.items()}
    runs = []
    for accumulation_steps, batch, weights in ((1, twice, None), (1, plain, [1, 2, 0, 1]), (2, plain, [1, 2, 0, 1])):
        trainer = fresh(accumulation_steps)
        trainer.train_on_batch(batch, None, weights and np.array(weights))
        runs.append(weights_of(trainer))
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


def test_short_batches_are_whole_under_accumulation():
    """Nine samples in fours: the last step is that of one sample, whatever it is filled up with.

    The arrays stay as they are: TensorFlow writes into memory that it has split, if that is theirs.
    """
    latents = aligned(LATENTS)
    runs = []
    for accumulation_steps in (1, 2):
        trainer = fresh(accumulation_steps)
        arrays = {name: array[:9] for name, array in {**BATCH, "latents": latents}.items()}
        history = trainer.fit(arrays, batch_size=4, shuffle=False, verbose=0, validation_data=(arrays,)).history
        runs.append((weights_of(trainer), [history[name][0] for name in sorted(history)]))
    assert_same(runs[1][0], runs[0][0])
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-5)
    streamed = fresh(2)
    streamed.fit(Dataset([{name: array[:9][i : i + 4] for name, array in BATCH.items()} for i in (0, 4, 8)]),
                 shuffle=False, verbose=0)  # fmt: skip
    assert_same(weights_of(streamed), runs[0][0])
    np.testing.assert_array_equal(latents, LATENTS)


@pytest.mark.no_backend
@pytest.mark.parametrize("kind", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_all_ways_refuse_the_same(kind):
    trainer = fresh(2)
    for x, y, message in REFUSED:
        with pytest.raises(ValueError, match=message) as caught:
            getattr(trainer, kind)(x, y)
        assert "\n" not in str(caught.value)
    assert trainer.steps_done == 0


NCHW = LATENTS.transpose(0, 3, 1, 2)
REFUSED = [
    (NCHW, LABELS, r"as if channels came first; give latents.transpose\(0, 2, 3, 1\)"),
    (LATENTS[..., :1], LABELS, r"latents must have shape \(N, H, W, 2\)"),
    (LATENTS[0], LABELS[:1], r"All arrays must have the same number|shape \(N, H, W, 2\)"),
    (LATENTS[:, :7], LABELS, "must be divisible by 4"),
    (LATENTS.astype("int32"), LABELS, "latents must be floating-point"),
    (LATENTS, LABELS[:9], "same number of samples. Received: latents 10, labels 9"),
    (LATENTS[:0], LABELS[:0], "at least one sample"),
    (LATENTS, None, "a tuple without a condition"),
    (LATENTS, LABELS + 0.5, "Labels must be integers"),
    (LATENTS, np.eye(10), r"look one-hot: give labels.argmax\(axis=1\)"),
    (LATENTS, LABELS + 1, r"values from 1 to 10; they are numbered from 1: give labels - 1"),
    (LATENTS, LABELS - 1, "-1 marks samples without a label"),
    (LATENTS, np.where(LABELS == 1, 10, LABELS), "10 is the null class, which label_dropout draws"),
    (LATENTS, np.stack([LABELS] * 3, axis=1), r"Labels must be integers \(N,\), below 10. Received: shape \(10, 3\)"),
    ({**BATCH, "timesteps": TIMES + 500}, None, r"timesteps must lie in \[0, 999\]"),
    ({**BATCH, "timesteps": TIMES / 1.0}, None, "timesteps must be integers"),
    ({**BATCH, "noise": NOISE[:, :4]}, None, "noise must be floating-point and of the latents' shape"),
    (BATCH, LABELS, "labels must be given once"),
]  # fmt: skip


@pytest.mark.no_backend
def test_what_concerns_whole_calls_is_refused():
    trainer = fresh(2)
    weights = np.ones(10)
    for options, message in [
        ({"batch_size": 3}, "divisible by accumulation_steps=2. Received: 3"),
        ({"batch_size": -2}, "batch_size must be a positive integer"),
        ({"sample_weight": weights[:9]}, "same number of samples"),
        ({"sample_weight": -weights}, "finite and not negative"),
        ({"sample_weight": np.ones((10, 8))}, "one number for each sample"),
        ({"class_weight": {10: 1.0}}, "class_weight must give classes 0 to 9"),
        ({"class_weight": [1.0] * 10}, "class_weight must be a dict"),
        ({"class_weight": {0: 1.0}, "sample_weight": weights}, "cannot both be given"),
        ({"validation_data": (NCHW, LABELS)}, "as if channels came first"),
        ({"validation_split": 0.99}, "leaves no samples on one side"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.fit(LATENTS, LABELS, **options)
    damaged = LATENTS.copy()
    damaged[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="latents must be finite. Received: nan or inf in sample 3"):
        trainer.fit(damaged, LABELS)
    with pytest.raises(ValueError, match=r"ClassToImage\(trainer.backbone\) draws images"):
        trainer.predict(LATENTS)
    for options in ({"loss": "mse"}, {"metrics": ["mae"]}, {"weighted_metrics": ["mae"]}, {"loss_weights": [1.0]}):
        with pytest.raises(ValueError, match=f"leave out {next(iter(options))}="):
            trainer.compile("adam", **options)
    assert trainer.steps_done == 0


@pytest.mark.no_backend
def test_forms_of_the_same_data_are_the_same():
    """Labels (N, 1), of any integer type, lists, other precisions, tensors; a split as Keras makes it."""
    runs = []
    for latents, labels in [
        (LATENTS, LABELS),
        (LATENTS.astype("float64"), LABELS[:, None].astype("uint8")),
        (LATENTS.tolist(), LABELS.tolist()),
        (keras.ops.convert_to_tensor(LATENTS), keras.ops.convert_to_tensor(LABELS)),
    ]:
        trainer = fresh()
        trainer.fit(latents, labels, batch_size=4, validation_split=0.3, verbose=0, shuffle="batch")
        runs.append(weights_of(trainer))
        assert trainer.steps_done == 2  # of seven samples
    for run in runs[1:]:
        assert_same(run, runs[0], 1e-7)


@pytest.mark.no_backend
@pytest.mark.no_backend
def test_ragged_batches_of_tf_data_are_refused():
    import tensorflow as tf

    sides = tf.ragged.stack([tf.zeros((8, 8, 2)), tf.zeros((4, 8, 2))])
    with pytest.raises(ValueError, match="all samples of one shape. Received: a tf.data set of RaggedTensor"):
        fresh().fit(tf.data.Dataset.from_tensor_slices((sides, [0, 1])).batch(2))


def test_images_that_cannot_be_are_refused():
    from fcdm_keras.autoencoders import PatchAutoencoder

    trainer = AutoencoderTrainer(PatchAutoencoder(hidden_channels=4, latent_channels=2))
    trainer.compile()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")
    for wrong, message in [
        (images.astype("float32"), "values from 0 to 25.; give images / 127.5 - 1"),
        (images / 255, r"as if in \[0, 1\]; give images \* 2 - 1"),
        (images.astype("int32"), r'give images.astype\("uint8"\)'),
        (images.transpose(0, 3, 1, 2), "as if channels came first"),
        (images[..., :1], r"images must have shape \(N, H, W, 3\)"),
        (images[:, :6], "must be divisible by 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.fit(wrong)
    losses = [trainer.evaluate(form, verbose=0) for form in (images, images / 127.5 - 1, {"images": images})]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) == losses[2]
