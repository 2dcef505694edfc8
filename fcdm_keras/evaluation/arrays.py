"""What an array must be to be scored as images, and what to do with one that is not."""

import numpy as np

LOOKED_AT = 16  # images whose values decide the advice
FORMULA = "clip(127.5 · x + 128, 0, 255)"


def check_images(shape, dtype, values, start="Images must be uint8"):
    """Raises ValueError, in one sentence with advice that follows from the values, unless an array holds images.

    Args:
        shape, dtype: of the array, which must be uint8 `(N, H, W, 3 or 1)` and not empty.
        values: function without arguments that returns some of its values; called for an array that is refused.
        start: how the sentence begins.
    """
    shape = tuple(shape)
    if dtype == np.uint8 and len(shape) == 4 and shape[-1] in (1, 3) and 0 not in shape:
        return
    advice = [_of_shape(shape)]
    if dtype != np.uint8 and dtype.kind in "fiub" and shape and 0 not in shape:
        advice.append(_of_values(dtype, np.asarray(values())))
    raise ValueError(
        f"{start} (N, H, W, 3), 0 to 255. Received: {dtype} of shape {shape}"
        + "".join(f"; {part}" for part in advice if part)
    )


def spaced(count, wanted=None):
    """Places of `wanted` (default all) of `count` images, evenly spaced: i · count // wanted."""
    return np.arange(count) if wanted is None else np.arange(wanted) * count // wanted


def _of_shape(shape):
    if len(shape) == 4 and shape[1] in (1, 3) and shape[-1] not in (1, 3):
        return "they are channels first: transpose(0, 2, 3, 1) them"
    if len(shape) == 4 and shape[-1] == 4:
        return "lay their fourth channel, transparency, over white"
    if len(shape) == 3:
        return (
            "it is one image: add an axis in front"
            if shape[-1] in (1, 3)
            else "add an axis for the channel, [..., None]"
        )
    return None


def _of_values(dtype, values):
    if dtype.kind == "b":
        return 'multiply them by 255 and take .astype("uint8")'
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return "not all of their values are finite: look at what wrote them"
    low, high = values.min(), values.max()
    if dtype.kind == "f":
        if low < 0 and max(-low, high) <= 2:
            return f"they lie in −1 … 1: convert them with {FORMULA}"
        if low >= 0 and high <= 1:
            return "they lie in 0 … 1: multiply by 255, round and clip them"
    if low >= 0 and high <= 255:
        return f'{"round them and " if dtype.kind == "f" else ""}take .astype("uint8"): they lie in 0 … 255'
    if dtype.kind == "u" and dtype.itemsize == 2:
        return "divide them by 257 and round them: they have 16 bits"
    return f"they lie in {low:.4g} … {high:.4g}: scale them to 0 … 255"
