"""The operations of frozen TensorFlow graphs that Inception uses, over `keras.ops`, one function each.

A function gets the node's attributes, then its inputs: tensors, and NumPy arrays where the graph has integer constants
(axes, shapes, sizes). Maps are `(B, H, W, C)`. Padding, pooling and resizing follow TensorFlow 1 to the digit whatever
the backend's own rules are.
"""

import numpy as np
from keras import ops

from fcdm_keras.evaluation.inception.graph_values import TYPES, static

LARGEST = 8192  # height and width of a map


def identity(attributes, x):
    return x


def cast(attributes, x):
    return ops.cast(x, TYPES[attributes["DstT"].type])


def expand_dims(attributes, x, axis):
    return ops.expand_dims(x, int(static(axis)))


def reshape(attributes, x, shape):
    return ops.reshape(x, tuple(int(size) for size in static(shape)))


def concat(attributes, axis, *inputs):
    return ops.concatenate(inputs, axis=int(static(axis)))


def add(attributes, x, y):
    return ops.add(x, y)


def sub(attributes, x, y):
    return ops.subtract(x, y)


def mul(attributes, x, y):
    return ops.multiply(x, y)


def relu(attributes, x):
    return ops.relu(x)


def softmax(attributes, x):
    return ops.softmax(x, axis=-1)


def matmul(attributes, x, y):
    x = ops.transpose(x) if attributes["transpose_a"].b else x
    y = ops.transpose(y) if attributes["transpose_b"].b else y
    return ops.matmul(x, y)


def bias_add(attributes, x, bias):
    _check_layout(attributes)
    return ops.add(x, bias)


def batch_norm(attributes, x, mean, variance, beta, gamma):
    scale = ops.rsqrt(variance + attributes["variance_epsilon"].f)
    if attributes["scale_after_normalization"].b:
        scale = scale * gamma
    return x * scale + (beta - mean * scale)


def conv2d(attributes, x, kernel):
    strides = _sides(attributes, "strides")
    dilations = _sides(attributes, "dilations") if attributes["dilations"].list.i else (1, 1)
    window = [(size - 1) * dilation + 1 for size, dilation in zip(kernel.shape[:2], dilations)]
    x = _padded(x, _padding(attributes, x, window, strides), 0.0)
    return ops.conv(x, kernel, strides, "valid", data_format="channels_last", dilation_rate=dilations)


def max_pool(attributes, x):
    window, strides = _sides(attributes, "ksize"), _sides(attributes, "strides")
    x = _padded(x, _padding(attributes, x, window, strides), -np.inf)
    return ops.max_pool(x, window, strides, "valid", data_format="channels_last")


def average_pool(attributes, x):
    """Averages the covered cells only: padding counts neither in the sum nor in the number."""
    window, strides = _sides(attributes, "ksize"), _sides(attributes, "strides")
    padding = _padding(attributes, x, window, strides)
    counts = [
        np.convolve(np.pad(np.ones(size), pad), np.ones(width), "valid")[::stride]
        for size, pad, width, stride in zip(x.shape[1:3], padding, window, strides)
    ]
    share = (window[0] * window[1] / np.outer(*counts)).astype("float32")[None, :, :, None]
    means = ops.average_pool(_padded(x, padding, 0.0), window, strides, "valid", data_format="channels_last")
    return means if np.all(share == 1) else means * ops.convert_to_tensor(share)


def resize_bilinear(attributes, x, size):
    """TensorFlow 1's bilinear resizing, by default output i at source i · in/out, without anti-aliasing."""
    if not all(0 < int(new) <= LARGEST for new in static(size)):
        raise ValueError(f"Sizes must lie in [1, {LARGEST}]. Received: {static(size).tolist()}")
    x = ops.cast(x, "float32")
    (lower_y, upper_y, share_y), (lower_x, upper_x, share_x) = (
        _source(attributes, int(new), old) for new, old in zip(static(size), x.shape[1:3])
    )
    left, right = ops.take(x, lower_x, axis=2), ops.take(x, upper_x, axis=2)
    x = left + (right - left) * ops.convert_to_tensor(share_x[None, None, :, None])
    top, bottom = ops.take(x, lower_y, axis=1), ops.take(x, upper_y, axis=1)
    return top + (bottom - top) * ops.convert_to_tensor(share_y[None, :, None, None])


OPERATIONS = {
    "Add": add,
    "AvgPool": average_pool,
    "BatchNormWithGlobalNormalization": batch_norm,
    "BiasAdd": bias_add,
    "Cast": cast,
    "CheckNumerics": identity,  # the features are checked instead
    "Concat": concat,
    "Conv2D": conv2d,
    "ExpandDims": expand_dims,
    "Identity": identity,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": mul,
    "Relu": relu,
    "Reshape": reshape,
    "ResizeBilinear": resize_bilinear,
    "Softmax": softmax,
    "Sub": sub,
}


def _source(attributes, new, old):
    """Lower and upper source index of each of `new` outputs, int32, and the upper one's share, float32."""
    scale = np.float32(old) / np.float32(new)
    if attributes["align_corners"].b and new > 1:
        scale = np.float32(old - 1) / np.float32(new - 1)
    place = np.arange(new, dtype="float32")
    place = (place + np.float32(0.5)) * scale - np.float32(0.5) if attributes["half_pixel_centers"].b else place * scale
    floor = np.floor(place)
    lower, upper = (np.clip(index, 0, old - 1).astype("int32") for index in (floor, floor + 1))
    return lower, upper, place - floor


def _sides(attributes, name):
    _check_layout(attributes)
    batch, height, width, channels = attributes[name].list.i
    if (batch, channels) != (1, 1):
        raise ValueError(f"{name} must be [1, height, width, 1]. Received: {list(attributes[name].list.i)}")
    return height, width


def _check_layout(attributes):
    if attributes["data_format"].s not in (b"", b"NHWC"):
        raise ValueError(f"Maps must be NHWC. Received: data_format {attributes['data_format'].s.decode()}")


def _padding(attributes, x, window, strides):
    """TensorFlow's (before, after) padding of height and width."""
    scheme = attributes["padding"].s
    if scheme == b"VALID":
        return [(0, 0), (0, 0)]
    if scheme != b"SAME":
        raise ValueError(f"padding must be SAME or VALID. Received: {scheme.decode()}")
    totals = [
        max((-(-size // stride) - 1) * stride + width - size, 0)
        for size, width, stride in zip(x.shape[1:3], window, strides)
    ]
    return [(total // 2, total - total // 2) for total in totals]


def _padded(x, padding, value):
    if not np.any(padding):
        return x
    return ops.pad(x, [(0, 0), *padding, (0, 0)], constant_values=value)
