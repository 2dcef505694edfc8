"""JAX: steps are pure functions of the state, which Keras jits and whose buffers it donates.

One process drives all devices of its host; Keras's `DataParallel` and `ModelParallel` place the arrays.
"""

import contextlib

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from fcdm_keras.backend.job import job
from fcdm_keras.backend.on_jax_step import TrainStep  # noqa: F401

BATCH, MODEL = "batch", "model"
CUTS_MODELS = True
FREES_MEMORY = True


def rows(count):
    """Places of a batch's samples in the global batch, which is what a step sees: int32 `(count,)`."""
    return jax.numpy.arange(count, dtype="int32")


def gathered(losses):
    return losses


def feed(batches):
    return batches


def placed(batch):
    return batch


def same_keys():
    return keras.distribution.distribution() is not None  # Keras places all as the first


def interpolate(averages, variables, weight):
    for average, variable in zip(averages, variables, strict=True):
        average.assign(average.value + weight * (variable.value.astype("float32") - average.value))


def compiled(function, variables, batched=()):
    @jax.jit
    def run(values, *args):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    def spread(values, *args):
        parts = _row_devices()
        if parts == 1 and job().process_count == 1:
            return run(values, *args)
        rows = len(args[batched[0]]) if batched else 0
        padded = -rows % parts
        args = [
            _split_rows(np.pad(np.asarray(value), [(0, padded)] + [(0, 0)] * (value.ndim - 1), mode="edge"))
            if i in batched
            else _whole(value)
            for i, value in enumerate(args)
        ]
        outputs = run(_local_arrays(values), *args)
        return jax.tree.map(lambda output: output[:rows], outputs) if padded else outputs

    return spread


def allow_tf32():
    pass  # the default


def full_precision():
    return jax.default_matmul_precision("highest")


def connect(launcher, place, timeout, heartbeat, hosts):
    if not launcher:
        return 0, 1
    bounds = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": 60}
    if place:
        jax.distributed.initialize(place.address, place.count, place.index, **bounds)
    else:
        jax.distributed.initialize(**bounds)
    return jax.process_index(), jax.process_count()


def devices():
    return tuple(f"{device.platform}:{device.id}" for device in jax.devices())


def check_devices(asked, count):
    pass  # any number of them


def advice():
    return ""  # one process uses all


def start(used, model_parallel, layout_map):
    if len(used) == 1 and jax.process_count() == 1:
        return lambda: None
    before = keras.distribution.distribution()
    if model_parallel == 1:
        placed = keras.distribution.DataParallel(devices=list(used), auto_shard_dataset=False)
    else:
        mesh = keras.distribution.DeviceMesh((len(used) // model_parallel, model_parallel), [BATCH, MODEL], list(used))
        placed = keras.distribution.ModelParallel(
            layout_map=layout_map(mesh), batch_dim_name=BATCH, auto_shard_dataset=False
        )
    keras.distribution.set_distribution(placed)
    return lambda: keras.distribution.set_distribution(before)


def disconnect(launcher):
    if launcher:
        jax.distributed.shutdown()


def barrier():
    multihost_utils.sync_global_devices("fcdm_keras")


def gather(array):
    return np.asarray(multihost_utils.process_allgather(np.asarray(array)))


def host_arrays(values):
    """Arrays as NumPy, also those of which this process holds a part; then every process must call this."""
    return [
        np.asarray(v if v.is_fully_addressable or v.is_fully_replicated else _collected(v)) for v in map(_plain, values)
    ]


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def readable(variables):
    """The variables hold whole values, collected from all processes, in this host's memory."""
    if all(variable.value.is_fully_replicated for variable in variables):
        yield
        return
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        values = host_arrays(variables)
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            yield


@contextlib.contextmanager
def writing():
    """Keras's saving makes variables; they must not be placed on the devices of processes that make none."""
    placed = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(placed)


def accompany(write):
    pass


def device_bytes(variables):
    values = [variable.value for variable in variables]
    return sum(value.addressable_shards[0].data.nbytes for value in values), sum(value.nbytes for value in values)


def _local_arrays(values):
    """Arrays that computations of this process alone can use, on its own devices, without a copy where possible."""
    values = [_plain(value) for value in values]
    placed = keras.distribution.distribution()
    if placed is None or jax.process_count() == 1:
        return values
    mesh = _local_mesh(placed)
    return [_localized(value, mesh) for value in values]


def _split_rows(array):
    """An array `(B, …)` whose rows lie on this process's devices in turn; B is a multiple of `_row_devices()`."""
    placed = keras.distribution.distribution()
    if placed is None:
        return array
    return jax.device_put(array, NamedSharding(_local_mesh(placed), PartitionSpec(BATCH)))


def _whole(value):
    """A value that every device of this process holds."""
    placed = keras.distribution.distribution()
    return value if placed is None else jax.device_put(value, NamedSharding(_local_mesh(placed), PartitionSpec()))


def _row_devices():
    """The number of parts in which `_split_rows` splits."""
    placed = keras.distribution.distribution()
    return 1 if placed is None else _local_mesh(placed).shape[BATCH]


def _local_mesh(placed):
    """The part of the mesh that is this process's own; a model axis that crosses processes is left out."""
    mesh = placed.device_mesh.backend_mesh
    if jax.process_count() == 1:
        return mesh
    own = np.array([device for device in mesh.devices.flat if device.process_index == jax.process_index()])
    model = mesh.shape.get(MODEL, 1)
    model = model if own.size % model == 0 else 1
    return jax.sharding.Mesh(own.reshape(-1, model), (BATCH, MODEL))


def _localized(value, mesh):
    if value.is_fully_addressable:
        return value
    spec = value.sharding.spec if isinstance(value.sharding, NamedSharding) else PartitionSpec()
    if mesh.shape[MODEL] == 1 and not value.is_fully_replicated:
        return jax.device_put(_collected(value), NamedSharding(mesh, PartitionSpec()))
    own = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(value.shape, NamedSharding(mesh, spec), own)


def _collected(value):
    return multihost_utils.process_allgather(value, tiled=True)


def _plain(value):
    return value.value if isinstance(value, keras.Variable) else value
