"""The tensors of files that other programs wrote, by name. What a file is, its content decides, not its ending.

Nothing stored in a file is executed: `.safetensors` holds numbers only, PyTorch's files are read with its restricted
unpickler. Tensors are read when they are called for, so that a large file costs no more than what is taken from it.
"""

import re
from functools import partial

from fcdm_keras.formats import regular
from fcdm_keras.formats.safetensors_files import open_safetensors
from fcdm_keras.formats.torch_files import Skipped, contents, read_torch_file, to_array

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
MARK = "encoder.conv_in.weight"  # every KL autoencoder has it, whatever else is in a file


def open_tensors(files):
    """All tensors of weight files: name → function that reads it, as a float32 array in the file's layout.

    Raises:
        ValueError: a file is damaged, is none of weights, or repeats a name. The functions raise it for numbers that
            are not finite, or that are no floating-point numbers of 16 bits or more.
    """
    tensors = {}
    for path in files:
        part = _open(path)
        if repeated := sorted(tensors.keys() & part.keys()):
            raise ValueError(f"{path} holds {repeated[0]}, which another file holds as well.")
        tensors.update(part)
    return tensors


def _open(path):
    regular.size(path)
    with open(path, "rb") as file:
        head = file.read(24)
    if re.match(rb".{8}\s*\{", head, re.DOTALL):
        return {_plain(name): read_tensor for name, read_tensor in open_safetensors(path).items()}
    if path.suffix in SUFFIXES or head.startswith((b"PK", b"\x80")):
        return _open_torch(path)
    raise ValueError(
        f"An autoencoder's weights are a .safetensors or .bin file. Received: {path}, which is neither by its content "
        "(.ckpt, .pt and .pth are read as .bin is)."
    )


def _plain(name):
    """A name without what `torch.compile` adds to those of a compiled part."""
    return re.sub(r"(?:(?<=\.)|^)_orig_mod\.", "", name)


def _open_torch(path):
    content = read_torch_file(path)
    state = _state_dict(content)
    if state is None:
        skipped = next((value.kind for value in contents(content).values() if isinstance(value, Skipped)), None)
        raise ValueError(
            f"{path} holds {skipped}, which is refused because loading it could run code; nothing was executed."
            if skipped
            else f"{path} holds no state dict of tensors. Received: {type(content).__name__}."
        )
    return {name: partial(to_array, f"{path}: {name}", tensor) for name, tensor in state.items()}


def _state_dict(content, depth=3):
    """The tensors by name in what a PyTorch file holds: those of an autoencoder where there are any."""
    inside = contents(content)
    named = ((name, value) for name, value in inside.items() if isinstance(name, str))
    tensors = {_plain(name): value for name, value in named if hasattr(value, "detach")}
    if any(name.endswith(MARK) for name in tensors):
        return tensors
    parts = [name for name in inside if contents(inside[name])] if depth else []
    for name in sorted(parts, key=lambda name: (not is_average(name), name not in ("state_dict", "model"))):
        inner = _state_dict(inside[name], depth - 1)
        if inner and any(one.endswith(MARK) for one in inner):
            return inner
    return tensors if tensors or content == {} else None


def is_average(name):
    """Whether a part of a file, or a prefix of names, is an average of weights over the training by its name."""
    return "ema" in re.split(r"[._]", str(name))
