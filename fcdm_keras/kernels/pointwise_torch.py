"""GELU and LayerNorm on PyTorch: one fused kernel each, forward and backward."""

import torch
import torch.nn.functional as F


def gelu(x):
    """Exact GELU of a tensor of any shape."""
    return F.gelu(x)


def layer_norm(x):
    """LayerNorm over the last axis, no affine, eps 1e-6, in float32."""
    return F.layer_norm(x.to(torch.float32), x.shape[-1:], eps=1e-6)
