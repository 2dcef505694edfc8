"""Published autoencoders, layout by layout, against diffusers: the table of `docs/autoencoders.md` is made here."""

import json
import lzma
import sys
import types
import unittest.mock
import warnings

import numpy as np
import pytest
import torch
from conftest import GOLDEN, VAE
from helpers import nhwc, to_numpy
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from vae_layouts import CONFIGS, HALF, images, latents, weights

from fcdm_keras.autoencoders import KLAutoencoder

DOCS = GOLDEN.parents[1] / "docs" / "autoencoders.md"
NAME = "diffusion_pytorch_model"
NAMES = json.loads(lzma.decompress((GOLDEN / "vae_layouts" / "names.json.xz").read_bytes()))


def published(row, prefix=""):
    """A row's tensors by diffusers' names."""
    shapes = {name: tuple(shape) for name, _, shape, _ in NAMES[row]}
    return {f"{prefix}{name}": torch.tensor(value) for name, value in weights(row, shapes).items()}


def original(row, prefix=""):
    """The same by latent-diffusion's names, in its shapes."""
    tensors = published(row)
    return {f"{prefix}{theirs}": tensors[name].reshape(shape) for name, theirs, _, shape in NAMES[row]}


def others(*names):
    """What lies beside an autoencoder in a file: not finite, or no floats, since nobody is to look at it."""
    values = (torch.full((2, 3), float("nan")), torch.tensor(7), torch.ones(2, dtype=torch.int8))
    return {name: values[i % 3].clone() for i, name in enumerate(names)}


LOSSES = ("loss.logvar", "loss.discriminator.main.2.num_batches_tracked", "loss.perceptual_loss.lin0.model.1.weight")
LIGHTNING = [f"pytorch_lightning{part}" for part in ("", ".callbacks", ".callbacks.model_checkpoint")]
UNET = ("model.diffusion_model.input_blocks.0.0.weight", "betas", "model_ema.decay", "model_ema.encoderconv_inweight")


def lightning(tensors, path):
    """A checkpoint as PyTorch Lightning writes it: old ones name a class of its own."""
    modules = {name: types.ModuleType(name) for name in LIGHTNING}
    callback = modules[LIGHTNING[-1]].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": LIGHTNING[-1]})
    extras = {"epoch": 3, "global_step": 1000, "pytorch-lightning_version": "1.4.2", "lr_schedulers": [], "loops": None}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    extras |= {"optimizer_states": [optimizer], "callbacks": {callback: {"best_model_score": torch.tensor(0.1)}}}
    with unittest.mock.patch.dict(sys.modules, modules):
        torch.save({**extras, "state_dict": tensors}, path)
    return path


def folder(row, place, file=f"{NAME}.safetensors"):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(CONFIGS[row]))
    dtype = getattr(torch, HALF.get(row, "float32"))
    save_file({name: tensor.to(dtype) for name, tensor in published(row).items()}, place / file)
    return place


def stable_diffusion(row, place):
    text = others("cond_stage_model.transformer.embeddings.position_ids", *UNET)
    return lightning({**original(row, "first_stage_model."), **text}, place / "v1-5-pruned.ckpt")


def stable_diffusion_xl(row, place):
    text = others("conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x", *UNET)
    save_file({**original(row, "first_stage_model."), **text}, place / "sd_xl_base_1.0.safetensors")
    return place / "sd_xl_base_1.0.safetensors"


def pipeline(row, place):
    (place / "model_index.json").write_text("{}")
    folder(row, place / "vae")
    return place


def latent_diffusion(row, place):
    (place / "config.yaml").write_text("model: …")
    lightning({**original(row), **others(*LOSSES)}, place / "model.ckpt")
    return place


def mar(row, place):
    (place / "config.json").write_text('{"scaling_factor": 0.2325}')
    torch.save({"model": original(row), "epoch": 400, "args": {}}, place / "kl16.ckpt")
    return place / "kl16.ckpt"


def va_vae(row, place):
    extras = others("linear_proj.weight", "foundation_model.model.blocks.0.attn.qkv.weight", "loss.logvar")
    torch.save({"state_dict": {**original(row), **extras}}, place / "vavae-imagenet256-f16d32-dinov2.pt")
    torch.save({"mean": torch.zeros(1, 32, 1, 1), "std": torch.ones(1, 32, 1, 1)}, place / "latents_stats.pt")
    return place


def eq_vae(row, place):
    return lightning({**original(row), **others(*LOSSES)}, place / "eq-vae.ckpt")


def half_variant(row, place):
    return folder(row, place, f"{NAME}.fp16.safetensors")


def sharded(row, place):
    (place / "config.json").write_text(json.dumps(CONFIGS[row]))
    tensors, weight_map = published(row), {}
    for i in (1, 2):
        part = {name: tensors[name] for name in sorted(tensors)[i - 1 :: 2]}
        save_file(part, place / f"{NAME}-0000{i}-of-00002.safetensors")
        weight_map |= dict.fromkeys(part, f"{NAME}-0000{i}-of-00002.safetensors")
    (place / f"{NAME}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return place


FORMS = {  # row → what the docs call its form, and who writes it
    "Stable Diffusion 1.5": ("`v1-5-pruned.ckpt`", stable_diffusion),
    "Stable Diffusion XL": ("`sd_xl_base_1.0.safetensors`", stable_diffusion_xl),
    "Stable Diffusion 3": ("a pipeline's folder", pipeline),
    "FLUX": ("`vae/` in bfloat16", folder),
    "kl-f4": ("a folder with `model.ckpt`", latent_diffusion),
    "kl-f8": ("a folder with `model.ckpt`", latent_diffusion),
    "kl-f16": ("a folder with `model.ckpt`", latent_diffusion),
    "MAR": ("`kl16.ckpt`, `config.json`", mar),
    "VA-VAE": ("a folder with two `.pt`", va_vae),
    "EQ-VAE": ("`eq-vae.ckpt`", eq_vae),
    "a lone `.fp16` variant": ("a folder", half_variant),
    "sharded": ("a folder", sharded),
}


def line(row, autoencoder, told):
    """The row of the docs' table, as read."""
    halves = (("encoder", autoencoder.encoder_attention), ("decoder", autoencoder.decoder_attention))
    attention = ", ".join(f"{half} {level}" for half, levels in halves for level in levels) or "none"
    quant = {(True, True): "yes", (False, False): "no"}[autoencoder.use_quant_conv, autoencoder.use_post_quant_conv]
    scale = f"{autoencoder.scale:g}, {autoencoder.shift:g}{'' if told else ' (not in the file)'}"
    sizes = (autoencoder.downsampling_factor, autoencoder.latent_channels)
    return "| {} |".format(" | ".join(map(str, (row, FORMS[row][0], *sizes, attention, quant, scale))))


ROWS = [pytest.param(row, marks=[] if row == "MAR" else pytest.mark.no_backend) for row in FORMS]


@pytest.mark.parametrize("row", ROWS)
def test_a_published_layout_computes_what_diffusers_does(row, golden, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        autoencoder = KLAutoencoder.from_diffusers(FORMS[row][1](row, tmp_path))
    notes = [str(one.message) for one in said if "has no config.json" in str(one.message)]
    assert line(row, autoencoder, not notes) in DOCS.read_text().splitlines() and len(notes) < 2
    expected = golden("vae_layouts/results")
    mean, logvar = autoencoder.encode(nhwc(images()))
    moments = np.concatenate([to_numpy(mean), to_numpy(logvar)], axis=-1)
    np.testing.assert_allclose(moments, nhwc(expected[f"{row}: moments"]), rtol=0, atol=1e-5)
    decoded = to_numpy(autoencoder.decode(nhwc(latents(CONFIGS[row]))))
    np.testing.assert_allclose(decoded, nhwc(expected[f"{row}: images"]), rtol=0, atol=1e-5)

    # Written in diffusers' form, it has the tensors and the configuration that diffusers gives them.
    autoencoder.save_diffusers(tmp_path / "written")
    written, theirs = load_file(tmp_path / "written" / f"{NAME}.safetensors"), published(row)
    assert written.keys() == theirs.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    free = ("_diffusers_version", "_name_or_path", "sample_size", "act_fn", "shift_factor")
    kept = {name: value for name, value in CONFIGS[row].items() if name not in free and value is not None}
    assert config | kept == config
    if autoencoder.encoder_attention:
        again = KLAutoencoder.from_diffusers(tmp_path / "written")
        assert again.weights_hash() == autoencoder.weights_hash()
        assert {**again.get_config(), "name": ""} == {**autoencoder.get_config(), "name": ""}


@pytest.mark.no_backend
def test_the_table_of_the_docs_has_these_rows():
    rows = [row.split(" | ")[0].removeprefix("| ") for row in DOCS.read_text().splitlines() if row.startswith("| ")]
    table = rows[rows.index("autoencoder") + 1 :]
    assert table[: len(FORMS)] == list(FORMS) == list(CONFIGS) and len(FORMS) == 12


@pytest.fixture(scope="module")
def kl_f8():
    return original("kl-f8")


def read(tensors, path, **options):
    """What a `.safetensors` file with these tensors is read to."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "any.safetensors")
    return KLAutoencoder.from_diffusers(path / "any.safetensors", **options)


@pytest.mark.no_backend
def test_what_a_file_does_not_tell_is_said_once_and_can_be_given(kl_f8, tmp_path):
    with pytest.warns(UserWarning, match="taken to have 32 groups, its latents the scale 0.18215") as said:
        read(kl_f8, tmp_path)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = read(kl_f8, tmp_path, scaling_factor=0.13025, shift_factor=0.5, norm_num_groups=16)
        assert (given.scale, given.shift, given.norm_num_groups) == (0.13025, 0.5, 16)
        measured = read({**kl_f8, "scale_factor": torch.tensor(0.25)}, tmp_path)
        assert measured.scale == 0.25
        (tmp_path / "config.json").write_text('{"scaling_factor": 0.5, "force_upcast": false}')
        beside = read(kl_f8, tmp_path)
        assert (beside.scale, beside.force_upcast, beside.norm_num_groups) == (0.5, False, 32)
        assert read(kl_f8, tmp_path, scaling_factor=2).scale == 2


@pytest.mark.no_backend
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "autoencoder.vae."])
def test_a_prefix_of_all_names_is_no_part_of_them(prefix, kl_f8, vae, tmp_path):
    ours = read({f"{prefix}{name}": tensor for name, tensor in kl_f8.items()}, tmp_path, scaling_factor=1)
    compiled = {name.replace("coder.", "coder._orig_mod."): tensor for name, tensor in kl_f8.items()}
    torch.save({"step": 1, "ema": compiled, "model": {**kl_f8, "quant_conv.bias": torch.zeros(8)}}, tmp_path / "a.bin")
    assert ours.weights_hash() == KLAutoencoder.from_diffusers(tmp_path / "a.bin", scaling_factor=1).weights_hash()
    averaged = {f"{prefix}{name}": tensor for name, tensor in load_torch(VAE / f"{NAME}.safetensors").items()}
    (tmp_path / "config.json").write_text((VAE / "config.json").read_text())
    assert read({**averaged, "n_averaged": torch.tensor(9)}, tmp_path).weights_hash() == vae.weights_hash()


@pytest.mark.no_backend
@pytest.mark.parametrize("form", ["numbers only", "pickled"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("quant_conv.bias", lambda t: t.fill_(np.inf), "is not finite: of "),
        ("encoder.conv_in.bias", lambda t: t * np.nan, "is not finite: of "),
        (
            "quant_conv.bias",
            lambda t: t.to(torch.float8_e4m3fn),
            "holds .*(?i:E4M3).*, as quantised copies do",
        ),
        ("quant_conv.bias", lambda t: t.to(torch.int8), "holds (?i:I.*8), as quantised copies do"),
    ],
)
def test_numbers_that_are_no_weights_are_named(name, change, message, form, kl_f8, tmp_path):
    tensors = {**kl_f8, name: change(kl_f8[name].clone())}
    with pytest.raises(ValueError, match=f"(?i)^{tmp_path}/any.*: {name} {message}") as raised:
        if form == "pickled":
            KLAutoencoder.from_diffusers(lightning(tensors, tmp_path / "any.ckpt"))
        else:
            read(tensors, tmp_path)
    assert "\n" not in str(raised.value)


def changed(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name])}


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "quantize.embedding.weight": torch.ones(8, 4)}, "with a codebook .quantize.embedding.weight"),
        (lambda t: {**t, "edm_mean": torch.ones(4)}, "scales each channel of the latents by itself"),
        (lambda t: {f"{p}.{n}": v.clone() for n, v in t.items() for p in "ab"}, "names begin with a. or b."),
        (
            lambda t: {"text_model.weight": torch.ones(2)},
            "no KL autoencoder: it has no encoder.conv_in.weight. Rec",
        ),
        (changed("encoder.conv_in.weight", lambda t: t[..., None]), r"conv_in.weight has the shape \(32, 3, 3, 3, 1\)"),
        (changed("encoder.conv_out.weight", lambda t: t[:4]), "gives 4 channels, which is not twice the 4 that"),
        (changed("quant_conv.weight", lambda t: t[:6]), "quant_conv changes the number of channels"),
        (changed("encoder.norm_out.bias", lambda t: t[:6]), r"encoder.conv_norm_out.bias has shape \(6,\)"),
        (
            lambda t: {n: v for n, v in t.items() if n != "decoder.norm_out.bias"},
            "missing tensors .'decoder.conv_nor",
        ),
    ],
)
def test_files_that_are_no_such_autoencoder_are_refused_in_a_sentence(change, message, kl_f8, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read(change(kl_f8), tmp_path, scaling_factor=1)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
