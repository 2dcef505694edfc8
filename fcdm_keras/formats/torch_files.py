"""Weight files of PyTorch and safetensors, read without executing anything in them.

A file's content decides what it is, not its ending. PyTorch's restricted unpickler comes first; where it stumbles over
what lies beside the weights, a second one reads the file again, which calls nothing but what makes up tensors: all
other classes and functions become `Skipped`.
"""

import argparse
import importlib.util
import os
import pickle
import re
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np

from fcdm_keras.files import is_utf8
from fcdm_keras.formats import archives, regular
from fcdm_keras.formats.numbers import check_finite, check_weights_type
from fcdm_keras.formats.weight_index import read_parts

# What no harmless file holds, so that it is refused rather than skipped. Safety does not rest on this list.
_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|commands|pty|runpy|importlib|ctypes|shutil|socket|webbrowser)\..+"
    r"|(builtins|__builtin__|_?io)\.(eval|exec|execfile|compile|open|__import__)"
)
_REPEATED = 2**24  # bytes that a tensor which repeats what is stored may have
_DAMAGED = "is truncated, damaged or not a PyTorch checkpoint"
_OTHERS = (  # what a file begins with, and what it is then
    (rb"\Z", f"{_DAMAGED}: it is empty; copy the file again"),
    (rb"version https://git-lfs", "is a git-lfs pointer, not the weights; fetch them with `git lfs pull`"),
    (rb"\S*/annex/objects/", "is a git-annex pointer, not the weights; fetch them with `git annex get`"),
    (rb"(?i)\s*<(!doctype|html|\?xml|head)", "is a web page, not the weights; download them again"),
    (rb"\x89HDF", "is an HDF5 file, as Keras writes; load it with Keras"),
    (rb"GGUF", "is a GGUF file, whose weights are quantised; bring those that it was made from"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc|Rar!|(?s:.{257}ustar)", "is an archive; unpack it first"),
)


class Skipped(dict):
    """Stands for an object that is not made: takes what a file gives it, its items and attributes, and does nothing."""

    kind = "object"
    __hash__, __eq__ = object.__hash__, object.__eq__

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)

    def append(self, item):
        pass

    add = extend = append


class _Refused(Exception):
    """What a file holds that is not read, and why."""


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C stumbles over some damaged files
    """Calls nothing but what `find_class` returns: functions that make tensors, and classes made for this one file."""

    def find_class(self, module, name):
        import torch

        def tensor(storage, offset, size, stride, *_):
            return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)

        def tensor_of_type(storage, offset, size, stride, _grad, _hooks, dtype, *_):
            return torch.empty(0, dtype=dtype).set_(storage.untyped(), offset, size, stride)

        known = {
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_tensor_v3": tensor_of_type,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": lambda make, _, arguments, *__: make(*arguments),
            "torch.storage.UntypedStorage": types.SimpleNamespace(dtype=torch.uint8),
        }
        full = f"{module}.{name}"
        if _CODE.fullmatch(full):
            raise _Refused(f"{full}, which is refused because loading it could run code; nothing was executed")
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return known.get(full) or type("Skipped", (Skipped,), {"kind": full})


def _load(file, **options):
    return _Unpickler(file, **options).load()


_INERT = types.SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_load)  # in place of the module `pickle`


def read_torch_file(path):
    """What a weight file holds, on the CPU, without executing anything in it.

    Args:
        path: a file of `torch.save`, a `.safetensors` file, or a `.index.json` file that lists the parts of either.

    Returns:
        The file's content. Objects of other classes than PyTorch's own are `Skipped`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or holds what could run code.
    """
    if not os.path.exists(path) or os.path.isdir(path):
        raise FileNotFoundError(f"There is no checkpoint file at {path}{_instead(Path(path))}.")
    regular.size(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if what := next((what for start, what in _OTHERS if re.match(start, head)), None):
        raise ValueError(f"{path} {what}.")
    if head[:1] == b"{":
        return _read_parts(Path(path))
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"{path} is read with PyTorch, which is not installed: pip install torch.")
    what = f"{_DAMAGED}; copy the file again"
    try:
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path) if head[:2] == b"PK" else head[:1] == b"\x80":
            return _read_pickled(path)
    except (PermissionError, archives.UnfitArchiveError):
        raise
    except _Refused as refused:
        what = f"holds {refused}"
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        if "TorchScript" in str(error):
            what = "is a TorchScript program; save the state_dict() of its module"
    raise ValueError(f"{path} {what}.")


def _read_pickled(path):
    import torch

    # Mapped into memory, so that the optimizer's state is never read. PyTorch takes the ending for the format, and maps
    # files with names in UTF-8 only.
    mapped = zipfile.is_zipfile(path) and not str(path).endswith(".safetensors") and is_utf8(path)
    if zipfile.is_zipfile(path):
        archives.check(path, "PyTorch checkpoint")
    with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
        source = path if mapped else file
        options = {"map_location": "cpu", "mmap": mapped}
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(source, weights_only=True, **options)
        except (pickle.UnpicklingError, AttributeError):
            file.seek(0)
            if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
                raise _Refused("more than tensors, which TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids to skip") from None
            return torch.load(source, weights_only=False, pickle_module=_INERT, **options)


def _read_parts(index):
    return {name: tensor for part in read_parts(index) for name, tensor in read_torch_file(part).items()}


def _instead(path):
    """What is at `path` instead of a file, as the end of a sentence."""
    if path.is_symlink() and not path.exists():
        hint = "; fetch it with `git annex get`" if "annex" in str(path.readlink()) else ""
        return f": it is a link to {path.readlink()}, which is not there{hint}"
    if (path / "config.json").is_file() and (path / "metadata.json").is_file():
        return ": it is a Keras preset already, which `from_preset` loads"
    if path.is_dir():
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        return f": it is a folder, with {names}; name the file in it" if names else ": it is an empty folder"
    return ""


def check_tensor(name, tensor):
    """Raises ValueError unless a tensor of a file is one of weights: full, dense, real, and all there in the file."""
    if isinstance(tensor, Skipped):
        raise ValueError(f"{name} is no full, dense tensor; store such ones. Received: {type(tensor).kind}.")
    layout, device = str(tensor.layout).removeprefix("torch."), tensor.device.type
    if layout != "strided" or device != "cpu" or tensor.is_nested or tensor.is_quantized:
        kind = str(tensor.dtype).removeprefix("torch.") if tensor.is_quantized else f"{device}, {layout}"
        raise ValueError(f"{name} is no full, dense tensor; store such ones. Received: {kind}.")
    check_weights_type(name, str(tensor.dtype).removeprefix("torch."))
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > max(stored, _REPEATED):
        raise ValueError(
            f"{name} has the shape {tuple(tensor.shape)}, and only {stored:,} bytes of it are in the file; store "
            "tensor.contiguous()."
        )


def to_array(name, tensor):
    """A tensor as float32, in memory of its own: the file may change later.

    Raises:
        ValueError: it is none of weights, see `check_tensor`, or is not finite.
    """
    check_tensor(name, tensor)
    array = np.array(tensor.detach().float())
    check_finite(name, array)
    return array


def contents(value):
    """The named parts of an object from a file, as a dict: a dict's items, a module's state, or attributes.

    Args:
        value: anything.

    Returns:
        A dict, which is empty for what has no such parts.
    """
    if isinstance(value, Skipped) and isinstance(vars(value).get("_modules"), dict):
        return _module_state(value)
    if isinstance(value, dict) and (value or not isinstance(value, Skipped)):
        return value
    return vars(value) if isinstance(value, (Skipped, argparse.Namespace)) else {}


def _module_state(module):
    """The state dict of a module that was stored as a whole."""
    state, waiting, seen = {}, [("", module)], set()
    while waiting:
        prefix, part = waiting.pop()
        if not isinstance(part, Skipped) or id(part) in seen:
            continue
        seen.add(id(part))
        parameters, buffers, children = (contents(vars(part).get(n)) for n in ("_parameters", "_buffers", "_modules"))
        state |= {f"{prefix}{name}": tensor for name, tensor in (parameters | buffers).items()}
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items()]
    return state
