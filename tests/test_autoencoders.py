"""The KL autoencoder against diffusers' results, and what it computes with weights of its own."""

import warnings

import keras
import numpy as np
import pytest
from helpers import SMALL_AUTOENCODER, nhwc, small_autoencoder, tiny_backbone, to_numpy

from fcdm_keras.autoencoders import Identity, KLAutoencoder, SpaceToDepth, sample_posterior, to_uint8
from fcdm_keras.autoencoders.diffusers import parameters
from fcdm_keras.sampling.tasks import ClassToImage


@pytest.fixture(scope="module")
def io(golden):
    arrays = golden("vae/io")
    return {name: nhwc(array) if array.ndim == 4 and "u8" not in name else array for name, array in arrays.items()}


@pytest.mark.parametrize(("which", "images"), [("", "images"), ("_b", "images_u8_b")])
def test_moments_and_images_are_those_of_diffusers(vae, io, which, images):
    mean, logvar = map(to_numpy, vae.encode(io[images]))
    moments = io[f"moments{which}_f64"]
    np.testing.assert_allclose(mean, moments[..., :4], rtol=0, atol=2e-4)
    np.testing.assert_allclose(logvar, np.clip(moments[..., 4:], -30, 20), rtol=0, atol=2e-4)
    assert (moments[..., 4:] > 20).any() and (moments[..., 4:] < -30).any()
    np.testing.assert_allclose(to_numpy(vae.decode(io[f"latent{which}"])), io[f"decoded{which}_f64"], rtol=0, atol=1e-4)
    expected = io[f"reconstruction_of_mean{which}_f64"]
    np.testing.assert_allclose(to_numpy(vae.decode(mean)), expected, rtol=0, atol=1e-3)


def test_bytes_are_those_of_the_reference(vae, io):
    images = to_numpy(to_uint8(vae.decode(io["latent"])))
    assert np.abs(images.astype(int) - io["decoded_u8"]).max() <= 1


def test_latents_are_drawn_and_scaled_as_diffusers_does(vae, io):
    sample = sample_posterior(io["mean"], io["logvar"], io["noise"])
    np.testing.assert_allclose(to_numpy(sample), io["latent_sample"], rtol=1e-5)
    np.testing.assert_allclose(vae.to_diffusion(io["latent_sample"]), io["latent_sample_scaled"], rtol=1e-5)
    np.testing.assert_allclose(vae.from_diffusion(io["latent_scaled"]), io["latent"], rtol=1e-5)
    assert (vae.scale, vae.shift, vae.latent_channels, vae.downsampling_factor) == (0.18215, 0.0, 4, 8)
    shifted = KLAutoencoder(**SMALL_AUTOENCODER, scaling_factor=2.0, shift_factor=0.5)
    np.testing.assert_allclose(shifted.to_diffusion(np.array([1.0, 0.5])), [1.0, 0.0])
    np.testing.assert_allclose(shifted.from_diffusion(np.array([1.0, 0.0])), [1.0, 0.5])


@pytest.fixture(scope="module")
def plain():
    return small_autoencoder(decode_batch_size=2)


def test_decoding_in_slices_changes_nothing(plain):
    latents = np.random.default_rng(1).standard_normal((5, 4, 6, 4), dtype="float32")
    whole = to_numpy(plain.decode(latents, batch_size=8))
    assert whole.shape == (5, 8, 12, 3) and whole.dtype == np.float32
    np.testing.assert_allclose(to_numpy(plain.decode(latents)), whole, atol=1e-5)


def test_mixed_precision(plain):
    mixed = small_autoencoder(dtype="mixed_bfloat16")
    assert mixed.weights_hash() == plain.weights_hash()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype("float32")
    expected = [*plain.encode(images), plain.decode(plain.encode(images)[0])]
    found = [*mixed.encode(images), mixed.decode(plain.encode(images)[0])]
    for ours, theirs in zip(map(to_numpy, found), map(to_numpy, expected)):
        assert ours.dtype == np.float32
        difference = np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()
        assert 1e-5 < difference < 0.05


def huge(force_upcast, dtype):
    """An autoencoder whose decoder's residual stream leaves float16, as Stable Diffusion XL's does."""
    autoencoder = small_autoencoder(force_upcast=force_upcast, dtype=dtype)
    kernel = autoencoder.decoder.conv_in.kernel
    kernel.assign(kernel * 1e6)
    return autoencoder


@pytest.mark.parametrize("dtype", ["mixed_float16", pytest.param("float16", marks=pytest.mark.no_backend)])
def test_float16_is_replaced_where_the_configuration_asks_for_it(dtype, tmp_path):
    latents = np.random.default_rng(1).standard_normal((1, 4, 4, 4), dtype="float32")
    expected = to_numpy(huge(True, "float32").decode(latents))
    with pytest.warns(UserWarning, match=f"computes in float32 instead of {dtype}: its configuration has force_upcast"):
        upcast = huge(True, dtype)
    np.testing.assert_allclose(to_numpy(upcast.decode(latents)), expected, rtol=1e-5, atol=1e-5)
    if dtype == "mixed_float16":
        assert not np.isfinite(to_numpy(huge(False, dtype).decode(latents))).all()
    upcast.save_diffusers(tmp_path)
    with pytest.warns(UserWarning, match="force_upcast"):
        loaded = KLAutoencoder.from_diffusers(tmp_path, dtype=dtype)
    assert loaded.force_upcast and loaded.compute_dtype == loaded.encoder.compute_dtype == "float32"
    with warnings.catch_warnings(action="error"):
        assert KLAutoencoder.from_diffusers(tmp_path, dtype="mixed_bfloat16").compute_dtype == "bfloat16"


def test_weights_that_change_are_used_and_change_the_hash(plain):
    autoencoder = plain  # the last test that uses it
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype("float32")
    before, digest = to_numpy(autoencoder.encode(images)[0]), autoencoder.weights_hash()
    assert digest == autoencoder.weights_hash()
    autoencoder.quant_conv.bias.assign(autoencoder.quant_conv.bias + 1.0)
    np.testing.assert_allclose(to_numpy(autoencoder.encode(images)[0]), before + 1.0, atol=1e-5)
    assert autoencoder.weights_hash() != digest


def test_parts_that_some_autoencoders_lack():
    parts = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    autoencoder = small_autoencoder(block_out_channels=(8,), **dict.fromkeys(parts, False))
    names = parameters(autoencoder).keys()
    assert not any("attentions" in name or "quant" in name for name in names)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype("float32")
    mean, _ = autoencoder.encode(images)
    np.testing.assert_allclose(to_numpy(autoencoder(images)), to_numpy(autoencoder.decode(mean)), atol=1e-5)


def test_a_task_draws_and_keeps_the_autoencoder(monkeypatch, tmp_path):
    autoencoder = small_autoencoder(scaling_factor=3.0, shift_factor=0.2)
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=4), autoencoder, image_size=16)
    options = {"num_steps": 2, "seed": 1, "sampler": "ddim", "batch_size": 2}
    images = task.generate([1, 2, 3], **options)
    assert images.shape == (3, 16, 16, 3) and images.std() > 5
    assert task.generate(np.zeros(0, "int32"), **options).shape == (0, 16, 16, 3)
    task.save_to_preset(str(tmp_path))
    loaded = ClassToImage.from_preset(str(tmp_path))
    assert loaded.autoencoder.weights_hash() == autoencoder.weights_hash()
    assert np.abs(loaded.generate([1, 2, 3], **options).astype(int) - images).max() <= 1

    # What is drawn is unscaled before it is decoded.
    unscaled, decode = [], autoencoder.decode
    monkeypatch.setattr(autoencoder, "decode", lambda latents: decode(unscaled.append(to_numpy(latents)) or latents))
    task.generate([1, 2], **options)
    autoencoder.scaling_factor, autoencoder.shift_factor = 0.5, -1.0
    assert not np.array_equal(task.generate([1, 2], **options), images[:2])
    np.testing.assert_allclose(3.0 * (unscaled[0] - 0.2), 0.5 * (unscaled[1] + 1.0), atol=1e-4)


def test_identity_keeps_the_contract():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype("float32")
    identity = Identity(3)
    mean, logvar = identity.encode(images)
    assert to_numpy(logvar).shape == images.shape and (to_numpy(logvar) == -30).all()
    np.testing.assert_array_equal(
        to_numpy(identity.decode(identity.from_diffusion(identity.to_diffusion(mean)))), images
    )
    np.testing.assert_array_equal(to_numpy(identity.decode(images, batch_size=1)), images)
    zeros = np.array([-0.0, 0.0], "float32")
    assert np.signbit(identity.from_diffusion(identity.to_diffusion(zeros))).tolist() == [True, False]
    assert (identity.scale, identity.shift, identity.in_channels, identity.downsampling_factor) == (1.0, 0.0, 3, 1)


def test_space_to_depth_keeps_the_contract():
    import torch

    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype("float32")
    autoencoder = SpaceToDepth(4)
    mean, logvar = autoencoder.encode(images)
    assert to_numpy(mean).shape == to_numpy(logvar).shape == (2, 2, 3, 48) and (to_numpy(logvar) == -30).all()
    theirs = torch.nn.functional.pixel_unshuffle(torch.tensor(np.moveaxis(images, -1, 1)), 4).numpy()
    theirs = theirs.reshape(2, 3, 16, 2, 3).transpose(0, 3, 4, 2, 1).reshape(2, 2, 3, 48)  # the image's channels last
    np.testing.assert_array_equal(to_numpy(mean), theirs)
    latents = autoencoder.from_diffusion(autoencoder.to_diffusion(mean))
    np.testing.assert_array_equal(to_numpy(autoencoder.decode(latents)), images)
    assert (autoencoder.latent_channels, autoencoder.in_channels, autoencoder.downsampling_factor) == (48, 3, 4)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(autoencoder))
    assert copy.get_config() == autoencoder.get_config() and copy.weights_hash() == autoencoder.weights_hash()
    assert SpaceToDepth(2).weights_hash() != autoencoder.weights_hash()


def test_a_task_draws_through_space_to_depth(tmp_path):
    task = ClassToImage(tiny_backbone((0, 0, 0, 0, 0), in_channels=12), SpaceToDepth(2), image_size=16)
    images = task.generate([1, 2], num_steps=1, seed=0, sampler="ddim", guidance_scale=1.0)
    assert images.shape == (2, 16, 16, 3) and images.std() > 10
    task.save_to_preset(str(tmp_path))
    assert ClassToImage.from_preset(str(tmp_path)).autoencoder.get_config() == task.autoencoder.get_config()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpaceToDepth(0), "downsampling_factor must be a positive integer. Received: 0"),
        (lambda: SpaceToDepth(2, 1.5), "in_channels must be a positive integer. Received: 1.5"),
        (lambda: SpaceToDepth(2).encode(np.zeros((1, 6, 5, 3))), r"H and W divisible by 2. Received: \(1, 6, 5, 3\)"),
        (lambda: SpaceToDepth(2).encode(np.zeros((1, 4, 4, 1))), r"Expected shape \(B, H, W, 3\)"),
        (lambda: SpaceToDepth(2).decode(np.zeros((1, 4, 4, 3))), r"Expected shape \(B, H, W, 12\). Received"),
    ],
)
def test_space_to_depth_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_out_channels": ()}, "must be multiples of norm_num_groups"),
        ({"block_out_channels": (8, 15)}, r"multiples of norm_num_groups=4. Received: \[8, 15\]"),
        ({"latent_channels": 0}, "latent_channels must be a positive integer. Received: 0"),
        ({"layers_per_block": 1.5}, "layers_per_block must be a positive integer. Received: 1.5"),
        ({"scaling_factor": 0.0}, "scaling_factor must be positive and finite"),
        ({"shift_factor": float("nan")}, "shift_factor finite"),
        ({"decoder_attention": (2,)}, r"decoder_attention must name levels from 0 to 1. Received: \[2\]"),
        ({"decode_batch_size": 0}, "decode_batch_size must be a positive integer"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KLAutoencoder(**{**SMALL_AUTOENCODER, **options})


def test_shapes_that_do_not_fit_are_refused(vae):
    for shape in ((1, 30, 32, 3), (1, 32, 32, 4), (32, 32, 3), (1, 0, 32, 3)):
        with pytest.raises(ValueError, match=r"images must have shape \(B, height, width, 3\), height and width mult"):
            vae.encode(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"latents must have shape \(B, height, width, 4\). Received: \(1, 8, 8, 3\)"):
        vae.decode(np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="batch_size must be a positive integer. Received: 0"):
        vae.decode(np.zeros((1, 8, 8, 4), "float32"), batch_size=0)
    with pytest.raises(ValueError, match="takes 2 channels. Received: an autoencoder with 4"):
        ClassToImage(tiny_backbone((0, 0, 0, 0, 0)), vae)
