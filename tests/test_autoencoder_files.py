"""Files of autoencoders: every form in which they are published, ours, and files that are none of them."""

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import VAE
from helpers import small_autoencoder, to_numpy
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from fcdm_keras.autoencoders import KLAutoencoder
from fcdm_keras.autoencoders.diffusers import file_shape, parameters

NAME = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def tensors():
    return load_file(VAE / f"{NAME}.safetensors")


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
    if form == "of another name and ending":
        (write(folder, tensors, suffix="bin") / f"{NAME}.bin").rename(folder / "weights.safetensors")
        return folder
    if form == "a variant beside full precision":
        save_file({name: tensor * 0 for name, tensor in tensors.items()}, folder / f"{NAME}.fp16.safetensors")
        return write(folder, tensors, suffix="bin")
    if form.startswith("a lone variant"):
        file, variant = write(folder, tensors) / f"{NAME}.safetensors", form.split()[-1]
        (folder / f"{NAME}.non_ema.bin").write_bytes(b"")
        return file.rename(folder / f"{NAME}.{variant}.safetensors").parent
    names, variant = sorted(tensors), ".fp16" if form == "sharded variant" else ""
    parts = {f"{NAME}-0000{i + 1}-of-00002{variant}.safetensors": names[i::2] for i in range(2)}
    write(folder, {})
    (folder / f"{NAME}.safetensors").unlink()
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    (folder / f"{NAME}.safetensors.index{variant}.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return str(folder)


OTHER_FORMS = (
    *("a lone variant fp16", "a lone variant bf16", "a variant beside full precision", "sharded variant"),
    "of another name and ending",
)


@pytest.mark.parametrize(
    "form",
    [
        *("bin", "old names", "old names, bin", "attention as convolutions", "inside a pipeline", "a file", "sharded"),
        *(pytest.param(form, marks=pytest.mark.no_backend) for form in OTHER_FORMS),
    ],
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


@pytest.mark.no_backend
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
    snapshot = cached / "snapshots" / ("a" * 40)
    (snapshot / f"{NAME}.safetensors").rename(snapshot / f"{NAME}.fp16.safetensors")
    assert KLAutoencoder.from_diffusers("stabilityai/sd-vae-ft-ema").weights_hash() == vae.weights_hash()
    with pytest.raises(FileNotFoundError, match="no folder nobody/nothing here, and the Hugging Face Hub gave no"):
        KLAutoencoder.from_diffusers("nobody/nothing")
    small_autoencoder().save_diffusers("stabilityai/sd-vae-ft-ema")  # a folder of that name takes precedence
    assert KLAutoencoder.from_diffusers("stabilityai/sd-vae-ft-ema").block_out_channels == (8, 16)


def key_list(name):
    rows = [line.split("\t") for line in (VAE / name).read_text().splitlines()]
    return {name: tuple(map(int, shape.split("x"))) for name, shape, _ in rows}


@pytest.mark.no_backend
def test_every_tensor_of_the_full_size_is_accounted_for():
    autoencoder = KLAutoencoder()
    ours = {name: file_shape(variable.shape, layout) for name, (variable, layout) in parameters(autoencoder).items()}
    assert ours == key_list("keys_realsize.txt") and len(ours) == 248
    assert autoencoder.count_params() == 83_653_863
    assert len(autoencoder.weights) == len(ours)


@pytest.mark.no_backend
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
        {"encoder_attention": (1,), "decoder_attention": (0, 1), "force_upcast": False},
    ],
)
def test_other_configurations_survive_every_file(options, tmp_path):
    autoencoder = small_autoencoder(**options)
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


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.no_backend
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


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 16}, "has shape"),
        ({"latent_channels": "4"}, r'at \$.latent_channels, expected `int`, got `str`. Received: "4"'),
        ({"norm_num_groups": 48}, "must be multiples of norm_num_groups=48"),
        ({"_class_name": "VQModel"}, "expected AutoencoderKL. Received: VQModel"),
        ({"_class_name": "AutoencoderDC"}, "expected AutoencoderKL. Received: AutoencoderDC"),
        ({"force_upcast": "yes"}, r"at \$.force_upcast, expected `bool"),
        (
            {"up_block_types": 4 * ["MidBlock"]},
            "only up_block_types of 4 entries UpDecoderBlock2D or AttnUpDecoderBlock2D",
        ),
        ({"act_fn": "gelu"}, 'only act_fn = "silu" is supported. Received: "gelu"'),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "only down_block_types"),
        ({"latents_mean": [0.1]}, "only latents_mean = null"),
        ({"out_channels": 4}, "out_channels must equal in_channels. Received: 4"),
        ({"scaling_factor": "big"}, r"at \$.scaling_factor, expected `float"),
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


@pytest.mark.no_backend
def test_values_of_the_configuration_are_used(tmp_path):
    shutil.copy(VAE / f"{NAME}.safetensors", tmp_path)
    config = {**json.loads((VAE / "config.json").read_text()), "scaling_factor": 0.41407, "shift_factor": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = KLAutoencoder.from_diffusers(tmp_path)
    assert (loaded.scale, loaded.shift) == (0.41407, 0.1)


@pytest.mark.no_backend
def test_what_a_configuration_lacks_is_as_in_diffusers(tmp_path):
    autoencoder = small_autoencoder(block_out_channels=(32, 32), norm_num_groups=32)
    autoencoder.save_diffusers(tmp_path)
    (tmp_path / "config.json").write_text('{"block_out_channels": [32, 32], "act_fn": "swish", "unknown": 1}')
    loaded = KLAutoencoder.from_diffusers(tmp_path)
    assert {**loaded.get_config(), "name": ""} == {**autoencoder.get_config(), "name": ""}


@pytest.mark.no_backend
def test_of_several_variants_one_is_chosen_or_asked_for(tensors, vae, tmp_path):
    file = write(tmp_path, tensors) / f"{NAME}.safetensors"
    file.rename(tmp_path / f"{NAME}.ema.safetensors")
    (tmp_path / f"{NAME}.non_ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{tmp_path} holds the variants ema, non_ema; give the file of one"):
        KLAutoencoder.from_diffusers(tmp_path)
    loaded = KLAutoencoder.from_diffusers(tmp_path / f"{NAME}.ema.safetensors")
    assert loaded.weights_hash() == vae.weights_hash()


@pytest.mark.no_backend
def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    shutil.copy(VAE / "config.json", tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643268\n"
    for name in (f"{NAME}.safetensors", f"{NAME}.bin"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(ValueError, match=f"^{tmp_path / name} is a git-lfs pointer, not the weights; fetch"):
            KLAutoencoder.from_diffusers(tmp_path)
        (tmp_path / name).unlink()


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.no_backend
def test_a_file_is_never_executed(tmp_path, capsys):
    import torch

    write(tmp_path, {"a": np.zeros(1, "float32")}, suffix="bin")
    torch.save({"quant_conv.bias": Malicious()}, tmp_path / f"{NAME}.bin")
    with pytest.raises(ValueError, match="is refused because loading it could run code; nothing was executed"):
        KLAutoencoder.from_diffusers(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.no_backend
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("length", [0, 7, 3000])
def test_damaged_files_are_named_in_one_sentence(tensors, suffix, length, tmp_path):
    file = write(tmp_path, {"a": tensors["encoder.conv_in.weight"]}, suffix=suffix) / f"{NAME}.{suffix}"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"^{file} is truncated, damaged or no") as raised:
        KLAutoencoder.from_diffusers(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.no_backend
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
    with pytest.raises(ValueError, match="config.json is damaged or of another kind: at"):
        KLAutoencoder.from_diffusers(tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json beside it"):
        KLAutoencoder.from_diffusers(tmp_path / "other" / f"{NAME}.safetensors")
    with pytest.raises(ValueError, match="weights are a .safetensors or .bin file. Received: "):
        KLAutoencoder.from_diffusers(VAE / "keys.txt")
