"""Published checkpoints (`.pt`) to backbones and back.

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments;
U-ViT's is a folder of files. Networks are found in other files too, by the name of one tensor; nothing stored in a file
is executed.
"""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from fcdm_keras.files import replacing
from fcdm_keras.formats.numbers import on_host
from fcdm_keras.formats.torch_files import read_torch_file, to_array
from fcdm_keras.network import costs
from fcdm_keras.network.architectures import ARCHITECTURES, arguments_of, told
from fcdm_keras.network.state_dicts import is_named, settings, state_dict
from fcdm_keras.network.torch_layouts import Shapes
from fcdm_keras.recipes import ModelSize
from fcdm_keras.recipes.ablations import variant_of

_ANCHORS = ("x_embedder.weight", "x_embedder.proj.weight", "patch_embed.proj.weight")  # prefixes of all names end here
_FEW = 2**22  # numbers that a checkpoint may lack, to be named one by one
_FIXED = 1e-4  # by which a table that is computed may differ from the stored one
_FILES = {"ema": "nnet_ema.pth", "model": "nnet.pth"}  # of U-ViT's folders


def load_torch_checkpoint(path, weights="ema", dtype=None, num_classes=None, architecture=None, **arguments):
    """Builds a backbone from a published checkpoint, reading every size from the tensors' shapes.

    Names may have a prefix (`module.`, `_orig_mod.`, `model.`), and the state dicts may lie deeper in the file or under
    other names (`state_dict`, `model_ema`), as long as one of them is meant.

    Args:
        path: a file holding `model` and `ema` state dicts, one bare state dict, or a whole module: PyTorch's or
            safetensors, see `read_torch_file`. For U-ViT also its `.ckpt` folder.
        weights: `"ema"` (what the paper samples with) or `"model"`. Weights that are called neither count as both.
        dtype: dtype policy of the backbone.
        num_classes: number of classes; needed where label tables have no row for "no class" (trained without label
            dropout) and the file's arguments do not say so. The mean of the other rows is put there.
        architecture: `"fcdm"`, `"dit"`, `"sit"`, `"dico"`, `"dic"`, `"dig"` or `"uvit"`; default what the tensors
            tell. SiT's are DiT's, and are told by the settings beside them only.
        **arguments: of the backbone, which tensors cannot tell: `num_heads` of DiT, SiT and U-ViT; of FCDM `variant`,
            an ablation that it must be of (default what the tensors tell, which is FCDM where sizes alone differ), and
            `head_width`, channels of a head of the variant `neighborhood` (default 32).

    Returns:
        A backbone of the class that `fcdm_keras.network.backbones.BACKBONES` has for the architecture, with the
        checkpoint's weights in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds what could run code, numbers that are quantised or not finite, or none of
            these networks or another one, or an argument is missing.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f'weights must be "ema" or "model". Received: {weights!r}')
    content = read_torch_file(_file(path, weights))
    state = state_dict(content, weights, _ANCHORS, path)
    name = _architecture(state, content, architecture, path)
    sizes, rows_without_null = _sizes(name, state, content, num_classes, path)
    sizes = arguments_of(name, sizes, arguments, path)

    from fcdm_keras.network.backbones import BACKBONES  # slow to import: a bad file is refused without it

    try:
        backbone = BACKBONES[name](**sizes, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path} is not read as {ARCHITECTURES[name].title}: {error}") from None
    _assign(backbone, ARCHITECTURES[name], state, rows_without_null, path)
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
    for name, (variable, _, to_torch) in ARCHITECTURES["fcdm"].parameters(backbone).items():
        value = np.array(to_torch(ops.convert_to_numpy(variable)), dtype="float32", order="C")
        state[name] = torch.from_numpy(value)
    with replacing(Path(path)) as file:
        torch.save({"model": state, "ema": state}, file)


def _file(path, weights):
    """The file that holds the weights: `path`, or what lies in a folder of U-ViT's."""
    folder = Path(path)
    return folder / _FILES[weights] if any((folder / name).exists() for name in _FILES.values()) else path


def _architecture(state, content, given, path):
    """The name of the architecture of a network, which must be the `given` one."""
    found = told(state, is_flow=is_named(content, "path_type"))
    if given is not None and given not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}. Received: {given!r}")
    if found is None:
        raise ValueError(
            f"{path} holds a network that is none of {', '.join(ARCHITECTURES)}: {', '.join([*state][:4])}."
        )
    if given in (None, found) or {given, found} == {"dit", "sit"}:
        return given or found
    raise ValueError(
        f"{path} looks like {ARCHITECTURES[found].title}, not like {ARCHITECTURES[given].title}: give "
        f'architecture="{found}" (--architecture {found}).'
    )


def _sizes(name, state, content, num_classes, path):
    """Arguments of the backbone that tensors tell, and the rows of label tables that have none for "no class"."""
    what = f"{path} is no {ARCHITECTURES[name].title} checkpoint"
    sizes, rows = ARCHITECTURES[name].sizes(Shapes(state, what))
    if not _null_is_missing(content, rows, num_classes, path):
        sizes["num_classes"], rows_without_null = rows - 1, None
    else:
        sizes["num_classes"] = rows_without_null = rows
        warnings.warn(
            f"{path} was trained without label dropout, so that guidance means nothing for this model: the mean of all "
            'classes stands for "no class".',
            stacklevel=3,
        )
    _check_costs(name, sizes, state, what)
    return sizes, rows_without_null


def _assign(backbone, architecture, state, rows_without_null, path):
    """Gives `backbone` the tensors of `state`; label tables of `rows_without_null` rows get the mean row as a last."""
    expected, constants = architecture.parameters(backbone), architecture.constants(backbone)
    names = expected.keys() | constants.keys()
    missing, unknown = sorted(names - state.keys()), sorted(state.keys() - names)
    if missing or unknown:
        title = architecture.title
        raise ValueError(f"{path} does not fit {title}: missing tensors {missing[:5]}, unknown tensors {unknown[:5]}.")
    tables = {id(table) for table in backbone.conditioning.tables}
    for name, (variable, from_torch, to_torch) in expected.items():
        value = to_array(f"{path}: {name}", state[name])
        if id(variable) in tables and value.shape[:1] == (rows_without_null,):
            value = np.concatenate([value, value.mean(axis=0, keepdims=True)])
        shape = to_torch(np.empty(variable.shape, bool)).shape
        if value.shape != shape:
            raise ValueError(f"{path}: {name} has shape {value.shape}, and the other tensors ask for {shape}.")
        variable.assign(from_torch(value))
    for name, constant in constants.items():
        value, constant = to_array(f"{path}: {name}", state[name]), on_host(constant)
        if value.shape != constant.shape or np.abs(value - constant).max() > _FIXED:
            raise ValueError(f"{path}: {name} is not the fixed table of {architecture.title}.")


def _null_is_missing(content, rows, num_classes, path):
    """Whether label tables of `rows` rows have none for "no class", by what the user or the file's arguments say."""
    if num_classes is not None:
        if num_classes not in (rows, rows - 1):
            raise ValueError(
                f'{path} has label tables of {rows} rows: num_classes is {rows - 1}, or {rows} without a row for "no '
                f'class". Received: {num_classes}'
            )
        return num_classes == rows
    told = settings(content, "num_classes") & {rows, rows - 1}
    return told == {rows} if told else settings(content, "class_dropout_prob") == {0}


def _check_costs(name, sizes, state, what):
    """Raises ValueError for sizes, taken from a few tensors' shapes, that ask for far more numbers than there are."""
    size = ModelSize(sizes["hidden_channels"], tuple(sizes["depths"]))
    if name == "fcdm":
        options = {key: value for key, value in sizes.items() if key not in ("hidden_channels", "depths", "variant")}
        variant = variant_of(sizes["variant"])
        size = dataclasses.replace(size, variant=sizes["variant"] or "", network=variant.network)
        parameters, _ = costs.count(size, **options)
    else:
        parameters = size.hidden_channels**2 * (4 + sum(size.depths)) + size.hidden_channels * sizes["num_classes"]
    held = sum(tensor.numel() for tensor in state.values())
    if parameters > 2 * held + _FEW:
        raise ValueError(f"{what}: its shapes ask for {parameters:,.0f} numbers, and it holds {held:,}.")
