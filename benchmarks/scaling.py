"""Step time against devices, bytes of gradients per step, and what both let expect of many GPUs.

    KERAS_BACKEND=jax python benchmarks/scaling.py --devices 1 2 4          # this host's devices, or CPU devices
    python benchmarks/scaling.py --estimate --gpu-batch 32 --link 50        # on paper only

Measured: one training step of one global batch, on each number of devices in processes of their own, alternating; and
the bytes that the engine's all-reduces take per step, from JAX's compiled program or by a hook of
DistributedDataParallel (TensorFlow tells neither). CPU devices share the cores, so more of them are no faster: what is
seen there is the engine's own cost.

Estimated: a ring all-reduce of B bytes over N GPUs sends 2 (N − 1) / N · B through each link. The step's own time is
three forward passes at the throughput that the paper prints. One figure is for communication that hides behind the
backward pass (two thirds of the step), one for none hidden.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fcdm_keras.network.costs import count
from fcdm_keras.recipes import MODEL_SIZES
from fcdm_keras.reporting.paper import IMAGENET_256

GPUS = (8, 64, 512)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=MODEL_SIZES, default="XS")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=128, help="pixels; latents have an eighth")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--estimate", action="store_true", help="measure nothing")
    parser.add_argument("--gpu-batch", type=int, default=32, help="images per GPU of the estimate")
    parser.add_argument("--link", type=float, default=50.0, help="link speed of the estimate, GB/s per GPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_options()
    if options.worker:
        return work(options)
    if not options.estimate:
        report(options, measure(options))
    estimate(options)
    return 0


def measure(options):
    """Devices → (seconds of each step, bytes that the engine reduces per step or `None`)."""
    seconds, reduced = {n: [] for n in options.devices}, {}
    for _ in range(options.repeats):
        for devices in options.devices:
            found = run_worker(devices)
            seconds[devices] += found["seconds"]
            reduced[devices] = found["reduced"]
    return {n: (seconds[n], reduced[n]) for n in options.devices}


def run_worker(devices):
    backend = os.environ.get("KERAS_BACKEND", "jax")
    launcher = [sys.executable]
    if backend == "torch" and devices > 1:
        launcher = [str(Path(sys.executable).parent / "torchrun"), f"--nproc-per-node={devices}"]
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_force_host_platform_device_count={devices} --xla_dump_to={dump} --xla_dump_hlo_as_text"
        own = {"KERAS_BACKEND": backend, "XLA_FLAGS": flags, "WORK_ON": str(devices), "DUMP": dump}
        command = [*launcher, __file__, "--worker", *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"error: {devices} devices: {done.stderr.strip()[-500:]}")
    return json.loads(lines[-1])


def work(options):
    """Times steps on as many devices as WORK_ON says, and prints what was found as JSON."""
    devices = int(os.environ["WORK_ON"])
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            parts = [tf.config.LogicalDeviceConfiguration()] * devices
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    from fcdm_keras import distribution

    with distribution.setup(None if os.environ["KERAS_BACKEND"] == "torch" else devices):
        found = time_steps(options)
        if distribution.is_main():
            print(json.dumps(found), flush=True)
    return 0


def time_steps(options, steps=5):
    import keras
    import numpy as np

    from fcdm_keras import DiffusionTrainer, FCDMBackbone, backend, distribution
    from fcdm_keras.data.batches import ArraySource, training_batches
    from fcdm_keras.training import callbacks

    keras.utils.set_random_seed(0)
    size, side = MODEL_SIZES[options.size], options.image_size // 8
    trainer = DiffusionTrainer(FCDMBackbone(size.hidden_channels, size.depths))
    trainer.compile()
    latents = np.random.default_rng(0).standard_normal((options.global_batch_size, side, side, 4), np.float32)
    source = ArraySource({"latents": latents, "labels": np.arange(len(latents), dtype=np.int32)})
    rows = distribution.batch_rows(options.global_batch_size)
    seconds = []

    class Clock(callbacks.StepCallback):
        def on_train_batch_begin(self, batch, logs=None):
            self.began = time.perf_counter()

        def on_step(self, logs):
            float(logs["loss"])  # waits for the step
            seconds.append(time.perf_counter() - self.began)

    batches = training_batches(source, options.global_batch_size, steps + 2, 0, rows=rows)
    reduced = {"jax": jax_bytes, "torch": torch_bytes}.get(keras.backend.backend(), lambda trainer: lambda: None)(
        trainer
    )
    trainer.fit(backend.feed(batches), steps_per_epoch=steps + 2, verbose=0, shuffle=False, callbacks=[Clock()])
    return {"seconds": seconds[2:], "reduced": reduced()}  # the first steps compile


def jax_bytes(trainer):
    """Bytes of the all-reduces' results in the compiled step, from the text that XLA dumps of it."""
    sizes = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}

    def in_program(file):
        found = 0
        for line in file.read_text().splitlines():
            if re.search(r" all-reduce(-start)?\(", line):
                for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", line.split(" all-reduce")[0]):
                    found += sizes.get(kind, 0) * math.prod(map(int, filter(None, sides.split(","))))
        return found

    def total():
        files = Path(os.environ["DUMP"]).glob("*after_optimizations.txt")
        return max(map(in_program, files), default=None)

    return total


def torch_bytes(trainer):
    """Bytes of the buckets that DistributedDataParallel reduces, counted by a hook."""
    import torch.distributed
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if not torch.distributed.is_initialized():
        return lambda: 0
    buckets, make = [], trainer._loss_module

    def counted(state, bucket):
        buckets.append(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    def hooked(batch):
        fresh = "_module" not in trainer.__dict__
        module = make(batch)
        if fresh:
            module.register_comm_hook(torch.distributed.group.WORLD, counted)
        return module

    object.__setattr__(trainer, "_loss_module", hooked)
    return lambda: sum(buckets) // 7


def report(options, found):
    parameters, _ = count(MODEL_SIZES[options.size], options.image_size // 8, options.image_size // 8)
    base = statistics.median(found[options.devices[0]][0])
    print(f"FCDM-{options.size}, {parameters:,} parameters, global batch {options.global_batch_size}, float32:")
    print(
        f"{'devices':>8} {'step, ms':>10} {'against ' + str(options.devices[0]):>10} {'gradients':>12} {'reduced':>12}"
    )
    for devices, (seconds, reduced) in found.items():
        step = statistics.median(seconds)
        size = "-" if reduced is None else f"{reduced / 2**20:.2f} MiB"
        gradients = f"{4 * parameters / 2**20:.2f} MiB"
        print(f"{devices:>8}{1000 * step:>13.1f}{base / step:>12.2f}x{gradients:>13}{size:>13}")


def estimate(options):
    print(f"\nEstimate: {options.gpu_batch} images per GPU, {options.link:g} GB/s per link, float32 gradients;")
    print("the step's own time from the paper's throughput; efficiency with communication hidden … not hidden.")
    print(f"{'model':>8} {'gradients':>10} {'step, ms':>10}" + "".join(f"{f'{n} GPUs':>16}" for n in GPUS))
    for row in IMAGENET_256:
        if not row.model.startswith("FCDM") or row.steps != "400K":
            continue
        parameters, _ = count(MODEL_SIZES[row.model.removeprefix("FCDM-")])
        step, cells = 3 * options.gpu_batch / row.throughput, []
        for gpus in GPUS:
            sent = 2 * (gpus - 1) / gpus * 4 * parameters / (options.link * 1e9)
            hidden = step / (step + max(0.0, sent - step * 2 / 3))
            cells.append(f"{hidden:.0%} … {step / (step + sent):.0%}")
        size = f"{4 * parameters / 2**30:.2f} GiB"
        print(f"{row.model:>8} {size:>10} {1000 * step:>10.1f}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
