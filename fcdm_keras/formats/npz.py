"""Arrays in `.npz` and `.npy` files, read and written in pieces: 50,000 images of 512² do not fit in memory.

Which of the two a file is, its first bytes say, not its name. A `.npy` file is read as its only array, `arr_0`.
"""

import contextlib
import io
import math
import zipfile
from pathlib import Path

import numpy as np

from fcdm_keras.files import replacing
from fcdm_keras.formats import archives, numbers, regular
from fcdm_keras.machine import memory

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzArray:
    """One array of such a file, read in order without loading all of it. Sizes are checked when it is opened.

    Args:
        path: the file.
        name: the array's name.
        kinds: letters of NumPy's kinds of numbers that it may hold.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: the file is neither, is cut short, or has no such array or one of other numbers.
        OSError: the file cannot be read.
    """

    def __init__(self, path, name="arr_0", kinds="fiub"):
        self.path, self.name = Path(path), name
        names = array_names(path)
        if name not in names:
            raise ValueError(f"{path} must hold an array {name}. Received: {', '.join(names) or 'no arrays'}")
        with self._open() as (file, length):
            self.shape, self._fortran, self.dtype = self._header(file)
            self._offset = file.tell()
        numbers.check_kind(str(self), self.dtype, kinds)
        if length - self._offset != self.nbytes or any(side < 0 for side in self.shape):
            raise ValueError(f"{self} is cut short. Received: {length - self._offset:,} bytes for shape {self.shape}")

    def __str__(self):
        return f"{self.name} of {self.path}"

    def __len__(self):
        if not self.shape:
            raise ValueError(f"{self} must hold one row for each sample. Received: a single number")
        return self.shape[0]

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def batches(self, size, stop=None):
        """Yields the rows before `stop` (default all) in arrays of `size` rows; the last one may be shorter.

        Raises:
            ValueError: the data does not fit its checksum, or a batch of it not into memory.
        """
        rows = len(self) if stop is None else min(stop, len(self))
        starts = range(0, rows, size)
        if self._fortran:  # a row lies all over the file
            whole = self.whole()
            yield from (whole[start : min(start + size, rows)] for start in starts)
            return
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._open() as (file, _):
            self._read(file, self._offset)
            for start in starts:
                count = min(size, rows - start)
                content = self._read(file, count * row_bytes)
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

    def whole(self):
        """All of it. Raises ValueError for floats that are not finite, and for data that does not fit into memory."""
        with self._open() as (file, _):
            self._read(file, self._offset)
            content = self._read(file, self.nbytes)
        array = np.frombuffer(content, self.dtype).reshape(self.shape, order="F" if self._fortran else "C")
        if self.dtype.kind == "f":
            numbers.check_finite(str(self), array)
        return array

    def mapped(self):
        """All of a `.npy` file, left on the disk until it is looked at; its numbers are not looked at here."""
        order = "F" if self._fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self._offset, self.shape, order) if self.nbytes else self.whole()

    @contextlib.contextmanager
    def _open(self):
        """The array as a file, and its bytes with those of the header."""
        if _is_npy(self.path):
            with open(self.path, "rb") as file:
                yield file, regular.size(self.path)
            return
        with archives.opened(self.path, ".npz file") as archive:
            entry = archive.getinfo(f"{self.name}.npy")
            try:
                file = archive.open(entry)
            except archives.DAMAGE:
                raise self._damaged() from None
            with file:
                yield file, entry.file_size

    def _header(self, file):
        try:
            return _READERS[np.lib.format.read_magic(file)](file)
        except Exception:  # NumPy parses it as Python: as many kinds as there are wrong texts
            raise ValueError(f"{self} is no NumPy array, or is damaged; save it again.") from None

    def _read(self, file, count):
        memory.check(count, str(self), "read less of it at once, or on a larger machine")
        try:
            content = file.read(count)
        except archives.DAMAGE:
            content = b""
        if len(content) != count:
            raise self._damaged()
        return content

    def _damaged(self):
        return ValueError(f"{self} is damaged: it does not fit its checksum; copy it again.")


def _is_npy(path):
    regular.size(path)
    with open(path, "rb") as file:
        return file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def array_names(path):
    """Names of the arrays in an `.npz` or `.npy` file. Raises ValueError if it is neither."""
    if _is_npy(path):
        return ["arr_0"]
    with archives.opened(path, ".npz file") as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def load_small(path, name="arr_0", kinds="fiubU"):
    """A whole array of such a file; arguments and errors as `NpzArray` has them, and finite numbers only."""
    return NpzArray(path, name, kinds).whole()


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
