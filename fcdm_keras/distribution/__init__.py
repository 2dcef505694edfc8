"""Many devices and hosts: one interface, and each backend's own engine behind it.

    with distribution.setup():      # before anything is built
        trainer = …                 # built, trained and sampled from as on one device

| backend | devices of one host | several hosts |
|---|---|---|
| JAX | `keras.distribution.DataParallel`, or `ModelParallel` for models that do not fit | `jax.distributed` |
| PyTorch | `DistributedDataParallel`, one process per device, under `torchrun` | `torchrun --nnodes` |
| TensorFlow | `tf.distribute.MirroredStrategy` | `MultiWorkerMirroredStrategy` |

A batch is the global one: each process reads its own rows of it (`batch_rows`), and whatever is random about a sample
follows from its row. So a run computes the same, up to summation order, on any number of devices.
"""

import contextlib
import dataclasses
import importlib
import os
import socket

import keras
import numpy as np

import fcdm_keras.hub  # noqa: F401  (hides TensorFlow's GPUs under other backends)
from fcdm_keras import launch
from fcdm_keras.distribution import watch

on_backend = importlib.import_module(f"fcdm_keras.distribution.on_{keras.backend.backend()}")

HEARTBEAT_SECONDS = 30  # after which a dead process takes the job down, where the engine itself has to notice (JAX)


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes and devices at work. `process_index` and the rest are plain numbers, the same to ask anywhere."""

    process_index: int = 0
    process_count: int = 1
    devices: tuple[str, ...] = ("the default",)
    model_parallel: int = 1
    launcher: str = ""

    @property
    def data_parallel(self):
        """The number of devices, or groups of devices, that the batch is cut over."""
        return len(self.devices) // self.model_parallel


_job = None


def job():
    """The present `Job`; outside of `setup`, one process on its default device."""
    return _job or Job()


def is_main():
    """Whether this is the first process, which alone writes logs, pictures and checkpoints."""
    return job().process_index == 0


def say(text):
    """Prints, in the first process only."""
    if is_main():
        print(text)


@contextlib.contextmanager
def setup(devices=None, model_parallel=1, connect_timeout=50):
    """Connects the processes of a job and spreads what is built in this context over their devices.

    Inside another `setup` it does nothing. An exception inside ends the process at once if it is one of several, with
    its message, so that the others notice.

    Args:
        devices: how many of the visible devices to use; `None` is all.
        model_parallel: devices that share one copy of the model (JAX).
        connect_timeout: seconds to wait for the other processes.

    Returns:
        A context with the `Job`.

    Raises:
        ValueError: the environment is another engine's, or the devices are not there.
    """
    global _job
    if _job is not None:
        yield _job
        return
    launcher = launch.launcher(keras.backend.backend())
    with contextlib.ExitStack() as stack, _ending(launcher):
        stack.callback(_forget)
        index, count = _connect(launcher, connect_timeout)
        used = _used_devices(devices, model_parallel, count)
        stack.callback(on_backend.start(used, model_parallel))
        _job = Job(index, count, used, model_parallel, launcher)
        yield _job
        barrier()
        on_backend.disconnect(launcher)


def _forget():
    global _job
    _job = None


@contextlib.contextmanager
def _ending(launcher):
    """Ends one of several processes with the message of whatever is raised, and without waiting for the others."""
    try:
        yield
    except BaseException as error:
        if not launcher:
            raise
        if isinstance(error, SystemExit):
            watch.abandon(error.code if isinstance(error.code, str) else "", 1 if error.code else 0)
        if not isinstance(error, (ValueError, OSError, FloatingPointError, KeyboardInterrupt)):
            import traceback

            traceback.print_exc()
        watch.abandon(f"error: process {_place()}: {error or type(error).__name__}")


def _place():
    return f"{job().process_index} on {socket.gethostname()}"


def _connect(launcher, timeout):
    if not launcher:
        return on_backend.connect("", timeout, HEARTBEAT_SECONDS)
    names = ("JAX_COORDINATOR_ADDRESS", "MASTER_ADDR", "MASTER_PORT", "TF_CONFIG", "SLURM_JOB_NODELIST")
    where = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    job_text = f"the processes of this job ({launcher}: {where})"
    advice = (
        "Check that all were started, with the same backend and number of processes, that the address is the first "
        "one's, and that its port is free and reachable; --connect-timeout waits longer."
    )
    with watch.deadline(timeout, f"{job_text} had not found each other after {timeout} s. {advice}"):
        try:
            return on_backend.connect(launcher, timeout, HEARTBEAT_SECONDS)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{job_text} cannot connect ({reason}). {advice}") from None


def _used_devices(asked, model_parallel, process_count):
    every = on_backend.devices()
    if keras.backend.backend() == "torch":
        _check_torch_devices(asked, len(every))
    if asked is not None and not 1 <= asked <= len(every):
        raise ValueError(f"--devices must lie in [1, {len(every)}], the devices that are visible. Received: {asked}")
    if asked is not None and process_count > 1 and asked != len(every):
        raise ValueError(
            f"--devices chooses among the devices of one process; these {process_count} processes have {len(every)} "
            f"together and use all. Received: {asked}"
        )
    used = every[: asked or len(every)]
    if model_parallel > 1 and keras.backend.backend() != "jax":
        raise ValueError(
            f"--model-parallel needs KERAS_BACKEND=jax. Received: {model_parallel} with {keras.backend.backend()}"
        )
    if model_parallel < 1 or len(used) % model_parallel:
        raise ValueError(f"--model-parallel must divide the number of devices, {len(used)}. Received: {model_parallel}")
    return used


def _check_torch_devices(asked, processes):
    if asked is not None and asked != processes:
        raise ValueError(
            f"On PyTorch each device has a process of its own: start `torchrun --nproc-per-node {asked} …` instead of "
            f"--devices {asked}. This job has {processes}."
        )


def describe():
    """The job in one phrase, for the terminal."""
    placed = job()
    text = f"{len(placed.devices)} device{'s' if len(placed.devices) > 1 else ''} ({placed.devices[0]}"
    text += f" … {placed.devices[-1]})" if len(placed.devices) > 1 else ")"
    if placed.model_parallel > 1:
        text += f", {placed.model_parallel} for each copy of the model"
    if placed.process_count > 1:
        text += f", {placed.process_count} processes by {placed.launcher}"
    idle = getattr(on_backend, "visible_devices", lambda: 1)() if placed.process_count == 1 else 1
    if idle > 1:
        text += f"; {idle} GPUs are visible: `torchrun --nproc-per-node {idle} …` uses all"
    return text


def check_batch(global_batch_size, accumulation_steps=1):
    """Raises ValueError unless a batch can be cut into equal parts over devices and micro-batches."""
    parts = job().data_parallel * accumulation_steps
    if global_batch_size % parts:
        nearest = max(parts, round(global_batch_size / parts) * parts)
        raise ValueError(
            f"The global batch size must be divisible by devices × accumulation steps = {job().data_parallel} × "
            f"{accumulation_steps}, such as {nearest}; or use fewer devices. Received: {global_batch_size}"
        )


def check_model(hidden_channels):
    """Raises ValueError unless a backbone of this width can be cut over the devices that share one copy of it."""
    if hidden_channels % (2 * job().model_parallel):
        raise ValueError(
            f"--model-parallel {job().model_parallel} must divide half the model's width, {hidden_channels} / 2."
        )


def alone(command):
    """Raises ValueError if this process is one of several, which `command` cannot make use of."""
    name = launch.launcher(keras.backend.backend())
    if name:
        raise ValueError(f"{command} runs in one process, and this one was started by {name}: start it plainly.")


def batch_rows(global_batch_size):
    """Which rows of the global batch this process reads, as a range; `check_batch` has been called."""
    placed = job()
    shards = min(placed.process_count, placed.data_parallel)
    rows = global_batch_size // shards
    index = placed.process_index * shards // placed.process_count
    return range(index * rows, (index + 1) * rows)


def share(items):
    """This process's part of a sequence: every P-th item, from its own index on."""
    return items[job().process_index :: job().process_count]


def barrier():
    """Waits for all processes."""
    if job().process_count > 1:
        on_backend.barrier()


def gather(array):
    """Rows of all processes, `(ΣB, …)`, from each process's `(B, …)`, which may differ in B but not in the rest."""
    array = np.asarray(array)
    if job().process_count == 1:
        return array
    counts = on_backend.gather(np.array([len(array)], np.int32))[:, 0]
    padded = np.zeros((max(counts), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return np.concatenate([part[:count] for part, count in zip(on_backend.gather(padded), counts, strict=True)])


def gather_texts(text):
    """Every process's `text`, by process."""
    if job().process_count == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(gather(np.array([len(data)], np.int32)))
    return [part.tobytes().decode() for part in np.split(gather(data), ends[:-1])]


def agree(what, value):
    """Raises ValueError unless `value`, of which `what` is the name, is the same in every process."""
    values = gather_texts(str(value))
    if len(set(values)) > 1:
        listed = ", ".join(f"{other} in process {index}" for index, other in enumerate(values))
        raise ValueError(f"The processes of this job disagree on the {what}: {listed}. Do they share the run folder?")


def readable(variables):
    """A context in which this process can read the variables whole, also those that are cut over several processes.

    All processes must enter it together.
    """
    return contextlib.nullcontext() if job().process_count == 1 else on_backend.readable(variables)


def write_once(write, folder):
    """Lets the first process call `write(folder)`, and the others do what its engine needs for that."""
    if is_main():
        with on_backend.writing():
            write(folder)
    else:
        on_backend.accompany(write)


def device_bytes(variables):
    """Bytes of the variables that one device holds, and of all of them (JAX)."""
    return on_backend.device_bytes(variables)


def host_arrays(values):
    """Variables or tensors as NumPy arrays. With several processes, all must call this together."""
    return on_backend.host_arrays(values)


__all__ = [
    "Job", "agree", "alone", "barrier", "batch_rows", "check_batch", "check_model", "describe", "device_bytes",
    "gather", "gather_texts", "host_arrays", "is_main", "job", "readable", "say", "setup", "share", "write_once",
]  # fmt: skip
