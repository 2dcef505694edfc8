"""The order of training samples, and random numbers of each place in it: functions of the seed alone.

A *place* counts the samples that training has taken since step 0: row r of step s is place s · B + r. No Keras here:
data workers import this file.
"""

import numpy as np

_AUGMENTATION = 2**64 - 1  # second word of the key; epochs are the others'


def permutation(seed, epoch, size):
    """The order of `size` samples in an epoch: int64 array."""
    return _generator(seed, epoch).permutation(size)


def augmentation(seed, place):
    """A NumPy generator for whatever is random about the sample at a place: flip, posterior noise."""
    return _generator(seed, _AUGMENTATION, place)


def _generator(seed, stream, place=0):
    key, counter = np.array([seed & (2**64 - 1), stream], np.uint64), np.array([0, 0, 0, place], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class EpochOrder:
    """Which sample stands at which place: each once per epoch, every epoch in an order of its own.

    Args:
        num_samples: N.
        seed: integer in [0, 2⁶⁴).
    """

    def __init__(self, num_samples, seed):
        self.num_samples = num_samples
        self.seed = seed
        self._orders = {}

    def __call__(self, places):
        """Sample indices `(B,)` at places `(B,)`."""
        epochs, offsets = np.divmod(np.asarray(places), self.num_samples)
        samples = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            samples[epochs == epoch] = self._order(int(epoch))[offsets[epochs == epoch]]
        return samples

    def _order(self, epoch):
        if epoch not in self._orders:
            recent = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders = {**recent, epoch: permutation(self.seed, epoch, self.num_samples)}
        return self._orders[epoch]
