"""Arrays in `.npz` files, read and written in pieces: 50,000 images of 512² do not fit in memory."""

import io
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

PIECE = 1 << 24  # bytes read at once


class NpzArray:
    """One array of an `.npz` file, read in order without loading all of it. Sizes are checked when it is opened.

    Args:
        path: the file.
        name: the array's name.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: the file is no `.npz`, is cut short, or has no such array or one that cannot be streamed.
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
        with zipfile.ZipFile(path) as archive:
            stored = archive.getinfo(f"{name}.npy").file_size - self._offset
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

    def _open(self):
        return zipfile.ZipFile(self.path).open(f"{self.name}.npy")


def array_names(path):
    """Names of the arrays in an `.npz` file. Raises ValueError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no .npz file, or is cut short; write or copy it again.") from None


def load_small(path, name):
    """A whole array of an `.npz` file. Raises ValueError as `NpzArray` does."""
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
    """Writes an `.npz` file whose `arr_0` arrives in pieces, so that a kill loses nothing.

    The pieces are appended to `<path>.part`, which has the layout of the finished file from the start; `finish` adds
    the checksum, the other arrays and the directory, and renames it.

    Args:
        path: file to write.
        shape: shape of the whole `arr_0`, `(N, …)`.
        dtype: its type.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path, shape, dtype="uint8"):
        self.path = Path(path)
        self.part = self.path.with_name(self.path.name + ".part")
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, description)
        self._npy_header = header.getvalue()
        self._start = len(self._entry().FileHeader(zip64=True))
        self._first_row = self._start + len(self._npy_header)
        if self._part_header() != self._npy_header:
            self.part.write_bytes(self._entry().FileHeader(zip64=True) + self._npy_header)
        self.truncate(self.rows)  # a row cut short by a kill

    def _part_header(self):
        if not self.part.exists():
            return None
        with open(self.part, "rb") as file:
            file.seek(self._start)
            return file.read(len(self._npy_header))

    @property
    def rows(self):
        """Whole rows written so far."""
        return min((self.part.stat().st_size - self._first_row) // self._row_bytes, self.shape[0])

    def truncate(self, rows):
        """Forgets the rows from number `rows` on."""
        os.truncate(self.part, self._first_row + rows * self._row_bytes)

    def append(self, rows):
        """Adds rows `(B, …)`."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"Rows must be {self.dtype} {self.shape[1:]}. Received: {rows.dtype} {rows.shape[1:]}")
        with open(self.part, "ab") as file:
            file.write(np.ascontiguousarray(rows).tobytes())

    def finish(self, **arrays):
        """Completes the file with further, small arrays. Raises ValueError if rows are missing."""
        if self.rows != self.shape[0]:
            raise ValueError(f"{self.path} needs {self.shape[0]} rows before it is finished. Received: {self.rows}")
        self.truncate(self.shape[0])  # a directory that a kill left behind
        entry = self._entry()
        with open(self.part, "r+b") as file:
            file.seek(self._start)
            while piece := file.read(PIECE):
                entry.CRC = zlib.crc32(piece, entry.CRC)
            file.seek(0)
            file.write(entry.FileHeader(zip64=True))
            with zipfile.ZipFile(file, "a") as archive:  # at the end, as behind a program that unpacks itself
                archive.filelist.append(entry)
                archive.NameToInfo[entry.filename] = entry
                for name, array in arrays.items():
                    content = io.BytesIO()
                    np.save(content, array)
                    archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
        os.replace(self.part, self.path)

    def _entry(self):
        entry = zipfile.ZipInfo("arr_0.npy")  # without the time, so that equal arrays make equal files
        entry.file_size = entry.compress_size = len(self._npy_header) + self.shape[0] * self._row_bytes
        entry.CRC, entry.header_offset, entry.external_attr = 0, 0, 0o600 << 16
        return entry
