"""The door of HDF5 files, which Keras's weights are, and of `.keras` files, which hold one.

What a file declares is compared with what is stored before Keras takes memory for it; links lead nowhere.
"""

import contextlib
import io

import h5py
import ml_dtypes

from fcdm_keras.formats import archives, regular
from fcdm_keras.formats.numbers import check_finite, check_kind
from fcdm_keras.machine import memory

_LARGE, _RATIO = 2**24, 50  # a compressed array is a bomb if it is larger, and so many times what is stored of it
_DAMAGE = (OSError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError)  # of h5py
_SHOWN = 300  # characters of an error
_WEIGHTS = "model.weights.h5"  # in a `.keras` file


@contextlib.contextmanager
def checked(file, finite=True):
    """A context in which a file that `check_weights` has passed is loaded. Raises ValueError where it lacks a part."""
    check_weights(file, finite=finite)
    try:
        yield
    except (*_DAMAGE, ValueError) as error:
        if type(error) is ValueError and "\n" not in str(error):
            raise
        raise ValueError(f"{file} does not fit, or lacks a part ({one_line(error)}).") from None


def one_line(error):
    """An error of Keras or h5py, which may have many lines, as a phrase."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")[:_SHOWN]


def check_weights(file, name=None, finite=True):
    """Looks through a file of weights before it is loaded.

    Args:
        file: path of an HDF5 file, or such a file opened for reading.
        name: what to call it in errors; default its path.
        finite: whether all floats must be finite.

    Returns:
        The numbers that it holds.

    Raises:
        ValueError: it is damaged, has links to elsewhere, arrays of which it stores no numbers, or numbers that are
            none of weights.
        OSError: it cannot be read.
    """
    name = name or file
    if not hasattr(file, "read"):
        regular.size(file)
    try:
        with h5py.File(file, "r") as content:
            return sum(_checked(item, f"{name}: {path}", finite) for path, item in _datasets(content, "", name, set()))
    except _DAMAGE as error:
        raise ValueError(f"{name} is no HDF5 file, or is damaged ({one_line(error)}); copy it again.") from None


def _checked(dataset, where, finite):
    declared, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if declared > (stored if dataset.compression is None else max(_LARGE, _RATIO * stored)):
        raise ValueError(f"{where} declares {declared:,} bytes, and {stored:,} are stored; copy the file again.")
    memory.check(declared, where, "load it on a larger machine")
    half = str(dataset.attrs.get("dtype")) == "bfloat16"  # as Keras marks it
    check_kind(where, dataset.dtype, "fiubV" if half else "fiub")
    if finite and (half or dataset.dtype.kind == "f"):
        values = dataset[()]
        check_finite(where, values.view(ml_dtypes.bfloat16) if half else values)
    return dataset.size


def _datasets(group, path, name, seen):
    """Path and dataset of all that an open file holds; `seen` are the groups so far."""
    place = h5py.h5o.get_info(group.id).addr
    if place in seen:
        raise ValueError(f"{name}: the group {path or '/'} lies in itself, or in two places; copy the file again.")
    seen.add(place)
    for key in group:
        own = f"{path}/{key}".lstrip("/")
        if type(group.get(key, getlink=True)) is not h5py.HardLink:
            raise ValueError(f"{name}: {own} is a link to another place, which is not followed; store it there.")
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, own, name, seen)
        elif item.is_virtual or item.external:
            raise ValueError(f"{name}: {own} lies in another file, which is not opened; store it there.")
        else:
            yield own, item


def check_keras_file(path):
    """Raises ValueError unless the weights in a `.keras` file can be loaded, see `check_weights`."""
    with archives.opened(path, "Keras model") as archive:
        memory.check(sum(entry.file_size for entry in archive.infolist()), path, "use a smaller model")
        with contextlib.suppress(KeyError):  # a model without weights has none
            try:
                content = archive.read(_WEIGHTS)
            except archives.DAMAGE:
                raise ValueError(f"{path} is damaged: {_WEIGHTS} does not fit its checksum; copy it again.") from None
            check_weights(io.BytesIO(content), path)
