"""PyTorch: one fused call each, forward and backward; the depthwise convolution on channels-last memory.

Our `(B, H, W, C)` tensors, seen as `(B, C, H, W)`, are channels-last memory already: no copy. On CPUs, with oneDNN,
this is 1.5 to 5 times faster than on NCHW memory. cuDNN also has channels-last kernels; GPUs are unmeasured.
"""

import torch
import torch.nn.functional as F


def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`; the libraries sum in float32."""
    size, channels = kernel.shape[0], kernel.shape[2]
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1)


def conv3x3(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(3, 3, C, channels)` → `(B, H, W, channels)`."""
    return F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)


def linear(x, kernel, bias):
    """`x` `(…, in)`, `kernel` `(in, out)`, `bias` `(out,)` → `(…, out)`; the bias is added inside the product."""
    return F.linear(x, kernel.t(), bias)


def gelu(x):
    """Exact GELU, elementwise."""
    return F.gelu(x)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32, or float64 if `x` is."""
    return F.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:], eps=1e-6)
