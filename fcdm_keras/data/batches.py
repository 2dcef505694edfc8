"""Training batches, in an order that follows from the seed alone.

The position in the data is the step: batch `i` can be computed without batches `0 … i − 1`, so a resumed run goes on
with the batch that it would have seen. No Keras here: data workers import this file.
"""

import grain
import numpy as np
from absl import flags

from fcdm_keras.data.order import EpochOrder


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
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1)).mp_prefetch(options)
