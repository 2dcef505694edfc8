"""What the numbers in every array that comes in must be: real, of a kind that is expected, and finite."""

import numpy as np

_KINDS = {"f": "floating-point numbers", "i": "integers", "u": "integers", "b": "true or false", "U": "text"}
FLOATS = ("float16", "bfloat16", "float32", "float64")  # types of weights
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
