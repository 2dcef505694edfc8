"""Reference FCDM checkpoints (`.pt`) to backbones and back.

    python -m fcdm_keras.convert in.pt out_preset/ [--weights ema|model]

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments.
Files are read with PyTorch's restricted unpickler: nothing stored in them is executed.
"""

import argparse
import os
import sys


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
    from fcdm_keras.backbone import FCDMBackbone

    if weights not in ("ema", "model"):
        raise ValueError(f'weights must be "ema" or "model". Received: {weights!r}')
    state = _state_dict(_read(path), weights, path)
    backbone = FCDMBackbone(**_sizes(state, path), dtype=dtype)
    expected = _parameters(backbone)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"{path} does not fit FCDM: missing tensors {missing[:5]}, unknown tensors {unknown[:5]}.")
    for name, (variable, from_torch, _) in expected.items():
        value = from_torch(state[name].float().numpy())
        if tuple(value.shape) != tuple(variable.shape):
            raise ValueError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, which does not fit the other tensors."
            )
        variable.assign(value)
    return backbone


def save_torch_state_dict(backbone, path):
    """Writes `backbone`'s weights as a reference checkpoint, `model` and `ema` both holding them.

    Args:
        backbone: an `FCDMBackbone` with `ClassConditioning`.
        path: file to write.
    """
    import numpy as np
    import torch
    from keras import ops

    state = {}
    for name, (variable, _, to_torch) in _parameters(backbone).items():
        value = np.array(to_torch(ops.convert_to_numpy(variable)), dtype="float32", order="C")
        state[name] = torch.from_numpy(value)
    torch.save({"model": state, "ema": state}, path)


def _read(path):
    import pickle
    import zipfile

    import torch

    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint file at {path}.")
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with allowed:  # mapped into memory, so that the optimizer's state is never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is not a PyTorch checkpoint of tensors, or holds objects that are refused because loading them "
            f"could run code; nothing was executed ({reason})."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is truncated or not a PyTorch checkpoint; copy the file again ({reason}).") from None


def _state_dict(checkpoint, weights, path):
    import torch

    state = checkpoint
    if isinstance(checkpoint, dict) and "x_embedder.weight" not in checkpoint:
        if weights not in checkpoint:
            raise ValueError(
                f"{path} has no {weights!r} weights. Received: a file with {sorted(map(str, checkpoint))[:8]}."
            )
        state = checkpoint[weights]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors. Received: {type(state).__name__}.")
    return state


def _sizes(state, path):
    try:
        hidden, in_channels = state["x_embedder.weight"].shape[:2]
        levels = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
        depths = [len({key.split(".")[1] for key in state if key.startswith(f"{level}.")}) for level in levels]
        block = next(key.removesuffix("dwconv.weight") for key in state if key.endswith("dwconv.weight"))
        dwconv, pwconv = state[f"{block}dwconv.weight"], state[f"{block}pwconv1.weight"]
        ratio = pwconv.shape[0] / pwconv.shape[1]
        return {
            "hidden_channels": hidden,
            "depths": depths,
            "num_classes": state["y_embedder_1.embedding_table.weight"].shape[0] - 1,
            "in_channels": in_channels,
            "out_channels": state["final_layer.conv.weight"].shape[0],
            "expansion_ratio": int(ratio) if ratio.is_integer() else ratio,
            "kernel_size": dwconv.shape[-1],
        }
    except (KeyError, StopIteration, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no FCDM checkpoint: it lacks {error or 'blocks'}.") from None


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


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.convert", description="Convert a reference FCDM checkpoint to a Keras preset folder."
    )
    parser.add_argument("checkpoint", help="reference checkpoint (.pt)")
    parser.add_argument("preset", help="folder to write")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="which weights (default: ema)")
    options = parser.parse_args(arguments)
    try:
        backbone = load_torch_checkpoint(options.checkpoint, weights=options.weights)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    backbone.save_to_preset(options.preset)
    print(f"{options.preset}: FCDM with {backbone.count_params():,} parameters, {options.weights} weights.")


if __name__ == "__main__":
    main()
