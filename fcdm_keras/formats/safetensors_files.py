"""The door of `.safetensors` files. Tensors are read when they are called for."""

from functools import partial

import ml_dtypes  # noqa: F401  (comes with Keras; NumPy then knows bfloat16)
from safetensors import SafetensorError, safe_open

from fcdm_keras.formats import regular
from fcdm_keras.formats.numbers import check_finite, check_weights_type

# The library compares a header's shapes and places with the file's length as it opens it (checked: 0.6).
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_safetensors(path):
    """The tensors of a file: name → function that reads one, as a float32 array.

    Raises:
        ValueError: it is damaged. The functions raise it for numbers that are not finite, or no weights.
        OSError: it cannot be read.
    """
    regular.size(path)
    try:
        file = safe_open(path, "numpy")
    except (SafetensorError, ValueError):
        raise ValueError(f"{path} is truncated, damaged or no safetensors file; copy the file again.") from None
    return {name: partial(_read, file, path, name) for name in file.keys()}  # noqa: SIM118  (no dict)


def _read(file, path, name):
    kind = file.get_slice(name).get_dtype()
    check_weights_type(f"{path}: {name}", _TYPES.get(kind, kind))
    values = file.get_tensor(name).astype("float32")
    check_finite(f"{path}: {name}", values)
    return values
