"""JAX: one process drives all devices of its host; Keras's `DataParallel` and `ModelParallel` place the arrays."""

import contextlib

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from fcdm_keras import launch
from fcdm_keras.distribution.layout import layout_map

BATCH, MODEL = "batch", "model"


def connect(launcher, timeout, heartbeat):
    """Joins the other processes of the job. Returns (process index, process count)."""
    if not launcher:
        return 0, 1
    bounds = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": 60}
    if launcher == launch.JAX_VARIABLES:
        address, count, index = launch.jax_variables()
        jax.distributed.initialize(address, count, index, **bounds)
    else:
        jax.distributed.initialize(**bounds)
    return jax.process_index(), jax.process_count()


def devices():
    """Names of all processes' devices."""
    return tuple(map(_name, jax.devices()))


def start(used, model_parallel):
    """Makes Keras place variables and batches over the devices named `used`. Returns a function that ends it."""
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
    """Every process's `array` (all of one shape), stacked by process."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(array)))


def host_arrays(values):
    """Arrays as NumPy, also those of which this process holds a part; then every process must call this."""
    return [
        np.asarray(v if v.is_fully_addressable or v.is_fully_replicated else _collected(v)) for v in map(_plain, values)
    ]


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
    """Bytes of the variables that this process's first device holds, and of all of them."""
    values = [variable.value for variable in variables]
    return sum(value.addressable_shards[0].data.nbytes for value in values), sum(value.nbytes for value in values)


def local_arrays(values):
    """Arrays that computations of this process alone can use, on its own devices, without a copy where possible."""
    values = [_plain(value) for value in values]
    placed = keras.distribution.distribution()
    if placed is None or jax.process_count() == 1:
        return values
    mesh = _local_mesh(placed)
    return [_localized(value, mesh) for value in values]


def split_rows(array):
    """An array `(B, …)` whose rows lie on this process's devices in turn; B is a multiple of `row_devices()`."""
    placed = keras.distribution.distribution()
    if placed is None:
        return array
    return jax.device_put(array, NamedSharding(_local_mesh(placed), PartitionSpec(BATCH)))


def whole(value):
    """A value that every device of this process holds."""
    placed = keras.distribution.distribution()
    return value if placed is None else jax.device_put(value, NamedSharding(_local_mesh(placed), PartitionSpec()))


def row_devices():
    """The number of parts in which `split_rows` splits."""
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


def _name(device):
    return f"{device.platform}:{device.id}"
