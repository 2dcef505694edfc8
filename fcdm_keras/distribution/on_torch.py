"""PyTorch: one process per device, started by `torchrun`; `DistributedDataParallel` averages the gradients."""

import contextlib
import datetime
import os

import keras
import numpy as np
import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous


def connect(launcher, timeout, heartbeat):
    """Joins the other processes of the job. Returns (process index, process count).

    `heartbeat` is torchrun's own affair: it watches its processes.
    """
    if not launcher:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    engines = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=timeout)
    store, rank, count = next(rendezvous("env://", timeout=limit))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one host torchrun keeps its store through restarts, and with it the addresses of processes that are dead.
        store = torch.distributed.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch.distributed.init_process_group(engines, store=store, rank=rank, world_size=count, timeout=limit)
    # What a process may wait for another in training: one that draws or judges images takes its time.
    torch.distributed.set_timeout(datetime.timedelta(minutes=30))
    return rank, count


def devices():
    """Names of all processes' devices."""
    count = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(f"{kind}:{i}" for i in range(count))


def start(used, model_parallel):
    return lambda: None


def disconnect(launcher):
    if launcher:
        torch.distributed.destroy_process_group()


def barrier():
    gather(np.zeros(1, np.uint8))


def gather(array):
    """Every process's `array` (all of one shape), stacked by process."""
    own = torch.from_numpy(np.ascontiguousarray(array))
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)
    return np.stack([part.numpy() for part in parts])


def host_arrays(values):
    """Tensors or variables as NumPy arrays."""
    return [keras.ops.convert_to_numpy(value) for value in values]


def readable(variables):
    """Every process has them whole."""
    return contextlib.nullcontext()


def writing():
    return contextlib.nullcontext()


def accompany(write):
    pass


def visible_devices():
    """The number of GPUs that this host shows, or 1."""
    return max(1, torch.cuda.device_count())
