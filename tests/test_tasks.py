import keras
import numpy as np
import pytest
from helpers import tiny_backbone

from fcdm_keras.autoencoders import Identity, to_uint8
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


def test_a_single_label_and_no_label(task):
    assert task.generate(7, **OPTIONS).shape == (1, 8, 8, 3)
    assert task.generate(np.zeros(0, "int32"), **OPTIONS).shape == (0, 8, 8, 3)


def test_other_sizes(task):
    assert task.generate([1], image_size=(4, 12), **OPTIONS).shape == (1, 4, 12, 3)


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
        ({"guidance_channels": "three"}, "channels must be"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim. Received: 'euler'"),
        ({"eta": 2.0}, "eta must lie in"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"image_size": 10}, r"multiples of 4. Received: \(10, 10\)"),
    ],
)
def test_arguments_out_of_range_are_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        task.generate(**{"labels": [1], **OPTIONS, **change})


def test_an_autoencoder_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="takes 2 channels. Received: an autoencoder with 3"):
        ClassToImage(tiny_backbone((0, 0, 0, 0, 0)), Identity(3))
