"""Reference FCDM checkpoints (`.pt`) to backbones and back.

A reference checkpoint is a dict with the state dicts `model` and `ema`, the optimizer's state and the run's arguments.
Networks are found in other files too, by the name of one tensor; nothing stored in a file is executed.
"""

import dataclasses
import re
import warnings
from collections import deque
from pathlib import Path

import numpy as np

from fcdm_keras.files import replacing
from fcdm_keras.formats.torch_files import Skipped, check_tensor, contents, read_torch_file, to_array
from fcdm_keras.network.correspondence import LEVELS, told
from fcdm_keras.network.correspondence import parameters as _parameters
from fcdm_keras.network.costs import count
from fcdm_keras.recipes import ModelSize
from fcdm_keras.recipes.ablations import VARIANTS, variant_of

_ANCHOR = "x_embedder.weight"  # what comes before it is a prefix of all names
_TABLE = ".embedding_table.weight"
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow)(?=[_\d]|$)", re.IGNORECASE)
_FEW = 2**22  # numbers that a checkpoint may lack, to be named one by one
_MODEL = re.compile(r"(^|_)model(_|$)", re.IGNORECASE)


def load_torch_checkpoint(path, weights="ema", dtype=None, num_classes=None, variant=None, head_width=None):
    """Builds a backbone from a reference checkpoint, reading every size from the tensors' shapes.

    Names may have a prefix (`module.`, `_orig_mod.`, `model.`), and the state dicts may lie deeper in the file or under
    other names (`state_dict`, `model_ema`), as long as one of them is meant.

    Args:
        path: a file with `model` and `ema` state dicts, a bare one, or a whole module, see `read_torch_file`.
        weights: `"ema"` (what the paper samples with) or `"model"`. Weights that are called neither count as both.
        dtype: dtype policy of the backbone.
        num_classes: number of classes; needed where label tables have no row for "no class" (trained without label
            dropout) and the file's arguments do not say so. The mean of the other rows is put there.
        variant: an ablation that it must be of; default what the tensors tell, which is FCDM where sizes alone differ.
        head_width: channels of a head of the variant `neighborhood`, which tensors do not tell; default 32.

    Returns:
        An `FCDMBackbone` with the checkpoint's weights in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds what could run code, numbers that are quantised or not finite, or is of
            no FCDM, or of another variant.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f'weights must be "ema" or "model". Received: {weights!r}')
    content = read_torch_file(path)
    state = _state_dict(content, weights, path)
    sizes, rows = _sizes(state, variant, path)
    null_is_missing = _null_is_missing(content, rows, num_classes, path)
    sizes["num_classes"] = rows if null_is_missing else rows - 1
    _check_costs(sizes, state, path)
    from fcdm_keras.network.fcdm import FCDMBackbone  # slow to import: a bad file is refused without it

    try:
        backbone = FCDMBackbone(**sizes, dtype=dtype, head_width=head_width)
    except ValueError as error:
        raise ValueError(f"{path} is no FCDM checkpoint: {error}") from None
    _assign(backbone, state, rows if null_is_missing else None, path)
    if null_is_missing:
        warnings.warn(
            f"{path} was trained without label dropout, so that guidance means nothing for this model: the mean of all "
            'classes stands for "no class".',
            stacklevel=2,
        )
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
    with replacing(Path(path)) as file:
        torch.save({"model": state, "ema": state}, file)


def _assign(backbone, state, rows_without_null, path):
    """Gives `backbone` the tensors of `state`; label tables of `rows_without_null` rows get the mean row as a last."""
    expected = _parameters(backbone)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"{path} does not fit FCDM: missing tensors {missing[:5]}, unknown tensors {unknown[:5]}.")
    for name, (variable, from_torch, to_torch) in expected.items():
        value = to_array(f"{path}: {name}", state[name])
        if name.endswith(_TABLE) and value.shape[:1] == (rows_without_null,):
            value = np.concatenate([value, value.mean(axis=0, keepdims=True)])
        shape = to_torch(np.empty(variable.shape, bool)).shape
        if value.shape != shape:
            raise ValueError(f"{path}: {name} has shape {value.shape}, and the other tensors ask for {shape}.")
        variable.assign(from_torch(value))


def _state_dict(content, weights, path):
    """The tensors of the network that `weights` means, by their reference names."""
    dicts = dict(_state_dicts(content))
    networks = {
        (place, name.removesuffix(_ANCHOR)): inside
        for place, inside in dicts.items()
        for name in inside
        if f".{name}".endswith(f".{_ANCHOR}")
    }
    if not networks:
        raise ValueError(f"{path} {_no_network(content, dicts, weights)}.")
    chosen = _choose(networks, weights)
    shown = ", ".join(sorted("/".join((*place, prefix)).strip("/.") or "bare" for place, prefix in chosen or networks))
    if not chosen:
        other = "model" if weights == "ema" else "ema"
        raise ValueError(f'{path} has no {weights!r} weights, but {shown}; give weights="{other}" (--weights {other}).')
    if len(chosen) > 1:
        raise ValueError(f"{path} holds several networks as {weights!r} weights ({shown}); store one of them alone.")
    (_, prefix), inside = chosen.popitem()
    state = {name.removeprefix(prefix): tensor for name, tensor in inside.items() if name.startswith(prefix)}
    for name, tensor in state.items():
        check_tensor(f"{path}: {name}", tensor)
    return state


def _state_dicts(content):
    """The dicts of tensors in a file's content, outermost first: (the names that lead to it, its tensors by name)."""
    for place, inside in _walk(content):
        if tensors := {_WRAPPERS.sub("", n): v for n, v in inside.items() if isinstance(n, str) and _is_tensor(v)}:
            yield place, tensors


def _walk(content):
    """Whatever has named parts in a file's content, outermost first: (the names that lead to it, its parts)."""
    waiting, seen = deque([((), content, ())]), set()
    while waiting:
        place, value, above = waiting.popleft()
        if isinstance(value, Skipped) and not value:  # objects may hold each other
            if id(value) in seen:
                continue
            seen.add(id(value))
        if id(value) in above:  # a dict in itself; the same one in two places counts as two
            continue
        inside, above = contents(value), (*above, id(value))
        yield place, inside
        if len(place) < 8:
            waiting.extend(((*place, str(name)), item, above) for name, item in inside.items() if contents(item))


def _is_tensor(value):
    return hasattr(value, "detach") or (isinstance(value, Skipped) and "ensor" in type(value).kind)


def _choose(networks, weights):
    """Those of `networks`, by (the names that lead to the dict, prefix), that `weights` may mean."""

    def those(test):
        return {key: inside for key, inside in networks.items() if test(key[0], key[1].split("."))}

    def averaged(names):
        return any(map(_AVERAGE.search, names))

    def called_model(names):
        return any(map(_MODEL.search, names))

    if weights == "ema":
        groups = (
            those(lambda place, prefix: averaged(prefix)),
            those(lambda place, prefix: averaged(place)),
            those(lambda place, prefix: not called_model(place)),
        )
    else:
        networks = those(lambda place, prefix: not averaged((*place, *prefix)))
        groups = (those(lambda place, prefix: called_model(place)), networks)
    return next((group for group in groups if group), {})


def _no_network(content, dicts, weights):
    """What a file holds instead of a network, as the end of a sentence."""
    if not dicts:
        names = sorted(map(str, contents(content)))[:8]
        return (
            f"holds no state dict of tensors. Received: {f'a file with {names}' if names else type(content).__name__}"
        )
    place = next((place for place in dicts if weights in place), next(iter(dicts)))
    names = list(dicts[place])
    hint = ", which are names of DiT" if any("x_embedder.proj." in name for name in names) else ""
    return f"has no {weights!r} weights of FCDM: no tensor {_ANCHOR}, but {', '.join(names[:4])}{hint}"


def _null_is_missing(content, rows, num_classes, path):
    """Whether label tables of `rows` rows have none for "no class", by what the user or the file's arguments say."""
    if num_classes is not None:
        if num_classes not in (rows, rows - 1):
            raise ValueError(
                f'{path} has label tables of {rows} rows: num_classes is {rows - 1}, or {rows} without a row for "no '
                f'class". Received: {num_classes}'
            )
        return num_classes == rows
    told = _settings(content, "num_classes") & {rows, rows - 1}
    return told == {rows} if told else _settings(content, "class_dropout_prob") == {0}


def _settings(content, name):
    """The numbers that a file's content has under a name, wherever it lies."""
    found = (inside.get(name) for _, inside in _walk(content))
    return {value for value in found if isinstance(value, (int, float))}


def _sizes(state, variant, path):
    """Arguments of the backbone but for `num_classes`, and the rows of its label tables."""
    network, kind = _told(state, variant, path)

    def shape(name, rank):
        if name not in state:
            raise ValueError(f"{path} is no FCDM checkpoint: it has no tensor {name}.")
        found = tuple(state[name].shape)
        if len(found) != rank or 0 in found:
            raise ValueError(f"{path} is no FCDM checkpoint: {name} has shape {found}.")
        return found

    levels = LEVELS[network]
    blocks = {level: {name.split(".")[1] for name in state if name.startswith(f"{level}.")} for level in levels}
    block = next((f"{level}.0" for level in levels if blocks[level]), "latent.0")
    hidden, in_channels = shape("x_embedder.weight", 4)[:2]
    sizes = {
        "hidden_channels": hidden,
        "depths": [len(blocks[level]) for level in levels],
        "in_channels": in_channels,
    }
    if kind != "resnet":
        wide, narrow = shape(f"{block}.pwconv1.weight", 4)[:2]
        sizes["expansion_ratio"] = wide / narrow if wide % narrow else wide // narrow
    if kind != "neighborhood":
        sizes["kernel_size"] = shape(f"{block}.{'conv1' if kind == 'resnet' else 'dwconv'}.weight", 4)[-1]
    if network == "isotropic":
        sizes["out_channels"] = shape("final_layer.linear.weight", 2)[0] // 4
    else:
        sizes["out_channels"] = shape("final_layer.conv.weight", 4)[0]
    sizes["variant"] = _named(variant, network, kind, sizes, path)
    return sizes, shape(f"y_embedder{'' if network == 'isotropic' else '_1'}{_TABLE}", 2)[0]


def _told(state, variant, path):
    """The network and the kind of block that the tensors' names tell. Raises ValueError unless they are a variant's."""
    network, kind = told(state)
    row = variant_of(variant)
    if variant and (row.network, row.block) != (network, kind):
        others = [name for name, other in VARIANTS.items() if (other.network, other.block) == (network, kind)]
        looks = "FCDM" if (network, kind) == ("fcdm", "fcdm") else f"the variant {' or '.join(others) or kind}"
        raise ValueError(f"{path} is no checkpoint of the variant {variant}: by its tensors it is one of {looks}.")
    return network, kind


def _named(variant, network, kind, sizes, path):
    """The name of the variant, for sizes that must be its; `None` for FCDM."""
    if not variant and (network, kind) != ("fcdm", "fcdm"):
        names = [name for name, row in VARIANTS.items() if (row.network, row.block) == (network, kind)]
        fitting = [n for n in names if VARIANTS[n].expansion_ratio == sizes.get("expansion_ratio", 1)]
        if not names:
            raise ValueError(f"{path} is no FCDM checkpoint: its blocks have parts that no variant has together.")
        variant = (fitting or names)[0]
    row = variant_of(variant)
    for name in ("kernel_size", "expansion_ratio"):
        if variant and sizes.get(name, getattr(row, name)) != getattr(row, name):
            raise ValueError(
                f"{path} is no checkpoint of the variant {variant}: its {name} is {sizes[name]}, and the variant's is "
                f"{getattr(row, name)}."
            )
    return variant


def _check_costs(sizes, state, path):
    """Raises ValueError for sizes, taken from a few tensors' shapes, that ask for far more numbers than there are."""
    options = {name: value for name, value in sizes.items() if name not in ("hidden_channels", "depths", "variant")}
    size = ModelSize(sizes["hidden_channels"], tuple(sizes["depths"]))
    size = dataclasses.replace(size, variant=sizes["variant"], network=variant_of(sizes["variant"]).network)
    parameters, _ = count(size, **options)
    held = sum(tensor.numel() for tensor in state.values())
    if parameters > 2 * held + _FEW:
        raise ValueError(
            f"{path} is no FCDM checkpoint: its shapes ask for {parameters:,.0f} numbers, and it holds {held:,}."
        )
