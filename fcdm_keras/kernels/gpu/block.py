"""A block's residual and its gradients, from the operations of `launches` or `plain`, and matrix products.

`network.layers.FCDMBlock` has the same in plain Keras operations, which is the specification.
"""

import math

from keras import ops


def forward(kernels, x, shift, scale, gate, taps, bias, kernel_1, bias_1, gamma, beta, kernel_2, bias_2, save):
    """The block's output, and what its gradients need.

    Args:
        kernels: `TritonKernels` or `PlainKernels`.
        x: `(B, H, W, D)`.
        shift, scale, gate: `(B, D)` float32.
        taps, bias: of the depthwise convolution, `(k, k, D, 1)` and `(D,)`.
        kernel_1, bias_1: of the first linear, `(D, N)` and `(N,)`.
        gamma, beta: of the GRN, `(N,)`.
        kernel_2, bias_2: of the second linear, `(N, D)` and `(D,)`.
        save: whether gradients will be taken.
    """
    (batch, *sides, d), dtype = x.shape, x.dtype
    rows = sides[0] * sides[1]
    y, h = kernels.depthwise_norm(x, _wide(taps[..., 0]), _wide(bias), _wide(shift), _wide(scale), save)
    h = ops.reshape(h, (batch * rows, d))
    u = kernels.linear(h, ops.cast(kernel_1, dtype), ops.cast(bias_1, dtype))
    g, energy = kernels.activate(u, rows)
    gain = ops.cast(_gain(energy, _wide(gamma))[0], dtype)
    offset = ops.matmul(_wide(beta)[None], _wide(kernel_2))[0] + _wide(bias_2)
    pixels = ops.reshape(x, (batch * rows, d))
    z, out = kernels.contract(g, gain, ops.cast(kernel_2, dtype), offset, _wide(gate), pixels, rows, save)
    return ops.reshape(out, x.shape), (y, h, u, energy, z)


def _wide(x):
    return ops.cast(x, "float32")


def _gain(energy, gamma):
    """GRN's factors `(B, N)` of each channel's sum of squares, the roots of these, and their means."""
    response = ops.sqrt(ops.clip(energy, 1e-24, math.inf))
    mean = ops.mean(response, axis=-1, keepdims=True) + 1e-6
    return gamma * (response / mean) + 1.0, response, mean


def backward(kernels, saved, x, shift, scale, gate, taps, bias, kernel_1, bias_1, gamma, beta, kernel_2, bias_2, out):
    """The gradients to `x`, …, `bias_2`, in that order, given that to the output, `out` `(B, H, W, D)`."""
    y, h, u, energy, z = saved
    rows, dtype = x.shape[1] * x.shape[2], x.dtype
    matrix = lambda values: ops.reshape(values, (x.shape[0] * rows, -1))  # noqa: E731
    kernel_1, kernel_2 = ops.cast(kernel_1, dtype), ops.cast(kernel_2, dtype)
    scale, gate, taps, gamma, beta = map(_wide, (scale, gate, taps[..., 0], gamma, beta))

    dz, d_gate, out_sums = kernels.gate_gradient(matrix(out), z, gate, rows)
    d_bias_2 = ops.sum(out_sums * gate, axis=0)
    dv = ops.matmul(dz, ops.transpose(kernel_2))

    # GRN: v = gelu(u) · gain + beta, where the gain depends on all of the image.
    gain, response, mean = _gain(energy, gamma)
    d_gain = kernels.gain_gradient(dv, u, rows)
    d_gamma = ops.sum(d_gain * response / mean, axis=0)
    d_beta = ops.matmul(d_bias_2[None], _wide(ops.transpose(kernel_2)))[0]
    along = d_gain * gamma
    d_response = along / mean - ops.mean(along * response, axis=-1, keepdims=True) / ops.square(mean)
    slope = d_response / response * ops.cast(energy > 1e-24, "float32")  # twice the gradient to the energy
    du, v, d_bias_1 = kernels.activation_gradient(dv, u, gain, slope, rows)
    d_kernel_2 = _wide(ops.matmul(ops.transpose(v), dz)) + beta[:, None] * d_bias_2[None]

    d_kernel_1 = _wide(ops.matmul(ops.transpose(h), du))
    dh = ops.matmul(du, ops.transpose(kernel_1))
    dy, d_shift, d_scale, d_bias = kernels.norm_gradient(dh, matrix(y), scale, rows)
    dy = ops.reshape(dy, x.shape)
    dx = kernels.depthwise_input_gradient(dy, taps, out)
    d_taps = kernels.depthwise_kernel_gradient(x, dy, taps.shape[0])[..., None]
    sums = (ops.sum(d_bias_1, axis=0), d_gamma, d_beta, d_kernel_2, d_bias_2)
    return dx, d_shift, d_scale, d_gate, d_taps, ops.sum(d_bias, axis=0), d_kernel_1, *sums
