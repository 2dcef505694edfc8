"""Endless training batches from arrays, in an order that follows from the seed alone.

The position in the data is the step: batch `i` can be computed without batches `0 … i − 1`, so a resumed run goes on
with the batch that it would have seen.
"""

import grain
import numpy as np

from fcdm_keras import randomness


class ShuffledBatches:
    """Batch `i` of `steps`, for Grain: each sample once per epoch, every epoch in an order of its own.

    Args:
        arrays: dict of arrays with a common leading axis N.
        batch_size: samples per batch, B. A batch may span two epochs.
        steps: number of batches.
        seed: integer seed of the order.
    """

    def __init__(self, arrays, batch_size, steps, seed):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1 or not min(sizes.values()):
            raise ValueError(f"All arrays must have the same, positive number of samples. Received: {sizes}")
        self.arrays = arrays
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.num_samples = min(sizes.values())
        self._orders = {}

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        places = index * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(places, self.num_samples)
        samples = np.concatenate([self._order(epoch)[offsets[epochs == epoch]] for epoch in np.unique(epochs)])
        return {name: array[samples] for name, array in self.arrays.items()}

    def _order(self, epoch):
        if epoch not in self._orders:
            recent = {e: order for e, order in self._orders.items() if e >= epoch - 2}
            self._orders = {**recent, epoch: randomness.permutation(self.seed, epoch, self.num_samples)}
        return self._orders[epoch]


def training_batches(latents, labels, batch_size, steps, seed, start=0):
    """A Grain data set of batches `start … steps − 1` of `{"latents", "labels"}`, for `DiffusionTrainer.fit`."""
    source = ShuffledBatches({"latents": latents, "labels": labels}, batch_size, steps, seed)
    return grain.MapDataset.source(source)[start:]
