"""How this process was started, read from the environment. Nothing heavy is imported.

Each engine has launchers of its own, whose rules are kept: `torchrun` for PyTorch; `TF_CONFIG` or SLURM for TensorFlow;
SLURM, Open MPI, Kubernetes or three variables for JAX (`JAX_COORDINATOR_ADDRESS=host:port`, `JAX_NUM_PROCESSES` and
`JAX_PROCESS_ID`).
"""

import dataclasses
import json
import os
from typing import Any

from fcdm_keras.formats.documents import parse_json

NONE, TORCHRUN, TF_CONFIG, JAX_VARIABLES = "", "torchrun", "TF_CONFIG", "JAX_COORDINATOR_ADDRESS"
SLURM, OPEN_MPI, KUBERNETES = "SLURM", "Open MPI", "Kubernetes"
UNDERSTOOD = {
    "torch": (TORCHRUN,),
    "tensorflow": (TF_CONFIG, SLURM),
    "jax": (JAX_VARIABLES, SLURM, OPEN_MPI, KUBERNETES),
}
ADVICE = {
    "torch": "start it with `torchrun --nproc-per-node N …` (under SLURM: `srun torchrun …`, one task per host)",
    "tensorflow": "set TF_CONFIG in each process, or start one task per host with srun",
    "jax": "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process, or use srun or mpirun",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's `index` among the `count` of its job, and where needed the first one's `address`, host:port."""

    index: int
    count: int
    address: str = ""


def launcher(backend, environ=os.environ):
    """The launcher that started this process as one of several, or `""`.

    Raises:
        ValueError: the launcher is another engine's, or its variables are incomplete.
    """
    found = [name for name, present in _present(environ).items() if present]
    understood = [name for name in found if name in UNDERSTOOD[backend]]
    if found and not understood:
        raise ValueError(
            f"This process was started by {found[0]}, which starts no processes of KERAS_BACKEND={backend}: "
            f"{ADVICE[backend]}, or set KERAS_BACKEND={_backends(found[0])}."
        )
    name = understood[0] if understood else NONE
    place(name, environ)
    return name


def place(name, environ=os.environ):
    """The `Place` that the variables of the launcher `name` give this process; `None` where the engine asks it itself.

    Raises:
        ValueError: the variables are malformed or incomplete.
    """
    if name == TF_CONFIG:
        return _tf_config(environ)
    if name == TORCHRUN:
        _check_torchrun(environ)
    return _jax_variables(environ) if name == JAX_VARIABLES else None


def head(name, environ=os.environ):
    """The first process's host, a name or an address, as the launcher `name` gives it, or `""`."""
    if name == TORCHRUN:
        return environ.get("MASTER_ADDR", "")
    if name == TF_CONFIG:
        cluster = json.loads(environ["TF_CONFIG"])["cluster"]
        address = next(filter(None, (cluster.get(kind) for kind in ("chief", "worker"))))[0]
    else:
        address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    return address.rpartition(":")[0].strip("[]")


def _present(environ):
    return {
        TORCHRUN: {"RANK", "WORLD_SIZE"} <= environ.keys()
        and bool({"TORCHELASTIC_RUN_ID", "MASTER_ADDR"} & environ.keys() or environ["WORLD_SIZE"] != "1"),
        TF_CONFIG: "TF_CONFIG" in environ,
        JAX_VARIABLES: any(name in environ for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")),
        SLURM: "SLURM_PROCID" in environ and _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1,
        OPEN_MPI: _number(environ, "OMPI_COMM_WORLD_SIZE") > 1,
        KUBERNETES: "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ,
    }


def _number(environ, *names):
    name = next((name for name in names if name in environ), None)
    text = environ[name] if name else "1"
    if not text.isdecimal():
        raise ValueError(f"{name} must be the number of processes. Received: {text[:60]!r}")
    return int(text)


def _backends(name):
    return " or ".join(backend for backend, names in UNDERSTOOD.items() if name in names)


def _check_torchrun(environ):
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, count, address, port = given = [environ.get(name, "") for name in names]
    numbers = all(text.isdecimal() for text in (rank, count, port))
    if not numbers or not int(rank) < int(count) or not int(port) < 2**16 or not address:
        raise ValueError(
            "Where torchrun's variables are set by hand, WORLD_SIZE must be the number N of processes, RANK in "
            "[0, N − 1], and MASTER_ADDR and MASTER_PORT those of the first. Received: "
            f"{', '.join(f'{name}={text[:60]!r}' for name, text in zip(names, given))}"
        )


def _tf_config(environ):
    try:
        config = parse_json(environ["TF_CONFIG"], dict[str, Any], "TF_CONFIG")
        cluster, task = config["cluster"], config["task"]
        tasks = [(kind, i) for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))]
        return Place(tasks.index((task["type"], int(task["index"]))), len(tasks))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            'TF_CONFIG must look like {"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {environ["TF_CONFIG"][:200]!r}'
        ) from None


def _jax_variables(environ):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: environ.get(name, "") for name in names}
    address, count, index = given.values()
    numbers = count.isdecimal() and index.isdecimal() and 0 <= int(index) < int(count)
    if not numbers or not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ValueError(
            "JAX_COORDINATOR_ADDRESS must be the host:port of the first process, JAX_NUM_PROCESSES their number N, and "
            f"JAX_PROCESS_ID in [0, N − 1]. Received: {', '.join(f'{k}={v!r}' for k, v in given.items())}"
        )
    return Place(int(index), int(count), address)
