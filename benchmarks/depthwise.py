"""Time of the depthwise 7×7 convolution: Keras's (`plain`) against ours (`fast`), forward and each gradient.

    KERAS_BACKEND=jax python benchmarks/depthwise.py [--batch-size 16] [--dtype float32] [--repeats 9]

Sizes are the three levels of FCDM-S. Functions run as in training (`jax.jit`, `tf.function` without XLA, eager on
PyTorch). The two implementations alternate, so that a busy machine slows both; times are medians, the ratio is theirs.
"""

import argparse
import contextlib
import statistics
import time

import keras
import numpy as np
from keras import ops

from fcdm_keras import kernels

LEVELS = ((32, 32, 128), (16, 16, 256), (8, 8, 512))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--kernel-size", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(f"{keras.backend.backend()}, {options.dtype}, batch {options.batch_size}, median of {options.repeats}, ms")
    print(f"{'H × W × C':>16}  {'':18}{'plain':>10}{'fast':>10}{'plain / fast':>15}")
    for level in LEVELS:
        shape = " × ".join(map(str, level))
        for name, plain, fast in measure(level, options):
            print(f"{shape:>16}  {name:18}{1e3 * plain:10.2f}{1e3 * fast:10.2f}{plain / fast:15.1f}")


def measure(level, options):
    """Yields (what, plain seconds, fast seconds)."""
    height, width, channels = level
    rng = np.random.default_rng(0)
    tensor = lambda *shape: ops.convert_to_tensor(rng.normal(size=shape), dtype=options.dtype)  # noqa: E731
    x, upstream = tensor(options.batch_size, *level), tensor(options.batch_size, *level)
    kernel = tensor(options.kernel_size, options.kernel_size, channels, 1)
    runs = {name: runners(name, x, kernel, upstream) for name in ("plain", "fast")}
    for what in runs["plain"]:
        times = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):  # the first one compiles
            for name, functions in runs.items():
                start = time.perf_counter()
                ops.convert_to_numpy(functions[what]())
                if repeat:
                    times[name].append(time.perf_counter() - start)
        yield what, statistics.median(times["plain"]), statistics.median(times["fast"])


def runners(implementation, x, kernel, upstream):
    """What → function without arguments that computes it and returns a tensor to wait for.

    The forward pass is not part of a gradient's time: the convolution is linear in either argument, so compilers leave
    it out, and on PyTorch it is computed once beforehand.
    """

    def convolution(x, kernel):
        with kernels.plain() if implementation == "plain" else contextlib.nullcontext():
            return kernels.depthwise_conv(x, kernel)

    return globals()[f"_{keras.backend.backend()}_runners"](convolution, x, kernel, upstream)


def _jax_runners(convolution, x, kernel, upstream):
    import jax

    def gradient(argument):
        return jax.jit(lambda x, kernel, upstream: jax.vjp(convolution, x, kernel)[1](upstream)[argument])

    forward, to_x, to_kernel = jax.jit(convolution), gradient(0), gradient(1)
    return {
        "forward": lambda: forward(x, kernel),
        "input gradient": lambda: to_x(x, kernel, upstream),
        "kernel gradient": lambda: to_kernel(x, kernel, upstream),
    }


def _torch_runners(convolution, x, kernel, upstream):
    import torch

    x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
    y = convolution(x, kernel)
    return {
        "forward": lambda: convolution(x.detach(), kernel.detach()),
        "input gradient": lambda: torch.autograd.grad(y, x, upstream, retain_graph=True)[0],
        "kernel gradient": lambda: torch.autograd.grad(y, kernel, upstream, retain_graph=True)[0],
    }


def _tensorflow_runners(convolution, x, kernel, upstream):
    import tensorflow as tf

    def gradient(argument):
        @tf.function
        def run(x, kernel, upstream):
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                y = convolution(x, kernel)
            return tape.gradient(y, (x, kernel), upstream)[argument]

        return run

    forward, to_x, to_kernel = tf.function(convolution), gradient(0), gradient(1)
    return {
        "forward": lambda: forward(x, kernel),
        "input gradient": lambda: to_x(x, kernel, upstream),
        "kernel gradient": lambda: to_kernel(x, kernel, upstream),
    }


if __name__ == "__main__":
    main()
