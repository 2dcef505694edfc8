"""Low-rank adapters of a network's layers (LoRA; Hu et al., arXiv:2106.09685), as Keras's layers have them.

An adapted layer computes with `kernel + alpha / rank · a·b`, of which `a` `(…, rank)` and `b` `(rank, units)` are
trained, and `b` starts at zero. A layer is known by its path behind the network's own name, such as
`middle_block_0/pwconv1`.
"""

import os
from pathlib import Path

import h5py
from keras import ops

from fcdm_keras.arguments import check_integer
from fcdm_keras.files import sync
from fcdm_keras.formats import hdf5
from fcdm_keras.network import weights

FACTORS = ("lora_kernel_a", "lora_kernel_b")
SUFFIX = ".lora.h5"


class Adaptable:
    """A Keras layer with a kernel, whose files hold the sum and leave `a` as it is.

    Keras (3.15) rounds the sum to the compute dtype, and sets both factors to zero when weights are loaded: no gradient
    would reach them any more.
    """

    def save_own_variables(self, store):
        if not self.lora_enabled or getattr(self, "quantization_mode", None):
            super().save_own_variables(store)
            return
        for i, value in enumerate([merged(self), *([self.bias] if self.use_bias else [])]):
            store[str(i)] = value

    def load_own_variables(self, store):
        kept = ops.convert_to_numpy(self.lora_kernel_a).copy() if self.lora_enabled else None
        super().load_own_variables(store)
        if kept is not None:
            self.lora_kernel_a.assign(kept)


def base(layer):
    """The variable of the kernel without adapters."""
    return next(v for v in layer.variables if v.name == "kernel")


def factors(layer):
    """The variables `a` and `b` of an adapted layer."""
    return [getattr(layer, name) for name in FACTORS]


def merged(layer, value=lambda variable: variable.value):
    """The kernel with its adapters, in the kernel's own dtype, of the `value` of each variable."""
    kernel, a, b = (ops.cast(value(v), "float32") for v in (base(layer), *factors(layer)))
    return ops.cast(kernel + layer.lora_alpha / layer.lora_rank * ops.matmul(a, b), base(layer).dtype)


def adaptable(model):
    """Path → layer, of all that adapters can be given to."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    return {weights.behind(model, layer.path): layer for layer in layers if hasattr(layer, "enable_lora")}


def adapted(model):
    """Path → layer, of those that have adapters."""
    return {path: layer for path, layer in adaptable(model).items() if layer.lora_enabled}


def enable(model, rank, names):
    """Freezes all weights and gives new adapters to the layers of some names.

    Raises:
        ValueError: for a rank below 1, names that no layer has, and a model that has adapters already.
    """
    check_integer("rank", rank, 1, 2**16)
    found = adaptable(model)
    known = {layer.name for layer in found.values()}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"target_layer_names must be names of layers with a kernel in {model.name}: {', '.join(sorted(known))}. "
            f"Received: {', '.join(map(repr, unknown)) or 'none'}"
        )
    _enable(model, int(rank), {path: layer for path, layer in found.items() if layer.name in names})


def _enable(model, rank, layers):
    present = adapted(model)
    if present:
        raise ValueError(
            f"{model.name} has adapters already, on {len(present)} layers: train them on, or save a preset, which has "
            "merged weights, and start from that."
        )
    model.trainable = True
    for layer in model._flatten_layers(include_self=False):
        layer.trainable = False
    for layer in layers.values():
        layer.trainable = True
        layer.enable_lora(rank)
        for variable in layer.trainable_variables:  # the bias
            variable.trainable = any(variable is factor for factor in factors(layer))


def save(model, file):
    """Writes adapters, and with them all other weights that are trainable, whole or not at all."""
    layers = adapted(model)
    if not layers:
        raise ValueError(f"{model.name} has no adapters to save: call enable_lora(rank) first.")
    if not str(file).endswith(SUFFIX):
        raise ValueError(f"The name of a file of adapters must end in {SUFFIX}. Received: {file}")
    own = {id(factor) for layer in layers.values() for factor in factors(layer)}
    unfinished = Path(f"{file}.unfinished")
    with h5py.File(unfinished, "w") as content:
        for path, layer in layers.items():
            group = content.create_group(f"adapters/{path}")
            group.attrs["alpha"] = layer.lora_alpha
            for name, factor in zip(FACTORS, factors(layer)):
                group[name] = array(factor)
        for variable in model.trainable_variables:
            if id(variable) not in own:
                content[f"weights/{weights.path_in(model, variable)}"] = array(variable)
    sync(unfinished)
    os.replace(unfinished, file)
    sync(unfinished.parent)


def load(model, file):
    """Loads what `save` wrote into a model with the same adapters, or without any.

    Raises:
        ValueError: it does not fit; nothing was loaded.
    """
    adapters, others = _read(file)
    found, own = adaptable(model), dict(zip(weights.paths(model), model.weights))
    kernels = {path: base(layer) for path, layer in found.items()}
    wanted = [(path, "layer", (*a.shape[:-1], b.shape[-1]), kernels) for path, (a, b, _) in adapters.items()]
    wanted += [(path, "weight", value.shape, own) for path, value in others.items()]
    for path, kind, shape, present in wanted:
        there = tuple(present[path].shape) if path in present else None
        if there != shape:
            there = f"of {there}" if there else "that it does not have"
            raise ValueError(f"{file} belongs to another network than {model.name}: it has {path}, a {kind} {there}.")
    rank = next(iter(adapters.values()))[0].shape[-1]
    present = {path: layer.lora_rank for path, layer in adapted(model).items()}
    if present and present != dict.fromkeys(adapters, rank):
        raise ValueError(
            f"{file} holds adapters of rank {rank} for {len(adapters)} layers, and {model.name} has others, of rank "
            f"{next(iter(present.values()))} on {len(present)} layers: load it into a network without adapters."
        )
    if not present:
        _enable(model, rank, {path: found[path] for path in adapters})
    for path, (a, b, alpha) in adapters.items():
        found[path].lora_alpha = alpha
        for factor, value in zip(factors(found[path]), (a, b)):
            factor.assign(value)
    for path, value in others.items():
        own[path].assign(value)
        own[path].trainable = True


def _read(file):
    """Path → (a, b, alpha) of a file's adapters, and path → value of its other weights."""
    with hdf5.checked(file), h5py.File(file, "r") as content:
        adapters = {
            path: (*(group[name][()] for name in FACTORS), float(group.attrs["alpha"]))
            for path, group in groups(content.get("adapters", {}), FACTORS[0]).items()
        }
        others = {}
        if "weights" in content:
            content["weights"].visititems(
                lambda path, item: others.update({path: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    if not adapters:
        raise ValueError(f"{file} holds no adapters that save_lora_weights wrote.")
    return adapters, others


def groups(group, member):
    """Path → group, of those within an HDF5 group that have a member of a name."""
    found = {}
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            found |= {name: item} if member in item else {}
            found |= {f"{name}/{path}": inner for path, inner in groups(item, member).items()}
    return found


def array(variable):
    """A variable's value as HDF5 has it: at least float32."""
    value = ops.convert_to_numpy(variable.value)
    return value.astype("float32") if value.itemsize < 4 else value
