"""What is given to `fit` as batches that are checked on the host, once, and can be cut over devices and micro-batches.

Arrays are looked at whole, before the first step, and read by `ArrayBatches`; data sets and loaders stay of their kind,
and each batch is looked at as it comes. A batch leaves the host as a dict of arrays by name, with

- `sample_weight` float32 `(B,)`, where samples are weighed;
- `real` float32 `(B,)`, where a batch is padded with copies of its last sample, so that devices × micro-batches divide
  it: 0 for the copies, and B over the number of samples for these, so that a mean over all is one over the samples.
"""

import keras
import numpy as np

from fcdm_keras import backend, distribution
from fcdm_keras.formats.numbers import on_host
from fcdm_keras.training import checks


class Batches:
    """Makes a trainer's batches of what was given, in one call of `fit` or `evaluate`.

    Args:
        trainer: a `StepTrainer`.
        training: whether batches are cut into micro-batches.
        class_weight: dict of weights by class, as in Keras.

    Raises:
        ValueError: for a `class_weight` that cannot be, and when called for batches that do not fit the trainer.
    """

    def __init__(self, trainer, training, class_weight=None):
        placed = distribution.job()
        self.trainer = trainer
        self.accumulation_steps = trainer.accumulation_steps if training else 1
        self.parts = placed.data_parallel * self.accumulation_steps
        self.own_parts = max(1, placed.data_parallel // placed.process_count) * self.accumulation_steps
        self.class_weights = None
        if class_weight is not None:
            classes = getattr(trainer.conditioning, "num_classes", None)
            checks.check_class_weight(class_weight, classes)
            self.class_weights = np.ones(classes, "float32")
            self.class_weights[list(class_weight)] = list(class_weight.values())

    def named(self, data):
        """The parts of a batch `x`, `(x, y)` or `(x, y, sample_weight)` by name, of whatever type they are."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if weight is not None and self.class_weights is not None:
            raise ValueError("sample_weight and class_weight cannot both be given: multiply them into sample_weight.")
        return {**self.trainer.named(x, y), **({} if weight is None else {"sample_weight": weight})}

    def checked(self, data):
        """A batch, or a whole data set, as NumPy arrays that fit the trainer."""
        batch = {name: on_host(value, name) for name, value in self.named(data).items()}
        checks.check_sizes(batch)
        self.trainer.check_batch(batch)
        module = self.trainer.conditioning
        if module is not None:
            drawn = {"timesteps", "noise"} <= batch.keys()
            batch[module.input_name] = condition_of(module, batch[module.input_name], drawn)
        if "sample_weight" in batch:
            batch["sample_weight"] = checks.sample_weights(batch["sample_weight"])
        if self.class_weights is not None:
            batch["sample_weight"] = self.class_weights[batch[module.input_name]]
        return batch

    def __call__(self, data):
        """A batch of a stream, ready for the step. With several processes it is this one's rows."""
        batch = self.checked(data)
        size = checks.check_sizes(batch)
        if distribution.job().process_count > 1 and size % self.own_parts:
            raise ValueError(
                f"With several processes, each one's batches of a data set must be divisible by {self.own_parts}, its "
                f"devices × accumulation steps: leave out the short one, or give whole arrays. Received: {size} samples"
            )
        return padded(batch, self.own_parts, marked=backend.same_keys() and self.own_parts > 1)

    def alone(self, data):
        """A batch that is given as arrays: this process's rows of it."""
        batch = self.checked(data)
        self.check_size(checks.check_sizes(batch))
        return own_rows(padded(batch, self.parts))

    def check_size(self, batch_size):
        """Raises ValueError for a size that accumulation cannot divide; a short last batch is no such size."""
        if batch_size % self.accumulation_steps:
            raise ValueError(
                f"The batch size must be divisible by accumulation_steps={self.accumulation_steps}. "
                f"Received: {batch_size}"
            )

    def of_arrays(self, data, batch_size, steps=None, shuffle=False):
        """Whole arrays as `ArrayBatches`, in the form that `fit` takes."""
        arrays = self.checked(data)
        checks.check_finite(arrays)
        count = checks.check_sizes(arrays)
        if batch_size is not None and (not isinstance(batch_size, (int, np.integer)) or batch_size < 1):
            raise ValueError(f"batch_size must be a positive integer. Received: {batch_size!r}")
        batch_size = batch_size or (-(-count // steps) if steps else 32)  # as Keras has it
        self.check_size(batch_size)
        done = self.trainer.steps_done if shuffle else 0
        return ArrayBatches(arrays, batch_size, self.parts, shuffle, self.trainer.seed, done)


class ArrayBatches(keras.utils.PyDataset):
    """Batches of arrays in memory; the order of each epoch follows from the seed and the steps done before.

    Args:
        arrays: dict of arrays with a common leading axis.
        batch_size: samples per batch, of all processes together.
        parts: what a batch is padded to a multiple of.
        shuffle: whether samples come in another order in each epoch; `"batch"`: only the batches do.
        seed: integer seed of the order.
        steps_done: optimizer steps before the first epoch.
    """

    def __init__(self, arrays, batch_size, parts, shuffle=False, seed=0, steps_done=0):
        super().__init__()
        self.arrays, self.batch_size, self.parts, self.shuffle, self.seed = arrays, batch_size, parts, shuffle, seed
        self.count = len(next(iter(arrays.values())))
        if backend.same_keys() and distribution.job().process_count > 1:
            self.parts = -(-batch_size // parts) * parts  # there, all batches have one size
        self._epoch, self._begun = steps_done // len(self), False
        self._order = None
        sizes = {min(batch_size, self.count), self.count % batch_size or batch_size}
        self._marked = backend.same_keys() and any(size % self.parts for size in sizes)

    def __len__(self):
        return -(-self.count // self.batch_size)

    def on_epoch_begin(self):
        self._epoch += self._begun
        self._begun = True

    def __iter__(self):
        yield from super().__iter__()
        self._epoch += 1

    def __getitem__(self, index):
        if index == 0 or self._order is None:
            self._order = self._ordered()
        samples = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        if not self.shuffle:
            samples = slice(samples[0], samples[-1] + 1)
        batch = {name: array[samples] for name, array in self.arrays.items()}
        return own_rows(padded(batch, self.parts, marked=self._marked))

    def _ordered(self):
        generator = np.random.default_rng([self.seed, self._epoch])
        if not self.shuffle:
            return range(self.count)
        if self.shuffle != "batch":
            return generator.permutation(self.count)
        whole = self.count // self.batch_size
        blocks = np.arange(whole * self.batch_size).reshape(whole, -1)[generator.permutation(whole)]
        return np.concatenate([blocks.reshape(-1), np.arange(whole * self.batch_size, self.count)])


def condition_of(module, condition, drawn=False):
    """The condition of training data as it is trained on, checked by a conditioning module in its own way.

    `drawn`: the batch brings what would be drawn, and so conditions that are dropped already.
    """
    if hasattr(module, "as_data"):
        return module.as_data(condition, drawn)
    if hasattr(module, "check"):
        module.check(condition)
    return condition


def padded(batch, parts, marked=False):
    """A batch whose rows `parts` divides, with `real` where rows were added, or where `marked` says so.

    It has memory of its own: TensorFlow takes arrays without a copy, and writes into those that it has split.
    """
    size = len(next(iter(batch.values())))
    added = -size % parts
    batch = {name: np.array(a, "float32" if a.dtype == "float64" else a.dtype) for name, a in batch.items()}
    if not added and not marked:
        return batch
    real = np.zeros(size + added, "float32")
    real[:size] = (size + added) / size
    rows = np.minimum(np.arange(size + added), size - 1)
    return {**({name: array[rows] for name, array in batch.items()} if added else batch), "real": real}


def own_rows(batch):
    """This process's rows of a global batch."""
    if distribution.job().process_count == 1:
        return batch
    rows = distribution.batch_rows(len(next(iter(batch.values()))))
    return {name: array[rows.start : rows.stop] for name, array in batch.items()}
