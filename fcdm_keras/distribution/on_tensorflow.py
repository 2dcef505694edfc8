"""TensorFlow: `MirroredStrategy` on one host, `MultiWorkerMirroredStrategy` on several."""

import contextlib
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from fcdm_keras import launch

_strategy = None  # made by `connect` where there are several processes, for it must come before any other operation


def connect(launcher, timeout, heartbeat):
    """Joins the other processes of the job. Returns (process index, process count)."""
    global _strategy
    if not launcher:
        return 0, 1
    resolver = None
    if launcher == launch.SLURM:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(auto_set_gpu=False)
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=1800)
    try:
        _strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except tf.errors.OpError as error:
        raise RuntimeError(error.message) from None
    resolver = _strategy.cluster_resolver
    if launcher == launch.TF_CONFIG:
        return launch.tf_config()
    return resolver.task_id, resolver.cluster_spec().num_tasks("worker")


def devices():
    """Names of all processes' devices."""
    if _strategy is not None:
        return tuple(f"replica:{i}" for i in range(_strategy.num_replicas_in_sync))
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tuple(device.name for device in found)


def start(used, model_parallel):
    """Enters the strategy's scope. Returns a function that leaves it."""
    if _strategy is None and len(used) == 1:
        return lambda: None
    scope = (_strategy or tf.distribute.MirroredStrategy(list(used))).scope()
    scope.__enter__()
    return lambda: scope.__exit__(None, None, None)


def disconnect(launcher):
    global _strategy
    _strategy = None


def barrier():
    gather(np.zeros(1, np.uint8))


def gather(array):
    """Every process's `array` (all of one shape), stacked by process."""
    array = np.ascontiguousarray(array)
    sent = array.astype(np.int32) if array.dtype.itemsize < 4 else array  # its collectives know no bytes
    replicas = len(_strategy.extended.worker_devices)

    def collect():
        return tf.distribute.get_replica_context().all_gather(tf.constant(sent)[None], axis=0)

    every = _strategy.experimental_local_results(_strategy.run(tf.function(collect)))[0].numpy()
    return every[::replicas].astype(array.dtype)


def host_arrays(values):
    """Tensors or variables as NumPy arrays."""
    return [np.asarray((v.value if isinstance(v, keras.Variable) else v).numpy()) for v in values]


def readable(variables):
    """Every process has them whole."""
    return contextlib.nullcontext()


def writing():
    return contextlib.nullcontext()


def accompany(write):
    """Writes what the first process writes, to a folder that is thrown away.

    Keras's saving makes variables and reads metrics, for which TensorFlow needs all processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))


def local_replicas():
    """The number of replicas of the current strategy on this host."""
    return len(tf.distribute.get_strategy().extended.worker_devices) if tf.distribute.has_strategy() else 1
