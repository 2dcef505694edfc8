"""Where an autoencoder's files lie, in a folder or on the Hugging Face Hub."""

import re
from pathlib import Path

import huggingface_hub

from fcdm_keras.autoencoders.tensor_files import MARK, SUFFIXES, open_tensors
from fcdm_keras.formats.weight_index import read_parts

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
_PUBLISHED = (".safetensors", ".bin")
_FEW = 3  # files of other names that are fetched to look into
_FORMATS = f"{WEIGHTS}.safetensors or {WEIGHTS}.bin"


def locate(source, revision=None):
    """The configuration and the weight files of an autoencoder.

    Args:
        source: folder, folder with such a folder `vae/`, weight file, or the id of a repository on the Hub.
        revision: of the repository.

    Returns:
        Path of `config.json`, `None` where there is none, and a list of weight files.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that lists the parts of sharded weights is damaged, or several files are possible.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _config_of(path.parent), [path]
    if path.is_dir():
        return _in_folder(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not str(source).startswith("."):
        return _in_folder(_download(str(source), revision))
    raise FileNotFoundError(
        f"There is no autoencoder at {source}: expected a folder with {CONFIG} and {_FORMATS}, a weight file, or a Hub "
        "id."
    )


def read_tensors(files):
    """All tensors of weight files by name, as float32 NumPy arrays in the files' layout.

    Raises:
        ValueError: a file is damaged, holds other numbers than weights, or repeats a name.
    """
    return {name: read_tensor() for name, read_tensor in open_tensors(files).items()}


def _config_of(folder):
    return folder / CONFIG if (folder / CONFIG).is_file() else None


def _in_folder(folder):
    for place in (folder, folder / "vae"):
        if _config_of(place) and (files := _weights(place)):
            return place / CONFIG, files
    for place in (folder, folder / "vae"):
        if file := _other_weights(place):
            return _config_of(place), [file]
    place = folder / "vae" if _config_of(folder / "vae") else folder
    if not _config_of(place):
        raise FileNotFoundError(f"{folder} has no {CONFIG}, and no folder vae/ with one: it holds no autoencoder.")
    raise FileNotFoundError(f"{place} has no weights: expected {_FORMATS}. Received: {_listed(place)}")


def _weights(folder):
    """The files of an autoencoder under diffusers' names: in full precision or, where there is none, of a variant."""
    for suffix in _PUBLISHED:
        if (folder / f"{WEIGHTS}{suffix}").is_file():
            return [folder / f"{WEIGHTS}{suffix}"]
        index = folder / f"{WEIGHTS}{suffix}.index.json"
        if index.is_file():
            return read_parts(index)
    for suffix in _PUBLISHED:
        whole = [path for path in folder.glob(f"{WEIGHTS}.*{suffix}") if not re.search(r"-\d+-of-\d+", path.name)]
        variants = {path.name.split(".")[1]: path for path in whole}
        for index in folder.glob(f"{WEIGHTS}{suffix}.index.*.json"):
            variants[index.name.split(".")[3]] = index
        if not variants:
            continue
        if len(variants) > 1 and "fp16" not in variants:
            raise ValueError(
                f"{folder} holds the variants {', '.join(sorted(variants))}; give the file of one of them."
            )
        chosen = variants.get("fp16") or next(iter(variants.values()))
        return read_parts(chosen) if chosen.suffix == ".json" else [chosen]
    return []


def _other_weights(folder):
    """The one weight file of a folder that holds an autoencoder, under any name; `None` where there is none."""
    files = _distinct(sorted(path for path in folder.glob("*.*") if path.suffix in SUFFIXES))
    if len(files) < 2:
        return files[0] if files else None
    found, errors = [], []
    for path in files:
        try:
            found += [path] if any(name.endswith(MARK) for name in open_tensors([path])) else []
        except ValueError as error:
            errors.append(error)
    if len(found) > 1:
        raise ValueError(f"{folder} holds several autoencoders: give one of {', '.join(path.name for path in found)}.")
    if not found and errors:
        raise errors[0]
    return found[0] if found else None


def _distinct(files):
    """Without the files that `.safetensors` of the same name stand beside."""
    stems = {path.stem for path in files if path.suffix == ".safetensors"}
    return [path for path in files if path.suffix == ".safetensors" or path.stem not in stems]


def _listed(folder):
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder"


def _download(name, revision):
    """Folder of a Hub repository's autoencoder, of which the first form that is there is fetched.

    The forms: diffusers' in full precision, `.safetensors` before `.bin`; a variant; one weight file of another name.
    """
    wanted = [
        *([f"{WEIGHTS}{suffix}", f"{WEIGHTS}-*{suffix}", f"{WEIGHTS}{suffix}.index.json"] for suffix in _PUBLISHED),
        *([f"{WEIGHTS}*.*{suffix}", f"{WEIGHTS}{suffix}.index.*.json"] for suffix in _PUBLISHED),
    ]
    for files in wanted:
        patterns = [CONFIG, *files]
        folder = _snapshot(name, revision, [*patterns, *(f"vae/{pattern}" for pattern in patterns)])
        if _weights(folder) or _weights(folder / "vae"):
            return folder
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        names = map(Path, huggingface_hub.list_repo_files(name, revision=revision))
        others = _distinct([path for path in names if len(path.parts) == 1 and path.suffix in SUFFIXES])
        if 0 < len(others) <= _FEW:
            return _snapshot(name, revision, [CONFIG, *map(str, others)])
    return folder


def _snapshot(name, revision, patterns):
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the network, of the Hub, of the disk: all say what in their first line
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(
            f"There is no folder {name} here, and the Hugging Face Hub gave no repository {name}: {reason}"
        ) from None
