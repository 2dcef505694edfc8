"""The form in which diffusers publishes `AutoencoderKL`: tensors' names and layouts, and `config.json`.

It is read to plain dicts and written from them, for `fcdm_keras.autoencoders.kl`. Other programs' names are brought to
diffusers' by `fcdm_keras.autoencoders.latent_diffusion`.
"""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from keras import ops
from safetensors.numpy import save_file

from fcdm_keras.autoencoders import latent_diffusion
from fcdm_keras.autoencoders.tensor_files import MARK, open_tensors
from fcdm_keras.autoencoders.weight_files import CONFIG, WEIGHTS, locate
from fcdm_keras.files import make_folder, sync, write_atomically
from fcdm_keras.formats.documents import Name, Width, as_schema, read_json, shown

# How a tensor lies in the file and in Keras: "conv" (out, in, k, k) ↔ (k, k, in, out), "pointwise" (out, in, 1, 1) and
# "matrix" (out, in) ↔ (in, out); both of the last two are read for either.
_AXES = {"conv": (3, 2, 0, 1), "vector": (0,)}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SIZES = ("block_out_channels", "layers_per_block", "latent_channels", "in_channels", "norm_num_groups")
_SWITCHES = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv", "force_upcast")
_DEFAULTS = {  # of diffusers, for what a `config.json` lacks
    "layers_per_block": 1,
    "latent_channels": 4,
    "in_channels": 3,
    "out_channels": 3,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    **dict.fromkeys(_SWITCHES, True),
}
_ONLY = {"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)}  # values that are known
_BLOCKS = {  # without and with attention
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
_MISSING = 2**22  # numbers that weights may lack, to be named one by one
_SHOWN = 5  # names in an error


class _Published(msgspec.Struct):
    """The fields of a `config.json` that are read; others may stand beside them."""

    block_out_channels: Annotated[list[Width], msgspec.Meta(min_length=1, max_length=12)] | None = None
    class_name: Name = msgspec.field(name="_class_name", default="AutoencoderKL")
    layers_per_block: Width = 1
    latent_channels: Width = 1
    in_channels: Width = 1
    out_channels: Width = 1
    norm_num_groups: Width = 1
    scaling_factor: Annotated[float, msgspec.Meta(gt=0)] | None = None
    shift_factor: float | None = None
    mid_block_add_attention: bool | None = None
    use_quant_conv: bool | None = None
    use_post_quant_conv: bool | None = None
    force_upcast: bool | None = None
    down_block_types: list[str] | None = None
    up_block_types: list[str] | None = None


def read(source, revision, given, check_sizes):
    """A published autoencoder.

    Args:
        source, revision: see `KLAutoencoder.from_diffusers`.
        given: `KLAutoencoder`'s arguments that override what the files say.
        check_sizes: function of the configuration's sizes, as keywords, that raises ValueError for impossible ones.

    Returns:
        The tensors by name, in the file's layout, and `KLAutoencoder`'s arguments, two dicts.
    """
    path, files = locate(source, revision)
    config = _read_config(path, given) if path else {}
    stored = open_tensors(files)
    own, foreign = latent_diffusion.own_tensors(stored, source)
    if path is None and not foreign:
        raise _without_config(files[0], own)
    tensors = _renamed({name: read_tensor() for name, read_tensor in own.items()}, source)
    origin = path or files[0]
    if not foreign:
        options = _options(config, _DEFAULTS, given, origin, check_sizes)
        _check_costs(options, tensors, origin)
        return tensors, options
    sizes = latent_diffusion.sizes(tensors, source)
    defaults = {**_DEFAULTS, **sizes, "out_channels": sizes["in_channels"]}
    known = latent_diffusion.factors(stored, source)
    if known is None:
        four = (len(sizes["block_out_channels"]), sizes["latent_channels"]) == (4, 4)
        known = (0.18215 if four else 1.0, 0.0)
        if "scaling_factor" not in given and config.get("scaling_factor") is None:
            _warn_of_scale(source, known[0], "Stable Diffusion's" if four else "not known")
    defaults["scaling_factor"], defaults["shift_factor"] = known
    return tensors, _options(config, defaults, given, origin, check_sizes)


def assign(weights, tensors, source):
    """Sets weights to published tensors.

    Args:
        weights: name → (variable, layout), as `parameters` gives them.
        tensors: name → array in the file's layout.
        source: what to call the tensors' origin in errors.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape; no weight is changed then.
    """
    missing, unknown = sorted(weights.keys() - tensors.keys()), sorted(tensors.keys() - weights.keys())
    if missing or unknown:
        raise ValueError(
            f"{source} does not fit its {CONFIG}: missing tensors {_few(missing)}, unknown tensors {_few(unknown)}."
        )
    values = {name: _from_file(name, tensors[name], *weights[name], source) for name in weights}
    for name, (variable, _) in weights.items():
        variable.assign(values[name])


def write(folder, weights, config):
    """Writes weights, name → (variable, layout), and the configuration, that of a `KLAutoencoder`, to a folder."""
    folder = Path(folder)
    make_folder(folder)
    tensors = {name: _to_file(*parameter) for name, parameter in weights.items()}
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    sync(temporary)
    os.replace(temporary, folder / f"{WEIGHTS}.safetensors")
    write_atomically(folder / CONFIG, json.dumps(_published(config), indent=2) + "\n")


def parameters(autoencoder):
    """Published name → (variable, layout) of every weight of a `KLAutoencoder`."""
    found = {}

    def add(name, layer, layout):
        found[f"{name}.weight"] = (layer.kernel, layout)
        found[f"{name}.bias"] = (layer.bias, "vector")

    def add_norm(name, layer):
        found[f"{name}.weight"], found[f"{name}.bias"] = (layer.gamma, "vector"), (layer.beta, "vector")

    def add_resnet(name, block):
        for part in ("1", "2"):
            add_norm(f"{name}.norm{part}", getattr(block, f"norm{part}"))
            add(f"{name}.conv{part}", getattr(block, f"conv{part}"), "conv")
        if block.conv_shortcut is not None:
            add(f"{name}.conv_shortcut", block.conv_shortcut, "pointwise")

    def add_attention(name, attention):
        add_norm(f"{name}.group_norm", attention.group_norm)
        for part in ("to_q", "to_k", "to_v"):
            add(f"{name}.{part}", getattr(attention, part), "matrix")
        add(f"{name}.to_out.0", attention.to_out, "matrix")

    def add_block(name, block):
        for i, resnet in enumerate(block.resnets):
            add_resnet(f"{name}.resnets.{i}", resnet)
        for i, attention in enumerate(block.attentions):
            add_attention(f"{name}.attentions.{i}", attention)

    for half, kind, samplers in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        network = getattr(autoencoder, half)
        for name in ("conv_in", "conv_out"):
            add(f"{half}.{name}", getattr(network, name), "conv")
        add_norm(f"{half}.conv_norm_out", network.conv_norm_out)
        add_block(f"{half}.mid_block", network.mid_block)
        for i, level in enumerate(getattr(network, kind)):
            add_block(f"{half}.{kind}.{i}", level)
            if level.sampler is not None:
                add(f"{half}.{kind}.{i}.{samplers}.0.conv", level.sampler.conv, "conv")
    for name in ("quant_conv", "post_quant_conv"):
        if getattr(autoencoder, name) is not None:
            add(name, getattr(autoencoder, name), "pointwise")
    return found


def _renamed(tensors, source):
    """Tensors with the attention's names of today."""
    old = re.compile(rf"(.+\.attentions\.\d+)\.({'|'.join(_OLD_ATTENTION)})\.(weight|bias)")
    renamed = {}
    for name, tensor in tensors.items():
        match = old.fullmatch(name)
        new = f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name
        if new in renamed:
            raise ValueError(f"{source} holds {new} under its old and its new name.")
        renamed[new] = tensor
    return renamed


def _from_file(name, tensor, variable, layout, source):
    matrix = layout in ("matrix", "pointwise")
    if matrix and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    shape = file_shape(variable.shape, "matrix" if matrix else layout)
    if tensor.shape != shape:
        raise ValueError(f"{source}: {name} has shape {tensor.shape}, and its {CONFIG} asks for {shape}.")
    tensor = np.asarray(tensor, np.float32)
    if matrix:
        return tensor.T
    return tensor.transpose(2, 3, 1, 0) if layout == "conv" else tensor


def _to_file(variable, layout):
    value = np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")))
    value = value.T if layout in ("matrix", "pointwise") else value.transpose(_AXES[layout])
    return np.ascontiguousarray(value[:, :, None, None] if layout == "pointwise" else value)


def file_shape(shape, layout):
    """Shape in the file of a Keras variable's `shape`."""
    if layout in ("matrix", "pointwise"):
        return (shape[1], shape[0], *((1, 1) if layout == "pointwise" else ()))
    return tuple(shape[axis] for axis in _AXES[layout])


def _read_config(path, given):
    config = read_json(path, dict[str, Any])
    kind = as_schema({**config, **given}, _Published, path).class_name
    if kind != "AutoencoderKL":
        raise ValueError(f"{path} describes another model; expected AutoencoderKL. Received: {kind}")
    for name, known in _ONLY.items():
        if config.get(name, known[0]) not in known:
            raise ValueError(f"{path}: only {name} = {shown(known[0])} is supported. Received: {shown(config[name])}")
    return config


def _options(config, defaults, given, path, check_sizes):
    """`KLAutoencoder`'s arguments: those given, those of a `config.json`, and the defaults."""
    options = {**defaults, **{name: config[name] for name in (*_SIZES, "out_channels") if name in config}, **given}
    widths = options.get("block_out_channels")
    if widths is None:
        raise ValueError(f"{path} has no list block_out_channels; it is no configuration of an autoencoder.")
    if (images := options.pop("out_channels")) != options["in_channels"]:
        raise ValueError(f"{path}: out_channels must equal in_channels. Received: {images}")
    for name in (*_SWITCHES, "scaling_factor", "shift_factor"):
        if name not in given and config.get(name) is not None:
            options[name] = config[name]
    for half, name in (("encoder_attention", "down_block_types"), ("decoder_attention", "up_block_types")):
        if config.get(name) is not None:
            options[half] = _attention(config[name], name, len(widths), path)
    try:
        check_sizes(**{name: options[name] for name in _SIZES})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return options


def _check_costs(options, tensors, path):
    """Raises ValueError for sizes whose networks have far more numbers, at the least, than the tensors."""
    widths, layers = options["block_out_channels"], options["layers_per_block"]
    ends = widths[0] * options["in_channels"] + widths[-1] * options["latent_channels"]
    needed, held = 9 * (2 * layers * sum(w * w for w in widths) + ends), sum(map(np.size, tensors.values()))
    if needed > 2 * held + _MISSING:
        raise ValueError(f"{path} asks for {needed:,} numbers or more, and the weights beside it hold {held:,}.")


def _attention(types, name, levels, path):
    """Levels with attention, by a configuration's list of block types; the decoder's begins with the last level."""
    plain, attentive = _BLOCKS[name]
    if len(types) != levels or not set(types) <= {plain, attentive}:
        raise ValueError(
            f"{path}: only {name} of {levels} entries {plain} or {attentive}, as many as block_out_channels, are "
            f"supported. Received: {', '.join(types)[:200]}"
        )
    ordered = types if name == "down_block_types" else types[::-1]
    return [level for level, one in enumerate(ordered) if one == attentive]


def _without_config(path, tensors):
    if MARK in tensors:
        return FileNotFoundError(f"{path} has no {CONFIG} beside it, which gives the network's sizes.")
    return ValueError(f"{path} holds no KL autoencoder: it has no {MARK}. Received: {_few(sorted(tensors))}")


def _warn_of_scale(source, scale, whose):
    warnings.warn(
        f"{source} has no {CONFIG}: its norms are taken to have 32 groups, its latents the scale {scale} ({whose}). "
        f'If it is another, pass scaling_factor=, or write {{"scaling_factor": …}} to a {CONFIG} beside the file; '
        "docs/autoencoders.md lists those of published autoencoders.",
        stacklevel=4,
    )


def _published(config):
    levels = range(len(config["block_out_channels"]))
    down, up = (
        [types[level in config[half]] for level in levels]
        for half, types in zip(("encoder_attention", "decoder_attention"), _BLOCKS.values())
    )
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.30.0",  # the first that knows every field below
        "act_fn": "silu",
        "down_block_types": down,
        "up_block_types": up[::-1],
        "out_channels": config["in_channels"],
        "sample_size": 256,
        **{name: config[name] for name in (*_SIZES, *_SWITCHES, "scaling_factor", "shift_factor")},
    }


def _few(names):
    return f"{names[:_SHOWN]}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
