"""The form in which diffusers publishes `AutoencoderKL`: tensors' names and layouts, and `config.json`.

It is read to plain dicts and written from them, for `fcdm_keras.autoencoders.kl`.
"""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
from keras import ops
from safetensors.numpy import save_file

from fcdm_keras.autoencoders.weight_files import CONFIG, WEIGHTS, locate, read_tensors
from fcdm_keras.files import write_atomically

# How a tensor lies in the file and in Keras: "conv" (out, in, k, k) ↔ (k, k, in, out), "pointwise" (out, in, 1, 1) and
# "matrix" (out, in) ↔ (in, out); both of the last two are read for either.
_AXES = {"conv": (3, 2, 0, 1), "vector": (0,)}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SIZES = ("block_out_channels", "layers_per_block", "latent_channels", "in_channels", "norm_num_groups")
_SWITCHES = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
_ONLY = {  # fields of which one value is known
    "act_fn": "silu",
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
    "latents_mean": None,
    "latents_std": None,
}
_SHOWN = 5  # names in an error


def read(source, revision, check_sizes):
    """A published autoencoder.

    Args:
        source, revision: see `KLAutoencoder.from_diffusers`.
        check_sizes: function of the configuration's sizes, as keywords, that raises ValueError for impossible ones.

    Returns:
        The tensors by name, in the file's layout, and `KLAutoencoder`'s arguments, two dicts.
    """
    config, files = locate(source, revision)
    tensors = _renamed(read_tensors(files), source)
    return tensors, _options(config, check_sizes)


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
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _to_file(*parameter) for name, parameter in weights.items()}
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
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

    def add_resnets(prefix, blocks):
        for i, block in enumerate(blocks):
            name = f"{prefix}.resnets.{i}"
            for part in ("norm1", "norm2"):
                add_norm(f"{name}.{part}", getattr(block, part))
            for part in ("conv1", "conv2"):
                add(f"{name}.{part}", getattr(block, part), "conv")
            if block.conv_shortcut is not None:
                add(f"{name}.conv_shortcut", block.conv_shortcut, "pointwise")

    def add_half(half, levels, kind, samplers):
        network = getattr(autoencoder, half)
        for name in ("conv_in", "conv_out"):
            add(f"{half}.{name}", getattr(network, name), "conv")
        add_norm(f"{half}.conv_norm_out", network.conv_norm_out)
        for i, level in enumerate(levels):
            add_resnets(f"{half}.{kind}.{i}", level.resnets)
            if level.sampler is not None:
                add(f"{half}.{kind}.{i}.{samplers}.0.conv", level.sampler.conv, "conv")
        add_resnets(f"{half}.mid_block", network.mid_block.resnets)
        attention = network.mid_block.attention
        if attention is not None:
            name = f"{half}.mid_block.attentions.0"
            add_norm(f"{name}.group_norm", attention.group_norm)
            for part in ("to_q", "to_k", "to_v"):
                add(f"{name}.{part}", getattr(attention, part), "matrix")
            add(f"{name}.to_out.0", attention.to_out, "matrix")

    add_half("encoder", autoencoder.encoder.down_blocks, "down_blocks", "downsamplers")
    add_half("decoder", autoencoder.decoder.up_blocks, "up_blocks", "upsamplers")
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


def _options(path, check_sizes):
    """`KLAutoencoder`'s arguments from a `config.json`; what old files lack takes diffusers' default."""
    try:
        config = json.loads(path.read_text())
        kind = config.get("_class_name", "AutoencoderKL")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no configuration of an autoencoder ({error}).") from None
    if kind != "AutoencoderKL":
        raise ValueError(f"{path} describes another model; expected AutoencoderKL. Received: {kind}")
    for name, known in _ONLY.items():
        value = config.get(name, known)
        if any(one != known for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}: only {name} = {json.dumps(known)} is supported. Received: {json.dumps(value)}")
    options = {name: config[name] for name in (*_SIZES, *_SWITCHES) if name in config}
    if not isinstance(options.get("block_out_channels"), list):
        raise ValueError(f"{path} has no list block_out_channels; it is no configuration of an autoencoder.")
    if config.get("out_channels", 3) != config.get("in_channels", 3):
        raise ValueError(f"{path}: out_channels must equal in_channels. Received: {config.get('out_channels')}")
    for name, default in (("scaling_factor", 0.18215), ("shift_factor", 0.0)):
        value = config.get(name)
        options[name] = default if value is None else value
        if not isinstance(options[name], (int, float)) or not math.isfinite(options[name]):
            raise ValueError(f"{path}: {name} must be a number. Received: {value!r}")
    try:
        check_sizes(**{name: options[name] for name in _SIZES if name in options})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return options


def _published(config):
    levels = len(config["block_out_channels"])
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.30.0",  # the first that knows every field below
        "act_fn": "silu",
        "down_block_types": levels * ["DownEncoderBlock2D"],
        "up_block_types": levels * ["UpDecoderBlock2D"],
        "out_channels": config["in_channels"],
        "sample_size": 256,
        **{name: config[name] for name in (*_SIZES, *_SWITCHES, "scaling_factor", "shift_factor")},
    }


def _few(names):
    return f"{names[:_SHOWN]}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
