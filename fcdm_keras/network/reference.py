"""Reference FCDM checkpoints (`.pt`) to backbones and back.

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments.
Files are read with PyTorch's restricted unpickler: nothing stored in them is executed.
"""

import argparse
import os
import re
import warnings
import zipfile

import numpy as np


def load_torch_checkpoint(path, weights="ema", dtype=None):
    """Builds a backbone from a reference checkpoint, reading every size from the tensors' shapes.

    Args:
        path: a `.pt` file holding `model` and `ema` state dicts, or one bare state dict.
        weights: `"ema"` (what the paper samples with) or `"model"`.
        dtype: dtype policy of the backbone.

    Returns:
        An `FCDMBackbone` with the checkpoint's weights in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds objects that may not be loaded, or is no FCDM checkpoint.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f'weights must be "ema" or "model". Received: {weights!r}')
    state = _state_dict(read_torch_file(path), weights, path)
    sizes = _sizes(state, path)

    from fcdm_keras.network.fcdm import FCDMBackbone  # slow to import: a bad file is refused without it

    try:
        backbone = FCDMBackbone(**sizes, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path} is no FCDM checkpoint: {error}") from None
    expected = _parameters(backbone)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"{path} does not fit FCDM: missing tensors {missing[:5]}, unknown tensors {unknown[:5]}.")
    for name, (variable, from_torch, to_torch) in expected.items():
        found, shape = tuple(state[name].shape), to_torch(np.empty(variable.shape, bool)).shape
        if found != shape:
            raise ValueError(f"{path}: {name} has shape {found}, and the other tensors ask for {shape}.")
        variable.assign(from_torch(state[name].detach().float().numpy()))
    return backbone


def save_torch_state_dict(backbone, path):
    """Writes `backbone`'s weights as a reference checkpoint, `model` and `ema` both holding them.

    Args:
        backbone: an `FCDMBackbone` with `ClassConditioning`.
        path: file to write.
    """
    import torch
    from keras import ops

    state = {}
    for name, (variable, _, to_torch) in _parameters(backbone).items():
        value = np.array(to_torch(ops.convert_to_numpy(variable)), dtype="float32", order="C")
        state[name] = torch.from_numpy(value)
    torch.save({"model": state, "ema": state}, path)


def read_torch_file(path):
    """What a PyTorch file holds, on the CPU, without executing anything in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds objects that may not be loaded.
    """
    import torch

    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint file at {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            # Mapped into memory, so that the optimizer's state is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler stumble over
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds {refused[1]}, which is refused because loading it could run code; nothing was executed."
            if refused
            else f"{path} is truncated, damaged or not a PyTorch checkpoint; copy the file again."
        ) from None


def _state_dict(checkpoint, weights, path):
    state = checkpoint
    if isinstance(checkpoint, dict) and "x_embedder.weight" not in checkpoint:
        if weights not in checkpoint:
            raise ValueError(
                f"{path} has no {weights!r} weights. Received: a file with {sorted(map(str, checkpoint))[:8]}."
            )
        state = checkpoint[weights]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and hasattr(value, "detach") for name, value in state.items()
    ):
        raise ValueError(f"{path} holds no state dict of tensors. Received: {type(state).__name__}.")
    return state


def _sizes(state, path):
    def shape(name, rank):
        if name not in state:
            raise ValueError(f"{path} is no FCDM checkpoint: it has no tensor {name}.")
        found = tuple(state[name].shape)
        if len(found) != rank or 0 in found:
            raise ValueError(f"{path} is no FCDM checkpoint: {name} has shape {found}.")
        return found

    levels = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
    blocks = {level: {name.split(".")[1] for name in state if name.startswith(f"{level}.")} for level in levels}
    block = next((f"{level}.0" for level in levels if blocks[level]), "latent.0")
    hidden, in_channels = shape("x_embedder.weight", 4)[:2]
    wide, narrow = shape(f"{block}.pwconv1.weight", 4)[:2]
    return {
        "hidden_channels": hidden,
        "depths": [len(blocks[level]) for level in levels],
        "num_classes": shape("y_embedder_1.embedding_table.weight", 2)[0] - 1,
        "in_channels": in_channels,
        "out_channels": shape("final_layer.conv.weight", 4)[0],
        "expansion_ratio": wide / narrow if wide % narrow else wide // narrow,
        "kernel_size": shape(f"{block}.dwconv.weight", 4)[-1],
    }


# How a tensor is laid out in PyTorch and in Keras: (from torch, to torch).
_VECTOR = (lambda w: w, lambda w: w)
_LINEAR = (lambda w: w.T, lambda w: w.T)  # (out, in)
_POINTWISE = (lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # (out, in, 1, 1)
_CONV = (lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # (out, in, k, k)
_DEPTHWISE = (lambda w: w.transpose(2, 3, 0, 1), lambda w: w.transpose(2, 3, 0, 1))  # (C, 1, k, k)
_PER_CHANNEL = (lambda w: w.reshape(-1), lambda w: w[None, :, None, None])  # (1, C, 1, 1)


def _parameters(backbone):
    """Reference name → (variable, from torch, to torch) for every weight of `backbone`."""
    parameters = {}

    def add(name, layer, layout):
        parameters[f"{name}.weight"] = (layer.kernel, *layout)
        if layer.bias is not None:
            parameters[f"{name}.bias"] = (layer.bias, *_VECTOR)

    add("x_embedder", backbone.x_embedder, _CONV)
    for i, (time, table) in enumerate(zip(backbone.time_embeddings, backbone.conditioning.tables, strict=True), 1):
        add(f"t_embedder_{i}.mlp.0", time.hidden, _LINEAR)
        add(f"t_embedder_{i}.mlp.2", time.out, _LINEAR)
        parameters[f"y_embedder_{i}.embedding_table.weight"] = (table, *_VECTOR)
    for level, blocks in (
        ("encoder_level_1", backbone.encoder_1),
        ("encoder_level_2", backbone.encoder_2),
        ("latent", backbone.middle),
        ("decoder_level_2", backbone.decoder_2),
        ("decoder_level_1", backbone.decoder_1),
    ):
        for i, block in enumerate(blocks):
            add(f"{level}.{i}.dwconv", block.dwconv, _DEPTHWISE)
            add(f"{level}.{i}.pwconv1", block.pwconv1, _POINTWISE)
            add(f"{level}.{i}.pwconv2", block.pwconv2, _POINTWISE)
            add(f"{level}.{i}.adaLN_modulation.1", block.adaln, _LINEAR)
            parameters[f"{level}.{i}.grn.gamma"] = (block.grn.gamma, *_PER_CHANNEL)
            parameters[f"{level}.{i}.grn.beta"] = (block.grn.beta, *_PER_CHANNEL)
    add("down1_2.conv.0", backbone.down_1.conv, _CONV)
    add("down2_3.conv.0", backbone.down_2.conv, _CONV)
    add("up3_2.conv.0", backbone.up_2.conv, _CONV)
    add("up2_1.conv.0", backbone.up_1.conv, _CONV)
    add("reduce_chans_2", backbone.merge_2, _POINTWISE)
    add("reduce_chans_1", backbone.merge_1, _POINTWISE)
    add("output_layer", backbone.output_layer, _CONV)
    add("final_layer.adaLN_modulation.1", backbone.final_layer.adaln, _LINEAR)
    add("final_layer.conv", backbone.final_layer.conv, _CONV)
    return parameters
