"""Arrays in `.npz` and `.npy` files, read and written in pieces: 50,000 images of 512² do not fit in memory.

Which of the two a file is, its first bytes say, not its name. A `.npy` file is read as its only array, `arr_0`.
"""

import contextlib
import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fcdm_keras.files import replacing


class NpzArray:
    """One array of such a file, read in order without loading all of it. Sizes are checked when it is opened.

    Args:
        path: the file.
        name: the array's name.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: the file is neither, is cut short, or has no such array or one that cannot be streamed.
        OSError: the file cannot be read.
    """

    def __init__(self, path, name="arr_0"):
        self.path, self.name = Path(path), name
        names = array_names(path)
        if name not in names:
            raise ValueError(f"{path} must hold an array {name}. Received: {', '.join(names) or 'no arrays'}")
        with self._open() as file:
            self.shape, fortran, self.dtype = _read_header(file, self)
            self._offset = file.tell()
        if self.dtype.hasobject or (fortran and len(self.shape) > 1):
            raise ValueError(
                f"{name} of {path} must be a plain array in C order. Received: {self.dtype}; save it again."
            )
        stored = _stored_bytes(self.path, name) - self._offset
        if stored != math.prod(self.shape) * self.dtype.itemsize:
            raise ValueError(f"{name} of {path} is cut short. Received: {stored:,} bytes for shape {self.shape}")

    def __len__(self):
        return self.shape[0]

    def batches(self, size, stop=None):
        """Yields the rows before `stop` (default all) in arrays of `size` rows; the last one may be shorter.

        Raises:
            ValueError: the data does not fit its checksum.
        """
        rows = len(self) if stop is None else min(stop, len(self))
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._open() as file:
            _read(file, self._offset, self)
            for start in range(0, rows, size):
                count = min(size, rows - start)
                content = _read(file, count * row_bytes, self)
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def rows(self, places, size):
        """Yields the rows at ascending `places` in arrays of `size` rows; the last one may be shorter.

        Raises:
            ValueError: the data does not fit its checksum.
        """
        kept, first = [], 0
        for batch in self.batches(size, places[-1] + 1 if len(places) else 0):
            kept.extend(batch[places[(places >= first) & (places < first + len(batch))] - first])
            first += len(batch)
            while len(kept) >= size:
                yield np.stack(kept[:size])
                del kept[:size]
        if kept:
            yield np.stack(kept)

    def _open(self):
        return open(self.path, "rb") if _is_npy(self.path) else zipfile.ZipFile(self.path).open(f"{self.name}.npy")


def _is_npy(path):
    with open(path, "rb") as file:
        return file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def _stored_bytes(path, name):
    if _is_npy(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(f"{name}.npy").file_size


def array_names(path):
    """Names of the arrays in an `.npz` or `.npy` file. Raises ValueError if it is neither."""
    if _is_npy(path):
        return ["arr_0"]
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no .npz file, or is cut short; write or copy it again.") from None


def load_small(path, name):
    """A whole array of such a file. Raises ValueError as `NpzArray` does."""
    array = NpzArray(path, name)
    with array._open() as file:
        _read(file, array._offset, array)
        return np.frombuffer(_read(file, None, array), array.dtype).reshape(array.shape)


def _read_header(file, array):
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return reader(file)
    except (ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        raise ValueError(f"{array.name} of {array.path} is no NumPy array, or is damaged; save it again.") from None


def _read(file, count, array):
    try:
        content = file.read() if count is None else file.read(count)
    except (zlib.error, zipfile.BadZipFile, EOFError):
        content = None
    if content is None or (count is not None and len(content) != count):
        raise ValueError(f"{array.name} of {array.path} is damaged: it does not fit its checksum; copy it again.")
    return content


class NpzWriter:
    """Writes an `.npz` file whose `arr_0`, uint8, arrives in pieces. A context: the file is there, whole, when it ends.

    Args:
        path: file to write, a `Path` or a string. It stays as it was if the context ends with an error.
        shape: shape of the whole `arr_0`, `(N, …)`.

    Attributes:
        rows: rows written so far.

    Raises:
        OSError: the file cannot be written.

    Example:

    ```python
    with NpzWriter("samples.npz", (50_000, 256, 256, 3)) as writer:
        for images in batches:
            writer.append(images)
        writer.finish(arr_1=labels)
    ```
    """

    def __init__(self, path, shape):
        self.path, self.shape = Path(path), tuple(shape)
        self.rows = 0

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(replacing(self.path)), "w"))
            entry = zipfile.ZipInfo("arr_0.npy")  # without the time, so that equal arrays make equal files
            self._array = stack.enter_context(self._archive.open(entry, "w", force_zip64=True))
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype("uint8")), "fortran_order": False}
            np.lib.format.write_array_header_1_0(self._array, {**header, "shape": self.shape})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def append(self, rows):
        """Adds rows `(B, …)`. Raises ValueError for another type or shape."""
        if rows.dtype != np.uint8 or rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"Rows must be uint8 {self.shape[1:]}. Received: {rows.dtype} {rows.shape[1:]}")
        self._array.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def finish(self, **arrays):
        """Adds further, small arrays behind the last row. Raises ValueError if rows are missing."""
        if self.rows != self.shape[0]:
            raise ValueError(f"{self.path} needs {self.shape[0]} rows before it is finished. Received: {self.rows}")
        self._array.close()
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            self._archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
