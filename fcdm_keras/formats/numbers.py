"""What the numbers in every array that comes in must be: real, of a kind that is expected, and finite."""

import numpy as np

_KINDS = {
    "f": "floating-point numbers",
    "i": "integers",
    "u": "integers",
    "b": "true or false",
    "U": "text",
    "V": "bfloat16",
}
FLOATS = ("float16", "bfloat16", "float32", "float64")  # types of weights
_REPEATED = 2**30  # bytes that an array which repeats its numbers may stand for
_PART = 2**24  # numbers that are looked at together


def check_kind(name, dtype, kinds):
    """Raises ValueError, with the name, unless a NumPy dtype is of one of `kinds`, letters such as `"fiub"`.

    NumPy's own types only: no complex numbers, objects, dates or records.
    """
    if dtype.kind not in kinds or dtype.fields:
        expected = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
        raise ValueError(f"{name} must hold {expected}. Received: {str(dtype)[:60]}; convert and save it again.")


def check_weights_type(name, kind):
    """Raises ValueError unless a type, by its name in PyTorch, is one that weights are trained in."""
    if kind not in FLOATS:
        raise ValueError(f"{name} holds {kind}, as quantised copies do; bring weights in {' or '.join(FLOATS)}.")


def check_finite(name, array):
    """Raises ValueError, with the name and the counts, for an array of floats that holds NaN or infinite values."""
    flat = array.ravel(order="K")  # a view of what is dense
    if all(np.isfinite(flat[start : start + _PART]).all() for start in range(0, flat.size, _PART)):
        return
    nan, infinite = np.isnan(array).sum(), np.isinf(array).sum()
    raise ValueError(f"{name} is not finite: of {array.size:,} values, {nan:,} are NaN and {infinite:,} infinite.")


def on_host(value, name="Data"):
    """A list, array or tensor of any engine as a NumPy array of real numbers; `None` stays.

    Raises:
        ValueError: it cannot be one: it is sparse, ragged, quantised or without numbers, of unequal parts, complex,
            text or objects; or it stands for far more numbers than it has.
    """
    if value is None:
        return None
    check_dense(name, value)
    if hasattr(value, "detach"):  # PyTorch's, perhaps on another device
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    elif hasattr(value, "numpy") and not hasattr(value, "__array__"):
        value = value.numpy()
    try:
        if isinstance(value, (list, tuple)):
            value = [on_host(item, name) if hasattr(item, "detach") else item for item in value]
        array = np.asarray(value)
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be an array. Received: {type(value).__name__} of unequal parts") from None
    array = array.astype("float32") if str(array.dtype) == "bfloat16" else array
    check_kind(name, array.dtype, "fiub")
    if array.nbytes > _REPEATED and any(step == 0 and side > 1 for step, side in zip(array.strides, array.shape)):
        raise ValueError(f"{name} repeats what it holds to the shape {array.shape}; give each sample once, or a part.")
    return array


def check_dense(name, value):
    """Raises ValueError for a tensor of any engine that is sparse, ragged, quantised, complex, or without numbers."""
    if form := _no_array(value):
        raise ValueError(f"{name} must be a dense array of real numbers. Received: {form}; convert it first.")


def _no_array(value):
    """What a value is that has no dense real numbers, as a phrase; `None` for all that may have."""
    layout = str(getattr(value, "layout", ""))
    if layout.startswith("torch.") and layout != "torch.strided":
        return f"a tensor of layout {layout}"
    for mark in ("is_quantized", "is_nested", "is_meta"):
        if getattr(value, mark, False) is True:
            return f"a tensor that {mark.replace('_', ' ')}"
    sparse = any(hasattr(value, name) for name in ("todense", "dense_shape", "row_splits"))  # of JAX, SciPy, TensorFlow
    if "complex" in (dtype := str(getattr(value, "dtype", ""))):
        return f"a {type(value).__name__} of {dtype}"
    return f"a {type(value).__name__}" if sparse else None
