"""Quantized layers of a model: which there may be, and how a configuration says which there are."""

import re

import keras
from keras import quantizers

from fcdm_keras.network.layers import Linear
from fcdm_keras.network.weights import behind

MODES = {
    "int8": quantizers.Int8QuantizationConfig,
    "int4": quantizers.Int4QuantizationConfig,
    "float8": quantizers.Float8QuantizationConfig,
}


def check(model, config):
    """Raises ValueError for a `keras.quantizers.QuantizationConfig` that a model cannot be stored with."""
    if config.mode not in MODES:
        raise ValueError(f"{model.name} can be quantized to {', '.join(MODES)}. Received: {config.mode!r}")
    if config.get_config() != MODES[config.mode]().get_config():
        raise ValueError(
            f"{model.name} is quantized as Keras does by default, for this is what is stored: leave out config=."
        )


def filtered(filters):
    """Keras's `filters`, of the linears on feature maps alone."""
    patterns = (filters,) if isinstance(filters, str) else filters

    def chosen(layer):
        if not isinstance(layer, Linear) or layer.name == "adaln":
            return False
        if patterns is None or callable(patterns):
            return patterns is None or patterns(layer)
        return any(re.search(pattern, layer.name) for pattern in patterns)

    return chosen


def stored(model):
    """The dtype policy of a model and the modes of its quantized layers, as entries of its configuration.

    KerasHub (checked: 0.32.0) loads a preset with the present default policy whatever its `dtype` is, and fails for a
    mixed one: so any but float32 stands beside it, as `policy`.
    """
    policy, modes = model.dtype_policy, {}
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return {}
    for path, layer in _layers(model).items():
        if layer.quantization_mode:
            modes.setdefault(layer.quantization_mode, []).append(path)
    config = {"dtype": keras.dtype_policies.serialize(policy)}
    if policy.name != "float32":
        config = {"dtype": None, "policy": config["dtype"]}
    return {**config, **({"quantized": modes} if modes else {})}


def read(config):
    """A configuration without what `stored` adds to Keras's, and the modes of quantized layers."""
    config = dict(config)
    policy, modes = config.pop("policy", None), config.pop("quantized", {})
    if config.get("dtype") is None:
        config["dtype"] = policy
    return config, modes


def repeat(model, modes):
    """Quantizes the layers of a new model; their weights are loaded afterwards."""
    layers = _layers(model)
    for mode, paths in modes.items():
        for path in paths:
            layers[path].quantize(mode, type_check=False)


def _layers(model):
    """All layers of a model by their paths behind its own."""
    return {behind(model, layer.path): layer for layer in model._flatten_layers(include_self=False)}
