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
import os
import socket
import traceback

import keras

from fcdm_keras import backend
from fcdm_keras.backend.job import Job, has_job, is_main, job, say, set_job
from fcdm_keras.distribution import hosts, launch, supervision
from fcdm_keras.distribution.exchange import agree, barrier, gather, gather_texts
from fcdm_keras.distribution.layout import layout_map
from fcdm_keras.machine import accelerator, allocator
from fcdm_keras.signals import Stopped

HEARTBEAT_SECONDS = 50  # after which JAX's own watch ends the process, with a dump: later than `supervision.SILENT`


@contextlib.contextmanager
def setup(devices=None, model_parallel=1, connect_timeout=50):
    """Connects the processes of a job and spreads what is built in this context over their devices.

    Inside another `setup` it does nothing. An exception inside ends the process at once if it is one of several, with
    its message, which the others are told. If a process or its host is lost, the others end too, and say which.

    Args:
        devices: how many of the visible devices to use; `None` is all.
        model_parallel: devices that share one copy of the model (JAX).
        connect_timeout: seconds to wait for the other processes.

    Returns:
        A context with the `Job`.

    Raises:
        ValueError: the environment is another engine's, or the devices are not there.
    """
    if has_job():
        yield job()
        return
    launcher = launch.launcher(keras.backend.backend())
    with contextlib.ExitStack() as stack, _ending(launcher):
        stack.callback(set_job, None)
        with _finding(launcher, connect_timeout):
            place = launch.place(launcher)
            index, count = backend.connect(launcher, place, connect_timeout, HEARTBEAT_SECONDS, hosts)
            used = _used_devices(devices, model_parallel, count)
            stack.callback(backend.start(used, model_parallel, layout_map))
            keeps = backend.FREES_MEMORY and _on_cpu(used) and allocator.keep()
            set_job(Job(index, count, used, model_parallel, launcher, keeps))
            stack.enter_context(supervision.watched(launch.head(launcher)))
        stopped = None
        try:
            yield job()
        except Stopped as raised:  # by all processes after the same step
            stopped = raised
        barrier()
        backend.disconnect(launcher)
        if stopped:
            raise stopped


@contextlib.contextmanager
def _ending(launcher):
    """Ends one of several processes with the message of whatever is raised, and without waiting for the others."""
    try:
        yield
    except BaseException as error:
        if not launcher:
            raise
        if isinstance(error, SystemExit):
            text, status = (error.code, 1) if isinstance(error.code, str) else ("", error.code or 0)
            supervision.abandon(text, status)
        if isinstance(error, KeyboardInterrupt):
            supervision.abandon(f"process {_place()} was stopped.", 130)  # 128 and the number of SIGINT
        if not isinstance(error, (ValueError, OSError, FloatingPointError)):
            supervision.await_verdict(error)
            traceback.print_exc()
        supervision.abandon(f"error: process {_place()}: {error or type(error).__name__}")


def _place():
    return f"{job().process_index} on {socket.gethostname()}"


@contextlib.contextmanager
def _finding(launcher, timeout):
    """Bounds the time in which the processes of a job find each other, and says what may keep them from it."""
    if not launcher:
        yield
        return
    names = ("JAX_COORDINATOR_ADDRESS", "MASTER_ADDR", "MASTER_PORT", "TF_CONFIG", "SLURM_JOB_NODELIST")
    where = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    job_text = f"the processes of this job ({launcher}: {where})"
    advice = (
        "Check that all were started, with the same backend and number of processes, that the address is the first "
        "one's, and that its port is free and reachable; --connect-timeout waits longer."
    )
    if wrong := hosts.hidden():
        advice += f" If they are on several hosts: {wrong}."
    with supervision.deadline(timeout, f"{job_text} had not found each other after {timeout} s. {advice}"):
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{job_text} cannot connect ({reason}). {advice}") from None


def _used_devices(asked, model_parallel, process_count):
    every = backend.devices()
    backend.check_devices(asked, len(every))
    if asked is not None and not 1 <= asked <= len(every):
        raise ValueError(f"--devices must lie in [1, {len(every)}], the devices that are visible. Received: {asked}")
    if asked is not None and process_count > 1 and asked != len(every):
        raise ValueError(
            f"--devices chooses among the devices of one process; these {process_count} processes have {len(every)} "
            f"together and use all. Received: {asked}"
        )
    used = every[: asked or len(every)]
    if model_parallel > 1 and not backend.CUTS_MODELS:
        raise ValueError(
            f"--model-parallel needs KERAS_BACKEND=jax. Received: {model_parallel} with {keras.backend.backend()}"
        )
    if model_parallel < 1 or len(used) % model_parallel:
        raise ValueError(f"--model-parallel must divide the number of devices, {len(used)}. Received: {model_parallel}")
    return used


def describe():
    """The job in one phrase, for the terminal."""
    placed = job()
    text = f"{len(placed.devices)} device{'s' if len(placed.devices) > 1 else ''} ({placed.devices[0]}"
    text += f" … {placed.devices[-1]})" if len(placed.devices) > 1 else ")"
    if placed.model_parallel > 1:
        text += f", {placed.model_parallel} for each copy of the model"
    if placed.process_count > 1:
        text += f", {placed.process_count} processes by {placed.launcher}"
    advice = [backend.advice() if placed.process_count == 1 else ""]
    if _on_cpu(placed.devices):
        advice.append(accelerator.idle(keras.backend.backend()))
    if placed.keeps_memory:
        advice.append(f"memory is kept between steps ({allocator.SWITCH}=0 gives it back)")
    return "; ".join(part for part in (text, *advice) if part)


def _on_cpu(devices):
    return "cpu" in devices[0].lower()


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


def readable(variables):
    """A context in which this process can read the variables whole, also those that are cut over several processes.

    All processes must enter it together.
    """
    return contextlib.nullcontext() if job().process_count == 1 else backend.readable(variables)


def write_once(write, folder):
    """Lets the first process call `write(folder)`, and the others do what its engine needs for that."""
    if is_main():
        with backend.writing():
            write(folder)
    else:
        backend.accompany(write)


def device_bytes(variables):
    """Bytes of the variables that one device holds, and of all of them."""
    return backend.device_bytes(variables)


def host_arrays(values):
    """Variables or tensors as NumPy arrays. With several processes, all must call this together."""
    return backend.host_arrays(values)


__all__ = [
    "Job", "agree", "alone", "barrier", "batch_rows", "check_batch", "check_model", "describe", "device_bytes",
    "gather", "gather_texts", "host_arrays", "is_main", "job", "readable", "say", "setup", "share", "write_once",
]  # fmt: skip
