"""GPUs of this machine that an engine may not have found, and why. Standard library only."""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

_FOUND_BY = {  # a package without which an engine computes on the CPU, and what brings it
    "jax": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    "tensorflow": ("nvidia.cuda_nvcc",),
}
_HIDING = {"CUDA_VISIBLE_DEVICES": ("", "-1"), "NVIDIA_VISIBLE_DEVICES": ("none", "void")}


def idle(backend, environ=os.environ, driver="/proc/driver/nvidia/gpus"):
    """Why `backend` computes on the CPU of a machine with an NVIDIA GPU, in one phrase; `""` if there is no GPU.

    Args:
        backend: `"jax"`, `"torch"` or `"tensorflow"`, which found no GPU.
        environ: environment variables.
        driver: where the driver lists its GPUs.
    """
    files = sorted(Path(driver).glob("*/information"))
    if not files:
        return ""
    model = re.search(r"^Model:\s*(.+)$", files[0].read_text(errors="replace"), re.MULTILINE)
    gpu = f"{len(files)} × {model[1].strip() if model else 'NVIDIA GPU'} idle"
    hidden = [name for name, values in _HIDING.items() if environ.get(name, " ").lower() in values]
    if backend == "jax" and environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        hidden.append("JAX_PLATFORMS")
    if hidden:
        return f"{gpu}: {hidden[0]}={environ[hidden[0]]} hides it"
    packages = _FOUND_BY.get(backend)
    if packages and not any(map(_installed, packages)):
        return f'{gpu}: {backend} has no CUDA here, which pip install "fcdm-keras[{backend}-cuda]" brings'
    if backend == "torch" and "+cpu" in importlib.metadata.version("torch"):
        return f"{gpu}: this PyTorch is built for CPUs; pip install torch brings one for GPUs"
    return f"{gpu}: {backend} finds no driver that fits its CUDA; see nvidia-smi"


def _installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even its parent
        return False
