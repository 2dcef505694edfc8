"""The door of zip archives, which `.npz`, `.keras` and PyTorch's files are.

What an archive declares is compared with the file before anything is unpacked.
"""

import contextlib
import struct
import zipfile
import zlib

from fcdm_keras.formats import regular

# What the reader of a damaged entry raises.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError)
_LARGE, _RATIO = 2**27, 200  # an entry is a bomb if it is larger, and so many times what is stored of it
_HEADER = 30  # bytes before each entry, without its name
_AGAIN = "write or copy it again"


class UnfitArchiveError(ValueError):
    """A zip archive that declares what is not unpacked."""


@contextlib.contextmanager
def opened(path, kind="zip archive"):
    """A `zipfile.ZipFile` whose entries are not encrypted, fit the file, and do not unpack to more than they should.

    Args:
        path: the file.
        kind: what it should be, for the error.

    Raises:
        ValueError: it is no such archive.
        OSError: it cannot be read.
    """
    length = regular.size(path)
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE:
        raise ValueError(f"{path} is no {kind}, or is cut short; {_AGAIN}.") from None
    with archive:
        if reason := _fault(archive.infolist(), length):
            raise UnfitArchiveError(f"{path} is no {kind} that can be read: {reason}.")
        yield archive


def check(path, kind="zip archive"):
    """Raises as `opened`, for what another library will read."""
    with opened(path, kind):
        pass


def _fault(entries, length):
    """What is wrong with an archive's entries, as a phrase; `None` if nothing is."""
    seen, end = set(), 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name, stored = entry.filename[:200], entry.compress_size
        if entry.flag_bits & 1:
            return f"{name} is encrypted; save it without a password"
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"{name} is compressed by method {entry.compress_type}; save it uncompressed, or deflated"
        if name in seen:
            return f"{name} is in it twice; {_AGAIN}"
        if entry.header_offset < end or entry.header_offset + _HEADER + stored > length:
            return f"{name} overlaps another entry, or ends behind the file; {_AGAIN}"
        if entry.compress_type == zipfile.ZIP_STORED and stored != entry.file_size:
            return f"{name} declares {entry.file_size:,} bytes, and holds {stored:,}; {_AGAIN}"
        if entry.file_size > max(_LARGE, _RATIO * stored):
            return f"{name} declares {entry.file_size:,} bytes in {stored:,}; save it uncompressed"
        seen.add(name)
        end = entry.header_offset + _HEADER + stored
    return None
