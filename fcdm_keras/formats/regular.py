"""Regular files: what is a folder, a device, a pipe or far too large is refused before a byte of it is read."""

import os
import stat

_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def size(path, limit=None):
    """Bytes of a regular file.

    Args:
        path: its path; links are followed.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it may not be looked at, or is no regular file.
        ValueError: it has more bytes.
    """
    status = os.stat(path)
    for holds, kind in _OTHERS:
        if holds(status.st_mode):
            raise OSError(f"{path} is {kind}, and a file is needed.")
    if limit is not None and status.st_size > limit:
        raise ValueError(f"{path} has {status.st_size:,} bytes; such a file has at most {limit:,}.")
    return status.st_size
