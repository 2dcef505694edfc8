"""A block's residual as PyTorch's own operations in float64, and what its results are compared by."""

import torch.nn.functional as F

NAMES = ("out", "x", "shift", "scale", "gate", "taps", "bias")
NAMES += ("kernel_1", "bias_1", "gamma", "beta", "kernel_2", "bias_2")


def results(function, arguments, upstream):
    """`function(*arguments)` and its gradients, given that to the output."""
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    out = function(*arguments)
    out.backward(upstream.to(out.dtype))
    return [out.detach(), *(a.grad for a in arguments)]


def oracle(arguments, upstream):
    """The same of the definition (paper, section 3.1), in float64."""
    return results(_residual, [a.double() for a in arguments], upstream.double())


def _residual(x, shift, scale, gate, taps, bias, kernel_1, bias_1, gamma, beta, kernel_2, bias_2):
    width = x.shape[-1]
    kernel = taps.permute(2, 3, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=taps.shape[0] // 2, groups=width).permute(0, 2, 3, 1)
    h = F.layer_norm(y, (width,), eps=1e-6) * (1 + scale[:, None, None]) + shift[:, None, None]
    g = F.gelu(h @ kernel_1 + bias_1)
    response = g.square().sum((1, 2), keepdim=True).sqrt()
    v = gamma * (g * (response / (response.mean(-1, keepdim=True) + 1e-6))) + beta + g
    return x + gate[:, None, None] * (v @ kernel_2 + bias_2)


def errors(ours, expected):
    """Relative errors by name; NaN anywhere is NaN."""
    pairs = zip(NAMES, ours, expected, strict=True)
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in pairs}
