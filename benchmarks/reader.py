"""Images per second that training reads from a latent store, beside what the network consumes.

    python benchmarks/reader.py --images 20000 --workers 0 2

Writes a store of random posteriors of the size of 256-pixel images (32×32×4, with flips) to a temporary folder, and
reads it as training does: shuffled over the whole store, flipped or not, drawn from the posterior, batches of 256.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from fcdm_keras.data.batches import training_batches
from fcdm_keras.data.latent_store import LatentStore, StoreSource
from fcdm_keras.data.latent_writer import ShardWriter
from fcdm_keras.data.store_metadata import METADATA, Shard, StoreMetadata
from fcdm_keras.files import write_atomically

PAPER_FORWARD = 2687  # images/s of FCDM-S, forward, one GPU (paper)
SHAPE = (32, 32, 4)
WANTED = 5000


def random_store(folder, count):
    """A finished store of `count` images in one shard."""
    generator = np.random.default_rng(0)
    writer = ShardWriter(folder, 0)
    numbers = generator.standard_normal((64, 2, *SHAPE)).astype(np.float16)
    for i in range(count):
        pair = numbers[i % 64]
        writer.write([(pair[0], abs(pair[1]))] * 2, i % 1000, f"{i:08d}.JPEG")
    writer.finish(skipped=[], enlarged=[])
    file = Path(folder) / "shard-00000.array_record"
    metadata = StoreMetadata(
        source="random",
        split="train",
        autoencoder="none",
        autoencoder_hash="",
        scale=0.18215,
        shift=0.0,
        image_size=256,
        latent_shape=SHAPE,
        flips=True,
        class_names=tuple(map(str, range(1000))),
        num_images=count,
        shards=(Shard(file=file.name, images=count, bytes=file.stat().st_size, sha256=""),),
    )
    write_atomically(Path(folder) / METADATA, metadata.to_json())
    return LatentStore(folder)


def speed(store, workers, batches, batch_size):
    """Images per second, after the workers have started."""
    reader = iter(training_batches(StoreSource(store, seed=0), batch_size, batches + 8, seed=0, workers=workers))
    for _ in range(8):
        next(reader)
    began = time.perf_counter()
    for _ in range(batches):
        next(reader)
    return batches * batch_size / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="images in the store (default 20000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="worker processes (default 0 1 2)")
    parser.add_argument("--batches", type=int, default=60, help="batches of a measurement (default 60)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(folder, options.images)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores; {options.images:,} images, batches of {options.batch_size}"
        )
        speeds = {workers: [] for workers in options.workers}
        for _ in range(options.repeats):
            for workers in options.workers:
                speeds[workers].append(speed(store, workers, options.batches, options.batch_size))
        for workers, measured in speeds.items():
            middle = statistics.median(measured)
            print(
                f"{workers} workers: {middle:,.0f} images/s ({min(measured):,.0f} to {max(measured):,.0f}), "
                f"{middle / PAPER_FORWARD:.1f} times FCDM-S forward on one GPU by the paper ({PAPER_FORWARD:,}), "
                f"{middle / WANTED:.1f} times {WANTED:,}"
            )


if __name__ == "__main__":
    main()
