"""What one NVIDIA GPU does: its ceilings, a block by each path, and whole networks, forward and in training.

    KERAS_BACKEND=torch python benchmarks/gpu.py --size XL --batch-sizes 32 64 256 --output results.json
    KERAS_BACKEND=jax python benchmarks/gpu.py --size XL

Times are medians; each waits for the device. The paths of a block: `fused` (kernels/gpu), `plain` (what runs without),
and on PyTorch `compiled` (the plain one by torch.compile). The network is timed with the fused kernels and, in a second
run with FCDM_KERAS_FUSED=0, without.
"""

import argparse
import json
import statistics
import time

import keras
import numpy as np
from keras import ops

from fcdm_keras import FCDMBackbone, backend
from fcdm_keras.kernels import fused
from fcdm_keras.network.costs import count
from fcdm_keras.network.layers import FCDMBlock
from fcdm_keras.recipes import MODEL_SIZES
from fcdm_keras.training.trainer import DiffusionTrainer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=MODEL_SIZES, default="XL")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--image-size", type=int, default=256, help="pixels; latents have an eighth")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", help="JSON file for the results")
    options = parser.parse_args()
    results = {"device": device(), "backend": keras.backend.backend(), "size": options.size}
    results["ceilings"] = ceilings(options.repeats)
    print(json.dumps(results, indent=1), flush=True)
    for batch in options.batch_sizes:
        results[f"batch {batch}"] = {**blocks(options, batch), **network(options, batch)}
        print(json.dumps({batch: results[f"batch {batch}"]}, indent=1), flush=True)
    if options.output:
        with open(options.output, "w") as file:
            json.dump(results, file, indent=1)


def device():
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name()
    import jax

    return str(jax.devices()[0].device_kind)


def wait(values):
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.synchronize()
    else:
        import jax

        jax.block_until_ready(values)


def seconds(run, repeats):
    """The median time of a run, and that of the first, which compiles."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), times[0]


def jitted(function):
    if keras.backend.backend() == "torch":
        return function
    import jax

    return jax.jit(function)


def ceilings(repeats):
    """TB/s of a copy, TFLOP/s of a bfloat16 product: what all else is to be held against."""
    vector, matrix = ops.ones((2**29,), "bfloat16"), ops.cast(keras.random.normal((8192, 8192), seed=0), "bfloat16")
    add, multiply = jitted(lambda x: x + 1), jitted(ops.matmul)
    copy, product = (seconds(run, repeats)[0] for run in (lambda: add(vector), lambda: multiply(matrix, matrix)))
    return {"copy, TB/s": 4e-12 * 2**29 / copy, "product, TFLOP/s": 2e-12 * 8192**3 / product}


def blocks(options, batch):
    """Milliseconds of a block of each width, forward alone and with gradients, by each path."""
    found = {}
    for level in range(3):
        width, side = MODEL_SIZES[options.size].hidden_channels * 2**level, options.image_size // 8 // 2**level
        values, upstream = fused.example(batch, side, width)
        layer = FCDMBlock(dtype="mixed_bfloat16")
        layer.build((None, None, None, width))
        paths = {
            "plain": lambda x, *vectors, layer=layer: layer.plain_residual(x, *(ops.cast(v, x.dtype) for v in vectors))
        }
        quick = fused.residual(values[0], 3 * width)
        if quick:
            paths["fused"] = lambda x, *vectors, weights=values[4:], quick=quick: quick(x, *vectors, *weights)
        if keras.backend.backend() == "torch":
            import torch

            paths["compiled"] = torch.compile(paths["plain"], dynamic=False)
        for name, path in paths.items():
            forward, both = directions(path, values[:4], upstream)
            times = [1e3 * seconds(run, options.repeats)[0] for run in (forward, both)]
            found[f"block {side}×{side}×{width}, {name}, ms"] = {"forward": times[0], "forward and backward": times[1]}
    return found


def directions(path, values, upstream):
    """Runs of a block, without and with gradients."""
    if keras.backend.backend() == "jax":
        import jax

        both = jax.jit(lambda values, upstream: jax.vjp(path, *values)[1](upstream))
        forward = jax.jit(path)
        return lambda: forward(*values), lambda: both(values, upstream)
    import torch

    leaves = [value.detach().requires_grad_() for value in values]

    def forward():
        with torch.no_grad():
            return path(*values)

    return forward, lambda: path(*leaves).backward(upstream)


def network(options, batch):
    """Images/s and TFLOP/s of a network in bfloat16, forward and in training."""
    size, side = MODEL_SIZES[options.size], options.image_size // 8
    backbone = FCDMBackbone(size.hidden_channels, size.depths, dtype="mixed_bfloat16")
    generator = np.random.default_rng(0)
    latents = generator.normal(size=(batch, side, side, 4)).astype("float32")
    labels = generator.integers(0, 1000, batch).astype("int32")
    inputs = [ops.convert_to_tensor(a) for a in (latents, labels)]
    run = backend.compiled(
        lambda x, c: backbone({"x_t": x, "timesteps": c, "labels": c}, training=False), backbone.variables
    )
    trainer = DiffusionTrainer(backbone)
    trainer.compile()
    tflop = 2e-12 * count(size, side, side)[1] * batch
    runs = {
        "forward": (lambda: run([v.value for v in backbone.variables], *inputs), 1),
        "training step": (lambda: trainer.train_on_batch(latents, labels), 3),
    }
    found = {}
    for name, (work, passes) in runs.items():
        median, first = seconds(work, options.repeats)
        found[name] = {"images/s": batch / median, "TFLOP/s": passes * tflop / median, "first run, s": first}
    return found


if __name__ == "__main__":
    main()
