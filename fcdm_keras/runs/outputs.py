"""The gate of what commands write: nothing goes that they did not make, unless --overwrite says so.

Standard library only. A folder is known by a file in it, see `kind_of`; a file by a mark that its command puts near its
beginning or end. What the same command made may be written again. With --overwrite anything that a command of ours made
is replaced, once the new one is whole and on disk; a folder of other programs' files never is, nor one that holds what
is read.
"""

import os
from pathlib import Path

from fcdm_keras.files import remove_leftovers

RUN, PRESET, STORE, IMAGES = "a run", "a preset", "a latent store", "a folder of drawn images"

_OURS = (RUN, PRESET, STORE, IMAGES)  # what may be replaced as a whole
_NEAR = 2**16  # bytes at either end of a file in which its mark is looked for
_MARKED = (  # a file, a mark in it, and what the folder is
    ("settings.json", b'"shard_size"', STORE),
    ("settings.json", b'"sampler"', IMAGES),
    ("settings.json", b'"block_out_channels"', RUN),
    ("config.json", b'"recipe"', RUN),
)


def kind_of(folder):
    """What a folder is to us, as a phrase; `None` where there is none, and where it holds nothing of ours."""
    folder = Path(folder)
    for name, mark, kind in _MARKED:
        if _has(folder / name, mark):
            return kind
    if (folder / "config.json").exists():
        if (folder / "metadata.json").exists():
            return PRESET
        return RUN if (folder / "checkpoints").exists() or (folder / "log.csv").exists() else "another program's model"
    if (folder / "store.json").exists():
        return STORE
    return "a folder of checkpoints" if any(folder.glob("step-*/checkpoint.json")) else None


def check_folder(folder, makes, *, overwrite=False, inputs=(), place="--output"):
    """Raises ValueError unless a command may write to a folder.

    Args:
        folder: the folder.
        makes: what the command makes there, one of this file's names.
        overwrite: whether `--overwrite` was given; `None` where the command has no such flag.
        inputs: what the command reads, paths or addresses.
        place: the flag that names another folder.
    """
    folder, kind = Path(folder), kind_of(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and {makes} is to be written there: give another {place}.")
    for source in filter(os.path.exists, map(str, filter(None, inputs))):
        real, read = os.path.realpath(folder), os.path.realpath(source)
        if read == real or (overwrite and kind and read.startswith(real + os.sep)):
            raise ValueError(f"{folder} holds {source}, which is read: give another {place}.")
    if kind == RUN and overwrite and any(folder.glob(".owner/*")):
        raise ValueError(f"{folder} is in use by another command (.owner there names it): give another {place}.")
    if kind not in (None, makes) and not (overwrite and kind in _OURS):
        remedy = ", or --overwrite to replace it as a whole" if overwrite is False and kind in _OURS else ""
        raise ValueError(f"{folder} is {kind}, and {makes} is to be written there: give another {place}{remedy}.")


def check_file(path, mark, *, overwrite=False, inputs=(), place="--output"):
    """Raises ValueError unless a command may write a file: there is none, or one that the same command wrote.

    Args:
        path: the file.
        mark: bytes near the beginning or the end of a file that the command wrote.
        overwrite, inputs, place: see `check_folder`.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{place} {path}: that is a folder, and a file is to be written.")
    real = Path(os.path.realpath(path))
    if not real.parent.is_dir():
        raise ValueError(f"{place} {path}: there is no folder {real.parent}.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{place} {path}: that is a device, and a file is to be written.")
    remove_leftovers(real.parent, real.name)
    if overwrite or not path.exists():
        return
    if any(os.path.exists(source) and os.path.samefile(source, path) for source in map(str, filter(None, inputs))):
        raise ValueError(f"{place} {path} is read by this command: give another file, or --overwrite to replace it.")
    if not _has(path, mark):
        raise ValueError(
            f"{place} {path} was not written by this command: give another file, or --overwrite to replace it."
        )


def _has(file, mark):
    """Whether a file has a mark near its beginning or its end."""
    try:
        with open(file, "rb") as content:
            found = mark in content.read(_NEAR)
            content.seek(max(0, os.fstat(content.fileno()).st_size - _NEAR))
            return found or mark in content.read(_NEAR)
    except OSError:
        return False
