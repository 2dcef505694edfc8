"""Images per second of the network: forward, sampling and training steps, beside the PyTorch reference if given.

    KERAS_BACKEND=jax python benchmarks/throughput.py --size S --batch-size 16
    KERAS_BACKEND=torch python benchmarks/throughput.py --reference /path/to/FCDM   # a clone of star-kwon/FCDM

Forward is one network evaluation without gradients; sampling is ancestral sampling without guidance, in network
evaluations (steps × images) per second; a training step is what `fit` does per batch: draws, iDDPM loss, backward,
AdamW, EMA. The reference does what its training script does, in float32, with its gradient checkpointing (its only
mode) and without (`torch.utils.checkpoint.checkpoint` patched to call the block).

Ours and the reference alternate, repeat by repeat, so that a busy machine slows both. The reference lives in a process
of its own, which sleeps while ours runs: two thread pools in one process would spin against each other. Ratios are the
median over the repeats of (reference's time / our time): above 1, ours is faster.
"""

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fcdm_keras.network.costs import count
from fcdm_keras.recipes import MODEL_SIZES

WORKLOADS = ("forward", "sampling", "training")
# What of the reference is timed beside each of ours.
REFERENCE_RUNS = {"forward": ("forward",), "training": ("training", "training, checkpointed")}


def main():
    options = parse_options()
    if options.worker:
        return serve_reference(options)
    from fcdm_keras import distribution

    with distribution.setup():  # as a run
        measure(options)
    return 0


def measure(options):
    ours = our_workloads(options)
    reference = Reference(options) if options.reference else None
    times, reference_times = {}, {}
    for repeat in range(options.repeats + 1):  # the first one compiles and is not counted
        for name, run in ours.items():
            seconds = timed(run)
            others = {other: reference.time(other) for other in REFERENCE_RUNS.get(name, ())} if reference else {}
            if repeat:
                times.setdefault(name, []).append(seconds)
                for other, value in others.items():
                    reference_times.setdefault(other, []).append(value)
    report(times, reference_times, options)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=MODEL_SIZES, default="S")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=256, help="pixels; latents have an eighth")
    parser.add_argument("--dtype", choices=("float32", "mixed_bfloat16"), default="float32", help="ours only")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sampling-steps", type=int, default=4)
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", default=WORKLOADS)
    parser.add_argument("--jit-compile", choices=("auto", "true", "false"), default="auto", help="of the training step")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="ours only")
    parser.add_argument("--reference", metavar="DIR", help="clone of the PyTorch reference")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def our_workloads(options):
    """Name → function that runs one forward pass, sampling or training step of ours and waits for its result."""
    import numpy as np
    from keras import ops

    from fcdm_keras import backend
    from fcdm_keras.diffusion import samplers
    from fcdm_keras.diffusion.gaussian import GaussianDiffusion
    from fcdm_keras.training.trainer import DiffusionTrainer

    backbone = our_backbone(options)
    batch, side = options.batch_size, options.image_size // 8
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(batch, side, side, 4)).astype("float32")
    labels = rng.integers(0, 1000, batch).astype("int32")
    variables = backbone.variables
    steps = GaussianDiffusion(options.sampling_steps)

    def network(x_t, timesteps, labels):
        return backbone({"x_t": x_t, "timesteps": timesteps, "labels": labels}, training=False)

    forward = backend.compiled(network, variables)
    sample = backend.compiled(
        lambda noise, labels: samplers.ddpm(lambda x, t: network(x, t, labels), noise, steps), variables
    )
    inputs = [ops.convert_to_tensor(a) for a in (latents, np.arange(batch, dtype="int32"), labels)]
    values = lambda: [v.value for v in variables]  # noqa: E731  (training replaces the tensors)
    workloads = {
        "forward": lambda: ops.convert_to_numpy(forward(values(), *inputs)),
        "sampling": lambda: ops.convert_to_numpy(sample(values(), inputs[0], inputs[2])),
    }
    if "training" in options.only:
        trainer = DiffusionTrainer(backbone)
        trainer.compile(jit_compile={"auto": "auto", "true": True, "false": False}[options.jit_compile])
        workloads["training"] = lambda: trainer.train_on_batch(latents, labels)
    return {name: workloads[name] for name in options.only}


def our_backbone(options):
    from fcdm_keras.network.fcdm import FCDMBackbone

    size = MODEL_SIZES[options.size]
    backbone = FCDMBackbone(size.hidden_channels, size.depths, dtype=options.dtype)
    backbone.gradient_checkpointing = options.gradient_checkpointing
    return backbone


class Reference:
    """The reference in a process of its own: asked for the time of one run, it runs once and answers."""

    def __init__(self, options):
        command = [sys.executable, __file__, "--worker", *sys.argv[1:]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, name):
        print(name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("The reference failed; its error is above.")
        return float(answer)


def serve_reference(options):
    """The worker's loop: reads a workload's name, runs it once, prints the seconds."""
    workloads = reference_workloads(options)
    for name in sys.stdin:
        print(timed(workloads[name.strip()]), flush=True)


def reference_workloads(options):
    sys.path.insert(0, options.reference)
    import torch
    import torch.utils.checkpoint
    from models.diffusion import create_diffusion
    from models.fcdm_models import FCDM_models

    torch.manual_seed(0)
    network = FCDM_models[f"FCDM-{options.size}"](in_channels=4)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0)
    diffusion = create_diffusion(timestep_respacing="")
    side = options.image_size // 8
    latents = torch.randn(options.batch_size, 4, side, side)
    labels = torch.randint(0, 1000, (options.batch_size,))
    timesteps = torch.arange(options.batch_size)
    checkpoint = torch.utils.checkpoint.checkpoint

    def forward():
        network.eval()
        with torch.no_grad():
            network(latents, timesteps, labels)

    def train():
        network.train()
        steps = torch.randint(0, diffusion.num_timesteps, (len(latents),))
        loss = diffusion.training_losses(network, latents, steps, {"y": labels})["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # one parameter at a time, as its script does
            for mean, parameter in zip(average, network.parameters(), strict=True):
                mean.mul_(0.9999).add_(parameter, alpha=1e-4)
        loss.item()

    def without_checkpointing(run):
        def patched():
            torch.utils.checkpoint.checkpoint = lambda function, *args, **kwargs: function(*args)
            with contextlib.ExitStack() as stack:
                stack.callback(setattr, torch.utils.checkpoint, "checkpoint", checkpoint)
                run()

        return patched

    return {
        "forward": without_checkpointing(forward),
        "training": without_checkpointing(train),
        "training, checkpointed": train,
    }


def processor():
    """Name of the processor and those of its instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    sets = [known for known in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{known}\b", text)]
    return f"{name[1] if name else platform.processor()} ({', '.join(sets)})"


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def report(times, reference_times, options):
    import keras

    from fcdm_keras import distribution

    side = options.image_size // 8
    gflop = 2e-9 * count(MODEL_SIZES[options.size], side, side)[1] * options.batch_size  # of one forward pass
    passes = {"forward": 1, "sampling": options.sampling_steps, "training": 3}  # a backward pass costs two forward ones
    print(
        f"FCDM-{options.size}, {keras.backend.backend()}, {options.dtype}, batch {options.batch_size}, "
        f"{options.image_size} px, {processor()}, {len(os.sched_getaffinity(0))} cores, median of {options.repeats}; "
        f"{distribution.describe()}"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        images = options.batch_size * (options.sampling_steps if name == "sampling" else 1) / median
        print(f"  {name:<35}{1e3 * median:9.1f} ms {images:9.2f} images/s {passes[name] * gflop / median:8.1f} GFLOP/s")
    for name, seconds in reference_times.items():
        median = statistics.median(seconds)
        ours = times[name.split(",")[0]]
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        print(
            f"  {'reference: ' + name:<35}{1e3 * median:9.1f} ms {options.batch_size / median:9.2f} images/s"
            f"    ours/reference {ratio:.2f} ×"
        )


if __name__ == "__main__":
    sys.exit(main())
