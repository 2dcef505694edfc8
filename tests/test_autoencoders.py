"""The KL autoencoder against diffusers' results, and its files in every form in which they are published."""

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import GOLDEN
from helpers import nhwc, tiny_backbone, to_numpy
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from fcdm_keras.autoencoders import Identity, KLAutoencoder, SpaceToDepth, sample_posterior, to_uint8
from fcdm_keras.autoencoders.diffusers import file_shape, parameters
from fcdm_keras.tasks import ClassToImage

VAE = GOLDEN / "vae"
NAME = "diffusion_pytorch_model"
SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def vae():
    return KLAutoencoder.from_diffusers(VAE)


@pytest.fixture(scope="module")
def io(golden):
    arrays = golden("vae/io")
    return {name: nhwc(array) if array.ndim == 4 and "u8" not in name else array for name, array in arrays.items()}


@pytest.fixture(scope="module")
def tensors():
    return load_file(VAE / f"{NAME}.safetensors")


def small(**options):
    """A small autoencoder in which no weight is zero."""
    keras.utils.set_random_seed(0)
    autoencoder = KLAutoencoder(**{**SMALL, **options})
    generator = np.random.default_rng(0)
    for variable in autoencoder.weights:
        variable.assign(variable + 0.1 * generator.standard_normal(variable.shape, dtype="float32"))
    return autoencoder


def write(folder, tensors, config="config.json", suffix="safetensors"):
    """A folder of weights as diffusers lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(VAE / config, folder / "config.json")
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    if suffix == "safetensors":
        save_file(tensors, folder / f"{NAME}.safetensors")
    else:
        import torch

        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, folder / f"{NAME}.bin")
    return folder


def old_names(tensors):
    """The attention's names until 2023."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new in old if ".attentions." in name else ():
            name = name.replace(f".{new}.", f".{old[new]}.")
        renamed[name] = tensor
    assert sum(name not in tensors for name in renamed) == 16
    return renamed


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
    shifted = KLAutoencoder(**SMALL, scaling_factor=2.0, shift_factor=0.5)
    np.testing.assert_allclose(shifted.to_diffusion(np.array([1.0, 0.5])), [1.0, 0.0])
    np.testing.assert_allclose(shifted.from_diffusion(np.array([1.0, 0.0])), [1.0, 0.5])


@pytest.fixture(scope="module")
def plain():
    return small(decode_batch_size=2)


def test_decoding_in_slices_changes_nothing(plain):
    latents = np.random.default_rng(1).standard_normal((5, 4, 6, 4), dtype="float32")
    whole = to_numpy(plain.decode(latents, batch_size=8))
    assert whole.shape == (5, 8, 12, 3) and whole.dtype == np.float32
    np.testing.assert_allclose(to_numpy(plain.decode(latents)), whole, atol=1e-5)


def test_mixed_precision(plain):
    mixed = small(dtype="mixed_bfloat16")
    assert mixed.weights_hash() == plain.weights_hash()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype("float32")
    expected = [*plain.encode(images), plain.decode(plain.encode(images)[0])]
    found = [*mixed.encode(images), mixed.decode(plain.encode(images)[0])]
    for ours, theirs in zip(map(to_numpy, found), map(to_numpy, expected)):
        assert ours.dtype == np.float32
        difference = np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()
        assert 1e-5 < difference < 0.05


def test_weights_that_change_are_used_and_change_the_hash(plain):
    autoencoder = plain  # the last test that uses it
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype("float32")
    before, digest = to_numpy(autoencoder.encode(images)[0]), autoencoder.weights_hash()
    assert digest == autoencoder.weights_hash()
    autoencoder.quant_conv.bias.assign(autoencoder.quant_conv.bias + 1.0)
    np.testing.assert_allclose(to_numpy(autoencoder.encode(images)[0]), before + 1.0, atol=1e-5)
    assert autoencoder.weights_hash() != digest


def test_the_hash_is_of_names_shapes_and_values(vae, tensors):
    """Computed here from the file: so it is the same on all backends."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[tensor.ndim]
        value = np.ascontiguousarray(tensor.transpose(axes))
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(value.tobytes())
    assert vae.weights_hash() == digest.hexdigest()


def published(form, tensors, folder):
    """The same weights in another published form; what to give to `from_diffusers`."""
    if form == "bin":
        return write(folder, tensors, suffix="bin")
    if form == "old names":
        return write(folder, old_names(tensors), config="old_config.json")
    if form == "old names, bin":
        return write(folder, old_names(tensors), config="old_config.json", suffix="bin")
    if form == "attention as convolutions":
        attention = {name for name, tensor in tensors.items() if ".attentions." in name and tensor.ndim == 2}
        assert len(attention) == 8
        return write(folder, {n: t[:, :, None, None] if n in attention else t for n, t in tensors.items()})
    if form == "inside a pipeline":
        write(folder / "vae", tensors)
        return folder
    if form == "a file":
        return write(folder, tensors) / f"{NAME}.safetensors"
    names = sorted(tensors)
    parts = {f"{NAME}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    write(folder, {})
    (folder / f"{NAME}.safetensors").unlink()
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return str(folder)


@pytest.mark.parametrize(
    "form",
    ["bin", "old names", "old names, bin", "attention as convolutions", "inside a pipeline", "a file", "sharded"],
)
def test_every_published_form_gives_the_same_autoencoder(vae, tensors, form, tmp_path):
    loaded = KLAutoencoder.from_diffusers(published(form, tensors, tmp_path))
    assert loaded.weights_hash() == vae.weights_hash()
    assert loaded.scale == 0.18215


def test_half_precision_files_are_read(tensors, vae, tmp_path):
    half = {name: tensor.astype("float16") for name, tensor in tensors.items()}
    loaded = KLAutoencoder.from_diffusers(write(tmp_path, half))
    for ours, theirs in zip(loaded.weights, vae.weights):
        np.testing.assert_allclose(to_numpy(ours), to_numpy(theirs), rtol=1e-3, atol=1e-6)


def test_a_repository_of_the_hub(vae, monkeypatch, tmp_path):
    """From the Hub's local cache, in its own layout."""
    cached = tmp_path / "models--stabilityai--sd-vae-ft-ema"
    shutil.copytree(VAE, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert KLAutoencoder.from_diffusers("stabilityai/sd-vae-ft-ema").weights_hash() == vae.weights_hash()
    with pytest.raises(FileNotFoundError, match="no folder nobody/nothing here, and the Hugging Face Hub gave no"):
        KLAutoencoder.from_diffusers("nobody/nothing")
    small().save_diffusers("stabilityai/sd-vae-ft-ema")  # a folder of that name takes precedence
    assert KLAutoencoder.from_diffusers("stabilityai/sd-vae-ft-ema").block_out_channels == (8, 16)


def key_list(name):
    rows = [line.split("\t") for line in (VAE / name).read_text().splitlines()]
    return {name: tuple(map(int, shape.split("x"))) for name, shape, _ in rows}


def test_every_tensor_of_the_full_size_is_accounted_for():
    autoencoder = KLAutoencoder()
    ours = {name: file_shape(variable.shape, layout) for name, (variable, layout) in parameters(autoencoder).items()}
    assert ours == key_list("keys_realsize.txt") and len(ours) == 248
    assert autoencoder.count_params() == 83_653_863
    assert len(autoencoder.weights) == len(ours)


def test_what_is_written_is_what_diffusers_writes(vae, tensors, tmp_path):
    vae.save_diffusers(tmp_path)
    written = load_file(tmp_path / f"{NAME}.safetensors")
    assert written.keys() == tensors.keys() == key_list("keys.txt").keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, VAE))
    assert {name: value for name, value in theirs.items() if value is not None}.items() <= {
        **config,
        "_diffusers_version": theirs["_diffusers_version"],
        "force_upcast": True,
    }.items()


@pytest.mark.parametrize(
    "options",
    [
        {"scaling_factor": 1.5, "shift_factor": -0.25, "latent_channels": 3, "in_channels": 1},
        {"block_out_channels": (4, 8, 8), "layers_per_block": 2, "norm_num_groups": 2, "decode_batch_size": 3},
        {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False},
    ],
)
def test_other_configurations_survive_every_file(options, tmp_path):
    autoencoder = small(**options)
    autoencoder.save_diffusers(tmp_path)
    autoencoder.save(tmp_path / "autoencoder.keras")
    for loaded in (KLAutoencoder.from_diffusers(tmp_path), keras.saving.load_model(tmp_path / "autoencoder.keras")):
        assert loaded.weights_hash() == autoencoder.weights_hash()
        ignored = ("name", "dtype", "decode_batch_size")  # diffusers has no such fields
        config, expected = loaded.get_config(), autoencoder.get_config()
        assert {n: v for n, v in config.items() if n not in ignored} == {
            n: v for n, v in expected.items() if n not in ignored
        }
    assert loaded.decode_batch_size == autoencoder.decode_batch_size


def test_parts_that_some_autoencoders_lack():
    autoencoder = small(mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
    names = parameters(autoencoder).keys()
    assert not any("attentions" in name or "quant" in name for name in names)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype("float32")
    mean, _ = autoencoder.encode(images)
    np.testing.assert_allclose(to_numpy(autoencoder(images)), to_numpy(autoencoder.decode(mean)), atol=1e-5)


def test_a_task_draws_and_keeps_the_autoencoder(monkeypatch, tmp_path):
    autoencoder = small(scaling_factor=3.0, shift_factor=0.2)
    task = ClassToImage(tiny_backbone((1, 0, 0, 0, 0), in_channels=4), autoencoder, image_size=16)
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


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.conv_in.bias"), r"missing tensors \['encoder.conv_in.bias'\], unknown tensors \[\]"),
        (lambda t: {**t, "loss.logvar": np.zeros(1, "float32")}, r"unknown tensors \['loss.logvar'\]"),
        (
            lambda t: {**t, "quant_conv.bias": np.zeros(6, "float32")},
            r"quant_conv.bias has shape \(6,\), and its config.json asks for \(8,\)",
        ),
        (lambda t: {**t, **old_names(t)}, "under its old and its new name"),
        (lambda t: {}, r"missing tensors .* and 239 more, unknown tensors \[\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        KLAutoencoder.from_diffusers(write(tmp_path, change(tensors)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 16}, "has shape"),
        ({"latent_channels": "4"}, "latent_channels must be a positive integer. Received: '4'"),
        ({"norm_num_groups": 48}, "must be multiples of norm_num_groups=48"),
        ({"_class_name": "VQModel"}, "expected AutoencoderKL. Received: VQModel"),
        ({"act_fn": "gelu"}, 'only act_fn = "silu" is supported. Received: "gelu"'),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "only down_block_types"),
        ({"latents_mean": [0.1]}, "only latents_mean = null"),
        ({"out_channels": 4}, "out_channels must equal in_channels. Received: 4"),
        ({"scaling_factor": "big"}, "scaling_factor must be a number. Received: 'big'"),
        ({"block_out_channels": None}, "block_out_channels"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change, message, tmp_path):
    for file in ("config.json", f"{NAME}.safetensors"):
        shutil.copy(VAE / file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**json.loads((VAE / "config.json").read_text()), **change}))
    with pytest.raises(ValueError, match=message) as raised:
        KLAutoencoder.from_diffusers(tmp_path)
    assert "\n" not in str(raised.value)


def test_values_of_the_configuration_are_used(tmp_path):
    shutil.copy(VAE / f"{NAME}.safetensors", tmp_path)
    config = {**json.loads((VAE / "config.json").read_text()), "scaling_factor": 0.41407, "shift_factor": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = KLAutoencoder.from_diffusers(tmp_path)
    assert (loaded.scale, loaded.shift) == (0.41407, 0.1)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_is_never_executed(tmp_path, capsys):
    import torch

    write(tmp_path, {"a": np.zeros(1, "float32")}, suffix="bin")
    torch.save({"quant_conv.bias": Malicious()}, tmp_path / f"{NAME}.bin")
    with pytest.raises(ValueError, match="is refused because loading it could run code; nothing was executed"):
        KLAutoencoder.from_diffusers(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("length", [0, 7, 3000])
def test_damaged_files_are_named_in_one_sentence(tensors, suffix, length, tmp_path):
    file = write(tmp_path, {"a": tensors["encoder.conv_in.weight"]}, suffix=suffix) / f"{NAME}.{suffix}"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"^{file} is truncated, damaged or no") as raised:
        KLAutoencoder.from_diffusers(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_said(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match=f"^There is no autoencoder at {tmp_path}/nowhere: expected"):
        KLAutoencoder.from_diffusers(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path} has no config.json, and no folder vae/"):
        KLAutoencoder.from_diffusers(tmp_path)
    shutil.copy(VAE / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path} has no weights: expected .*Received: config.json"):
        KLAutoencoder.from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    write(tmp_path / "other", tensors)
    (tmp_path / "other" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json is damaged or no configuration of an autoencoder"):
        KLAutoencoder.from_diffusers(tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json beside it"):
        KLAutoencoder.from_diffusers(tmp_path / "other" / f"{NAME}.safetensors")
    with pytest.raises(ValueError, match="weights are a .safetensors or .bin file. Received: "):
        KLAutoencoder.from_diffusers(VAE / "keys.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_out_channels": ()}, "must be multiples of norm_num_groups"),
        ({"block_out_channels": (8, 15)}, r"multiples of norm_num_groups=4. Received: \[8, 15\]"),
        ({"latent_channels": 0}, "latent_channels must be a positive integer. Received: 0"),
        ({"layers_per_block": 1.5}, "layers_per_block must be a positive integer. Received: 1.5"),
        ({"scaling_factor": 0.0}, "scaling_factor must be positive and finite"),
        ({"shift_factor": float("nan")}, "shift_factor finite"),
        ({"decode_batch_size": 0}, "decode_batch_size must be a positive integer"),
    ],
)
def test_sizes_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KLAutoencoder(**{**SMALL, **options})


def test_shapes_that_do_not_fit_are_refused(vae):
    for shape in ((1, 30, 32, 3), (1, 32, 32, 4), (32, 32, 3), (1, 0, 32, 3)):
        with pytest.raises(ValueError, match=r"images must have shape \(B, height, width, 3\), height and width mult"):
            vae.encode(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"latents must have shape \(B, height, width, 4\). Received: \(1, 8, 8, 3\)"):
        vae.decode(np.zeros((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match="batch_size must be at least 1. Received: 0"):
        vae.decode(np.zeros((1, 8, 8, 4), "float32"), batch_size=0)
    with pytest.raises(ValueError, match="takes 2 channels. Received: an autoencoder with 4"):
        ClassToImage(tiny_backbone((0, 0, 0, 0, 0)), vae)
