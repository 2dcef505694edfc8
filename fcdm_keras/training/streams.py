"""Data sets, loaders and generators whose batches are checked as they come, each staying of its kind."""

import contextlib
import re
import types

import grain
import keras
import numpy as np

from fcdm_keras import backend
from fcdm_keras.formats.numbers import on_host
from fcdm_keras.training.batches import condition_of

STREAMS = "tf.data, Grain, PyDataset, PyTorch loaders or a generator"


def split(data, fraction):
    """`(x, y, sample_weight)` of whole arrays without their last part, and that part, for validation."""
    if is_stream(data[0]):
        raise ValueError(f"validation_split cuts whole arrays. Received: {type(data[0])}; give validation_data")
    arrays = tuple(
        {name: on_host(value, name) for name, value in part.items()} if isinstance(part, dict) else on_host(part)
        for part in data
    )
    first = next(iter(arrays[0].values())) if isinstance(arrays[0], dict) else arrays[0]
    count = len(first) if first.ndim else 0
    at = int(count * (1 - fraction))
    if not 0 < at < count:
        raise ValueError(f"validation_split={fraction} leaves no samples on one side. Received: {count} samples")

    return [_cut(arrays, rows) for rows in (slice(at), slice(at, None))]


def _cut(arrays, rows):
    """Rows of arrays, of dicts of arrays, and of `None`."""
    if isinstance(arrays, tuple):
        return tuple(_cut(one, rows) for one in arrays)
    if isinstance(arrays, dict):
        return {name: array[rows] for name, array in arrays.items()}
    return None if arrays is None else arrays[rows]


def is_stream(data):
    """Whether data comes batch by batch. Raises ValueError for what is neither that nor arrays."""
    if isinstance(data, (keras.utils.PyDataset, types.GeneratorType)) or _is_distributed(data):
        return True
    if _is(data, "DatasetV2", "tensorflow") or _is_loader(data) or isinstance(data, _GRAIN):
        return True
    if data is None or isinstance(data, str) or not (hasattr(data, "__len__") or hasattr(data, "__array__")):
        raise ValueError(f"Data must be arrays, a dict of arrays, or batches by {STREAMS}. Received: {type(data)}")
    return False


def checked_stream(data, batches):
    """A data set or loader of the same kind, whose batches `batches` makes of those of `data`."""
    if _is_distributed(data):  # made by `backend.feed`
        return data
    if isinstance(data, keras.utils.PyDataset):
        return _CheckedDataset(data, batches)
    if isinstance(data, types.GeneratorType):
        return ((batches(batch),) for batch in data)
    if _is_loader(data):
        return _torch_loader(data, batches)
    if _is(data, "DatasetV2", "tensorflow"):
        return _tensorflow_dataset(data, batches)
    return (_FromLoader(data) if isinstance(data, grain.DataLoader) else data).map(batches)


@contextlib.contextmanager
def plain_errors():
    """Turns TensorFlow's report of a ValueError in a data set into that ValueError."""
    try:
        yield
    except Exception as error:
        found = re.search(r"ValueError: (.+)", str(error)) if type(error).__module__.startswith("tensorflow") else None
        if not found:
            raise
        raise ValueError(found[1]) from None


_GRAIN = (grain.MapDataset, grain.IterDataset, grain.DataLoader)


def _is(data, name, module):
    """Whether an object's class comes from a class of another library, which need not be imported."""
    return any(kind.__name__ == name and module in kind.__module__ for kind in type(data).__mro__)


def _is_distributed(data):
    names = ("DistributedDataset", "DistributedDatasetsFromFunction")
    return any(_is(data, name, "tensorflow") for name in names)


def _is_loader(data):
    return _is(data, "DataLoader", "torch.utils.data")


class _CheckedDataset(keras.utils.PyDataset):
    def __init__(self, dataset, batches):
        options = ("workers", "use_multiprocessing", "max_queue_size")
        super().__init__(**{name: getattr(dataset, name) for name in options})
        self._dataset, self._batches = dataset, batches

    def __getitem__(self, index):
        return self._batches(self._dataset[index])

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


class _FromLoader(grain.IterDataset):
    """A `grain.DataLoader`, which has no `map`, as a data set."""

    def __init__(self, loader):
        super().__init__()
        self._loader = loader

    def __iter__(self):
        return _LoaderIterator(iter(self._loader))


class _LoaderIterator(grain.DatasetIterator):
    def __init__(self, iterator):
        super().__init__()
        self._iterator = iterator

    def __next__(self):
        return next(self._iterator)

    def get_state(self):
        return self._iterator.get_state()

    def set_state(self, state):
        self._iterator.set_state(state)


def _torch_loader(loader, batches):
    import torch

    class Checked(torch.utils.data.IterableDataset):
        def __iter__(self):
            for batch in loader:
                made = batches(tuple(batch) if isinstance(batch, list) else batch)
                yield ({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()},)

    class Counted(Checked):
        def __len__(self):
            return len(loader)

    known = hasattr(loader.dataset, "__len__")
    return torch.utils.data.DataLoader(Counted() if known else Checked(), batch_size=None)


def _tensorflow_dataset(data, batches):
    import tensorflow as tf

    module = batches.trainer.conditioning
    marked = backend.same_keys() and batches.own_parts > 1
    weighed = batches.class_weights is not None

    ragged = [spec for spec in tf.nest.flatten(data.element_spec) if not isinstance(spec, tf.TensorSpec)]
    if ragged:
        raise ValueError(
            "Batches must be of tensors, all samples of one shape. Received: a tf.data set of "
            f"{type(ragged[0]).__name__.removesuffix('Spec')}; batch samples of one size together, or crop them to one."
        )

    def arranged(*element):
        parts = batches.named(element if len(element) > 1 else element[0])
        specs = {name: _spec(name, part, module) for name, part in parts.items()}
        marks = [name for name, used in (("sample_weight", weighed), ("real", marked)) if used]
        specs.update(dict.fromkeys(marks, ("float32", (None,))))

        def made(*values):
            given = dict(zip(parts, values))
            weight = given.pop("sample_weight", None)
            batch = batches((given, None, weight))
            return [np.asarray(batch[name], dtype) for name, (dtype, _) in specs.items()]

        tensors = tf.numpy_function(made, list(parts.values()), [dtype for dtype, _ in specs.values()])
        for tensor, (_, shape) in zip(tensors, specs.values()):
            tensor.set_shape(shape)
        return (dict(zip(specs, tensors)),)

    return data.map(arranged).prefetch(tf.data.AUTOTUNE)


def _spec(name, tensor, module):
    """Type and shape of a batch's array after `Batches`, from the tensor before it."""
    dtype, shape = tensor.dtype.name, tuple(tensor.shape)
    if name == "sample_weight":
        return "float32", (None,)
    if module is not None and name == module.input_name and None not in shape[1:]:
        with contextlib.suppress(ValueError):  # real ones will say what is wrong
            made = condition_of(module, np.zeros((1, *shape[1:]), dtype))
            dtype, shape = made.dtype.name, (None, *made.shape[1:])
    return ("float32" if dtype in ("float64", "bfloat16") else dtype), (None, *shape[1:])
