"""PyTorch's launches, and the block as a function that PyTorch differentiates."""

import torch

from fcdm_keras.kernels.gpu import block, launches

_DTYPES = {"float32": torch.float32}


def call(kernel, inputs, outputs, grid, scalars, constants, warps):
    device = inputs[0].device
    made = [torch.empty(shape, dtype=_DTYPES.get(dtype, dtype), device=device) for shape, dtype in outputs]
    inputs = [value.contiguous() for value in inputs]
    kernel[grid](*inputs, *made, **scalars, **constants, num_warps=warps, num_stages=3)
    return made


class _Kernels(launches.TritonKernels):
    def linear(self, x, kernel, bias):
        return torch.addmm(bias, x, kernel)


kernels = _Kernels(call)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(context, *arguments):
        save = any(context.needs_input_grad)
        out, saved = block.forward(kernels, *arguments, save=save)
        if save:
            context.save_for_backward(*saved, *arguments)
        return out

    @staticmethod
    def backward(context, out):
        saved, arguments = context.saved_tensors[:5], context.saved_tensors[5:]
        gradients = block.backward(kernels, saved, *arguments, out)
        return tuple(g.to(a.dtype) for g, a in zip(gradients, arguments))


def residual(*arguments):
    return _Residual.apply(*arguments)


def takes(x):
    return x.is_cuda


def fits(x, hidden):
    return launches.fits(x.shape[1] * x.shape[2], x.shape[3], hidden)


@torch.compiler.assume_constant_result
@torch.no_grad()
def concretely(function):
    """Computes a function of constants, also while a program is traced."""
    return function()
