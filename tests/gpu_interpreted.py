"""Runs a block in Triton's interpreter, beside float64, and prints the relative errors of its results, as JSON.

A program of its own, since `TRITON_INTERPRET=1` must be set before Triton is imported.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch
from block_oracle import errors, oracle

from fcdm_keras.kernels import fused
from fcdm_keras.kernels.gpu import block, launches, on_torch


def poisoned(kernel, inputs, outputs, grid, scalars, constants, warps):
    """A launch whose outputs hold NaN before: what is not written is seen."""
    made = [torch.full(shape, float("nan"), dtype=getattr(torch, str(d).split(".")[-1])) for shape, d in outputs]
    kernel[grid](*[value.contiguous() for value in inputs], *made, **scalars, **constants, num_warps=warps)
    return made


class Kernels(launches.TritonKernels):
    linear = on_torch.kernels.linear


def arguments(batch, height, width, channels, size, dtype):
    rng = np.random.default_rng(0)
    values, upstream = fused.example(batch, max(height, width), channels, dtype)
    values[0], upstream = values[0][:, :height, :width].contiguous(), upstream[:, :height, :width].contiguous()
    values[4] = torch.tensor(rng.normal(size=(size, size, channels, 1)) / size, dtype=torch.float32)
    return values, upstream


def main():
    found = {}
    for case in sys.argv[1:]:
        *shape, dtype = case.split(",")
        values, upstream = arguments(*map(int, shape), dtype)
        kernels = Kernels(poisoned)
        out, saved = block.forward(kernels, *values, save=True)
        gradients = block.backward(kernels, saved, *values, upstream)
        found[case] = errors([out, *gradients], oracle(values, upstream))
        alone = block.forward(kernels, *values, save=False)[0]  # what inference computes
        found[case]["out, nothing saved"] = float((alone - out).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
