"""Where an autoencoder's files lie, in a folder or on the Hugging Face Hub, and their tensors as NumPy arrays.

Nothing stored in a file is executed: `.safetensors` holds numbers only, `.bin` is read with PyTorch's restricted
unpickler.
"""

import json
import re
from pathlib import Path

import huggingface_hub
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fcdm_keras.network.reference import read_torch_file

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
_SUFFIXES = (".safetensors", ".bin")
_FORMATS = f"{WEIGHTS}.safetensors or {WEIGHTS}.bin"


def locate(source, revision=None):
    """The configuration and the weight files of an autoencoder.

    Args:
        source: folder, folder with such a folder `vae/`, weight file, or the id of a repository on the Hub.
        revision: of the repository.

    Returns:
        Path of `config.json` and a list of weight files.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that lists the parts of sharded weights is damaged.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise ValueError(f"An autoencoder's weights are a {' or '.join(_SUFFIXES)} file. Received: {path}")
        config, files = path.parent / CONFIG, [path]
        if not config.is_file():
            raise FileNotFoundError(f"{path} has no {CONFIG} beside it, which gives the network's sizes.")
        return config, files
    if path.is_dir():
        return _in_folder(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not str(source).startswith("."):
        return _in_folder(_download(str(source), revision))
    raise FileNotFoundError(
        f"There is no autoencoder at {source}: expected a folder with {CONFIG} and {_FORMATS}, or a Hub id."
    )


def read_tensors(files):
    """All tensors of weight files by name, as NumPy arrays in the files' layout.

    Raises:
        ValueError: a file is damaged, holds other objects than tensors, or repeats a name.
    """
    tensors = {}
    for path in files:
        part = _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
        if repeated := sorted(tensors.keys() & part.keys()):
            raise ValueError(f"{path} holds {repeated[0]}, which another file holds as well.")
        tensors.update(part)
    return tensors


def _in_folder(folder):
    if not (folder / CONFIG).is_file() or not _weights(folder):
        folder = folder / "vae" if (folder / "vae" / CONFIG).is_file() else folder
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}, and no folder vae/ with one: it holds no autoencoder.")
    files = _weights(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no weights: expected {_FORMATS}. Received: {_listed(folder)}")
    return folder / CONFIG, files


def _weights(folder):
    for suffix in _SUFFIXES:
        if (folder / f"{WEIGHTS}{suffix}").is_file():
            return [folder / f"{WEIGHTS}{suffix}"]
        index = folder / f"{WEIGHTS}{suffix}.index.json"
        if index.is_file():
            return _parts(index)
    return []


def _parts(index):
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error!r}.") from None
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{index} lists {path.name}, which is not there; copy all parts.")
    return paths


def _listed(folder):
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder"


def _download(name, revision):
    """Folder of a Hub repository's autoencoder; `.bin` is only fetched where there are no `.safetensors`."""
    folder = None
    for suffix in _SUFFIXES:
        wanted = [CONFIG, f"{WEIGHTS}{suffix}", f"{WEIGHTS}-*{suffix}", f"{WEIGHTS}{suffix}.index.json"]
        patterns = [*wanted, *(f"vae/{pattern}" for pattern in wanted)]
        try:
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
        except Exception as error:  # of the network, of the Hub, of the disk: all say what in their first line
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise FileNotFoundError(
                f"There is no folder {name} here, and the Hugging Face Hub gave no repository {name}: {reason}"
            ) from None
        if _weights(folder) or _weights(folder / "vae"):
            break
    return folder


def _read_safetensors(path):
    try:
        return load_file(path)
    except SafetensorError:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file; copy the file again.") from None
    except KeyError as error:  # NumPy has no such type
        raise ValueError(f"{path} holds numbers of type {error}; convert it to float32 or float16.") from None


def _read_bin(path):
    state = read_torch_file(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(hasattr(value, "detach") for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors. Received: {type(state).__name__}.")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}
