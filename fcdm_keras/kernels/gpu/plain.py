"""The same operations as `launches.TritonKernels` in plain Keras operations: what they compute, and for any device."""

import math

from keras import ops

from fcdm_keras.kernels import on_keras


class PlainKernels:
    """See `launches.TritonKernels`, whose methods these have."""

    def depthwise_norm(self, x, taps, bias, shift, scale, save):
        y = on_keras.depthwise_conv(x, ops.cast(taps, x.dtype)[..., None]) + ops.cast(bias, x.dtype)
        h = on_keras.layer_norm(y) * (1.0 + scale[:, None, None]) + shift[:, None, None]
        return y, ops.cast(h, x.dtype)

    def depthwise_input_gradient(self, gradient, taps, added):
        taps = ops.flip(ops.cast(taps, gradient.dtype), axis=(0, 1))[..., None]
        return on_keras.depthwise_conv(gradient, taps) + added

    def depthwise_kernel_gradient(self, x, gradient, size):
        margin = size // 2
        height, width = x.shape[1:3]
        padded = ops.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
        sums = [ops.sum(_wide(window) * _wide(gradient), axis=(0, 1, 2)) for window in shifted]
        return ops.reshape(ops.stack(sums), (size, size, -1))

    def linear(self, x, kernel, bias):
        return on_keras.linear(x, kernel, bias)

    def activate(self, u, rows):
        g = on_keras.gelu(u)
        return g, _sums(ops.square(_wide(g)), rows)

    def contract(self, g, gain, kernel, bias, gate, x, rows, save):
        z = ops.matmul(_of_images(g, gain, rows), kernel) + ops.cast(bias, x.dtype)
        return z, x + _of_images(z, ops.cast(gate, x.dtype), rows)

    def gate_gradient(self, gradient, z, gate, rows):
        dz = ops.cast(_of_images(_wide(gradient), gate, rows), z.dtype)
        return dz, _sums(_wide(gradient) * _wide(z), rows), _sums(_wide(gradient), rows)

    def gain_gradient(self, gradient, u, rows):
        return _sums(_wide(gradient) * on_keras.gelu(_wide(u)), rows)

    def activation_gradient(self, gradient, u, gain, slope, rows):
        dtype, u = u.dtype, _wide(u)
        distribution = 0.5 * (1.0 + ops.erf(u * math.sqrt(0.5)))
        density = ops.exp(-0.5 * ops.square(u)) / math.sqrt(2.0 * math.pi)
        g = u * distribution
        dg = _of_images(_wide(gradient), gain, rows) + _of_images(g, slope, rows)
        du = dg * (distribution + u * density)
        return ops.cast(du, dtype), ops.cast(_of_images(g, gain, rows), dtype), _sums(du, rows)

    def norm_gradient(self, gradient, y, scale, rows):
        dtype, y, gradient = y.dtype, _wide(y), _wide(gradient)
        y = y - ops.mean(y, axis=-1, keepdims=True)
        inverse = ops.rsqrt(ops.mean(ops.square(y), axis=-1, keepdims=True) + 1e-6)
        y = y * inverse
        dn = _of_images(gradient, 1.0 + scale, rows)
        dy = dn - ops.mean(dn, axis=-1, keepdims=True) - y * ops.mean(dn * y, axis=-1, keepdims=True)
        dy = inverse * dy
        return ops.cast(dy, dtype), _sums(gradient, rows), _sums(gradient * y, rows), _sums(dy, rows)


def _wide(x):
    return ops.cast(x, "float32")


def _sums(matrix, rows):
    return ops.sum(ops.reshape(matrix, (-1, rows, matrix.shape[-1])), axis=1)


def _of_images(matrix, factors, rows):
    """The rows of a matrix times the factors of their image, `(B, C)`."""
    return ops.reshape(ops.reshape(matrix, (-1, rows, matrix.shape[-1])) * factors[:, None], matrix.shape)
