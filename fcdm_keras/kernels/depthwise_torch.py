"""Depthwise convolution on PyTorch: oneDNN or cuDNN on channels-last memory.

Our `(B, H, W, C)` tensors, seen as `(B, C, H, W)`, are channels-last memory already: no copy. On CPUs this is 1.5 to 5
times faster than on NCHW memory. cuDNN also has channels-last kernels; GPUs are unmeasured.
"""

import torch.nn.functional as F


def depthwise_conv(x, kernel):
    """`x` `(B, H, W, C)`, `kernel` `(k, k, C, 1)` → `(B, H, W, C)`; the libraries sum in float32."""
    size, channels = kernel.shape[0], kernel.shape[2]
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1)
