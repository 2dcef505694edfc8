"""Training batches, in an order that follows from the seed alone.

The position in the data is the step: batch `i` can be computed without batches `0 … i − 1`, so a resumed run goes on
with the batch that it would have seen. No Keras here: data workers import this file.
"""

import multiprocessing

import grain
import numpy as np
from absl import flags

from fcdm_keras import signals
from fcdm_keras.data.order import EpochOrder, augmentation


class ArraySource:
    """Samples that lie in memory.

    Args:
        arrays: dict of arrays with a common leading axis N.
    """

    def __init__(self, arrays):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1 or not min(sizes.values()):
            raise ValueError(f"All arrays must have the same, positive number of samples. Received: {sizes}")
        self.arrays = arrays

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def take(self, samples, places):
        """The samples `(B,)`; nothing about them is random, so `places` do not matter."""
        return {name: array[samples] for name, array in self.arrays.items()}


class ImageSource:
    """Images in memory as a source of training batches that are still to be encoded.

    Args:
        images: uint8 `(N, H, W, 3)`.
        labels: int `(N,)`.
        latent_shape: `(h, w, c)`.
        seed, sample_posterior, flips: as in `fcdm_keras.data.latent_store.StoreSource`.
    """

    def __init__(self, images, labels, latent_shape, seed, sample_posterior=True, flips=True):
        self.images, self.labels = images, labels
        self.latent_shape = latent_shape
        self.seed = seed
        self.sample_posterior = sample_posterior
        self.flips = flips

    def __len__(self):
        return len(self.images)

    def take(self, samples, places):
        """`images` uint8, some mirrored, `noise` of the posterior (zero if it is not sampled), and `labels`."""
        images = self.images[samples]
        noise = np.zeros((len(images), *self.latent_shape), np.float32)
        for i, place in enumerate(places):
            generator = augmentation(self.seed, place)
            if (generator.random() < 0.5) & self.flips:
                images[i] = images[i, :, ::-1]
            if self.sample_posterior:
                noise[i] = generator.standard_normal(self.latent_shape, np.float32)
        return {"images": images, "noise": noise, "labels": self.labels[samples]}


class ShuffledBatches:
    """Batch `i` of `steps`: each sample once per epoch, every epoch in an order of its own.

    Args:
        source: has a length and `take(samples, places)` → dict of arrays `(B, …)`, with `places` as in
            `fcdm_keras.data.order`.
        batch_size: samples per batch, B. A batch may span two epochs.
        steps: number of batches.
        seed: integer seed of the order.
        rows: which rows of each batch to read, a range; default all. Processes of one job read different ones.
    """

    def __init__(self, source, batch_size, steps, seed, rows=None):
        self.source = source
        self.batch_size = batch_size
        self.steps = steps
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._order = EpochOrder(len(source), seed)

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        places = index * self.batch_size + self._rows
        return self.source.take(self._order(places), places)


def training_batches(source, batch_size, steps, seed, start=0, workers=0, rows=None):
    """A Grain data set of batches `start … steps − 1` of a source, for `DiffusionTrainer.fit`.

    Args:
        source, batch_size, steps, seed, rows: as in `ShuffledBatches`.
        start: first batch.
        workers: processes that read; 0 reads in threads of this one. The batches are the same.
    """
    batches = grain.MapDataset.source(ShuffledBatches(source, batch_size, steps, seed, rows))[start:]
    if not workers:
        return batches
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl's flags, which only absl's programs parse
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1)).mp_prefetch(options, _begin_worker)


def _begin_worker(index, count):
    """Grain's workers outlive a run that is killed, and die of signals to its group before it has saved."""
    signals.leave_to(multiprocessing.parent_process())
