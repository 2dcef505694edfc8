"""TensorFlow: steps are traced into one graph by Keras.

`MirroredStrategy` spreads them over the devices of one host, `MultiWorkerMirroredStrategy` over several.
"""

import contextlib
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from fcdm_keras.backend.job import job

CUTS_MODELS = False
FREES_MEMORY = False

_strategy = None  # made by `connect` where there are several processes, for it must come before any other operation


class TrainStep:
    def train_step(self, data):
        # Keras runs one step more at the end of a finite data set and aborts it when no batch comes. Nothing of the
        # step may happen then, so all of it waits for the batch.
        with _after(data):
            before = self.updates()
            batch = self.prepare(data, training=True)
            gradients, losses = None, []
            for micro_batch in self.micro_batches(batch):
                with tf.GradientTape() as tape:
                    losses.append(self.weighed_losses(micro_batch, training=True))
                    loss = self.optimizer.scale_loss(self.minimised(losses[-1]) / self.accumulation_steps)
                # Dense, also for the label tables: a sparse update would leave the moments of unused rows as they are.
                values = [v.value for v in self.trainable_variables]
                new = map(tf.convert_to_tensor, tape.gradient(loss, values, unconnected_gradients="zero"))
                gradients = list(new) if gradients is None else [a + b for a, b in zip(gradients, new)]
            self.optimizer.apply(self._share_of_mean(gradients), self.trainable_variables)
            losses = {name: tf.concat([part[name] for part in losses], 0) for name in losses[0]}
            return _rows_of_one(self.finish_step(losses, before))

    def test_step(self, data):
        with _after(data):
            losses = self.weighed_losses(self.prepare(data, training=False), training=False)
            return _rows_of_one(self.track(losses))

    def check_optimizer(self):
        """Raises ValueError for an optimizer that works on one device alone."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return
        for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
            if getattr(optimizer, name):
                cure = "; accumulation_steps of the trainer does it on several" if name.startswith("grad") else ""
                raise ValueError(
                    f"On TensorFlow, the optimizer's {name} works on one device alone{cure}. "
                    f"Received: {name}={getattr(optimizer, name)}"
                )

    def _share_of_mean(self, gradients):
        """This replica's part of the mean gradients: Keras's optimizers add the parts of all replicas."""
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        if replicas == 1:
            return gradients
        optimizer = self.optimizer
        scaled = getattr(optimizer, "inner_optimizer", None)
        if scaled is not None and _clips(scaled):
            raise ValueError(
                "On TensorFlow, gradients of mixed_float16 cannot be clipped over several devices (each would clip its "
                "own before they are added): use mixed_bfloat16, one device, or no clipping."
            )
        if _clips(optimizer):
            # Keras clips each replica's gradients and adds them then; clipped is to be their mean.
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            # Keras has no public way to clip alone. Checked with Keras 3.15; tests/test_private_apis.py fails first.
            gradients = optimizer._clip_gradients([gradient / replicas for gradient in total])
        return [gradient / replicas for gradient in gradients]

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Everything is built when it is made, and Keras's own way, which no argument turns off, fails with several
        # processes. Checked with Keras 3.15; tests/test_private_apis.py fails first.
        pass


def _clips(optimizer):
    return bool(optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue)


def rows(count):
    """Places of this replica's samples in the global batch, int32 `(count,)`."""
    first = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, "int32") * count
    return first + tf.range(count, dtype="int32")


def gathered(losses):
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return losses
    every = context.all_gather(tf.stack(list(losses.values()), axis=1), axis=0)
    return dict(zip(losses, tf.unstack(every, len(losses), axis=1), strict=True))


def feed(batches):
    """Batches of this process's rows as what `fit` takes: with several processes, TensorFlow wants them by replica."""
    if job().process_count == 1:
        return batches
    first = next(iter(batches))
    signature = tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape, a.dtype), first)
    size = len(tf.nest.flatten(first)[0]) // _local_replicas()

    def own(context):
        return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature).rebatch(size).repeat()

    return tf.distribute.get_strategy().distribute_datasets_from_function(own)


def placed(batch):
    """A batch of this process's rows, given alone, as a step takes it: cut over the replicas."""
    count = _local_replicas()
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return batch
    parts = [{name: np.split(array, count)[i] for name, array in batch.items()} for i in range(count)]
    strategy = tf.distribute.get_strategy()
    return {
        name: strategy.experimental_distribute_values_from_function(
            lambda context, name=name: tf.constant(parts[context.replica_id_in_sync_group % count][name])
        )
        for name in batch
    }


def same_keys():
    return True  # a data set has one structure


def _rows_of_one(logs):
    """Keras averages the logs of several processes over an axis that scalars do not have."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return logs
    return {name: tf.reshape(value, (1,)) for name, value in logs.items()}


def interpolate(averages, variables, weight):
    for average, variable in zip(averages, variables, strict=True):
        average.assign(average.value + weight * (tf.cast(variable.value, "float32") - average.value))


def compiled(function, variables, batched=()):
    @tf.function(autograph=False)
    def run(values, *args):
        values = map(tf.convert_to_tensor, values)
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    def spread(values, *args):
        parts = _local_replicas()
        if parts == 1 or not batched:
            return run(values, *args)
        rows = len(args[batched[0]])
        size = -(-rows // parts)
        places = np.minimum(np.arange(parts * size), rows - 1).reshape(parts, size)  # the last row fills up
        strategy = tf.distribute.get_strategy()

        def part(value):
            split = [tf.gather(value, own) for own in places]
            return strategy.experimental_distribute_values_from_function(
                lambda context: split[context.replica_id_in_sync_group % parts]
            )

        args = [part(value) if i in batched else value for i, value in enumerate(args)]
        outputs = strategy.run(run, args=(values, *args))
        return tf.nest.map_structure(
            lambda output: tf.concat(strategy.experimental_local_results(output), 0)[:rows], outputs
        )

    return spread


def allow_tf32():
    pass  # the default


@contextlib.contextmanager
def full_precision():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _after(data):
    return tf.control_dependencies([part for part in tf.nest.flatten(data) if part is not None])


def connect(launcher, place, timeout, heartbeat, hosts):
    global _strategy
    if not launcher:
        return 0, 1
    # Without a resolver, TensorFlow reads TF_CONFIG, as `place` was read; SLURM is the other launcher that it knows.
    resolver = None if place else tf.distribute.cluster_resolver.SlurmClusterResolver(auto_set_gpu=False)
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=1800)
    try:
        _strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except tf.errors.OpError as error:
        raise RuntimeError(error.message) from None
    if place:
        return place.index, place.count
    resolver = _strategy.cluster_resolver
    return resolver.task_id, resolver.cluster_spec().num_tasks("worker")


def devices():
    if _strategy is not None:
        return tuple(f"replica:{i}" for i in range(_strategy.num_replicas_in_sync))
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tuple(device.name for device in found)


def check_devices(asked, count):
    pass  # any number of them


def advice():
    return ""  # one process uses all


def start(used, model_parallel, layout_map):
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
    array = np.ascontiguousarray(array)
    sent = array.astype(np.int32) if array.dtype.itemsize < 4 else array  # its collectives know no bytes
    replicas = len(_strategy.extended.worker_devices)
    every = _strategy.experimental_local_results(_strategy.run(_collect, args=(tf.constant(sent)[None],)))[0].numpy()
    return every[::replicas].astype(array.dtype)


@tf.function(autograph=False)
def _collect(own):
    own = tf.identity(own)  # on the replica's device, which an argument does not tell
    return tf.distribute.get_replica_context().all_gather(own, axis=0)


def host_arrays(values):
    return [np.asarray(_by_replica(v.value if isinstance(v, keras.Variable) else v)[0].numpy()) for v in values]


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        for own in _by_replica(variable.value):
            own.assign(value)


def _by_replica(value):
    """What the replicas of this host hold, all the same; read as one, sums of metrics would be added."""
    return tf.distribute.get_strategy().experimental_local_results(value)


def readable(variables):
    return contextlib.nullcontext()  # every process has them whole


def writing():
    return contextlib.nullcontext()


def accompany(write):
    """Writes what the first process writes, to a folder that is thrown away.

    Keras's saving makes variables and reads metrics, for which TensorFlow needs all processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))


def device_bytes(variables):
    whole = sum(variable.value.numpy().nbytes for variable in variables)
    return whole, whole


def _local_replicas():
    """The number of replicas of the current strategy on this host."""
    return len(tf.distribute.get_strategy().extended.worker_devices) if tf.distribute.has_strategy() else 1
