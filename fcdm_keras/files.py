"""Small files that are whole or absent at any moment. Standard library only."""

import contextlib
import os
import socket


@contextlib.contextmanager
def replacing(path, mode="wb", **options):
    """A file, opened as by `open`, that takes the place of `path` (a `Path`) once it is written and on disk."""
    unfinished = path.with_name(f".unfinished-{path.name}-{socket.gethostname()}-{os.getpid()}")
    with open(unfinished, mode, **options) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_atomically(path, text):
    """Writes `text` to `path` (a `Path`) under another name first, and renames it when it is on disk."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(text)
