import concurrent.futures

import keras
import numpy as np
import pytest
from helpers import tiny_backbone

from fcdm_keras.autoencoders import Identity, SpaceToDepth, to_uint8
from fcdm_keras.sampling.tasks import ClassToImage
from fcdm_keras.training.trainer import DiffusionTrainer

OPTIONS = {"num_steps": 4, "seed": 3, "sampler": "ddpm", "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def task():
    return ClassToImage(tiny_backbone((1, 0, 0, 0, 0), in_channels=3), image_size=8)


@pytest.fixture(scope="module")
def images(task):
    return task.generate([1, 2, 3, 4, 5], **OPTIONS)


def almost_equal(a, b):
    """uint8 images that differ by rounding at most."""
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_images_are_uint8_channels_last(images):
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, 3)
    assert images.std() > 10


def test_an_image_depends_on_its_seed_and_index_and_not_on_the_batch(task, images):
    assert almost_equal(task.generate([1, 2, 3, 4, 5], batch_size=2, **OPTIONS), images)
    assert almost_equal(task.generate([4], first_index=3, **OPTIONS), images[3:4])
    assert not almost_equal(task.generate([4], first_index=0, **OPTIONS), images[3:4])
    assert not almost_equal(task.generate([1, 2, 3, 4, 5], **{**OPTIONS, "seed": 4}), images)
    assert not almost_equal(task.generate([2, 1, 1, 1, 1], **OPTIONS), images)


def test_without_a_seed_every_call_draws_another(task):
    options = {**OPTIONS, "seed": None}
    assert not almost_equal(task.generate([1], **options), task.generate([1], **options))


def test_predict_is_generate(task, images):
    assert almost_equal(task.predict(np.array([1, 2, 3, 4, 5]), batch_size=5, verbose=0, **OPTIONS), images)


def test_several_threads_get_their_own_images(task):
    """Also those of the first call for some options, which compiles."""
    labels = [[k, k + 1] for k in range(6)]
    options = {**OPTIONS, "num_steps": 3}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda own: task.generate(own, **options), labels))
    for own, images in zip(labels, together):
        np.testing.assert_array_equal(images, task.generate(own, **options))


def test_a_single_label_and_no_label(task):
    assert task.generate(7, **OPTIONS).shape == (1, 8, 8, 3)
    assert task.generate(np.zeros(0, "int32"), **OPTIONS).shape == (0, 8, 8, 3)


def test_other_sizes(task):
    assert task.generate([1], image_size=(4, 12), **OPTIONS).shape == (1, 4, 12, 3)
    assert task.generate([], image_size=np.int64(4), **OPTIONS).shape == (0, 4, 4, 3)


@pytest.mark.parametrize(
    "labels",
    [
        (1, 2, 3, 4, 5),
        range(1, 6),
        [np.int64(i) for i in range(1, 6)],
        np.arange(1, 6, dtype="uint8"),
        np.arange(1, 6)[:, None],  # as keras.datasets.cifar10 has them
        keras.ops.arange(1, 6, dtype="int32"),
        keras.ops.reshape(keras.ops.arange(1, 6, dtype="int32"), (5, 1)),
    ],
    ids=["tuple", "range", "scalars", "uint8", "column", "tensor", "column of tensor"],
)
def test_labels_in_every_form_are_the_same(task, images, labels):
    assert almost_equal(task.generate(labels, **OPTIONS), images)


def test_a_label_per_level_is_drawn_and_is_no_one_hot_vector(task, images):
    """The levels of this network are three."""
    per_level = np.repeat([[1], [2], [3], [4], [5]], 3, axis=1)
    assert almost_equal(task.generate(per_level, **OPTIONS), images)
    nulls = {"null_conditions": np.full(5, 10)}
    assert almost_equal(task.generate(per_level, **nulls, **OPTIONS), images)
    mixed = task.generate(np.concatenate([[[6]] * 5, per_level[:, 1:]], axis=1), **OPTIONS)
    assert not almost_equal(mixed, images)
    vectors = np.eye(3, dtype=int)[[0, 1, 2, 1, 0]]
    with pytest.raises(ValueError, match=r"these \(5, 3\) look one-hot: give labels.argmax\(axis=1\); `draw` takes"):
        task.generate(vectors, **OPTIONS)
    assert task.draw(vectors, **OPTIONS).shape == (5, 8, 8, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(10, dtype=int)[:2], r"these \(2, 10\) look one-hot: give labels.argmax"),
        (np.eye(10)[:2], r"must be integers \(N,\), such as .* Received: dtype float64"),
        ([3.0, 1.0], r"Received: dtype float64, \[3.0, 1.0\]"),
        ([True, False], "Received: dtype bool"),
        (None, "Received: dtype object, None"),
        ((i for i in range(3)), "Received: dtype object, <generator"),
        ({"labels": [1]}, "Received: dtype object"),
        ([[1, 2], [3]], r"Received: list, \[\[1, 2\], \[3\]\]"),
        (np.zeros((2, 3, 1), int), r"or one per level \(N, 3\), below 10. Received: shape \(2, 3, 1\)"),
        (np.full((2, 5), 7), r"Received: shape \(2, 5\)"),
        ([11], r"must lie in \[0, 9\], or be 10 for no class. Received: values from 11 to 11"),
        ([-1], "Received: values from -1"),
        (["3", "1"], "have no names: give their numbers. Received: '3'"),
    ],
)
def test_what_is_no_label_is_refused_in_one_sentence(task, labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        task.generate(labels, **OPTIONS)
    assert "\n" not in str(raised.value)


@pytest.mark.no_backend
def test_classes_are_drawn_by_name_and_a_preset_keeps_the_names(task, images, tmp_path):
    names = ["ape", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "bee", "10"]
    named = ClassToImage(task.backbone, image_size=8, class_names=names)
    assert almost_equal(named.generate(["fox", "ape"], first_index=4, **OPTIONS)[:1], images[4:])
    named.save_to_preset(str(tmp_path))
    loaded = ClassToImage.from_preset(str(tmp_path))
    assert loaded.class_names == tuple(names)
    for wrong, message in (
        ("foxx", "no class named 'foxx'; there are 'fox', …"),
        (["bee"], "is the name of the classes 1, 8: give one number"),
        ("3", "no class named '3'; there are 'ape'"),  # a name, never a number
    ):
        with pytest.raises(ValueError, match=message):
            loaded.generate(wrong, **OPTIONS)
    with pytest.raises(ValueError, match="class_names must be 10, one per class. Received: 2"):
        ClassToImage(task.backbone, image_size=8, class_names=["a", "b"])


def test_what_is_not_finite_becomes_no_picture(task):
    values = [keras.ops.convert_to_numpy(v) for v in task.backbone.trainable_variables]
    for value in (np.nan, np.inf):
        weights = [keras.ops.convert_to_tensor(np.full_like(v, value) if i == 5 else v) for i, v in enumerate(values)]
        with pytest.raises(FloatingPointError, match="^The weights .* are not finite: the checkpoint is damaged"):
            task.predict([1, 2, 3, 4, 5], weights=weights, verbose=0, **OPTIONS)
    with pytest.raises(FloatingPointError, match="^The network gives latents .* guidance_scale=3e.38, try a smaller"):
        task.generate([1, 2, 3, 4, 5], **{**OPTIONS, "guidance_scale": 3e38})


@pytest.mark.no_backend
def test_float16_that_overflows_is_named():
    backbone = tiny_backbone((1, 0, 0, 0, 0), in_channels=3, dtype="float16")
    kernel = backbone.x_embedder.kernel
    kernel.assign(np.full(kernel.shape, 60000.0))
    with pytest.raises(FloatingPointError, match="latents that are not finite: float16 overflows, load .* in float32"):
        ClassToImage(backbone, image_size=8).generate([1], num_steps=2, seed=0, sampler="ddim")


@pytest.mark.no_backend
def test_images_of_an_autoencoder_that_are_not_finite_are_its_own():
    class Overflowing(SpaceToDepth):
        def decode(self, latents, batch_size=None):
            return super().decode(latents) * 1e38 * 1e38

    backbone = tiny_backbone((1, 0, 0, 0, 0), in_channels=12)
    task = ClassToImage(backbone, Overflowing(2), image_size=8)
    with pytest.raises(FloatingPointError, match="^The autoencoder gives images that are not finite: use another"):
        task.generate([1], num_steps=1, seed=0, sampler="ddim")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.5}, "^eta=0.5 has no effect: the sampler ddpm takes none"),
        ({"guidance_scale": 1, "null_conditions": []}, "^Negative prompts .* no effect: guidance_scale is 1"),
        ({"guidance_scale": 1, "guidance_channels": "first_three"}, "^guidance_channels has no effect"),
        ({"first_index": 2**40}, "^first_index must be an integer in"),
        ({"first_index": -1}, "^first_index must be an integer of at least 0"),
        ({"image_size": 2**20}, "^Drawing 1 images of 1048576×1048576 pixels, 1 at once, needs .* are free"),
    ],
)
def test_options_without_effect_and_beyond_all_bounds_are_refused(task, options, message):
    task.generate([], **{**OPTIONS, "sampler": "ddim", "eta": 0.5, "null_conditions": []})  # both have one
    with pytest.raises(ValueError, match=message):
        task.generate([1] if options.keys() & {"first_index", "image_size"} else [], **{**OPTIONS, **options})


def test_guidance_scale_one_is_the_conditional_model_and_zero_the_unconditional(task):
    null = task.backbone.conditioning.num_classes
    options = {**OPTIONS, "sampler": "ddim"}  # which does not use v, the conditional pass's
    zero = task.generate([1, 2], **{**options, "guidance_scale": 0.0})
    assert almost_equal(zero, task.generate([null, null], **{**options, "guidance_scale": 1.0}))


def test_weights_can_be_given_and_the_backbone_keeps_its_own(task, images):
    trainer = DiffusionTrainer(task.backbone)
    for average in trainer.ema.averages:
        average.assign(average.value * 0.5)
    drawn = task.generate([1, 2, 3, 4, 5], weights=trainer.ema.values(), **OPTIONS)
    assert not almost_equal(drawn, images)
    assert almost_equal(task.generate([1, 2, 3, 4, 5], **OPTIONS), images)


def test_a_preset_keeps_the_images(task, images, tmp_path):
    task.save_to_preset(str(tmp_path))
    loaded = ClassToImage.from_preset(str(tmp_path))
    assert loaded.image_size == (8, 8)
    assert almost_equal(loaded.generate([1, 2, 3, 4, 5], **OPTIONS), images)


def test_a_backbone_preset_makes_a_task(task, images, tmp_path):
    task.backbone.save_to_preset(str(tmp_path))
    loaded = ClassToImage.from_preset(str(tmp_path), image_size=8)
    assert almost_equal(loaded.generate([1, 2, 3, 4, 5], **OPTIONS), images)


def test_uint8_conversion_truncates_as_the_reference():
    values = np.array([-2.0, -1.0, -0.999, 0.0, 0.003, 0.99, 1.0, 2.0], "float32").reshape(1, 1, 8, 1)
    expected = np.clip(127.5 * values + 128.0, 0, 255).astype("uint8")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(to_uint8(values)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [11]}, "Labels must lie in"),
        ({"labels": [0.5]}, "Labels must be integers"),
        ({"num_steps": 0}, r"num_steps must be an integer in \[1, 1000\]. Received: 0"),
        ({"num_steps": -4}, "num_steps"),
        ({"num_steps": 1001}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0"),
        ({"guidance_scale": float("inf")}, "finite in float32. Received: inf"),
        ({"guidance_scale": 1e39}, "finite in float32. Received: 1e.39"),
        ({"guidance_scale": [2.0, 3.0]}, r"finite in float32. Received: \[2.0, 3.0\]"),
        ({"guidance_scale": None}, "finite in float32. Received: None"),
        ({"guidance_channels": "three"}, "channels must be"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, euler_maruyama, .* Received: 'euler'"),
        ({"eta": 2.0}, "eta must lie in"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"image_size": 10}, r"multiples of 4. Received: \(10, 10\)"),
        ({"image_size": 8.0}, r"multiples of 4. Received: \(8.0, 8.0\)"),
    ],
)
def test_arguments_out_of_range_are_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        task.generate(**{"labels": [1], **OPTIONS, **change})


def test_an_autoencoder_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="takes 2 channels. Received: an autoencoder with 3"):
        ClassToImage(tiny_backbone((0, 0, 0, 0, 0)), Identity(3))
