"""Whether PyTorch has a GPU that the kernels run on."""

import torch


def found():
    return torch.cuda.is_available() and torch.version.cuda is not None and torch.cuda.get_device_capability()[0] >= 8
