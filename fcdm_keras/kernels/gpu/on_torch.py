"""PyTorch's launches, and the block as a function that PyTorch differentiates."""

import functools
import types

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
        out, saved = _compiled("forward", arguments[0], save)(kernels, *arguments, save=save)
        if save:
            context.save_for_backward(*saved, *arguments)
        return out

    @staticmethod
    def backward(context, out):
        saved, arguments = context.saved_tensors[:5], context.saved_tensors[5:]
        gradients = _compiled("backward", arguments[0], True)(kernels, saved, *arguments, out)
        return tuple(g.to(a.dtype) for g, a in zip(gradients, arguments))


def _compiled(name, x, save):
    """A function of `block`, compiled for the sizes of x: its many small operations take the host long otherwise."""
    if torch.compiler.is_compiling():
        return getattr(block, name)
    return _compiled_for(name, tuple(x.shape), x.dtype, save)


@functools.lru_cache(maxsize=64)
def _compiled_for(name, shape, dtype, save):
    plain = getattr(block, name)
    # PyTorch counts what it has compiled by code object, and gives up after eight; so each gets its own.
    code = plain.__code__.replace(co_name=f"{name}_{'_'.join(map(str, (*shape, dtype, save)))}")
    function = types.FunctionType(code, plain.__globals__, name)
    return torch.compile(function, dynamic=False, fullgraph=True)


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
