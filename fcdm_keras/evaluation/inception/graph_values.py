"""Constants of frozen TensorFlow graphs as NumPy arrays."""

import math

import numpy as np

from fcdm_keras.formats.numbers import check_finite

# TensorFlow's DataType numbers, and the field of a TensorProto that lists values of the type.
TYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 6: "int8", 9: "int64", 10: "bool"}
REPEATED = 2**24  # values that one may stand for
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "uint8": "int_val",
    "int8": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
}


def constant(node, graph):
    """The value of a `Const` node of the graph named `graph`.

    Raises:
        ValueError: it has another type than numbers, the wrong size, or numbers that are not finite.
    """
    tensor, name = node.attr["value"].tensor, f"{graph}: constant {node.name!r}"
    if tensor.dtype not in TYPES:
        raise ValueError(f"{name} must hold numbers. Received: TensorFlow type {tensor.dtype}")
    dtype = TYPES[tensor.dtype]
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    size = math.prod(shape)
    if content := tensor.tensor_content:
        stored = np.dtype(dtype).newbyteorder("<")
        values = np.frombuffer(content, stored, len(content) // stored.itemsize).astype(dtype)
    else:
        values = np.array(getattr(tensor, _FIELDS[dtype]), dtype)
        if 0 < len(values) < size <= REPEATED:  # the last value stands for all that follow
            values = np.append(values, np.full(size - len(values), values[-1]))
    if values.size != size:
        raise ValueError(f"{name} must hold {size} values of shape {shape}. Received: {values.size}")
    if dtype.startswith("float"):
        check_finite(name, values)
    return values.reshape(shape)


def static(value):
    """An integer input that must be a constant of the graph, as a NumPy array."""
    if not isinstance(value, np.ndarray):
        raise ValueError("Axes, shapes and sizes must be constants of the graph. Received: a computed tensor")
    return value
